"""What makes a first call quick in a new process: less to do for Python when it loads a hundred modules of ours.

`dataclass` makes a dataclass when it is needed: each takes Python half a millisecond or more, there are over a hundred,
and a process that calls one kernel needs a few. A class is what `dataclasses.dataclass` makes of it from its first
instance on, and as soon as anybody asks for its fields: a dataclass derived from it, `dataclasses.fields`, `replace`.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
                dataclasses.dataclass(**self._options)(self._cls)
                self.made = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: modules and traces allocate much that stays, and each time Python would look for
    cycles in it, and after a while in all that torch has allocated before, which takes longer than to load us.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
