"""Where every element lives: functions from indices to indices, the only place that knows them.

Each function takes ints, NumPy integer arrays, or `Sym`s that print as C, so that the simulator, the
writer and the reports evaluate the same formula. Sources: PTX ISA "Matrix Fragments for mma.m16n8k16",
"Asynchronous Warpgroup Level Matrix Shared Memory Layout", "Matrix Descriptor Format" and "Swizzling Modes".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .types import Coalesced, RegisterTile, RegisterVector, SharedTile

Index = Any  # int, integer array or Sym


class Sym:
    """An integer expression that prints as C."""

    def __init__(self, text: str):
        self.text = text

    def _binary(self, operator: str, other: Index) -> Sym:
        if isinstance(other, int) and ((operator in "+-<<>>|^" and other == 0) or (operator in "*//" and other == 1)):
            return self
        if isinstance(other, int) and other == 0 and operator in "*&":
            return Sym("0")
        return Sym(f"({self.text} {operator} {other})")

    def _reverse(self, operator: str, other: Index) -> Sym:
        if isinstance(other, int) and ((operator in "+|^" and other == 0) or (operator == "*" and other == 1)):
            return self
        return Sym(f"({other} {operator} {self.text})")

    def __add__(self, other: Index) -> Sym:
        return self._binary("+", other)

    def __radd__(self, other: Index) -> Sym:
        return self._reverse("+", other)

    def __sub__(self, other: Index) -> Sym:
        return self._binary("-", other)

    def __mul__(self, other: Index) -> Sym:
        return self._binary("*", other)

    def __rmul__(self, other: Index) -> Sym:
        return self._reverse("*", other)

    def __floordiv__(self, other: Index) -> Sym:
        return self._binary("/", other)

    def __mod__(self, other: Index) -> Sym:
        return Sym("0") if isinstance(other, int) and other == 1 else self._binary("%", other)

    def __xor__(self, other: Index) -> Sym:
        return self._binary("^", other)

    def __and__(self, other: Index) -> Sym:
        return self._binary("&", other)

    def __lshift__(self, other: Index) -> Sym:
        return self._binary("<<", other)

    def __rshift__(self, other: Index) -> Sym:
        return self._binary(">>", other)

    def __str__(self) -> str:
        return self.text


# Register fragments ----------------------------------------------------------------------------------------


def fragment(tile: RegisterTile, warp: Index, lane: Index, register: Index) -> tuple[Index, Index]:
    """(row, column) of the element that `register` of a thread holds.

    A row-layout tile is made of m16n8 accumulator fragments: registers run over the two neighbours, then the
    two rows eight apart, then columns in steps of 8, then rows in steps of 16. Neighbouring pairs packed into 32
    bits are the A operand of m16n8k16 and of wgmma. A column-layout tile is the fragment of its transpose (the
    B operand). Blocks of 16 rows go to the warps in turn, as wgmma wants of four. A coalesced tile: see `Coalesced`.
    """
    if isinstance(tile.layout, Coalesced):
        each = tile.cols // tile.layout.lanes  # registers of one row
        held, mine, _ = coalesced_thread(tile.layout, tile.warps, warp, lane)
        return (register // each) * held + mine, coalesced_column(tile.layout, tile.warps, warp, lane, register % each)
    long = tile.cols if tile.layout == "row" else tile.warp_rows  # extent along the pairs of neighbours
    block, inner = register // (long // 2), register % (long // 2)
    a = block * 16 + lane // 4 + ((register // 2) % 2) * 8
    b = (inner // 4) * 8 + (lane % 4) * 2 + register % 2
    row, col = (a, b) if tile.layout == "row" else (b, a)
    return ((row // 16) * tile.warps + warp) * 16 + row % 16, col


def coalesced_thread(layout: Coalesced, warps: int, warp: Index, lane: Index) -> tuple[int, Index, Index]:
    """How many rows the threads hold at a time, which of them a thread belongs to, and which thread of that row it
    is.
    """
    if layout.lanes == 32 * warps:
        return 1, 0, lane if warps == 1 else warp * 32 + lane
    return 32 // layout.lanes, lane // layout.lanes, lane % layout.lanes


def coalesced_column(layout: Coalesced, warps: int, warp: Index, lane: Index, register: Index) -> Index:
    """Column of the element in a thread's `register` of a row."""
    width, thread = layout.width, coalesced_thread(layout, warps, warp, lane)[2]
    return (register // width) * (layout.lanes * width) + thread * width + register % width


def matrix_place(tile: RegisterTile, warp: Index, lane: Index, block: Index, step: Index) -> tuple[Index, Index]:
    """(row, column) at which a lane addresses the 16 x 16 matrix (`block`, `step`) of a tile, for ldmatrix and
    stmatrix.

    The four 8 x 8 matrices come in the order of the fragment's packed registers: for row layout down the rows first; a
    column-layout tile moves transposed, across the columns first. Each lane names 8 neighbours (16 bytes) of a row.
    """
    if tile.layout == "row":
        return (block * tile.warps + warp) * 16 + lane % 16, step * 16 + lane // 16 * 8
    return (step * tile.warps + warp) * 16 + lane % 8 + lane // 16 * 8, block * 16 + lane // 8 % 2 * 8


def transposed_matrix_place(
    tile: RegisterTile, warp: Index, lane: Index, block: Index, step: Index
) -> tuple[Index, Index]:
    """`matrix_place` of a row-layout tile in memory that holds its transpose: matrices come turned."""
    return step * 16 + lane // 16 * 8 + lane % 8, (block * tile.warps + warp) * 16 + lane // 8 % 2 * 8


def vector_register(tile: RegisterTile, vector: RegisterVector, register: Index) -> Index:
    """Which register of `vector` goes with `register` of `tile` (both in the same thread)."""
    if isinstance(tile.layout, Coalesced):
        each = tile.cols // tile.layout.lanes
        return register // each if vector.kind == "col" else register % each
    long = tile.cols if tile.layout == "row" else tile.warp_rows
    if vector.ortho:
        return (register // (long // 2)) * 2 + (register // 2) % 2
    return ((register % (long // 2)) // 4) * 2 + register % 2


def vector_element(vector: RegisterVector, warp: Index, lane: Index, register: Index) -> Index:
    """Index of the element that `register` of a thread holds (naive: may lie past the end)."""
    if vector.kind == "naive":
        width, threads = vector.width, 32 * vector.warps
        return ((register // width) * threads + warp * 32 + lane) * width + register % width
    if isinstance(vector.layout, Coalesced):
        if vector.kind == "row":
            return coalesced_column(vector.layout, vector.warps, warp, lane, register)
        held, mine, _ = coalesced_thread(vector.layout, vector.warps, warp, lane)
        return register * held + mine
    if vector.ortho:
        element = (register // 2) * 16 + lane // 4 + (register % 2) * 8
    else:
        element = (register // 2) * 8 + (lane % 4) * 2 + register % 2
    if vector.spread == 1:
        return element
    return ((element // 16) * vector.warps + warp) * 16 + element % 16


# Shared memory ---------------------------------------------------------------------------------------------


def swizzle(offset: Index, span: int) -> Index:
    """XOR the 16-byte chunk of a byte offset with its row inside a pattern of 8 spans (PTX "Swizzling modes").

    `offset` counts from an address that is a multiple of 1024.
    """
    return offset ^ (((offset >> 7) & (span // 16 - 1)) << 4)


def shared_offset(tile: SharedTile, row: Index, col: Index) -> Index:
    """Byte offset of element (row, col) from the start of a tile that begins at a multiple of 1024 bytes.

    Panels of `tile.panel` columns follow one another, each `tile.pitch` rows of `tile.swizzle` bytes.
    """
    size, span, panel = tile.dtype.size, tile.swizzle, tile.panel
    if isinstance(row, Sym) or isinstance(col, Sym):  # the panel is added outside: only low bits are swizzled
        row, col = (x if isinstance(x, Sym) else Sym(str(x)) for x in (row, col))
        line = row * span
        mask = ((line >> 7) & (span // 16 - 1)) << 4
        inside = (col % panel) * size
        return (col // panel) * (tile.pitch * span) + (line + (inside ^ mask))
    return (col // panel) * (tile.pitch * span) + swizzle(row * span + (col % panel) * size, span)


def pitched_element(row: Index, col: Index, pitch: int, by_columns: bool) -> Index:
    """Which element of a shared vector a tile's element is, where a row (or, `by_columns`, a column) takes `pitch`."""
    return col * pitch + row if by_columns else row * pitch + col


def tile_offsets(tile: SharedTile) -> np.ndarray:
    """Byte offsets of all elements of a tile, int64 of shape (rows, cols)."""
    rows, cols = np.arange(tile.rows)[:, None], np.arange(tile.cols)[None, :]
    return np.asarray(shared_offset(tile, rows, cols), dtype=np.int64)


def bank_conflicts(addresses: np.ndarray, width: int) -> int:
    """Extra passes of one warp-wide shared access: `addresses` in bytes, one a lane, `width` bytes each.

    A pass serves 128 bytes: 32 lanes of 4 bytes, 16 of 8, 8 of 16; lanes that ask for the same 4-byte word share it.
    """
    lanes = max(1, min(32, 128 // width))
    extra = 0
    for first in range(0, len(addresses), lanes):
        words = np.unique((addresses[first : first + lanes, None] + np.arange(0, width, 4)[None, :]) // 4)
        if words.size:
            extra += int(np.bincount(words % 32).max()) - 1
    return extra


# WGMMA descriptors -----------------------------------------------------------------------------------------

SWIZZLE_MODE = {128: 1, 64: 2, 32: 3}  # bits 62-63 of the descriptor


def descriptor_base(tile: SharedTile, transposed: bool) -> int:
    """The constant bits of a wgmma descriptor: leading and stride byte offsets (in 16 bytes) and swizzle mode.

    K-major (`transposed` false): eight rows to the next eight, `8 * span`; the leading offset is ignored (1).
    MN-major: the leading offset steps from panel to panel, the stride offset from eight k to the next eight.
    """
    span = tile.swizzle
    leading = tile.pitch * span // 16 if transposed else 1
    return (leading << 16) | ((8 * span // 16) << 32) | (SWIZZLE_MODE[span] << 62)


def descriptor_step(tile: SharedTile, transposed: bool, k: int) -> int:
    """Bytes from the first chunk along K (16 elements of 2 bytes, 32 of 1) to chunk `k`."""
    if transposed:
        return k * 16 * tile.swizzle
    chunks = tile.swizzle // 32  # chunks of 32 bytes in one panel
    return (k % chunks) * 32 + (k // chunks) * tile.pitch * tile.swizzle
