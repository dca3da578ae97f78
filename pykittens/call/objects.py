"""The part of a walk that goes through modules, classes, objects and containers: see `walk.py`."""

from __future__ import annotations

import functools
import sys
import weakref
from collections import deque
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import is_dataclass
from enum import Enum
from operator import attrgetter, is_, methodcaller
from types import (
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any

from ..errors import TraceError, installed, module_of
from .guard import GuardTerms
from .values import (
    ABOUT,
    MISSING,
    MOST,
    Same,
    bytes_of,
    calls_back,
    hashable,
    is_array,
    is_vocabulary,
    leaf_of,
    same_method,
    scalar_reader,
    static_attribute,
)

_CONTAINERS = (tuple, list, dict, set, frozenset)
_WRITTEN = frozenset(("__repr__", "__hash__"))  # which count where an author wrote them: dataclasses have others
_HIDDEN = frozenset(("__repr__", "__hash__", "__reduce__", "__reduce_ex__", "__sizeof__", "__del__", "__dir__"))
_GENERATORS = (("random", "Random"), ("numpy.random", "Generator"), ("numpy.random", "RandomState"))
_FIELDS = (MemberDescriptorType, GetSetDescriptorType)
_UNREAD = frozenset(("__dict__", "__weakref__", "__class__", "__doc__"))


def _generators() -> tuple[type, ...]:
    """Of random numbers: those of modules that somebody has imported."""
    return tuple(getattr(sys.modules[module], name) for module, name in _GENERATORS if module in sys.modules)


class Objects:
    """What objects hold, as far as code can read it. `value` is the walk's own."""

    names: set[str]  # of attributes that code reads of anything
    any_name: bool  # ... or it reads any
    by_identity: bool  # ... or asks which object it is
    own: set[str]  # the packages of the functions that the walk began with
    guard: GuardTerms
    static: bool
    steady: bool

    def value(self, value: Any, path: str) -> Hashable:
        raise NotImplementedError

    def _module(self, module: ModuleType, path: str) -> Hashable:
        if is_vocabulary(module) or self._foreign(vars(module), getattr(module, "__file__", None)):
            return Same(module)
        names, held = self.names, vars(module)
        if self.any_name:  # by a computed name, such as `getattr(settings, name)`
            names = names | {name for name, x in held.items() if name[:2] != "__" and leaf_of(x) is not None}
        return (Same(module), self._names_of(held, names, path))

    def _names_of(self, space: dict[str, Any], names: set[str], path: str) -> Hashable:
        """Those of `names` that a namespace has."""
        here = sorted(names & set(space))
        for name in here:
            self.guard.add("{}[{}] is {}", space, name, space[name])
        self.guard.add("{}.keys().isdisjoint({})", space, frozenset(names - set(here)))
        return tuple((name, self.value(space[name], f"{path}.{name}")) for name in here)

    def _class(self, cls: type, path: str) -> Hashable:
        """A class is itself; its bases, what its own methods do, and what its attributes hold may change."""
        parts: list[Hashable] = [Same(cls)]
        if not self._foreign_class(cls):
            self.guard.add("{}.__mro__ is {}", cls, cls.__mro__)
            parts += [self._attribute_of(cls, name, path) for name in sorted(self.names & ABOUT)]
        if type(cls) is not type:
            parts.append(self.value(type(cls), f"type({path})"))
        whole = self.any_name or any(module_of(base).startswith("pykittens.") for base in cls.__mro__)
        for base in cls.__mro__:  # of an operation, for one, the compiler reads what it likes
            parts.append(Same(base))
            if self._foreign_class(base):
                continue
            space = vars(base)  # a view: it shows what comes later
            self.guard.add(f"{{}}({{}}) == {len(space)}", len, space)
            for name, value in list(space.items()):
                special = name.startswith("__") and isinstance(value, (FunctionType, classmethod, staticmethod))
                written = name in _WRITTEN and isinstance(value, FunctionType) and self._written(value)
                special = special and (written or name not in _HIDDEN)
                if name in self.names or special or (whole and name[:2] != "__"):
                    self.guard.add("{}[{}] is {}", space, name, value)
                    parts.append((name, self.value(value, f"{path}.{name}")))
        return ("class", *parts)

    def _written(self, function: FunctionType) -> bool:
        code = function.__code__
        return code.co_filename != "<string>" and not self._foreign(function.__globals__, code.co_filename)

    def _attribute_of(self, owner: Any, name: str, path: str) -> Hashable:
        """An attribute that a function has, or that says about a function or a class what it is."""
        if (value := getattr(owner, name, MISSING)) is MISSING:
            return (name, "unbound")
        self.guard.add(f"{{}}.{name} is {{}}", owner, value)
        return (name, self.value(value, f"{path}.{name}"))

    def _attribute(self, owner: Any, name: str, *, exactly: bool) -> Any:
        """An attribute that can be read again for what it is; `MISSING` where that is not sure, and then `owner`
        counts whole.
        """
        if isinstance(owner, ModuleType):
            if name not in vars(owner):
                return self._made_up(owner, name) if "__getattr__" in vars(owner) else MISSING
            self.guard.add("{}[{}] is {}", vars(owner), name, vars(owner)[name])
            return vars(owner)[name]
        if isinstance(owner, type) or is_array(owner):
            return MISSING
        held = getattr(owner, "__dict__", None)
        kind = static_attribute(type(owner), name)
        plain = same_method(type(owner), "__getattribute__")
        if plain and type(held) is dict and name in held and not hasattr(type(kind), "__set__"):
            self.guard.add("{}({}, {}) is {}", getattr, owner, name, held[name])
            return held[name]
        return MISSING

    def _made_up(self, module: ModuleType, name: str) -> Any:
        """What a module's own `__getattr__` finds."""
        value = getattr(module, name, MISSING)
        if getattr(module, name, MISSING) is value:
            self.guard.add("{}({}, {}, {}) is {}", getattr, module, name, MISSING, value)
            return value
        raise TraceError(
            f"the kernel reads {module.__name__}.{name}, which is made anew at every read",
            fix="pass it as a static value",
        )

    def _item(self, owner: Any, key: Any) -> Any:
        if type(owner) not in (list, dict, tuple):
            return MISSING
        try:
            value = owner[key]
        except (KeyError, IndexError, TypeError):
            return MISSING
        if type(owner) is not tuple:
            self.guard.add("{}[{}] is {}", owner, key, value)
        return value

    def _object(self, value: Any, path: str) -> Hashable:
        kind = type(value)
        if is_vocabulary(value):
            if isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):  # a kernel
                return (Same(value), self.value(wrapped, path))
            by_value = not same_method(kind, "__eq__") and kind.__hash__ is not None
            return (Same(kind), value) if by_value else Same(value)
        if isinstance(value, Enum):
            return (Same(value), self.value(kind, path), self.value(value.value, path))
        if isinstance(value, (weakref.ref, ContextVar)):
            read = value if isinstance(value, weakref.ref) else functools.partial(value.get, None)
            self.guard.add("{}() is {}", read, read())
            return (Same(value), self.value(read(), f"{path}()"))
        if kind in (attrgetter, methodcaller):  # which read attributes of what they are given
            made, arguments = value.__reduce__()[:2]  # with keywords, a partial makes it
            arguments = (*getattr(made, "args", ()), *arguments, getattr(made, "keywords", {}))
            self.names |= {name for text in arguments if isinstance(text, str) for name in text.split(".")}
            return (Same(kind), repr(value), self.value(arguments, path))
        if hasattr(kind, "__next__") or isinstance(value, _generators()):
            raise TraceError(
                f"the kernel reaches {path!r}, a {kind.__name__}, which every read changes",
                fix="pass what it yields as a static value: a number or a tuple",
            )
        contents = self._contents(value, path)
        if kind in _CONTAINERS:
            return (Same(kind), contents)
        if contents is None and self._foreign_class(kind) and not same_method(kind, "__eq__") and hashable(value):
            return (Same(kind), repr(value), value)  # a library's value: Decimal, date, Path, re.Pattern, torch.device
        self.guard.add("{}({}) is {}", type, value, kind)
        parts: list[Hashable] = [self.value(kind, path), contents]
        fields = self._fields(value, path)
        by_value = not same_method(kind, "__eq__")
        if not by_value and (self.by_identity or (not fields and contents is None)):
            parts.append(Same(value))  # `is` tells it from others, or nothing else does
        elif by_value and not fields and contents is None and not hasattr(value, "__dict__"):
            if kind.__hash__ is None:
                raise TraceError(
                    f"the kernel reaches {path!r}, a {kind.__name__}, whose content PyKittens cannot read",
                    fix="pass what it needs of it as a static value: numbers, strings, tuples, dataclasses",
                )
            parts.append((Same(kind), repr(value), value))
        return ("object", *parts, fields)

    def _contents(self, value: Any, path: str) -> Hashable | None:
        """The elements of a container, the bytes of a buffer; None for what holds none."""
        if isinstance(value, (tuple, frozenset)):
            return tuple(self.value(x, f"{path}[{i}]") for i, x in enumerate(value))
        if (size := bytes_of(value)) is not None:
            self._limited(size // 64, value, path)
            self.guard.add("{}({}) == {}", bytes, value, bytes(value))
            return bytes(value)
        if isinstance(value, (dict, MappingProxyType)):
            self._limited(2 * len(value), value, path)
            self._elements(value, value)
            self._elements(value, value.values())
            return tuple((self.value(k, path), self.value(x, f"{path}[{k!r}]")) for k, x in list(value.items()))
        if isinstance(value, (list, set, deque)):
            self._limited(len(value), value, path)
            self._elements(value, value)
            return tuple(self.value(x, f"{path}[{i}]") for i, x in enumerate(list(value)))
        if isinstance(value, (int, float, complex, str, bytes)):  # of a subclass
            base: Any = next(c for c in type(value).__mro__ if c in (int, float, complex, str, bytes))
            return leaf_of(base(value))
        return None

    def _elements(self, container: Any, elements: Any) -> None:
        """A container is read again, element by element. (`values()` of a dictionary shows what comes later.)"""
        now = (*elements,)
        self.guard.add(f"{{}}({{}}) == {len(now)}", len, container)
        if isinstance(container, list) and len(now) <= 16:
            for i, element in enumerate(now):
                self.guard.add(f"{{}}[{i}] is {{}}", container, element)
        elif now and all(type(element) is str for element in now):
            self.guard.add("(*{},) == {}", elements, now)  # equal strings are the same to a kernel
        elif now:
            self.guard.add("{}({}({}, {}, {}))", all, map, is_, elements, now)

    def _limited(self, size: int, value: Any, path: str) -> None:
        if size <= MOST:
            return
        if self.static:
            self.steady = False
            return
        raise TraceError(
            f"the kernel reads {path!r}, a {type(value).__name__} of {len(value)} elements, which would have to be "
            "compared at every call",
            fix="make it a tuple, which cannot change, or pass it as an operand or a static value",
        )

    def _fields(self, value: Any, path: str) -> tuple[Hashable, ...]:
        """The attributes that code may read of an object: all of what compares by value, else those whose names
        appear in code.
        """
        kind, found = type(value), []
        whole = self.any_name or is_dataclass(value) or not same_method(kind, "__eq__")
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            foreign = self._foreign_class(kind)  # whose own code, which reads what it likes, has not been looked at
            names = [
                name
                for name, x in held.items()
                if whole or name in self.names or name == "__wrapped__" or (foreign and calls_back(x))
            ]
            self.guard.add("{}.__dict__ is {}", value, held)
            if whole:
                self.guard.add(f"{{}}({{}}) == {len(held)}", len, held)
            else:
                self.guard.add("{}.isdisjoint({})", frozenset(self.names - set(names)), held)
            for name in names:
                self.guard.add("{}[{}] is {}", held, name, held[name])
                found.append((name, self.value(held[name], f"{path}.{name}")))
        else:
            held = {}
        slots = {n for base in kind.__mro__ for n, x in vars(base).items() if isinstance(x, _FIELDS)} - _UNREAD
        for name in sorted(slots if whole else slots & self.names):
            if not hasattr(value, name):
                self.guard.add("not {}({}, {})", hasattr, value, name)
            found.append((name, self._field(value, name, path)))
        if hasattr(kind, "__getattr__"):
            for name in sorted(self.names - slots - set(held)):
                if static_attribute(kind, name) is MISSING and (made := self._field(value, name, path)) != "unbound":
                    found.append((name, made))
        return tuple(found)

    def _field(self, value: Any, name: str, path: str) -> Hashable:
        """An attribute that lies in no dictionary: a slot, a field of C, what `__getattr__` finds."""
        try:
            first = getattr(value, name)
        except Exception:  # not there now
            return "unbound"
        if getattr(value, name) is first:
            self.guard.add("{}({}, {}) is {}", getattr, value, name, first)
        elif leaf_of(first) is not None:
            self.guard.add("{}({}({}, {})) == {}", leaf_of, getattr, value, name, leaf_of(first))
        else:
            raise TraceError(
                f"the kernel reads {path}.{name}, which is made anew at every read", fix="pass it as a static value"
            )
        return self.value(first, f"{path}.{name}")

    def _array(self, value: Any, path: str) -> Hashable:
        shape = tuple(getattr(value, "shape", ()))
        read = scalar_reader(value)
        if shape or read is None:
            what = f"an array of shape {shape}" if shape else "an array that is not in the CPU's memory"
            if self.static:
                raise TraceError(f"the static value {path!r} is {what}", fix="pass it to the kernel as an operand")
            raise TraceError(f"the kernel captures {path!r}, {what}", fix="pass it to the kernel as an operand")
        self.guard.add("{}({}) == {}", read, value, read(value))
        return ("array", str(value.dtype), read(value))

    def _foreign(self, space: dict[str, Any], file: str | None) -> bool:
        """Whether a namespace is an installed library's, and not of the kernel's own package."""
        name = str(space.get("__name__", ""))
        if name == "pykittens" or name.startswith("pykittens."):
            return not name.startswith("pykittens.kernels")
        top, file = name.partition(".")[0], space.get("__file__") or file or ""
        if not file or file.startswith("<frozen"):
            return top in sys.stdlib_module_names
        return top not in self.own and installed(file)

    def _foreign_class(self, cls: type) -> bool:
        if not cls.__flags__ & (1 << 9):  # Py_TPFLAGS_HEAPTYPE: what Python code made; C's cannot change
            return True
        module = sys.modules.get(module_of(cls))
        return module is not None and self._foreign(vars(module), None)
