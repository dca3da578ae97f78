"""Shared tiles of 8-bit floats as the tensor cores take them: 16 bits wide, in registers or in one shared place."""

from __future__ import annotations

from typing import Any

from ..types import Coalesced, DType, SharedTile, f32
from .elementwise import exp2, floor, join_pairs, log2, maximum
from .memory import shared
from .scopes import warp

MOST = 128  # columns at a time, as registers have room for
PAIRS = Coalesced(4, 4)  # the layout whose halves are fragments: splitting and joining move nothing


def in_registers(warps: int) -> bool:
    """Whether a group of so many warps takes tiles into registers: several would each convert all of them."""
    return warps == 1


class Unpacked:
    """Makes operands of tiles of `dtype` in shared memory, by the warps of `group`, which may be 1, 2 or 4, one of
    `groups` in a block.

    type: the operands', with as many rows as the tiles and no fewer columns. Tiles of its dtype are operands as they
    are. Others come into registers as two, of the even and of the odd columns (`in_registers`), or into a place in
    shared memory, where an operand is good until the next is asked for.
    """

    def __init__(self, group: Any, groups: int, type: SharedTile, dtype: DType):
        self.group, self.type = group, type
        self.place: Any = None
        self.halves = 2 if type.dtype is not dtype and in_registers(group.warps) else 1
        if type.dtype is not dtype and self.halves == 1:
            places = shared(type, count=groups, name="unpacked")
            self.place = places[group.index] if groups > 1 else places

    def beside(self, x: Any, unit: Any) -> tuple[list[Any], Any]:
        """A shared tile that is multiplied with operands, rows times rows, as tiles in registers, one for each half;
        and in what unit its rows then are, of `unit` before: divided by powers of two, so that f16 has their numbers.
        """
        if x.type.dtype is self.type.dtype and self.halves == 1:
            return [self.group.load(x)], unit
        if self.halves == 1:
            parts = [self.group.load(x).to(f32)]
        else:
            parts = [half.swap_layout("row").to(f32) for half in self.group.load(x).swap_layout(PAIRS).split_pairs()]
        largest = [abs(part).row_max() for part in parts]
        shift = floor(log2(maximum(maximum(largest[0], largest[-1]), 1e-30)))
        return [(part * exp2(-shift)).to(self.type.dtype) for part in parts], exp2(shift) * unit

    def zeros(self, rows: int, cols: int) -> list[Any]:
        """What `mma_AB` adds to: float32 tiles, one for each half of the columns."""
        return [self.group.zeros(f32, rows, cols // self.halves) for _ in range(self.halves)]

    def mm_ABt(self, d: Any, a: list[Any], tile: Any) -> None:
        """d = a @ tile.T, with `a` from `beside`; the group has met since the last `mma_AB`."""
        d[:] = 0.0
        for x, y in zip(a, self(tile, "row"), strict=True):
            self.group.mma_ABt(d, x, y)

    def mma_AB(self, results: list[Any], a: Any, tile: Any, factor: Any) -> None:
        """results = results * factor + a @ tile, with results from `zeros`; `a` is rounded to the operands' dtype."""
        a = a.to(self.type.dtype)
        if self.place is not None:
            self.group.sync()  # nobody reads what it held
        for x, y in zip(results, self(tile, "col"), strict=True):
            x *= factor
            self.group.mma_AB(x, a, y)

    @property
    def least(self) -> int:
        """Columns of a slice of `joined`."""
        return 16 * self.halves

    @property
    def layout(self) -> Any:
        """That of `joined`."""
        return PAIRS if self.halves == 2 else "row"

    def joined(self, results: list[Any], cols: int) -> list[Any]:
        """What was multiplied with each half of a tile's columns, put together, in slices of `cols` columns, a multiple
        of `least`. Nothing moves."""
        own = cols // self.halves
        slices = [[x[:, i : i + own] for x in results] for i in range(0, results[0].cols, own)]
        if self.halves == 1:
            return [x for (x,) in slices]
        return [join_pairs(*(x.swap_layout(Coalesced(4, 2)) for x in both)) for both in slices]

    def __call__(self, tile: Any, layout: Any) -> tuple[Any, ...]:
        """The tile in 16 bits, one operand for each half; its columns are a multiple of 32. layout: of registers, as
        the product wants them ("col": the tile is not transposed there). Several warps each convert a part of it.
        """
        if self.halves == 2:
            return tuple(self.group.load_pairs(tile, layout=layout))
        if self.place is None:
            return (tile,)
        warps = self.group.warps
        down = min(warps, tile.rows // 8)  # whole rows, whose pieces lie in different banks
        along = warps // down
        to = self.place.part(0, 0, tile.rows, tile.cols)
        rows, cols, i = tile.rows // down, tile.cols // along, warp.index % warps
        for first in range(0, cols, MOST):
            part = (i % down * rows, i // down * cols + first, rows, min(MOST, cols - first))
            held = warp.load(tile.part(*part), layout=runs(*part[2:]), dtype=to.dtype)
            warp.store(to.part(*part), held)
        self.group.sync()
        return (to,)


def runs(rows: int, cols: int) -> Coalesced:
    """The layout in which a warp goes through a tile of 8-bit numbers: 8 bytes a thread, which become 16, where it has
    the columns."""
    for width in (8, 4):
        pieces = cols // width
        lanes = min(pieces & -pieces, 32)  # neighbours in a row: a power of two that divides it
        if rows * lanes >= 32:
            return Coalesced(lanes, width)
    raise AssertionError("tiles have 8 rows or more, of a multiple of 16 columns")
