"""Which threads of a scope touch which elements of an access, and in which instructions: evaluated from the layouts.

A map is data (it hashes and compares), so that what follows from it is worked out once for each map and shape: which
warp owns which bytes, whether two accesses agree lane by lane, how often banks conflict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

import numpy as np

from .layouts import (
    coalesced_thread,
    fragment,
    matrix_place,
    pitched_element,
    transposed_matrix_place,
    vector_element,
)
from .loading import dataclass
from .types import Coalesced, RegisterTile, RegisterVector, bf16

Shape = tuple[int, ...]  # (rows, cols) of a tile, (length,) of a vector
ALL_LANES = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class ThreadMap:
    """Base: `moves` says what each instruction moves; who touches what follows from it."""

    # The lanes of a warp move their elements in one instruction that names no lane for each (ldmatrix), or nobody knows
    # which lane does: every lane counts as touching all that its warp does.
    whole_warps: ClassVar[bool] = False

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        """The first element (row by row; -1: none) each lane asks for, shape (warps, instructions, 32), and how many
        it gets.
        """
        raise NotImplementedError

    def lanes(self, shape: Shape, warps: int) -> np.ndarray:
        """Which lanes of each warp touch each element, row by row: a bit for each lane, shape (warps, elements)."""
        return _lanes(self, shape, warps)


@lru_cache(maxsize=256)
def _lanes(map: ThreadMap, shape: Shape, warps: int) -> np.ndarray:
    first, width = map.moves(shape, warps)
    found = np.zeros((warps, math.prod(shape) + width), np.uint32)  # what is past the end, and -1, is dropped
    at = np.where(first[..., None] < 0, math.prod(shape), first[..., None] + np.arange(width))
    warp = np.arange(warps)[:, None, None]
    for lane in range(32):
        found[warp, at[:, :, lane]] |= ALL_LANES if map.whole_warps else np.uint32(1 << lane)
    found = np.ascontiguousarray(found[:, : math.prod(shape)])
    found.flags.writeable = False
    return found


@lru_cache(maxsize=1024)
def agree(a: ThreadMap, b: ThreadMap, shape: Shape, warps: int) -> bool:
    """Whether no element is touched by a lane of one access and another lane of the same warp in the other."""
    x, y = a.lanes(shape, warps), b.lanes(shape, warps)
    return bool(((x == 0) | (y == 0) | ((x == y) & (x & (x - np.uint32(1)) == 0))).all())


@dataclass(frozen=True)
class EveryThread(ThreadMap):
    """Every thread of the scope touches every element."""

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        one = np.arange(math.prod(shape))[None, :, None]
        return np.broadcast_to(one, (warps, math.prod(shape), 32)), 1

    def lanes(self, shape: Shape, warps: int) -> np.ndarray:
        return np.broadcast_to(ALL_LANES, (warps, math.prod(shape)))


@dataclass(frozen=True)
class Together(EveryThread):
    """Every thread reads, and passes what it read to the others of its warp by shuffles: none is past them before
    all are.
    """

    whole_warps = True


@dataclass(frozen=True)
class AnyThread(EveryThread):
    """Nobody knows which threads touch what: an access must be ordered with those of every thread of the scope."""


@dataclass(frozen=True)
class OneThread(ThreadMap):
    """The first thread of the scope, the elected one, touches everything."""

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        found = np.full((warps, math.prod(shape), 32), -1)
        found[0, :, 0] = np.arange(math.prod(shape))
        return found, 1

    def lanes(self, shape: Shape, warps: int) -> np.ndarray:
        return np.broadcast_to((np.arange(warps) == 0).astype(np.uint32)[:, None], (warps, math.prod(shape)))


@dataclass(frozen=True)
class Registers(ThreadMap):
    """A register tile or vector: each thread touches the elements it holds, `width` neighbours at a time.

    `once`: of several threads that hold an element only the first stores it.
    """

    type: RegisterTile | RegisterVector
    width: int = 1
    once: bool = False

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        type = self.type
        warp, lane = np.arange(type.warps)[:, None, None], np.arange(32)[None, None, :]
        register = np.arange(0, type.registers, self.width)[None, :, None]
        if isinstance(type, RegisterTile):
            row, col = fragment(type, warp, lane, register)
            first = row * type.cols + col
        else:
            first = np.array(np.broadcast_to(vector_element(type, warp, lane, register), _grid(register, type.warps)))
            first[first >= type.length] = -1
        first = np.array(np.broadcast_to(first, _grid(register, type.warps)))
        if self.once and isinstance(type, RegisterVector):
            first[~np.broadcast_to(stores_vector(type, warp, lane), first.shape)] = -1
        return first, self.width


@dataclass(frozen=True)
class Pitched(ThreadMap):
    """A register tile in a shared vector, `pitch` elements from row to row (or, `by_columns`, from column to column):
    each thread touches the elements it holds, `width` neighbours of the memory at a time.
    """

    type: RegisterTile
    pitch: int
    by_columns: bool = False
    width: int = 1

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        first, cols = Registers(self.type).moves(self.type.shape, warps)[0][:, :: self.width], self.type.cols
        return np.asarray(pitched_element(first // cols, first % cols, self.pitch, self.by_columns)), self.width


def _grid(register: np.ndarray, warps: int) -> tuple[int, int, int]:
    return (warps, register.shape[1], 32)


def stores_vector(vector: RegisterVector, warp: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """Which threads store their elements of a vector, where several hold copies (as `Store` writes it)."""
    if vector.kind == "naive":
        return np.asarray(lane >= 0)
    if isinstance(vector.layout, Coalesced):
        if vector.kind == "row":
            return np.asarray(lane >= 0)  # in runs, as tiles: copies store the same
        return np.asarray(coalesced_thread(vector.layout, vector.warps, warp, lane)[2] == 0)
    chosen = lane % 4 == 0 if vector.ortho else lane // 4 == 0
    return np.asarray(chosen & ((warp == 0) | (vector.kind != "row")))


@dataclass(frozen=True)
class Matrices(ThreadMap):
    """A register tile of 16-bit elements by ldmatrix or stmatrix: lanes name the rows of 8 x 8 matrices, and hold
    other elements. `transposed`: the memory holds the tile's transpose.
    """

    type: RegisterTile
    transposed: bool = False

    whole_warps = True

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        tile = self.type
        each = tile.warp_rows // 16 * (tile.cols // 16)
        inner = tile.cols // 16 if tile.layout == "row" else tile.warp_rows // 16
        matrix = np.arange(each)[None, :, None]
        warp, lane = np.arange(tile.warps)[:, None, None], np.arange(32)[None, None, :]
        place = transposed_matrix_place if self.transposed else matrix_place
        row, col = place(tile, warp, lane, matrix // inner, matrix % inner)
        return np.asarray(row * shape[1] + col), 8


@dataclass(frozen=True)
class MatrixPairs(Matrices):
    """The same of 8-bit elements, two for each of the register tile's."""

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        first, width = super().moves((shape[0], shape[1] // 2), warps)
        return first * 2, width * 2


@dataclass(frozen=True)
class MatrixOperand(ThreadMap):
    """A matrix operand in shared memory of products by mma.sync: every warp reads all of it with ldmatrix
    (`shared`), or 16 rows in turn.
    """

    shared: bool

    whole_warps = True

    def lanes(self, shape: Shape, warps: int) -> np.ndarray:
        rows, cols = shape
        mine = self.shared | (np.arange(rows) // 16 % warps == np.arange(warps)[:, None])
        return np.repeat(np.where(mine, ALL_LANES, np.uint32(0)), cols, axis=1)

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        tile = RegisterTile(bf16, shape[0], shape[1], "row", 1 if self.shared else warps)
        first, width = Matrices(tile).moves(shape, tile.warps)
        return np.broadcast_to(first, (warps, *first.shape[1:])), width


@dataclass(frozen=True)
class MatrixBytes(MatrixOperand):
    """A matrix operand of elements of `size` bytes, by the same ldmatrix: 16 bytes of a row are as many elements."""

    size: int = 2

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        rows, words = shape[0], shape[1] * self.size // 2
        first, _ = super().moves((rows, words), warps)
        return first // words * shape[1] + first % words * 2 // self.size, 16 // self.size


@dataclass(frozen=True)
class InTurn(ThreadMap):
    """Threads take vectors of `width` elements in turn, row by row."""

    width: int

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        vectors = math.prod(shape) // self.width
        rounds = -(-vectors // (32 * warps))
        number = np.arange(rounds * warps * 32).reshape(rounds, warps, 32).swapaxes(0, 1)
        return np.where(number < vectors, number * self.width, -1), self.width


@dataclass(frozen=True)
class WarpShares(ThreadMap):
    """Each warp in turn touches as many elements as the next: its first lane does, or, to other blocks, a lane for
    each (`whole_warps`).
    """

    remote: bool = False

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        each = math.prod(shape) // warps
        found = np.full((warps, each, 32), -1)
        found[:, :, 0] = np.arange(each * warps).reshape(warps, each)
        return found, 1

    def lanes(self, shape: Shape, warps: int) -> np.ndarray:
        found = _lanes(self, shape, warps)
        return np.where(found, ALL_LANES, found) if self.remote else found


@dataclass(frozen=True)
class WarpLines(ThreadMap):
    """Lines of a row vector's length, one for each warp: each touches its `own`, or every warp all of them.

    `vector` is what one warp holds of a line.
    """

    vector: RegisterVector
    own: bool

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        lane, register = np.arange(32)[None, :], np.arange(self.vector.registers)[:, None]
        at = np.array(np.broadcast_to(vector_element(self.vector, 0, lane, register), (self.vector.registers, 32)))
        lines = np.arange(warps)[:, None, None] * self.vector.length
        if self.own:
            at[~np.broadcast_to(stores_vector(self.vector, np.zeros_like(lane), lane), at.shape)] = -lines.max() - 1
            return np.maximum(lines + at, -1), 1
        every = (lines + at).reshape(1, -1, 32)
        return np.broadcast_to(every, (warps, *every.shape[1:])), 1


@dataclass(frozen=True)
class SegmentEnds(ThreadMap):
    """The totals of segments of lines, line by line (`ops/segment_scan.py`): the thread at the end of each touches it.

    segment: neighbours of a thread, threads that follow one another, and the distance of their lanes.
    """

    type: RegisterTile | RegisterVector
    along: str
    segment: tuple[int, int, int]
    reverse: bool

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        type, (run, lanes, stride) = self.type, self.segment
        first = Registers(type, once=True).moves(type.shape, warps)[0]
        if isinstance(type, RegisterVector) and type.kind == "naive":  # the last segment may end behind the vector
            warp, register = np.arange(warps)[:, None, None], np.arange(type.registers)[None, :, None]
            first = np.asarray(vector_element(type, warp, np.arange(32)[None, None, :], register))
        size = type.shape if len(type.shape) == 2 else (1, *type.shape)
        row, col = (0, first) if len(type.shape) == 1 else np.divmod(first, size[1])
        line, place = (row, col) if self.along == "row" else (col, row)
        length, each = size[1 if self.along == "row" else 0], run * lanes
        thread = np.arange(32)[None, None, :] // stride % lanes
        last = (thread == (0 if self.reverse else lanes - 1)) & (place % run == (0 if self.reverse else run - 1))
        count = -(-length // each)
        return np.where(last & (first >= 0) & (place // each < count), line * count + place // each, -1), 1


@dataclass(frozen=True)
class Declared(ThreadMap):
    """As inline CUDA says: a function from the indices of elements (one array a dimension) to the thread that
    touches each.
    """

    thread: Callable[..., np.ndarray]

    def moves(self, shape: Shape, warps: int) -> tuple[np.ndarray, int]:
        thread = np.broadcast_to(self.thread(*np.indices(shape)), shape).ravel().astype(np.int64)
        found = np.full((warps, math.prod(shape), 32), -1)
        at = np.arange(math.prod(shape))
        inside = (thread >= 0) & (thread < 32 * warps)
        found[thread[inside] // 32, at[inside], thread[inside] % 32] = at[inside]
        return found, 1


EVERY_THREAD, ANY_THREAD, ONE_THREAD = EveryThread(), AnyThread(), OneThread()
