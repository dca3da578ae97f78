"""What makes a first call quick in a new process: less to do for Python when it loads a hundred modules of ours.

`dataclass` makes a dataclass when it is needed: each takes Python half a millisecond or more, there are over a hundred,
and a process that calls one kernel needs a few. A class is what `dataclasses.dataclass` makes of it from its first
instance on, and as soon as anybody asks for its fields: a dataclass derived from it, `dataclasses.fields`, `replace`.
Half of what is then left is text that Python compiles for each class: comparison and `__repr__` are ours.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`, later."""
        if cls is None:
            return lambda cls: dataclass(cls, **options)
        unmade = _Unmade(cls, options)

        def __new__(cls: Any, *args: Any, **named: Any) -> Any:
            if not unmade.made:
                unmade.make()
            return object.__new__(cls)

        cls.__new__ = __new__  # comes before __init__ is looked for, and for copies and pickles too
        cls.__dataclass_fields__ = unmade
        return cls


class _Unmade:
    """Stands for the fields of a class that is no dataclass yet, and is asked for them through the class."""

    lock = threading.RLock()

    def __init__(self, cls: Any, options: dict[str, Any]) -> None:
        self.made, self._cls, self._options = False, cls, options

    def __get__(self, instance: Any, owner: Any) -> Any:
        self.make()
        return self._cls.__dataclass_fields__

    def make(self) -> None:
        with self.lock:
            if not self.made:
                cls, options = self._cls, self._options
                dataclasses.dataclass(**{**options, "repr": False, "eq": False})(cls)
                if options.get("repr", True) and "__repr__" not in vars(cls):
                    cls.__repr__ = _repr
                if options.get("eq", True):
                    _compare(cls, options.get("frozen", False))
                self.made = True


def _repr(self: Any) -> str:
    """As a dataclass's own."""
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({shown})"


def _compare(cls: Any, frozen: bool) -> None:
    """Gives a class a dataclass's comparison, unless it has one."""
    names = [f.name for f in dataclasses.fields(cls) if f.compare]
    get: Any = attrgetter(*names) if len(names) > 1 else lambda self: tuple(getattr(self, name) for name in names)

    def equal(self: Any, other: object) -> Any:
        return get(self) == get(other) if other.__class__ is self.__class__ else NotImplemented

    own = vars(cls)
    if own.get("__hash__") is None:  # Python sets it to None beside an __eq__
        cls.__hash__ = (lambda self: hash(get(self))) if frozen else None
    if "__eq__" not in own:
        cls.__eq__ = equal


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: modules and traces allocate much that stays, and each time Python would look for
    cycles in it, and after a while in all that torch has allocated before, which takes longer than to load us.

    What is young at the end counts as old, so that Python does not go through all of it at once: `gc.freeze` takes
    everything out of the young generations, and `gc.unfreeze` puts it into the oldest.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if not gc.get_freeze_count():  # else somebody's objects would thaw
                gc.freeze()
                gc.unfreeze()
            gc.enable()
