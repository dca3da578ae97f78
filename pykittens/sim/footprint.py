"""Which warps, and which of their lanes, touch which cells of memory: an access as flat arrays.

A cell is the unit of hazard checks: the widest power of two up to 16 bytes that each warp touches as a whole or not at
all, in every access of the program. What the lanes of a warp do inside a cell is a pattern (`lane_patterns.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..errors import OutOfBoundsError, ResourceError
from ..ops.addressing import known_multiple
from ..ops.views import root
from ..program import Access, Buffer, Place, Program, Value
from ..thread_map import Shape, ThreadMap
from ..types import SharedTile, SharedVector
from .lane_patterns import PATTERNS, SEVERAL
from .memory import CHUNK, GlobalArray, chunk_places, element_places


class Footprint(NamedTuple):
    """Each pair of a warp (of the unit, or of the gang) and a cell that it touches, and the pattern of its lanes
    there.
    """

    warp: np.ndarray
    cell: np.ndarray
    lanes: np.ndarray


class Spots(NamedTuple):
    """Elements at computed rows and columns, all of which exist: the warp of the unit that touches each, with which
    lanes.
    """

    warp: np.ndarray
    row: np.ndarray
    col: np.ndarray
    lanes: np.ndarray


class Touched(NamedTuple):
    """The same before it is known where the access lies: cells by row, and number in the row."""

    warp: np.ndarray
    row: np.ndarray
    number: np.ndarray
    lanes: np.ndarray


def spots_of(
    threads: ThreadMap, shape: Shape, warps: int, row: np.ndarray, col: np.ndarray, size: Shape, all: bool
) -> Spots:
    """Of the elements of registers, those whose `row` and `col` lie inside of a matrix of `size`, by who has them: by
    `all` warps, or by the first, which acts for the others.
    """
    inside = (row >= 0) & (row < size[0]) & (col >= 0) & (col < size[1])
    lanes = threads.lanes(shape, warps)
    holds = lanes != 0
    holds = holds if all else holds & (np.cumsum(holds, axis=0) == 1)
    warp, element = np.nonzero(holds & inside.ravel())
    return Spots(warp, row.ravel()[element], col.ravel()[element], lanes[warp, element])


def _once(spots: Spots, cells: np.ndarray, width: int) -> Footprint:
    """Each pair of a warp and a cell of `width` bytes once. `cells`: those of each element."""
    each = cells.shape[1]
    pairs = np.stack([np.repeat(spots.warp, each), cells.ravel()])
    found, first, count = np.unique(pairs, axis=1, return_index=True, return_counts=True)
    lanes = PATTERNS.intern(np.repeat(np.repeat(spots.lanes, each)[first][:, None], width, axis=1))
    return Footprint(found[0], found[1], np.where(count > 1, np.int32(SEVERAL), lanes))


@lru_cache(maxsize=512)
def touched(threads: ThreadMap, shape: Shape, warps: int, size: int, width: int) -> Touched:
    """What the warps of a unit touch of `shape` elements of `size` bytes, in cells of `width` bytes."""
    lanes = _grid(threads, shape, warps)
    each = max(1, width // size)  # elements of a cell
    cut = max(1, size // width)  # cells of an element
    lanes = np.pad(lanes, ((0, 0), (0, 0), (0, -lanes.shape[2] % each)))
    lanes = lanes.reshape(*lanes.shape[:2], -1, each)
    warp, row, number = np.nonzero(lanes.any(axis=3))
    masks = lanes[warp, row, number]
    if cut > 1:
        warp, row, number, masks = (np.repeat(x, cut, axis=0) for x in (warp, row, number, masks))
        number = number * cut + np.tile(np.arange(cut), len(number) // cut)
    return Touched(warp, row, number, PATTERNS.intern(np.repeat(masks, width // each, axis=1)))


@lru_cache(maxsize=512)
def grain(threads: ThreadMap, shape: Shape, warps: int, size: int) -> int:
    """The widest cell, in bytes, that every warp touches as a whole or not at all."""
    if warps == 1:
        return CHUNK
    mine = _grid(threads, shape, warps) != 0
    each = CHUNK // size
    while each > 1:
        cells = np.pad(mine, ((0, 0), (0, 0), (0, -mine.shape[2] % each)), mode="edge").reshape(warps, -1, each)
        if (cells.any(axis=2) == cells.all(axis=2)).all():
            break
        each //= 2
    return each * size


def _grid(threads: ThreadMap, shape: Shape, warps: int) -> np.ndarray:
    """Lanes by warp, row and column."""
    return threads.lanes(shape, warps).reshape(warps, shape[0] if len(shape) == 2 else 1, shape[-1])


class SharedMap:
    """The cells of a block's shared memory, and what buffer each belongs to."""

    def __init__(self, program: Program):
        self.buffers = sorted((b for b in program.buffers if b.bytes), key=lambda b: b.offset)
        self.grains = _grains(program)
        self._check_overlaps(program)
        self.widths = [self._width(b) for b in self.buffers]
        self.step = min(self.widths, default=CHUNK)
        table = np.full(-(-program.shared_bytes // self.step) + 1, -1, np.int64)
        starts: list[int] = []
        owner: list[int] = []
        for number, (buffer, size) in enumerate(zip(self.buffers, self.widths, strict=True)):
            first, count, repeat = len(starts), -(-buffer.bytes // size), size // self.step
            starts.extend(buffer.offset + i * size for i in range(count))
            owner.extend([number] * count)
            where = buffer.offset // self.step
            cells = np.repeat(np.arange(first, first + count), repeat)[: len(table) - where]
            table[where : where + len(cells)] = cells
        self.table, self.starts, self.owner = table, np.array(starts, np.int64), np.array(owner, np.int64)

    def _width(self, buffer: Buffer) -> int:
        """How wide the cells of a buffer are."""
        if not isinstance(buffer.item, (SharedTile, SharedVector)):
            return math.gcd(CHUNK, buffer.item_bytes)
        return math.gcd(self.grains.get(buffer.value, CHUNK), buffer.item_bytes if buffer.count > 1 else CHUNK)

    def _check_overlaps(self, program: Program) -> None:
        for a, b in zip(self.buffers, self.buffers[1:], strict=False):
            if a.offset < 0 or a.offset + a.bytes > b.offset:
                raise ResourceError(
                    f"shared buffers overlap: {a.value.label} has bytes {a.offset} to {a.offset + a.bytes}, "
                    f"{b.value.label} begins at {b.offset}",
                    fix="give every buffer bytes of its own: run the shared-memory plan",
                    location=a.value.location or program.location,
                    also={"the other is made at": b.value.location},
                )

    def __len__(self) -> int:
        return len(self.starts)

    def footprint(
        self, value: Value, base: int, column: int, threads: ThreadMap, warps: int, at: int | None
    ) -> Footprint:
        """What the warps of a unit touch of one shared tile or vector (or its element `at`)."""
        type = value.type
        assert isinstance(type, (SharedTile, SharedVector))
        size = type.dtype.size
        number = self._buffer(value, base)
        width = self.widths[number]
        if isinstance(type, SharedTile):
            part = touched(threads, type.shape, warps, size, width)
            byte = part.number * width
            places = chunk_places(type, base, column)[part.row, byte // CHUNK] + byte % CHUNK
        else:
            part = touched(threads, type.shape if at is None else (1,), warps, size, width)
            places = base + part.number * width + (0 if at is None else at * size)
        inside = (places >= 0) & (places // self.step < len(self.table))
        cells = self.table[np.where(inside, places // self.step, -1)]
        if not inside.all() or (self.owner[cells] != number).any() or (cells < 0).any():
            raise OutOfBoundsError(
                f"{value.label} ({value.type}) at bytes {places.min()} to {places.max() + width} leaves its buffer",
                fix="bound the index of the view",
            )
        return Footprint(part.warp, cells, part.lanes)

    def scattered(self, value: Value, base: int, column: int, spots: Spots) -> Footprint:
        """What the warps of a unit touch of one shared tile or vector, element by element."""
        type = value.type
        assert isinstance(type, (SharedTile, SharedVector))
        size, width = type.dtype.size, self.widths[self._buffer(value, base)]
        first = np.asarray(element_places(type, base, spots.row, column + spots.col), np.int64)
        places = first[:, None] + np.arange(0, size, width)
        return _once(spots, self.table[places // self.step], width)

    def _buffer(self, value: Value, base: int) -> int:
        """The buffer that holds the byte `base`."""
        inside = base >= 0 and base // self.step < len(self.table)
        cell = int(self.table[base // self.step]) if inside else -1
        if cell < 0:
            raise OutOfBoundsError(
                f"{value.label} ({value.type}) at byte {base} leaves its buffer", fix="bound the index of the view"
            )
        return int(self.owner[cell])

    def describe(self, cell: int) -> str:
        """The buffer that a cell lies in, with its item."""
        buffer = self.buffers[self.owner[cell]]
        if buffer.count == 1:
            return buffer.value.label
        return f"{buffer.value.label}[{(self.starts[cell] - buffer.offset) // buffer.item_bytes}]"


def _grains(program: Program) -> dict[Value, int]:
    """The widest cells that all accesses to a shared buffer allow."""
    found: dict[Value, int] = {}
    for op in program.walk():
        for e in op.effects() if not any(True for _ in op.blocks()) else ():
            if isinstance(e, Access) and isinstance(e.target, Value):
                type = e.target.type
                if not isinstance(type, (SharedTile, SharedVector)):
                    continue
                warps = op.scope.warps if op.collective else 1
                alone = e.at is not None or e.index is not None
                wide = type.dtype.size if alone else grain(e.threads, type.shape, warps, type.dtype.size)
                found[root(e.target)] = min(found.get(root(e.target), CHUNK), wide)
    return found


class GlobalMap:
    """The cells of the memory behind tensors that overlap one another (mostly: one tensor)."""

    def __init__(self, tensors: list[GlobalArray], accesses: Iterable[tuple[GlobalArray, Access, int]]):
        """`accesses`: those of the program, each with its tensor and how many warps do it together."""
        self.low = min(t.start for t in tensors)
        high = max(
            t.start + sum((n - 1) * s for n, s in zip(t.shape, t.strides, strict=True)) + t.size for t in tensors
        )
        step = CHUNK
        for t in tensors:
            strides = [s for n, s in zip(t.shape[:3], t.strides[:3], strict=True) if n > 1]
            step = math.gcd(step, t.start - self.low, *strides)
        for t, access, warps in accesses:
            place = access.target
            assert isinstance(place, Place)
            step = math.gcd(step, known_multiple(place.first[3]) * t.size, place.cols * t.size)
            alone = place.columns or access.index is not None
            step = math.gcd(step, t.size if alone else grain(access.threads, place.shape, warps, t.size))
        self.step = step
        self.length = -(-(high - self.low) // step)
        self.tensors = tensors

    def __len__(self) -> int:
        return int(self.length)

    def footprint(
        self, tensor: GlobalArray, first: tuple[int, ...], shape: Shape, threads: ThreadMap, warps: int
    ) -> Footprint:
        """What the warps of a unit touch of a rectangle."""
        at = np.array(first[2]) if isinstance(first[2], tuple) else None  # rows that are gathered
        if at is not None:
            first = (*first[:2], 0, first[3])
        rows, cols = tensor.clip(first, shape)
        start = (
            tensor.start
            - self.low
            + sum(i * s for i, s in zip(first[:3], tensor.strides[:3], strict=True))
            + first[3] * tensor.size
        )
        width = max(self.step, tensor.size)
        part = touched(threads, shape, warps, tensor.size, width)
        row = part.row if at is None else at[part.row]
        cells = (start + row * tensor.strides[2] + part.number * width) // self.step
        whole = slice(0, shape[0] if len(shape) == 2 else 1), slice(0, shape[-1])
        if (rows, cols) == whole and at is None:
            return Footprint(part.warp, cells, part.lanes)
        if at is not None:
            rows = slice(0, tensor.shape[2])
        inside = (row >= rows.start) & (row < rows.stop)
        inside &= (part.number * width >= cols.start * tensor.size) & (part.number * width < cols.stop * tensor.size)
        return Footprint(part.warp[inside], cells[inside], part.lanes[inside])

    def scattered(self, tensor: GlobalArray, first: tuple[int, ...], spots: Spots) -> Footprint:
        """What the warps of a unit touch of the matrix in which `first` lies, element by element."""
        start = tensor.start - self.low + sum(i * s for i, s in zip(first[:2], tensor.strides[:2], strict=True))
        places = start + spots.row * tensor.strides[2] + spots.col * tensor.size
        cells = (places[:, None] + np.arange(0, tensor.size, self.step)) // self.step
        return _once(spots, cells, self.step)

    def describe(self, cell: int) -> str:
        """The tensor a cell lies in, with its coordinate where strides tell it."""
        tensor = self.tensors[0]
        left, at = cell * self.step + self.low - tensor.start, [0, 0, 0]
        for axis in sorted(range(3), key=lambda i: -tensor.strides[i]):
            if tensor.shape[axis] > 1 and tensor.strides[axis] > 0:
                at[axis], left = divmod(left, tensor.strides[axis])
        return f"{tensor.name}[{', '.join(map(str, (*at, left // tensor.size)))}]"
