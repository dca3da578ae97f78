"""One walk over all that functions reach: its summary, and the guard that reads the same again."""

from __future__ import annotations

import builtins
import functools
import os
import sys
from collections.abc import Hashable
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..errors import TraceError
from ..program import Value
from .guard import GuardTerms
from .objects import Objects
from .reads import Path, reads
from .values import (
    ABOUT,
    MISSING,
    Same,
    calls_back,
    cells_of,
    is_array,
    is_bound,
    is_vocabulary,
    leaf_of,
)

_MOST_REACHED = 4096  # objects that one function reaches
_FROZEN = (CodeType, BuiltinFunctionType, np.ufunc, np.dtype)
_BUILTIN = vars(builtins)
_ENVIRONMENT = (os.environ, os.getenv)


class Asked(NamedTuple):
    """What code asks of objects."""

    names: frozenset[str]  # of attributes
    any_name: bool  # ... or one that it computes
    by_identity: bool  # or which object it is

    def union(self, *others: Asked) -> Asked:
        every = (self, *others)
        names = frozenset[str]().union(*(x.names for x in every))
        return Asked(names, any(x.any_name for x in every), any(x.by_identity for x in every))


NOTHING = Asked(frozenset(), False, False)


class Walk(Objects):
    """One walk over what values reach. Code adds names that objects are asked for, so it is repeated until there are
    no new ones. `asked`: what other code asks of these objects.
    """

    def __init__(self, values: tuple[Any, ...], static: bool, label: str = "", asked: Asked = NOTHING) -> None:
        self.own = {_package(f.__globals__) for value in values if (f := _function_of(value)) is not None}
        self.names: set[str] = set(asked.names)
        self.any_name, self.by_identity = asked.any_name, asked.by_identity
        while True:
            before = (len(self.names), self.any_name, self.by_identity)
            self.seen: dict[int, int] = {}
            self.kept: list[Any] = []  # so that nothing that the walk made gets another's id
            self.guard, self.steady, self.static = GuardTerms(), True, static
            self.summary = tuple(
                self.value(value, label or getattr(value, "__name__", type(value).__name__)) for value in values
            )
            if before == (len(self.names), self.any_name, self.by_identity):
                return

    @property
    def asked(self) -> Asked:
        return Asked(frozenset(self.names), self.any_name, self.by_identity)

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
        if isinstance(value, Value):
            return Same(value)  # of a trace, which refuses it if it is another's
        if any(value is x for x in _ENVIRONMENT):
            raise TraceError(
                f"the kernel reaches {path!r}, and the environment may change",
                fix="read it before the kernel is called, and pass what it says as a static value",
            )
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
        if isinstance(value, np.ufunc) and all(set(types) <= set("O->") for types in value.types):
            fact = f"the kernel reaches {path!r}, a ufunc of a Python function, whose content PyKittens cannot read"
            raise TraceError(fact, fix="call the function that it was made of")
        if isinstance(value, _FROZEN):
            return Same(value)
        if isinstance(value, CellType):
            return self._cell(value, path)
        if is_array(value):
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
                (name, cell) for name, cell in cells_of(function) if is_bound(cell) and calls_back(cell.cell_contents)
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
                parts.append(self._all_of(function.__globals__))
            # Where there are none, every call gives all arguments, and would whatever defaults came later.
            if function.__defaults__ is not None:
                parts.append(self._read(function, "__defaults__", f"the defaults of {path}"))
            if function.__kwdefaults__ is not None:
                parts.append(self._keyword_defaults(function, f"the defaults of {path}"))
        held = vars(function)
        parts += [self._attribute_of(function, name, path) for name in sorted(self.names & (set(held) | ABOUT))]
        parts += [(name, self._cell(cell, name)) for name, cell in cells]
        if wrapped is not None:
            parts.append(self._read(function, "__wrapped__", path))
        return ("function", *parts)

    def _all_of(self, space: dict[str, Any]) -> Hashable:
        """What every name of a namespace means, for code that may compute the name. Objects are what they are: of
        those that code names, more is asked.
        """
        own = {name: x for name, x in list(space.items()) if name[:2] != "__"}
        self.guard.add(f"{{}}({{}}) == {len(space)}", len, space)
        for name, x in own.items():
            self.guard.add("{}[{}] is {}", space, name, x)
        return tuple((name, leaf_of(x) or Same(x)) for name, x in sorted(own.items()))

    def _path(self, function: FunctionType, path: Path) -> Hashable:
        """What a path leads to, and a read of each step for the guard."""
        if path.root == "global":
            value = self._global(function, path.name)
        elif path.root == "cell":
            cell = dict(cells_of(function))[path.name]
            try:
                value = cell.cell_contents
                self.guard.add("{}.cell_contents is {}", cell, value)
            except ValueError:  # not bound yet
                self.guard.add("not {}({})", is_bound, cell)
                value = MISSING
        else:
            value = self._imported(function, path.name)
        if value is MISSING:
            return (path.name, "unbound")
        label = path.name
        for kind, step in path.steps:
            if is_vocabulary(value):
                break
            found = self._attribute(value, step, exactly=True) if kind == "attribute" else self._item(value, step)
            if found is MISSING:
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
        return MISSING

    def _imported(self, function: FunctionType, name: str) -> Any:
        names = (name, f"{function.__globals__.get('__package__') or ''}.{name}")
        for full in names:
            if full in sys.modules:
                self.guard.add("{}[{}] is {}", sys.modules, full, sys.modules[full])
                return sys.modules[full]
        # Once it is loaded, by the kernel itself at the latest, what is read of it counts.
        self.guard.add("{}.keys().isdisjoint({})", sys.modules, names)
        return MISSING

    def _cell(self, cell: CellType, name: str) -> Hashable:
        if not is_bound(cell):
            self.guard.add("not {}({})", is_bound, cell)
            return "unbound"
        self.guard.add("{}.cell_contents is {}", cell, cell.cell_contents)
        return self.value(cell.cell_contents, name)

    def _read(self, owner: Any, name: str, path: str) -> Hashable:
        """An attribute of a function, a partial or the like."""
        self.guard.add(f"{{}}.{name} is {{}}", owner, getattr(owner, name))
        return self.value(getattr(owner, name), path)

    def _keyword_defaults(self, function: FunctionType, path: str) -> Hashable:
        """Those of keyword-only parameters: a dictionary that can be written to."""
        held = function.__kwdefaults__
        assert held is not None
        self.guard.add("{}.__kwdefaults__ is {}", function, held)
        self.guard.add(f"{{}}({{}}) == {len(held)}", len, held)
        for name, value in held.items():
            self.guard.add("{}[{}] is {}", held, name, value)
        return tuple((name, self.value(value, f"{path}.{name}")) for name, value in held.items())


def _function_of(value: Any) -> FunctionType | None:
    while isinstance(value, (functools.partial, MethodType)):
        value = value.func if isinstance(value, functools.partial) else value.__func__
    return value if isinstance(value, FunctionType) else None


def _package(space: dict[str, Any]) -> str:
    return str(space.get("__name__", "")).partition(".")[0]
