"""A dictionary that forgets: what is remembered of calls never grows without end."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """At most `most` entries; the oldest goes first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: V) -> V:
        """Puts a value in, and returns it."""
        while len(self) >= self._most and key not in self:
            try:
                self.pop(next(iter(self)), None)
            except (StopIteration, RuntimeError):  # another thread has changed it
                continue
        self[key] = value
        return value
