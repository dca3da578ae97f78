"""Which warps touch which cells of memory: an access as two flat arrays.

A cell is the unit of hazard checks: 16 bytes of a shared tile or vector, one element of a vector that is touched
element by element, and in global memory the widest power of two up to 16 bytes that no access straddles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ..errors import OutOfBoundsError, ResourceError
from ..ops.addressing import known_multiple
from ..passes.fences import root
from ..program import Access, Buffer, Place, Program, Value
from ..types import SharedTile, SharedVector
from .memory import CHUNK, GlobalArray, chunk_offsets

Footprint = tuple[np.ndarray, np.ndarray]  # (warp of the unit or gang, cell), a pair for each that a warp touches


def owners(shape: tuple[int, int], split: str, warps: int, size: int) -> np.ndarray | None:
    """Which warp of a unit touches each chunk of `size` bytes, row by row; None when all of them touch all."""
    rows, chunks = shape
    count = rows * chunks
    if warps == 1 or split == "one":
        return np.zeros(count, np.int64)
    if split == "rows":
        return np.repeat(np.arange(rows) // 16 % warps, chunks)
    if split == "warps":
        return np.arange(count) * warps // count
    if split == "threads":
        return np.arange(count) * size // CHUNK // 32 % warps
    return None


def _spread(cells: np.ndarray, owner: np.ndarray | None, warps: int) -> Footprint:
    if owner is None:
        return np.repeat(np.arange(warps), len(cells)), np.tile(cells, warps)
    return owner, cells


class SharedMap:
    """The cells of a block's shared memory, and what buffer each belongs to."""

    def __init__(self, program: Program):
        self.buffers = sorted((b for b in program.buffers if b.bytes), key=lambda b: b.offset)
        self.elementwise = _elementwise(program)
        self._check_overlaps(program)
        sizes = [self._cell(b) for b in self.buffers]
        self.step = min(sizes, default=CHUNK)
        table = np.full(-(-program.shared_bytes // self.step) + 1, -1, np.int64)
        starts: list[int] = []
        owner: list[int] = []
        for number, (buffer, size) in enumerate(zip(self.buffers, sizes, strict=True)):
            first, count, repeat = len(starts), -(-buffer.bytes // size), size // self.step
            starts.extend(buffer.offset + i * size for i in range(count))
            owner.extend([number] * count)
            where = buffer.offset // self.step
            cells = np.repeat(np.arange(first, first + count), repeat)[: len(table) - where]
            table[where : where + len(cells)] = cells
        self.table, self.starts, self.owner = table, np.array(starts, np.int64), np.array(owner, np.int64)

    def _cell(self, buffer: Buffer) -> int:
        if isinstance(buffer.item, SharedTile) or (
            isinstance(buffer.item, SharedVector) and buffer.value not in self.elementwise
        ):
            return CHUNK
        return math.gcd(
            CHUNK, buffer.item_bytes, buffer.item.dtype.size if isinstance(buffer.item, SharedVector) else CHUNK
        )

    def _check_overlaps(self, program: Program) -> None:
        for a, b in zip(self.buffers, self.buffers[1:], strict=False):
            if a.offset < 0 or a.offset + a.bytes > b.offset:
                raise ResourceError(
                    f"shared buffers overlap: {a.value.label} has bytes {a.offset} to {a.offset + a.bytes}, {b.value.label} begins at {b.offset}",
                    fix="give every buffer bytes of its own: run the shared-memory plan",
                    location=a.value.location or program.location,
                    also={"the other is made at": b.value.location},
                )

    def __len__(self) -> int:
        return len(self.starts)

    def footprint(self, value: Value, base: int, column: int, split: str, warps: int, at: int | None) -> Footprint:
        """The cells of one shared tile or vector (or its element `at`), and the warp of the unit that touches each."""
        type = value.type
        if isinstance(type, SharedTile):
            offsets, owner = (
                chunk_offsets(type, column),
                owners((type.rows, type.cols * type.dtype.size // CHUNK), split, warps, CHUNK),
            )
            width = CHUNK
        else:
            assert isinstance(type, SharedVector)
            width = type.dtype.size if root(value) in self.elementwise else CHUNK
            offsets = np.arange(0, type.bytes, width) if at is None else np.array([at * width])
            owner = _vector_owners(type, split, warps, width) if at is None else owners((1, 1), split, warps, width)
        places = base + offsets.ravel()
        cells = self._cells(value, places, width)
        if len(cells) != len(places) and owner is not None:
            owner = np.repeat(owner, len(cells) // len(places))
        return _spread(cells, owner, warps)

    def _cells(self, value: Value, places: np.ndarray, width: int) -> np.ndarray:
        inside = (places >= 0) & (places // self.step < len(self.table))
        cells = self.table[np.where(inside, places // self.step, -1)]
        buffers = set(self.owner[cells].tolist()) if (cells >= 0).all() else {-1}
        if len(buffers) != 1 or -1 in buffers:
            raise OutOfBoundsError(
                f"{value.label} ({value.type}) at bytes {places.min()} to {places.max() + width} leaves its buffer",
                fix="bound the index of the view",
            )
        number = buffers.pop()
        fine = width // self._cell(self.buffers[number])
        if fine > 1:  # a tile laid over a vector, whose cells are smaller
            cells = self.table[(places[:, None] + np.arange(0, width, width // fine)).ravel() // self.step]
        return cells

    def describe(self, cell: int) -> str:
        """The buffer that a cell lies in, with its item."""
        buffer = self.buffers[self.owner[cell]]
        if buffer.count == 1:
            return buffer.value.label
        return f"{buffer.value.label}[{(self.starts[cell] - buffer.offset) // buffer.item_bytes}]"


def _elementwise(program: Program) -> set[Value]:
    """The shared vectors of which some access touches single elements, or divides elements among warps."""
    found = set()
    for op in program.walk():
        for e in op.effects() if not any(True for _ in op.blocks()) else ():
            if isinstance(e, Access) and isinstance(e.target, Value) and (e.at is not None or e.split == "warps"):
                found.add(root(e.target))
    return found


@lru_cache(maxsize=256)
def _vector_owners(type: SharedVector, split: str, warps: int, width: int) -> np.ndarray | None:
    places = np.arange(0, type.bytes, width)
    if split == "rows" and warps > 1:
        return places // (16 * type.dtype.size) % warps
    return owners((1, len(places)), split, warps, width)


class GlobalMap:
    """The cells of the memory behind tensors that overlap one another (mostly: one tensor)."""

    def __init__(self, tensors: list[GlobalArray], places: Iterable[tuple[GlobalArray, Place]]):
        self.low = min(t.start for t in tensors)
        high = max(
            t.start + sum((n - 1) * s for n, s in zip(t.shape, t.strides, strict=True)) + t.size for t in tensors
        )
        step = CHUNK
        for t in tensors:
            strides = [s for n, s in zip(t.shape[:3], t.strides[:3], strict=True) if n > 1]
            step = math.gcd(step, t.start - self.low, *strides)
        for t, place in places:
            step = math.gcd(step, known_multiple(place.first[3]) * t.size, place.cols * t.size)
        self.step = step
        self.length = -(-(high - self.low) // step)
        self.tensors = tensors

    def __len__(self) -> int:
        return int(self.length)

    def footprint(
        self, tensor: GlobalArray, first: tuple[int, ...], shape: tuple[int, ...], split: str, warps: int
    ) -> Footprint:
        """The cells of a rectangle, and the warp of the unit that touches each."""
        rows, cols = tensor.clip(first, shape)
        start = (
            tensor.start
            - self.low
            + sum(i * s for i, s in zip(first[:3], tensor.strides[:3], strict=True))
            + first[3] * tensor.size
        )
        width = max(self.step, tensor.size)
        chunks = -(-cols * tensor.size // width)
        places = start + np.arange(rows)[:, None] * tensor.strides[2] + np.arange(chunks)[None, :] * width
        full = -(-shape[-1] * tensor.size // width)
        owner = None
        if len(shape) == 1 and split == "rows" and warps > 1:
            owner = (np.arange(chunks) * width // tensor.size // 16) % warps
        else:
            whole = owners((shape[0] if len(shape) == 2 else 1, full), split, warps, width)
            if whole is not None:
                owner = whole.reshape(-1, full)[:rows, :chunks].ravel()
        return _spread(places.ravel() // self.step, owner, warps)

    def describe(self, cell: int) -> str:
        """The tensor a cell lies in, with its coordinate where strides tell it."""
        tensor = self.tensors[0]
        left, at = cell * self.step + self.low - tensor.start, [0, 0, 0]
        for axis in sorted(range(3), key=lambda i: -tensor.strides[i]):
            if tensor.shape[axis] > 1 and tensor.strides[axis] > 0:
                at[axis], left = divmod(left, tensor.strides[axis])
        return f"{tensor.name}[{', '.join(map(str, (*at, left // tensor.size)))}]"
