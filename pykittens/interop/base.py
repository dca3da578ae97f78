"""What we ask of an array framework, and our names for dtypes."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

NUMPY = {
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "u16": np.uint16,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "u64": np.uint64,
    "bool": np.bool_,
}
_NAMES: dict[Any, str] = {np.dtype(dtype): name for name, dtype in NUMPY.items()}


class Unsupported(TypeError):
    """An argument that is no array we can use. The message names it; `fix` says what to pass instead."""

    def __init__(self, fact: str, fix: str = "pass a NumPy, torch, CuPy or JAX array") -> None:
        super().__init__(fact)
        self.fix = fix

    def of(self, name: str) -> "Unsupported":
        """The same of an argument's name."""
        return Unsupported(f"`{name}` {self}", self.fix)


CONVERT, CONTIGUOUS = "convert it to one of them", "pass a contiguous copy"


class ArrayInfo(NamedTuple):
    """Where an array lies and how. Strides count elements; `device` is a CUDA ordinal, None for the CPU."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str  # "bf16"
    device: int | None
    # "numpy", "torch", "cupy", "jax", "cuda" (any other with __cuda_array_interface__), "cuda stream" (of its own)
    kind: str
    writable: bool = True  # False where its framework or its owner says that it never changes


def meet(x: ArrayInfo, y: ArrayInfo) -> bool:
    """Whether two arrays share bytes. Such as lie between one another, as columns of one array do, are known where a
    stride of theirs keeps them apart, or what all strides have in common."""
    sizes, steps, begins, reaches = [], [], [], []
    for info in (x, y):
        size = numpy_dtype(info.dtype).itemsize
        found = [(n, s * size) for n, s in zip(info.shape, info.strides, strict=True) if n > 1 and s]
        sizes.append(size)
        steps.append(found)
        begins.append(info.pointer + sum((n - 1) * s for n, s in found if s < 0))
        reaches.append(size + sum((n - 1) * abs(s) for n, s in found))
    if 0 in (*x.shape, *y.shape) or begins[0] >= begins[1] + reaches[1] or begins[1] >= begins[0] + reaches[0]:
        return False
    strides = {abs(s) for found in steps for _, s in found}
    for stride in strides | {math.gcd(*strides)} - {0}:
        lengths = [
            size + sum((n - 1) * abs(s) for n, s in found if s % stride)
            for size, found in zip(sizes, steps, strict=True)
        ]
        between = (begins[1] - begins[0]) % stride
        if lengths[0] <= between and between + lengths[1] <= stride:
            return False
    return True


class Alike(NamedTuple):
    """How to see that arrays look like others: `same(*arrays)`, all at once, and the `address` of each."""

    same: Callable[..., bool]
    address: Callable[[Any], int]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype for one of our names, such as "bf16"."""
    dtype: np.dtype[Any] = np.dtype(NUMPY[name])
    return dtype


class Framework:
    """One framework. `owns` may be asked about anything; the rest only about what it owns."""

    kind = ""
    waits = False  # whether its streams are its own secret

    def owns(self, array: Any) -> bool:
        raise NotImplementedError

    def describe(self, array: Any) -> ArrayInfo:
        raise NotImplementedError

    def probe(self, array: Any) -> tuple[int, Hashable]:
        """Its pointer, and all else that `describe` tells: equal where that is equal. For every call of a kernel:
        cheap.
        """
        info = self.describe(array)
        return info.pointer, info[1:]

    def alike(self, arrays: Sequence[Any]) -> Alike | None:
        """A quicker way than `probe` to see whether other arrays look as these do, where there is one."""
        return None

    def address(self, array: Any) -> int:
        """Its pointer."""
        return self.describe(array).pointer

    def view(self, array: Any, writable: bool) -> Array:
        """A NumPy view of an array on the CPU."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
        raise NotImplementedError

    def maker(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Callable[[], Any]:
        """What makes such arrays as `empty` does, for who makes many."""
        return partial(self.empty, shape, dtype, device)

    def fill(self, array: Any, value: Any) -> None:
        """Sets all elements of an array that nobody else has seen."""
        array[...] = value

    def copy(self, array: Any) -> Any:
        """A densely packed copy, at an address of its own."""
        raise Unsupported(f"is a {type(array).__qualname__}, which cannot be copied into a dense array")

    def streams(self) -> Callable[[int], int]:
        """The function from a device to the CUstream of the framework's next operation there; 0 is the default
        stream.
        """
        return lambda device: 0


def dtype_name(dtype: Any) -> str:
    """Inverse of `numpy_dtype`."""
    name = _NAMES.get(dtype)
    if name is None:
        raise Unsupported(f"has dtype {dtype}; kernels know {', '.join(NUMPY)}", CONVERT)
    return name


def in_elements(strides: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Strides in bytes to strides in elements."""
    if any(stride % size for stride in strides):
        raise Unsupported(
            f"has strides of {strides} bytes, which are no multiples of its {size}-byte elements", CONTIGUOUS
        )
    return tuple(stride // size for stride in strides)


def packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense row-major array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
