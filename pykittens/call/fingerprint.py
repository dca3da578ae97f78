"""What a kernel function depends on besides its arguments: its code, closure and globals, so that a change retraces it."""

from __future__ import annotations

import dis
import sys
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from ..errors import TraceError

_LOAD_NAME, _LOAD_GLOBAL = dis.opmap["LOAD_NAME"], dis.opmap["LOAD_GLOBAL"]
_FLAGS = 1 if sys.version_info >= (3, 11) else 0  # bits of LOAD_GLOBAL's argument that are not the name


def fingerprint(function: Any) -> tuple[Any, ...]:
    """A hashable summary of a function's code, defaults, closure cells and referenced globals, recursively."""
    found: dict[int, Any] = {}
    return _function(function, found)


def depends(function: FunctionType) -> bool:
    """Whether a function is the kernel author's. The vocabulary does not change while it is in use."""
    module = function.__module__ or ""
    return not module.startswith("pykittens.") or module.startswith("pykittens.kernels")


def _function(function: Any, seen: dict[int, Any]) -> tuple[Any, ...]:
    if id(function) in seen:
        return ("again", seen[id(function)])
    seen[id(function)] = len(seen)
    code: CodeType = function.__code__
    parts: list[Any] = [
        code,
        _value("defaults", function.__defaults__, seen),
        _value("defaults", function.__kwdefaults__, seen),
    ]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((name, _value(name, cell.cell_contents, seen)))
        except ValueError:  # an empty cell: the name is not bound yet
            parts.append((name, "unbound"))
    for name in global_names(code):
        if name in function.__globals__:
            parts.append((name, _value(name, function.__globals__[name], seen)))
    return tuple(parts)


@cache
def global_names(code: CodeType) -> tuple[str, ...]:
    """The globals that code reads, functions inside it included; attributes of the same name are not meant."""
    own, extended, names = [], 0, code.co_names
    for op, arg in zip(
        code.co_code[::2], code.co_code[1::2], strict=True
    ):  # a tenth of the time of dis.get_instructions
        arg |= extended
        extended = arg << 8 if op == dis.EXTENDED_ARG else 0
        if op == _LOAD_NAME:
            own.append(names[arg])
        elif op == _LOAD_GLOBAL:
            own.append(names[arg >> _FLAGS])
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in global_names(c)]
    return tuple(dict.fromkeys((*own, *inner)))


def _value(name: str, value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, FunctionType):
        return _function(value, seen) if depends(value) else value.__qualname__
    if isinstance(value, (dict,)):
        return tuple((str(k), _value(name, v, seen)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *(_value(name, v, seen) for v in value))
    if (
        hasattr(value, "shape")
        and hasattr(value, "dtype")
        and hasattr(value, "strides")
        or type(value).__module__.partition(".")[0] in ("torch", "cupy", "jax", "jaxlib")
    ):
        if getattr(value, "ndim", 0):
            raise TraceError(
                f"the kernel captures {name!r}, an array of shape {tuple(value.shape)}",
                fix="pass it to the kernel as an operand",
            )
    if isinstance(value, (int, float, complex)):
        return type(value), repr(value)  # 1, 1.0 and True are equal, but not the same to a kernel; nor are 0.0 and -0.0
    try:
        hash(value)
        return value
    except TypeError:
        return id(value)
