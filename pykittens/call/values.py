"""What values are in a summary: leaves by their bits, objects by identity; and what of them does not change."""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Hashable
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from ..errors import TraceError, module_of

MOST = 64  # elements of a list, dictionary or set that is read at every call; each costs it 0.02 us
MISSING = object()
ABOUT = frozenset(("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"))
_DOUBLE = struct.Struct("<d")


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


def leaf_of(value: Any) -> Hashable | None:
    """The summary of a value that reaches nothing and cannot change; None for any other."""
    kind = type(value)
    if kind is float:
        return (float, _DOUBLE.pack(value))
    if value is None or value is ... or value is NotImplemented or kind in (bool, int, str, bytes):
        return (kind, value)
    if kind is complex:
        return (complex, _DOUBLE.pack(value.real), _DOUBLE.pack(value.imag))
    if isinstance(value, np.generic):
        return (kind, str(value.dtype), value.tobytes())
    return None


def same_method(kind: type, name: str) -> bool:
    """Whether a class has a method as `object` has it."""
    return getattr(kind, name) is getattr(object, name)


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def calls_back(value: Any) -> bool:
    """Whether a library's object holds a function that was given to it: by itself, or among others."""
    if isinstance(value, (dict, MappingProxyType)):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)) and len(value) <= MOST:
        return any(isinstance(x, (FunctionType, MethodType, functools.partial)) for x in value)
    return isinstance(value, (FunctionType, MethodType, functools.partial))


def bytes_of(value: Any) -> int | None:
    """How many bytes a value shows that shows its memory, such as a bytearray; None where it shows none."""
    try:
        return memoryview(value).nbytes
    except (TypeError, ValueError, BufferError):
        return None


def static_attribute(cls: type, name: str) -> Any:
    """What a class has under a name, itself and not what it makes for an object."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return MISSING


def is_array(value: Any) -> bool:
    kind = type(value)  # not the value itself, whose attributes may be made by its author's code
    return all(static_attribute(kind, name) is not MISSING for name in ("shape", "dtype"))


def scalar_reader(value: Any) -> Callable[[Any], bytes] | None:
    """What reads the bits of an array of one element in the CPU's memory."""
    if isinstance(value, np.ndarray):
        return np.ndarray.tobytes
    if getattr(value, "is_cpu", False):
        return _torch_scalar
    return None


def _torch_scalar(value: Any) -> bytes:
    if value.requires_grad and sys.modules["torch"].is_grad_enabled():
        fix = "pass it as an operand, or capture x.detach() or x.item()"
        raise TraceError("a function captures a tensor that requires its gradient, which a constant has not", fix=fix)
    return repr(value.item()).encode()


def is_vocabulary(value: Any) -> bool:
    """Whether something is PyKittens' own, which does not change while it is in use."""
    name = value.__name__ if isinstance(value, ModuleType) else module_of(type(value))
    return name == "pykittens" or (name.startswith("pykittens.") and not name.startswith("pykittens.kernels"))


def is_bound(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def cells_of(function: FunctionType) -> list[tuple[str, CellType]]:
    return list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
