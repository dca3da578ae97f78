"""Shared tiles of 8-bit floats as the tensor cores take them: 16 bits wide, one after another in one place."""

from __future__ import annotations

from typing import Any

from ..types import Coalesced, DType, SharedTile, f32
from .elementwise import exp2, floor, log2, maximum
from .memory import shared
from .scopes import warp

MOST = 128  # columns at a time, as registers have room for


class Unpacked:
    """Makes operands of tiles of `dtype` in shared memory, by the warps of `group`, which may be 1, 2 or 4, one of
    `groups` in a block.

    type: the operands', with as many rows as the tiles and no fewer columns. Tiles of its dtype are operands as they
    are; else an operand is good until the next is asked for.
    """

    def __init__(self, group: Any, groups: int, type: SharedTile, dtype: DType):
        self.group, self.type = group, type
        self.place: Any = None
        if type.dtype is not dtype:
            places = shared(type, count=groups, name="unpacked")
            self.place = places[group.index] if groups > 1 else places

    def beside(self, x: Any, unit: Any) -> tuple[Any, Any]:
        """A tile in registers in the operands' dtype, to be multiplied with them, and in what unit its rows then are,
        of `unit` before: divided by powers of two, so that f16 has their numbers.
        """
        if x.dtype is self.type.dtype:
            return x, unit
        wide = x.to(f32)
        shift = floor(log2(maximum(abs(wide).row_max(), 1e-30)))
        return (wide * exp2(-shift)).to(self.type.dtype), exp2(shift) * unit

    def __call__(self, tile: Any) -> Any:
        """The tile in 16 bits; its columns are a multiple of 32. Each warp converts a part of it."""
        if self.place is None:
            return tile
        warps = self.group.warps
        down, along = min(warps, 2), max(warps // 2, 1)
        to = self.place.part(0, 0, tile.rows, tile.cols)
        rows, cols, i = tile.rows // down, tile.cols // along, warp.index % warps
        if warps > 1:  # nobody reads what it held; one warp has, as it reads operands together
            self.group.sync()
        for first in range(0, cols, MOST):
            part = (i % down * rows, i // down * cols + first, rows, min(MOST, cols - first))
            held = warp.load(tile.part(*part), layout=runs(*part[2:]), dtype=to.dtype)
            warp.store(to.part(*part), held)
        self.group.sync()
        return to


def runs(rows: int, cols: int) -> Coalesced:
    """The layout in which a warp goes through a tile of 8-bit numbers: 16 bytes a thread where it has the columns."""
    for width in (16, 8, 4):
        pieces = cols // width
        lanes = min(pieces & -pieces, 32)  # neighbours in a row: a power of two that divides it
        if rows * lanes >= 32:
            return Coalesced(lanes, width)
    raise AssertionError("tiles have 8 rows or more, of a multiple of 16 columns")
