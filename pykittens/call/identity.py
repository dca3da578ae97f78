"""What a function is, by content: its code and everything that it can reach, so that the same content is the same program.

A function reaches its defaults, its closure's cells, and the globals, builtins, attributes and items that its code can read
(`reads.py`); of what it reaches, functions, methods, partials, classes and objects reach further. One walk makes both

* a *summary* by value, in which 1, 1.0 and True differ, as 0.0 and -0.0 do, and NaN is NaN: equal summaries, equal programs;
* a *guard* (`guard.py`), which reads the same paths again at every call and compares objects by identity, in well under a
  microsecond. Where it fails, the summary is made anew and decides.

What can be bound anew is read again, what cannot change (numbers, strings, tuples of such) only once. Arrays and large
containers, which could not be read at every call, are refused. Installed libraries, PyKittens' vocabulary among them,
do not change while they are in use: their functions and classes count as the objects that they are.
"""

from __future__ import annotations

import builtins
import functools
import random
import struct
import sys
import sysconfig
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import is_dataclass
from enum import Enum
from operator import is_
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np

from ..errors import TraceError
from .bounded import Bounded
from .guard import Guard
from .reads import Path, reads

MOST = 64  # elements of a list, dictionary or set that is read at every call; each costs it 0.02 us
_MOST_REACHED = 4096  # objects that one function reaches
_FROZEN = (CodeType, BuiltinFunctionType, np.ufunc, np.dtype)
_BUILTIN = vars(builtins)
_CONTAINERS = (tuple, list, dict, set, frozenset)
_HIDDEN = frozenset(("__repr__", "__hash__", "__reduce__", "__reduce_ex__", "__sizeof__", "__del__", "__dir__"))
_FIELDS = (MemberDescriptorType, GetSetDescriptorType)
_UNREAD = frozenset(("__dict__", "__weakref__", "__class__", "__doc__"))
_MISSING = object()
_NAN = struct.Struct("<d")


class Same:
    """Stands in a summary for an object that counts by identity, and keeps it, so that no other gets its address."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)

    def __repr__(self) -> str:
        return f"Same({self.of!r})"


class Identity:
    """The identity of some values: equal and equally hashed where their content is equal.

    `unchanged()` says whether all that they reach still is what it was; `steady` is False where that cannot be asked.
    Raises `TraceError` for what can be neither summarised nor read again.
    """

    def __init__(self, values: tuple[Any, ...], *, static: bool = False) -> None:
        walk = _Walk(values, static)
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

    def of(self, *values: Any, static: bool = False) -> Identity:
        """The identity of values as they are now.

        `static`: they were passed to a kernel; what cannot be read again at every call then only costs time.
        """
        key = (static, *map(id, values))  # which stay theirs: an identity keeps its values
        found = self._known.get(key)
        if found is None or not found.steady or not found.unchanged():
            found = Identity(values, static=static)
            self._known.keep(key, found)
        return found


identity = Identities().of  # for what no kernel remembers


class _Walk:
    """One walk over what values reach. Code adds names that objects are asked for, so it is repeated until there are no new ones."""

    def __init__(self, values: tuple[Any, ...], static: bool) -> None:
        self.own = {_package(f.__globals__) for value in values if (f := _function_of(value)) is not None}
        self.names: set[str] = set()
        self.any_name = self.by_identity = False
        while True:
            before = (len(self.names), self.any_name, self.by_identity)
            self.seen: dict[int, int] = {}
            self.kept: list[Any] = []  # so that nothing that the walk made gets another's id
            self.guard, self.steady, self.static = Guard(), True, static
            self.summary = tuple(self.value(value, _label(value)) for value in values)
            if before == (len(self.names), self.any_name, self.by_identity):
                return

    # What a value is ------------------------------------------------------------------------------------

    def value(self, value: Any, path: str) -> Hashable:
        """The summary of a value that code may do anything with. `path` is how it is written, for errors."""
        leaf = leaf_of(value)
        if leaf is not None:
            return leaf
        if id(value) in self.seen:
            return ("again", self.seen[id(value)])
        if len(self.seen) >= _MOST_REACHED:
            raise TraceError(
                f"the kernel reaches more than {_MOST_REACHED} objects, {path!r} among them",
                fix="pass what it needs as a static value of its own",
            )
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        return self._reached(value, path)

    def _reached(self, value: Any, path: str) -> Hashable:
        if isinstance(value, FunctionType):
            return self._function(value, path)
        if isinstance(value, MethodType):
            return ("method", self.value(value.__func__, path), self.value(value.__self__, f"{path}.__self__"))
        if isinstance(value, functools.partial):
            return ("partial", *(self._read(value, n, f"{path}.{n}") for n in ("func", "args", "keywords")))
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            bound = None if owner is None or isinstance(owner, ModuleType) else self.value(owner, path)
            return ("builtin", value.__name__, bound) if bound is not None else Same(value)
        if isinstance(value, (staticmethod, classmethod)):
            return (type(value).__name__, self.value(value.__func__, path))
        if isinstance(value, (property, functools.cached_property)):
            made = [value.func] if isinstance(value, functools.cached_property) else [value.fget]
            return ("property", *(self.value(f, path) for f in made))
        if isinstance(value, ModuleType):
            return self._module(value, path)
        if isinstance(value, type):
            return self._class(value, path)
        if isinstance(value, _FROZEN):
            return Same(value)
        if isinstance(value, CellType):
            return self._cell(value, path)
        if _is_array(value):
            return self._array(value, path)
        return self._object(value, path)

    # Functions ------------------------------------------------------------------------------------------

    def _function(self, function: FunctionType, path: str) -> Hashable:
        code, wrapped = function.__code__, getattr(function, "__wrapped__", None)
        self.guard.add("{}.__code__ is {}", function, code)
        parts: list[Hashable] = []
        if self._foreign(function.__globals__, code.co_filename):
            # A library's own code does not change; a decorator of its reaches the function that it was put before.
            parts.append(Same(function))
            cells = [
                (name, cell) for name, cell in _cells(function) if _bound(cell) and _calls_back(cell.cell_contents)
            ]
        else:
            parts.append(code)
            read = reads(code)
            self.names |= read.names
            self.any_name |= read.any_name
            self.by_identity |= read.by_identity
            cells = []
            for path_read in read.paths:
                parts.append(self._path(function, path_read))
            if read.any_global:
                parts.append(self._names_of(function.__globals__, self.names, path))
            parts.append(self._read(function, "__defaults__", f"the defaults of {path}"))
            parts.append(self._defaults(function, f"the defaults of {path}"))
        parts += [(name, self._cell(cell, name)) for name, cell in cells]
        if wrapped is not None:
            parts.append(self._read(function, "__wrapped__", path))
        return ("function", *parts)

    def _path(self, function: FunctionType, path: Path) -> Hashable:
        """What a path leads to, and a read of each step for the guard."""
        if path.root == "global":
            value = self._global(function, path.name)
        elif path.root == "cell":
            cell = dict(_cells(function))[path.name]
            try:
                value = cell.cell_contents
                self.guard.add("{}.cell_contents is {}", cell, value)
            except ValueError:  # not bound yet
                self.guard.add("not {}({})", _bound, cell)
                value = _MISSING
        else:
            value = self._imported(function, path.name)
        if value is _MISSING:
            return (path.name, "unbound")
        label = path.name
        for kind, step in path.steps:
            if _vocabulary(value):
                break
            found = self._attribute(value, step, exactly=True) if kind == "attribute" else self._item(value, step)
            if found is _MISSING:
                break
            value, label = found, f"{label}.{step}" if kind == "attribute" else f"{label}[{step!r}]"
        return (label, self.value(value, label))

    def _global(self, function: FunctionType, name: str) -> Any:
        space, inside = function.__globals__, _BUILTIN
        if name in space:
            self.guard.add_global(space, name, space[name])
            return space[name]
        own = space.get("__builtins__", inside)
        inside = own if isinstance(own, dict) else vars(own)
        if name in inside:
            self.guard.add_global(space, name, inside[name])
            return inside[name]
        self.guard.add("{} not in {} and {} not in {}", name, space, name, inside)
        return _MISSING

    def _imported(self, function: FunctionType, name: str) -> Any:
        for full in (name, f"{function.__globals__.get('__package__') or ''}.{name}"):
            if full in sys.modules:
                self.guard.add("{}[{}] is {}", sys.modules, full, sys.modules[full])
                return sys.modules[full]
        return _MISSING

    def _cell(self, cell: CellType, name: str) -> Hashable:
        if not _bound(cell):
            self.guard.add("not {}({})", _bound, cell)
            return "unbound"
        self.guard.add("{}.cell_contents is {}", cell, cell.cell_contents)
        return self.value(cell.cell_contents, name)

    # Objects --------------------------------------------------------------------------------------------

    def _module(self, module: ModuleType, path: str) -> Hashable:
        if _vocabulary(module) or self._foreign(vars(module), getattr(module, "__file__", None)):
            return Same(module)
        return (Same(module), self._names_of(vars(module), self.names, path))

    def _names_of(self, space: dict[str, Any], names: set[str], path: str) -> Hashable:
        """Those of `names` that a namespace has."""
        here = sorted(names & set(space))
        for name in here:
            self.guard.add("{}[{}] is {}", space, name, space[name])
        self.guard.add("{}.keys().isdisjoint({})", space, frozenset(names - set(here)))
        return tuple((name, self.value(space[name], f"{path}.{name}")) for name in here)

    def _class(self, cls: type, path: str) -> Hashable:
        """A class is itself; what its own methods do, and what its attributes hold, may change."""
        parts: list[Hashable] = [Same(cls)]
        if type(cls) is not type:
            parts.append(self.value(type(cls), f"type({path})"))
        for base in cls.__mro__:
            if self._foreign_class(base):
                parts.append(Same(base))
                continue
            space = vars(base)  # a view: it shows what comes later
            self.guard.add(f"{{}}({{}}) == {len(space)}", len, space)
            for name, value in list(space.items()):
                special = name.startswith("__") and isinstance(value, (FunctionType, classmethod, staticmethod))
                if name in self.names or (special and name not in _HIDDEN) or (self.any_name and name[:2] != "__"):
                    self.guard.add("{}[{}] is {}", space, name, value)
                    parts.append((name, self.value(value, f"{path}.{name}")))
        return ("class", *parts)

    def _attribute(self, owner: Any, name: str, *, exactly: bool) -> Any:
        """An attribute that can be read again for what it is; `_MISSING` where that is not sure, and then `owner` counts whole."""
        if isinstance(owner, ModuleType):
            if name not in vars(owner):
                return self._made_up(owner, name) if "__getattr__" in vars(owner) else _MISSING
            self.guard.add("{}[{}] is {}", vars(owner), name, vars(owner)[name])
            return vars(owner)[name]
        if isinstance(owner, type) or _is_array(owner):
            return _MISSING
        held = getattr(owner, "__dict__", None)
        kind = _static(type(owner), name)
        plain = _same_method(type(owner), "__getattribute__")
        if plain and type(held) is dict and name in held and not hasattr(type(kind), "__set__"):
            self.guard.add("{}({}, {}) is {}", getattr, owner, name, held[name])
            return held[name]
        return _MISSING

    def _made_up(self, module: ModuleType, name: str) -> Any:
        """What a module's own `__getattr__` finds."""
        value = getattr(module, name, _MISSING)
        if getattr(module, name, _MISSING) is value:
            self.guard.add("{}({}, {}, {}) is {}", getattr, module, name, _MISSING, value)
            return value
        raise TraceError(
            f"the kernel reads {module.__name__}.{name}, which is made anew at every read",
            fix="pass it as a static value",
        )

    def _item(self, owner: Any, key: Any) -> Any:
        if type(owner) not in (list, dict, tuple):
            return _MISSING
        try:
            value = owner[key]
        except (KeyError, IndexError, TypeError):
            return _MISSING
        if type(owner) is not tuple:
            self.guard.add("{}[{}] is {}", owner, key, value)
        return value

    def _read(self, owner: Any, name: str, path: str) -> Hashable:
        """An attribute of a function, a partial or the like."""
        self.guard.add(f"{{}}.{name} is {{}}", owner, getattr(owner, name))
        return self.value(getattr(owner, name), path)

    def _object(self, value: Any, path: str) -> Hashable:
        kind = type(value)
        if _vocabulary(value):
            by_value = not _same_method(kind, "__eq__") and kind.__hash__ is not None
            return (Same(kind), value) if by_value else Same(value)
        if isinstance(value, Enum):
            return (Same(value), self.value(kind, path), self.value(value.value, path))
        if isinstance(value, (weakref.ref, ContextVar)):
            read = value if isinstance(value, weakref.ref) else functools.partial(value.get, None)
            self.guard.add("{}() is {}", read, read())
            return (Same(value), self.value(read(), f"{path}()"))
        if hasattr(kind, "__next__") or isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
            raise TraceError(
                f"the kernel reaches {path!r}, a {kind.__name__}, which every read changes",
                fix="pass what it yields as a static value: a number or a tuple",
            )
        contents = self._contents(value, path)
        if kind in _CONTAINERS:
            return (Same(kind), contents)
        if contents is None and self._foreign_class(kind) and not _same_method(kind, "__eq__") and _hashable(value):
            return (Same(kind), repr(value), value)  # a library's value: Decimal, date, Path, re.Pattern, torch.device
        self.guard.add("{}({}) is {}", type, value, kind)
        parts: list[Hashable] = [self.value(kind, path), contents]
        fields = self._fields(value, path)
        by_value = not _same_method(kind, "__eq__")
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
        if isinstance(value, (bytearray, memoryview)):
            self._limited(len(value) // 64, value, path)
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

    def _defaults(self, function: FunctionType, path: str) -> Hashable:
        """Those of keyword-only parameters: a dictionary that can be written to."""
        held = function.__kwdefaults__
        self.guard.add("{}.__kwdefaults__ is {}", function, held)
        if held is None:
            return None
        self.guard.add(f"{{}}({{}}) == {len(held)}", len, held)
        for name, value in held.items():
            self.guard.add("{}[{}] is {}", held, name, value)
        return tuple((name, self.value(value, f"{path}.{name}")) for name, value in held.items())

    def _limited(self, size: int, value: Any, path: str) -> None:
        if size <= MOST:
            return
        if self.static:
            self.steady = False
            return
        raise TraceError(
            f"the kernel reads {path!r}, a {type(value).__name__} of {len(value)} elements, which would have to be compared at every call",
            fix="make it a tuple, which cannot change, or pass it as an operand or a static value",
        )

    def _fields(self, value: Any, path: str) -> tuple[Hashable, ...]:
        """The attributes that code may read of an object: all of what compares by value, else those whose names appear in code."""
        kind, found = type(value), []
        whole = self.any_name or is_dataclass(value) or not _same_method(kind, "__eq__")
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            foreign = self._foreign_class(kind)  # whose own code, which reads what it likes, has not been looked at
            names = [
                name
                for name, x in held.items()
                if whole or name in self.names or name == "__wrapped__" or (foreign and _calls_back(x))
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
                if _static(kind, name) is _MISSING and (made := self._field(value, name, path)) != "unbound":
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
        read = _scalar_reader(value)
        if shape or read is None:
            what = f"an array of shape {shape}" if shape else "an array that is not in the CPU's memory"
            if self.static:
                raise TraceError(f"the static value {path!r} is {what}", fix="pass it to the kernel as an operand")
            raise TraceError(f"the kernel captures {path!r}, {what}", fix="pass it to the kernel as an operand")
        self.guard.add("{}({}) == {}", read, value, read(value))
        return ("array", str(value.dtype), read(value))

    # What does not change -------------------------------------------------------------------------------

    def _foreign(self, space: dict[str, Any], file: str | None) -> bool:
        """Whether a namespace is an installed library's, and not of the kernel's own package."""
        name = str(space.get("__name__", ""))
        if name == "pykittens" or name.startswith("pykittens."):
            return not name.startswith("pykittens.kernels")
        top, file = name.partition(".")[0], space.get("__file__") or file or ""
        if not file or file.startswith("<frozen"):
            return top in sys.stdlib_module_names
        return top not in self.own and _installed(file)

    def _foreign_class(self, cls: type) -> bool:
        if not cls.__flags__ & (1 << 9):  # Py_TPFLAGS_HEAPTYPE: what Python code made; C's cannot change
            return True
        module = sys.modules.get(cls.__module__)
        return module is not None and self._foreign(vars(module), None)


def leaf_of(value: Any) -> Hashable | None:
    """The summary of a value that reaches nothing and cannot change; None for any other."""
    kind = type(value)
    if kind is float:
        return (float, _NAN.pack(value))
    if value is None or value is ... or value is NotImplemented or kind in (bool, int, str, bytes):
        return (kind, value)
    if kind is complex:
        return (complex, _NAN.pack(value.real), _NAN.pack(value.imag))
    if isinstance(value, np.generic):
        return (kind, str(value.dtype), value.tobytes())
    return None


def _same_method(kind: type, name: str) -> bool:
    """Whether a class has a method as `object` has it."""
    return getattr(kind, name) is getattr(object, name)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _label(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)


def _function_of(value: Any) -> FunctionType | None:
    while isinstance(value, (functools.partial, MethodType)):
        value = value.func if isinstance(value, functools.partial) else value.__func__
    return value if isinstance(value, FunctionType) else None


def _package(space: dict[str, Any]) -> str:
    return str(space.get("__name__", "")).partition(".")[0]


@functools.cache
def _installed(file: str) -> bool:
    """Whether a file is the interpreter's or an installed package's."""
    paths = sysconfig.get_paths()
    return file.startswith(tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if paths[name]))


def _vocabulary(value: Any) -> bool:
    """Whether something is PyKittens' own, which does not change while it is in use."""
    name = value.__name__ if isinstance(value, ModuleType) else type(value).__module__
    return name == "pykittens" or (name.startswith("pykittens.") and not name.startswith("pykittens.kernels"))


def _cells(function: FunctionType) -> list[tuple[str, CellType]]:
    return list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _bound(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _calls_back(value: Any) -> bool:
    """Whether a library's object holds a function that was given to it: by itself, or among others."""
    if isinstance(value, (dict, MappingProxyType)):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)) and len(value) <= MOST:
        return any(isinstance(x, (FunctionType, MethodType, functools.partial)) for x in value)
    return isinstance(value, (FunctionType, MethodType, functools.partial))


def _static(cls: type, name: str) -> Any:
    """What a class has under a name, itself and not what it makes for an object."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return _MISSING


def _is_array(value: Any) -> bool:
    kind = type(value)  # not the value itself, whose attributes may be made by its author's code
    return hasattr(kind, "shape") and hasattr(kind, "dtype")


def _scalar_reader(value: Any) -> Callable[[Any], bytes] | None:
    """What reads the bits of an array of one element in the CPU's memory."""
    if isinstance(value, np.ndarray):
        return np.ndarray.tobytes
    if getattr(value, "is_cpu", False):
        return _torch_scalar
    return None


def _torch_scalar(value: Any) -> bytes:
    return repr(value.item()).encode()
