"""Anybody's arrays, in place: where they lie, how they are laid out, which stream their work runs on.

No framework is imported: an array can only exist if its framework is, and is then found in `sys.modules`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..errors import module_of
from . import frameworks
from .base import Alike, ArrayInfo, Framework, Unsupported, meet, numpy_dtype
from .views import Views

__all__ = [
    "Alike",
    "ArrayInfo",
    "Unsupported",
    "addresses",
    "alike",
    "as_numpy",
    "common_device",
    "current_stream",
    "dense_copy",
    "describe",
    "empty",
    "empty_like",
    "fill",
    "framework_of",
    "guard",
    "maker",
    "meet",
    "numpy_dtype",
    "place",
    "streams",
    "waits",
]

# By type, so that an array costs one look-up after the first of its type.
_of_type: dict[type, Framework] = {}
_VIEWS = Views()


def describe(array: Any, name: str = "array") -> ArrayInfo:
    """Where an array lies and how. `name` is the argument's, for the message.

    Raises `Unsupported` (a TypeError) for what is no array, or has a dtype or a place kernels do not know.
    """
    try:
        return framework_of(array).describe(array)
    except Unsupported as error:
        raise error.of(name) from None


def as_numpy(array: Any, name: str = "array", *, writable: bool = False) -> np.ndarray[Any, Any]:
    """The same memory as a NumPy array, without a copy. Only for arrays on the CPU.

    `writable` also makes JAX's arrays writable, which JAX itself promises never to change: ask for it only
    for an array that nobody else has seen, such as one fresh from `empty`.
    """
    try:
        framework = framework_of(array)
        if framework.describe(array).device is not None:
            raise Unsupported("is on a GPU; the simulator reads arrays on the CPU")
        return framework.view(array, writable)
    except Unsupported as error:
        raise error.of(name) from None


def empty(kind: str, shape: tuple[int, ...], dtype: str, device: int | None = None) -> Any:
    """A new array of a framework (`ArrayInfo.kind`) with unspecified contents; `device` None is the CPU."""
    return _by_kind(kind).empty(shape, "f32" if dtype == "tf32" else dtype, device)


def maker(kind: str, shape: tuple[int, ...], dtype: str, device: int | None = None) -> Callable[[], Any]:
    """`empty`, for who makes many."""
    return _by_kind(kind).maker(shape, "f32" if dtype == "tf32" else dtype, device)


def empty_like(array: Any, name: str = "array") -> Any:
    """A new array of the same framework, shape, dtype and device, densely packed."""
    info = describe(array, name)
    return empty(info.kind, info.shape, info.dtype, info.device)


def dense_copy(array: Any, name: str = "array") -> Any:
    """A copy in the same framework, on the same device, densely packed. `Unsupported` for an array of no framework."""
    try:
        return framework_of(array).copy(array)
    except Unsupported as error:
        raise error.of(name) from None


def fill(array: Any, value: Any) -> None:
    """Sets all elements of an array fresh from `empty` to a number, or to those of another array of its framework."""
    framework_of(array).fill(array, value)


def current_stream(kind: str, device: int) -> int:
    """The CUstream that a framework would queue its next operation on; 0, the default, if it has none."""
    return _by_kind(kind).streams()(device)


def streams(kind: str) -> Callable[[int], int]:
    """`current_stream` of one framework, for who asks often."""
    return _by_kind(kind).streams()


def alike(arrays: Sequence[Any]) -> Alike | None:
    """How to see that other arrays look as these do: by a `guard`, else one by one. None where one is no array."""
    try:
        return guard(arrays) or _one_by_one(arrays, [framework_of(array).probe for array in arrays])
    except Unsupported:
        return None


def guard(arrays: Sequence[Any]) -> Alike | None:
    """How to see it by a quick test of their framework's own, if it has one: see `Framework.alike`."""
    frameworks = {framework_of(array) for array in arrays}
    return frameworks.pop().alike(arrays) if len(frameworks) == 1 else None


def _one_by_one(arrays: Sequence[Any], probes: Sequence[Callable[[Any], tuple[int, Hashable]]]) -> Alike:
    looks = [(type(x), probe, probe(x)[1]) for x, probe in zip(arrays, probes, strict=True)]

    def same(*given: Any) -> bool:
        try:
            return all(
                type(x) is kind and probe(x)[1] == seen for x, (kind, probe, seen) in zip(given, looks, strict=True)
            )
        except (Unsupported, RuntimeError):  # another dtype, tensors without memory
            return False

    return Alike(same, lambda array: framework_of(array).address(array))


def addresses(array: Any) -> Callable[[Any], int]:
    """A function from any array of this one's framework to its pointer."""
    return framework_of(array).address


def waits(kind: str) -> bool:
    """Whether a framework keeps its streams to itself, so that a launch on its arrays must be waited for.

    True of JAX: `describe` has then waited for the array's contents, and who launches has to wait for the
    kernel before anybody may use what it wrote.
    """
    return _by_kind(kind).waits


def common_device(infos: Mapping[str, ArrayInfo]) -> int | None:
    """The device that named arrays share: a CUDA ordinal, None for the CPU. `Unsupported` if they do not."""
    places: dict[int | None, str] = {}
    for name, info in infos.items():
        places.setdefault(info.device, name)
    if len(places) > 1:
        said = ", ".join(f"`{name}` is on {place(device)}" for device, name in places.items())
        raise Unsupported(f"the arrays lie in different places: {said}")
    return next(iter(places), None)


def place(device: int | None) -> str:
    """A device in words."""
    return "the CPU" if device is None else f"GPU {device}"


def framework_of(array: Any) -> Framework:
    """The framework of an array; raises `Unsupported` for what is none."""
    kind = type(array)
    found = _of_type.get(kind)
    if found is None:
        for found in (*frameworks.ALL, _VIEWS):
            if found.owns(array):
                break
        else:
            if module_of(kind).startswith("pykittens.trace."):
                fix = "call it outside of kernels; the function of a kernel k is traced into another: k.function(x, y)"
                raise Unsupported("belongs to the kernel that is being traced", fix)
            named = kind.__qualname__ if module_of(kind) == "builtins" else f"{module_of(kind)}.{kind.__qualname__}"
            raise Unsupported("is None, which is no array" if array is None else f"is a {named}, which is no array")
        _of_type[kind] = found
    return found


@cache
def _by_kind(kind: str) -> Framework:
    return {framework.kind: framework for framework in frameworks.ALL}[kind]
