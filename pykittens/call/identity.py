"""What a function is, by content: its code and everything that it can reach, so that the same content is the same
program.

A function reaches its defaults, its closure's cells, and the globals, builtins, attributes and items that its code can
read (`reads.py`); of what it reaches, functions, methods, partials, classes and objects reach further. One walk makes
both

* a *summary* by value, in which 1, 1.0 and True differ, as 0.0 and -0.0 do, and NaN is NaN: equal summaries, equal
  programs;
* a *guard* (`guard.py`), which reads the same paths again at every call and compares objects by identity, in well under
  a microsecond. Where it fails, the summary is made anew and decides.

What can be bound anew is read again, what cannot change (numbers, strings, tuples of such) only once. Arrays and large
containers, which could not be read at every call, are refused. Installed libraries, PyKittens' vocabulary among them,
do not change while they are in use: their functions and classes count as the objects that they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

from .bounded import Bounded
from .values import leaf_of
from .walk import NOTHING, Asked, Walk

__all__ = ["Identities", "Identity", "identity", "leaf_of"]


class Identity:
    """The identity of some values: equal and equally hashed where their content is equal.

    `unchanged()` says whether all that they reach still is what it was; `steady` is False where that cannot be asked.
    Raises `TraceError` for what can be neither summarised nor read again.
    """

    def __init__(
        self, values: tuple[Any, ...], *, static: bool = False, label: str = "", asked: Asked = NOTHING
    ) -> None:
        walk = Walk(values, static, label, asked)
        self.asked = walk.asked
        self.content: Hashable = walk.summary
        self.steady = walk.steady
        self._hash = hash(self.content)
        self.guard = walk.guard
        self.values = values  # kept: the guard's are theirs

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Identity) and self._hash == other._hash and self.content == other.content
        )

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def unchanged(self) -> Callable[[], bool]:
        """Whether everything reached is, object for object, what it was."""
        return self.guard.function()


class Identities:
    """Identities that are made once for the same objects, and anew when what they reach has changed."""

    def __init__(self, most: int = 64) -> None:
        self._known: Bounded[tuple[Any, ...], Identity] = Bounded(most)

    def of(self, *values: Any, static: bool = False, label: str = "", asked: Asked = NOTHING) -> Identity:
        """The identity of values as they are now.

        `static`: they were passed to a kernel; what cannot be read again at every call then only costs time. `label`
        names them in errors. `asked`: what code that the values do not reach asks of them.
        """
        key = (static, asked, *map(id, values))  # which stay theirs: an identity keeps its values
        found = self._known.get(key)
        if found is None or not found.steady or not found.unchanged():
            found = Identity(values, static=static, label=label, asked=asked)
            self._known.keep(key, found)
        return found

    def beside(self, own: Identity, statics: dict[str, Any]) -> tuple[Identity, list[Identity]]:
        """The identity of a kernel that is passed `statics`, by name, and theirs: what its code asks of objects it may
        ask of them, and what theirs asks they may ask of its.
        """
        asked = own.asked
        while True:
            found = [self.of(x, static=True, label=name, asked=asked) for name, x in statics.items()]
            whole = asked.union(*(x.asked for x in found))
            if whole == asked:
                return (own if asked == own.asked else self.of(*own.values, asked=asked)), found
            asked = whole


identity = Identities().of  # for what no kernel remembers
