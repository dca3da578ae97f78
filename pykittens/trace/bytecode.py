"""The bytecode of Python functions, decoded once: both who looks for early exits and who looks for reads ask for it."""

import dis
import sys
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

# By how many bits the index of a name is shifted: the lowest say what else the instruction does.
_SHIFTS = {"LOAD_GLOBAL": sys.version_info >= (3, 11), "LOAD_ATTR": sys.version_info >= (3, 12), "LOAD_SUPER_ATTR": 2}
_NAMES, _CONSTANTS, _FREE = frozenset(dis.hasname), frozenset(dis.hasconst), frozenset(dis.hasfree)


class Operation(NamedTuple):
    """An instruction: its name, and what it names (or its number)."""

    opname: str
    argval: Any


@lru_cache(maxsize=256)
def instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    """The instructions of a code object, without those of the functions inside it."""
    return tuple(dis.get_instructions(code))


@lru_cache(maxsize=256)
def operations(code: CodeType) -> tuple[Any, ...]:
    """The same with nothing but name and argument, which takes a fifth of the time: no positions, no texts.

    Of Python 3.14 and later, whose code no test has compared with `dis`, what `dis` says.
    """
    if sys.version_info >= (3, 14):
        return instructions(code)
    found, bytes, extended = list[Operation](), code.co_code, 0
    for at in range(0, len(bytes), 2):
        op, number = bytes[at], bytes[at + 1] | extended
        extended = number << 8 if op == dis.EXTENDED_ARG else 0
        name: str = dis.opname[op]
        value: Any = number
        if op in _NAMES:
            value = code.co_names[number >> _SHIFTS.get(name, 0)]
        elif op in _CONSTANTS:
            value = code.co_consts[number]
        elif op in _FREE:
            value = _free(code, number)
        found.append(Operation(name, value))
    return tuple(found)


def _free(code: CodeType, number: int) -> str:
    of = getattr(code, "_varname_from_oparg", None)  # Python 3.11 and later
    return str(of(number) if of is not None else (code.co_cellvars + code.co_freevars)[number])
