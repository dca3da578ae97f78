"""What Python code can read from outside itself, by its bytecode: paths such as `settings.scale` or `TABLE["rows"]`."""

from __future__ import annotations

import re
import sys
from functools import cache
from types import CodeType
from typing import Any

from ..loading import dataclass
from ..trace.bytecode import operations

_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_CELLS = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_CONSTANTS = ("LOAD_CONST", "LOAD_SMALL_INT")
_BETWEEN = ("CACHE", "EXTENDED_ARG", "PRECALL", "NOP", "RESUME", "PUSH_NULL")
# Who reads these may read an attribute or a global of any name.
_ANY_NAME = frozenset(("getattr", "vars", "dir", "attrgetter", "__dict__"))
_ANY_GLOBAL = frozenset(("globals", "eval", "exec"))
_IN_TEXT = _ANY_GLOBAL | frozenset(("format", "format_map"))  # who reads these finds names within its constants
_NAME = re.compile(r"[^\W\d]\w*")
_IMPORTS = frozenset(("__import__", "import_module"))  # who reads these may import what its constants name


@dataclass(frozen=True)
class Path:
    """A read that begins outside of the code: in a global, a closure's cell or a module that it imports.

    `steps` are the attributes and constant subscripts that directly follow: `settings.rows[0]` is the global
    "settings" with the steps (("attribute", "rows"), ("item", 0)).
    """

    root: str  # "global", "cell" or "module"
    name: str
    steps: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Reads:
    """What code reads: whole paths, and the names of attributes that it reads of anything else (locals, results)."""

    paths: tuple[Path, ...]
    names: frozenset[str]  # strings among the constants are names too: getattr(settings, "rows")
    any_name: bool  # getattr of a computed name, vars(...): whole objects
    any_global: bool  # globals(), eval
    by_identity: bool  # `x is y`, where neither is None: which object it is may count


@cache
def reads(code: CodeType) -> Reads:
    """What a function's code reads, functions inside it included."""
    paths: dict[Path, None] = {}
    names: set[str] = set()
    flags = {"by_identity": False}
    _scan(code, frozenset(code.co_freevars), paths, names, flags)
    heard = names | {path.name for path in paths}
    if heard & _IMPORTS:
        paths |= dict.fromkeys(Path("module", name) for name in sorted(names))
    if heard & _IN_TEXT:
        names |= {name for text in names for name in _NAME.findall(text)}
    return Reads(
        tuple(paths),
        frozenset(name for name in names if name.isidentifier()),
        bool(heard & _ANY_NAME),
        bool(heard & _ANY_GLOBAL),
        flags["by_identity"],
    )


def global_names(code: CodeType) -> tuple[str, ...]:
    """The globals that code reads, functions inside it included; attributes of the same name are not meant."""
    return tuple(dict.fromkeys(path.name for path in reads(code).paths if path.root == "global"))


def _scan(
    code: CodeType, outer: frozenset[str], paths: dict[Path, None], names: set[str], flags: dict[str, bool]
) -> None:
    """Adds what one code object reads. `outer`: the closure's cells that belong to nobody within."""
    own = [i for i in operations(code) if i.opname not in _BETWEEN]
    at = 0
    while at < len(own):
        instruction, at = own[at], at + 1
        op, name = instruction.opname, instruction.argval
        if op in _GLOBALS or (op in _CELLS and name in outer):
            steps, at = _steps(own, at)
            paths[Path("global" if op in _GLOBALS else "cell", name, steps)] = None
            names.update(step for kind, step in steps if kind == "attribute")
        elif op == "IMPORT_NAME":
            paths[Path("module", name)] = None
        elif op in _ATTRIBUTES or op in ("LOAD_SUPER_ATTR", "IMPORT_FROM"):
            names.add(name)
        elif op == "IS_OP" and not _of_none(own, at - 1):
            flags["by_identity"] = True
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _scan(constant, outer - set(code.co_cellvars), paths, names, flags)
        else:
            names.update(_texts(constant))


def _steps(instructions: list[Any], at: int) -> tuple[tuple[tuple[str, Any], ...], int]:
    """The attributes and constant subscripts that follow a load, and where they end."""
    steps: list[tuple[str, Any]] = []
    while at < len(instructions):
        this, after = instructions[at], instructions[at + 1] if at + 1 < len(instructions) else None
        if this.opname in _ATTRIBUTES:
            steps.append(("attribute", this.argval))
            at += 1
        elif this.opname in _CONSTANTS and after is not None and _subscript(after):
            steps.append(("item", this.argval))
            at += 2
        else:
            break
    return tuple(steps), at


def _subscript(instruction: Any) -> Any:
    """Python 3.14 has no BINARY_SUBSCR: it is an operator among others."""
    if sys.version_info < (3, 14):
        return instruction.opname == "BINARY_SUBSCR"
    return instruction.opname == "BINARY_OP" and instruction.argrepr == "[]"


def _of_none(instructions: list[Any], at: int) -> bool:
    """Whether an `is` compares with None, True or False, written on its right."""
    before = instructions[at - 1] if at else None
    return before is not None and before.opname == "LOAD_CONST" and before.argval in (None, True, False, ...)


def _texts(constant: Any) -> list[str]:
    if isinstance(constant, str):
        return [constant]
    return [text for part in constant for text in _texts(part)] if isinstance(constant, (tuple, frozenset)) else []
