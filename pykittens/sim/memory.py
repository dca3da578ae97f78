"""Memory as bytes: a block's shared memory behind its swizzles, and the tensors of global memory.

Shared tiles move in chunks of 16 bytes, the unit that every swizzle keeps together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import ArgumentError, Frame, OutOfBoundsError
from ..layouts import shared_offset
from ..types import Global, SharedTile, SharedVector

CHUNK = 16  # bytes
INT_MAX = 2**31 - 1  # coordinates are ints
_WIDE = np.dtype(np.complex128)  # NumPy's dtype of 16 bytes: only copied, never computed with


@dataclass(frozen=True)
class Address:
    """Where a shared value lies: the byte it begins at, and the first column of a view that starts inside a panel.

    Numbers where all warps of the gang agree, else arrays of one per warp.
    """

    base: Any
    column: Any = 0


def chunk_places(tile: SharedTile, base: int, column: int) -> np.ndarray:
    """The bytes at which the 16-byte chunks of a tile begin, shape (rows, chunks of a row)."""
    return base + _chunk_offsets(tile, base // tile.swizzle % 8, column)


@lru_cache(maxsize=1024)
def _chunk_offsets(tile: SharedTile, phase: int, column: int) -> np.ndarray:
    """The same from the byte where a tile begins, at row `phase` of the pattern of its swizzle."""
    step = CHUNK // tile.dtype.size
    rows, cols = phase + np.arange(tile.rows)[:, None], column + np.arange(0, tile.cols, step)[None, :]
    return np.asarray(shared_offset(tile, rows, cols), dtype=np.int64) - phase * tile.swizzle


def element_places(type: SharedTile | SharedVector, base: int, row: Any, col: Any) -> Any:
    """The bytes at which elements begin; of a vector `col` counts."""
    if isinstance(type, SharedVector):
        return base + col * type.dtype.size
    phase = base // type.swizzle % 8
    return base + shared_offset(type, phase + row, col) - phase * type.swizzle


class SharedMemory:
    """The bytes of one block. They begin as 0xFF: a NaN in every float type, and -1."""

    def __init__(self, size: int):
        self.bytes = np.full(-(-size // CHUNK) * CHUNK, 0xFF, np.uint8)
        self.wide = self.bytes.view(_WIDE)

    def read(self, type: SharedTile | SharedVector, bases: list[int], columns: list[int]) -> np.ndarray:
        """The elements at each base, shape (bases, *type.shape)."""
        if isinstance(type, SharedTile):
            return self.wide.take(self._chunks(type, bases, columns)).view(type.dtype.numpy)
        rows = [self.bytes[base : base + type.bytes].view(type.dtype.numpy) for base in bases]
        return np.stack(rows)

    def write(self, type: SharedTile | SharedVector, bases: list[int], columns: list[int], array: np.ndarray) -> None:
        """Sets the elements at each base to those of `array`, whose first axis has one item per base, or one for
        all.
        """
        if isinstance(type, SharedTile):
            self.wide[self._chunks(type, bases, columns)] = np.ascontiguousarray(array, type.dtype.numpy).view(_WIDE)
            return
        for base, row in zip(bases, np.broadcast_to(array, (len(bases), *type.shape)), strict=True):
            self.bytes[base : base + type.bytes].view(type.dtype.numpy)[:] = row

    def _chunks(self, type: SharedTile, bases: list[int], columns: list[int]) -> np.ndarray:
        parts = [chunk_places(type, b, c) // CHUNK for b, c in zip(bases, columns, strict=True)]
        return parts[0][None] if len(parts) == 1 else np.stack(parts)


def each_row(first: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """The first elements of rows that are gathered, each kept to what exists."""
    b, d, rows, c = first
    return [(b, d, row, c, 0, INT_MAX) for row in rows]


class GlobalArray:
    """A global tensor: an array with four dimensions (batch, depth, rows, cols)."""

    def __init__(self, name: str, type: Global, array: np.ndarray):
        if array.dtype != type.dtype.numpy:
            raise ArgumentError(
                f"{name} holds {array.dtype}, where the kernel takes {type}", fix=f"pass {type.dtype}", location=()
            )
        if array.ndim > 4 or any(isinstance(d, int) and d != n for d, n in zip(type.dims, array.shape, strict=True)):
            raise ArgumentError(
                f"{name} has shape {array.shape}, where the kernel takes {type}",
                fix="dimensions must agree",
                location=(),
            )
        if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
            raise ArgumentError(
                f"the columns of {name} are not contiguous", fix="pass np.ascontiguousarray(x)", location=()
            )
        self.name, self.type = name, type
        self.array = array[(None,) * (4 - array.ndim)]
        self.shape = self.array.shape
        self.size = type.dtype.size
        self.start: int = array.__array_interface__["data"][0]
        self.strides = self.array.strides

    def check(self, first: tuple[int, ...], location: tuple[Frame, ...]) -> None:
        """Raises `OutOfBoundsError` where no part of a rectangle may be: a batch or depth outside, a negative row or
        column.
        """
        (b, d, r, c), kept = first[:4], len(first) > 4  # then rows, or columns of a run, may be negative
        if isinstance(r, tuple):
            r = 0  # rows that are gathered may be any
        if kept:
            r, c = max(r, 0), max(c, 0)
        if 0 <= b < self.shape[0] and 0 <= d < self.shape[1] and 0 <= r <= INT_MAX and 0 <= c <= INT_MAX:
            return
        if max(r, c) > INT_MAX:
            raise OutOfBoundsError(
                f"{self.name}: coordinate (batch {b}, depth {d}, row {r}, column {c}) does not fit 32 bits: on a GPU "
                "it wraps",
                fix="keep coordinates below 2**31: bound what is computed in u32 or i64, and subtract only what is "
                "smaller",
                location=location,
            )
        raise OutOfBoundsError(
            f"{self.name}: coordinate (batch {b}, depth {d}, row {r}, column {c}) is outside of its shape "
            f"{' x '.join(map(str, self.shape))} (batch, depth, rows, columns)",
            fix="only rows and columns past the end are defined (they read as zero and are not written); bound the "
            "coordinate, or the grid; or read what lies before: within=(0, x.rows), x[rows, cols] at indices",
            location=location,
        )

    def clip(self, first: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Which rows and columns of a rectangle lie inside. `first` may end with the rows that it is kept to (of a run,
        with the columns), and then with the columns.
        """
        found, kept = [], {3: first[6:], 4 - len(shape): first[4:6]}
        for axis, length in ((2, shape[0] if len(shape) == 2 else 1), (3, shape[-1])):
            low, high = kept.get(axis) or (first[axis], self.shape[axis])
            begin = min(max(low, 0) - first[axis], length)
            end = min(length, min(high, self.shape[axis]) - first[axis])
            found.append(slice(max(begin, 0), max(end, begin, 0)))
        return found[0], found[1]

    def inside(self, first: tuple[Any, ...], shape: tuple[int, ...]) -> int:
        """How many elements of a rectangle exist."""
        if isinstance(first[2], tuple):
            return sum(self.inside(one, (1, shape[-1])) for one in each_row(first))
        rows, cols = self.clip(first, shape)
        return (rows.stop - rows.start) * (cols.stop - cols.start)

    def read(self, first: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """The rectangle as an array of `shape`; what lies past the end is zero. May be a view."""
        b, d, r, c = first[:4]
        if isinstance(r, tuple):
            return np.concatenate([self.read(one, (1, shape[-1])) for one in each_row(first)])
        rows, cols = self.clip(first, shape)
        part = self.array[b, d, r + rows.start : r + rows.stop, c + cols.start : c + cols.stop]
        full = (shape[0] if len(shape) == 2 else 1, shape[-1])
        if part.shape != full:
            padded = np.zeros(full, self.array.dtype)
            padded[rows, cols] = part
            part = padded
        return part if len(shape) == 2 else part[0]

    def write(self, first: tuple[int, ...], shape: tuple[int, ...], values: np.ndarray) -> None:
        """Sets the rectangle; what lies past the end is dropped."""
        b, d, r, c = first[:4]
        if isinstance(r, tuple):
            for one, row in zip(each_row(first), values, strict=True):
                self.write(one, (1, shape[-1]), row)
            return
        rows, cols = self.clip(first, shape)
        inside = values.reshape(-1, shape[-1])[rows, cols]
        self.array[b, d, r + rows.start : r + rows.stop, c + cols.start : c + cols.stop] = inside
