"""What makes a first call quick in a new process: less to do for Python when it loads a hundred modules of ours.

`dataclass` makes a dataclass when it is needed: each takes Python half a millisecond or more, there are over a hundred,
and a process that calls one kernel needs a few. A class is what `dataclasses.dataclass` makes of it from its first
instance on, and as soon as anybody asks for its fields: a dataclass derived from it, `dataclasses.fields`, `replace`.
Four fifths of what is then left is text that Python compiles for each class, most of all for frozen ones. So all
methods are ours, and only `__init__` is text, which is shorter.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

BEGAN = time.time()  # when this process began to load our code: who asks for its source wants to know

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: Any = None, /, *, frozen: bool = False, eq: bool = True) -> Any:
        """As `dataclasses.dataclass`, later."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, eq=eq)
        unmade = _Unmade(cls, frozen, eq)

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

    def __init__(self, cls: Any, frozen: bool, eq: bool) -> None:
        self.made, self._cls, self._frozen, self._eq = False, cls, frozen, eq

    def __get__(self, instance: Any, owner: Any) -> Any:
        self.make()
        return self._cls.__dataclass_fields__

    def make(self) -> None:
        with self.lock:
            if not self.made:
                cls = self._cls
                bases = [base for base in cls.__mro__[1:] if hasattr(base, "__dataclass_fields__")]
                derived = any(base.__dataclass_params__.frozen for base in bases)  # which Python must know
                dataclasses.dataclass(init=False, repr=False, eq=False, frozen=self._frozen and derived)(cls)
                if "__init__" not in vars(cls):
                    cls.__init__ = _initialiser(cls, self._frozen)
                if "__repr__" not in vars(cls):
                    cls.__repr__ = _repr
                if self._eq:
                    _compare(cls, self._frozen)
                if self._frozen and not derived:
                    _freeze(cls)
                self.made = True


def _initialiser(cls: Any, frozen: bool) -> Any:
    """The `__init__` of a dataclass. Of a frozen one with the fields rows and label = "":

        def __init__(self, rows, label=_default_label):
            _assign(self, "rows", rows)
            _assign(self, "label", label)

    A field with a `default_factory` is made where its argument is the factory itself, which nobody passes.
    """
    names: dict[str, Any] = {"_assign": object.__setattr__, "__name__": cls.__module__}
    arguments, keywords, lines = ["self"], list[str](), list[str]()
    for field in dataclasses.fields(cls):
        name, default = field.name, f"_default_{field.name}"
        factory = field.default_factory is not dataclasses.MISSING
        names[default] = field.default_factory if factory else field.default
        has_default = names[default] is not dataclasses.MISSING
        if field.init:
            (keywords if field.kw_only else arguments).append(f"{name}={default}" if has_default else name)
            value = f"{default}() if {name} is {default} else {name}" if factory else name
        elif factory:
            value = f"{default}()"
        else:  # its default is the class's attribute
            continue
        lines.append(f" _assign(self, {name!r}, {value})\n" if frozen else f" self.{name} = {value}\n")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()\n")
    taken = ", ".join(arguments + ["*"] * bool(keywords) + keywords)
    exec(f"def __init__({taken}):\n{''.join(lines) or ' pass'}", names)
    made = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__annotations__ = {field.name: field.type for field in dataclasses.fields(cls) if field.init}
    return made


def _freeze(cls: Any) -> None:
    """Refuses to change fields; a subclass that is no dataclass may have attributes of its own."""
    fields = frozenset(field.name for field in dataclasses.fields(cls))

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in fields:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def delete_attribute(self: Any, name: str) -> None:
        if type(self) is cls or name in fields:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    cls.__setattr__, cls.__delattr__ = set_attribute, delete_attribute
    cls.__dataclass_params__.frozen = True


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
