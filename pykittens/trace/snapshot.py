"""The Python state around a region of a kernel: what the names of the user's frames mean, before and after.

A kernel is traced once, so Python state that changes inside a run-time branch or from one pass of a run-time loop to
the next would be frozen. It is found by comparing snapshots, which look into all that the author's code can change (see
`frozen.py`): what their frames name, and what the functions and classes that they come to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..errors import is_authors
from ..program import Value
from .frozen import ATOMS, Frozen, freeze, globals_of, names_of


class Snapshot:
    """What the names of some frames mean now: `before = Snapshot(frames)`, and later
    `before.changes(Snapshot(frames))`.
    """

    def __init__(self, frames: list[FrameType]):
        self.values: dict[tuple[Any, str], Any] = {}
        self.frozen: dict[tuple[Any, str], Any] = {}
        met: list[Any] = []
        for frame in frames:
            for name, value in frame.f_locals.items():
                self._hold(frame, name, value, met)
            if is_authors(frame.f_code.co_filename):
                for found in globals_of(frame.f_code, frame.f_globals):
                    self._hold(*found, met)
        seen: set[int] = set()
        for one in met:  # which grows
            if id(one) not in seen:
                seen.add(id(one))
                for found in names_of(one):
                    self._hold(*found, met)

    def _hold(self, owner: Any, name: str, value: Any, met: list[Any]) -> None:
        key = owner, name
        if key not in self.frozen:
            self.values[key] = value
            self.frozen[key] = freeze(value, met)

    def changes(
        self, after: Snapshot, same: Callable[[Any, Any], bool] | None = None, memos: bool = False
    ) -> Iterator[tuple[str, Any, Any]]:
        """(name, old, new) for every name of this state that means something else in `after`, as deep as snapshots
        look.

        memos: without dictionaries outside of the frames that have got entries, and lost or changed none: what helpers
        remember is the same whenever they first ask.
        """
        for key, old in self.frozen.items():
            if memos and not isinstance(key[0], FrameType) and has_grown(old, after.frozen.get(key)):
                continue
            if key in after.frozen and not equal(old, after.frozen[key], same or _identical):
                yield (
                    key[1],
                    self.values[key] if _atomic(old) else old,
                    after.values[key] if _atomic(old) else after.frozen[key],
                )


def has_grown(old: Any, new: Any) -> bool:
    """Whether a dictionary has got entries, and lost or changed none: it remembers what would be the same later."""
    if not all(isinstance(x, Frozen) and x.kind == "dict" for x in (old, new)):
        return False
    found = {id(k): x for k, x in new}
    return all(id(k) in found and equal(x, found[id(k)], _identical) for k, x in old)


def _atomic(value: Any) -> bool:
    return not isinstance(value, Frozen)


def _identical(a: Any, b: Any) -> bool:
    return a is b


def equal(a: Any, b: Any, same: Callable[[Any, Any], bool]) -> bool:
    """Whether two frozen values are the same; `same` decides for traced values and opaque objects."""
    if a is b and not isinstance(a, (Value, float, complex)):
        return True
    if isinstance(a, Value) or isinstance(b, Value):
        return isinstance(a, Value) and isinstance(b, Value) and same(a, b)
    if isinstance(a, Frozen) and isinstance(b, Frozen):
        return a.kind == b.kind and len(a) == len(b) and all(equal(x, y, same) for x, y in zip(a, b, strict=True))
    if isinstance(a, tuple) and isinstance(b, tuple):  # a name with what it means
        return len(a) == len(b) and all(equal(x, y, same) for x, y in zip(a, b, strict=True))
    if isinstance(a, ATOMS) and isinstance(b, ATOMS):
        return type(a) is type(b) and (a == b or (a != a and b != b))
    return a is b or (not isinstance(b, ATOMS) and not isinstance(a, ATOMS) and same(a, b))
