"""The same memory with another shape: how an array of any framework and any leading shape becomes the rows of a
matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import numpy as np

from ..loading import dataclass
from ..types import DTYPES
from .base import Array, ArrayInfo, Framework, numpy_dtype


@dataclass(frozen=True)
class View:
    """An array seen with another shape and strides (in elements), from one of its elements (in memory's order). Kernels
    take it as an array. dtype: what its memory is read as, where not as what it is; elements are then such.
    """

    array: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    dtype: str = ""

    @property
    def T(self) -> View:
        """Its transpose."""
        return View(self.array, self.shape[::-1], self.strides[::-1], self.offset, self.dtype)


class Views(Framework):
    """Views as arrays of the framework of what they show."""

    kind = "view"

    def owns(self, array: Any) -> bool:
        return isinstance(array, View)

    def describe(self, array: Any) -> ArrayInfo:
        from .arrays import describe

        info = describe(array.array)
        dtype = array.dtype or info.dtype
        pointer = info.pointer + array.offset * DTYPES[dtype].size
        return info._replace(pointer=pointer, shape=array.shape, strides=array.strides, dtype=dtype)

    def probe(self, array: Any) -> tuple[int, Hashable]:
        from .arrays import framework_of

        pointer, looks = framework_of(array.array).probe(array.array)
        if array.offset:
            pointer = self.describe(array).pointer
        return pointer, (looks, type(array.array), array.shape, array.strides, array.dtype)

    def view(self, array: Any, writable: bool) -> Array:
        from .arrays import as_numpy

        whole = as_numpy(array.array, writable=writable)
        if array.dtype:
            whole = whole.reshape(-1).view(numpy_dtype(array.dtype))  # of what is contiguous, the same memory
        # NumPy remakes a dtype from its name there, and knows no name of some (ml_dtypes' float8_e5m2): as integers.
        found = whole.view(f"u{whole.itemsize}")
        strided = functools.partial(np.lib.stride_tricks.as_strided, writeable=whole.flags.writeable)
        if array.offset:
            found = strided(found, (array.offset + 1,), (whole.itemsize,))[array.offset :]
        return strided(found, array.shape, tuple(s * whole.itemsize for s in array.strides)).view(whole.dtype)


def merged(
    shape: tuple[int, ...], strides: tuple[int, ...], count: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shape and strides with the leading dimensions merged into `count`, the last of which may still differ in stride.

    Missing ones are 1. None where the strides do not allow it.
    """
    dims: list[tuple[int, int]] = []
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if dims and dims[-1][1] == n * s:
            dims[-1] = (dims[-1][0] * n, s)
        else:
            dims.append((n, s))
    if len(dims) > count:
        return None
    dims = [(1, 0)] * (count - len(dims)) + dims
    return tuple(n for n, _ in dims), tuple(s for _, s in dims)
