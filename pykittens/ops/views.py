"""Views of shared memory: one item of an array of tiles, and a part of a tile. They move no data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, NumpyMachine, Op, Operand, Place, Scope, Value
from ..types import BarrierType, SharedTile, SharedVector, Type, bf16, i32
from .addressing import known_multiple
from .samples import Sample
from .scalars import check_index


@dataclass(eq=False)
class Item(Op):
    """Item `index` of an array of `count` shared tiles, vectors or barriers that lie `stride` bytes apart."""

    scope: Scope
    array: Value
    index: Operand
    count: int
    stride: int

    collective = False

    def types(self) -> tuple[Type, ...]:
        check_index(self.index, f"an index of {self.array.label}")
        if isinstance(self.index, int) and not 0 <= self.index < self.count:
            raise TypeRuleError(
                f"index {self.index} of {self.count} items of {self.array.label}", fix=f"use 0 to {self.count - 1}"
            )
        return (self.array.type,)

    def numpy(self, m: NumpyMachine) -> Any:
        index = m.unit_scalar(self.index)
        m.check_index(index, self.count, self)
        return m.shared(m.address(self.array) + index * self.stride, m.column(self.array))

    def cuda(self, c: CudaWriter) -> None:
        c.define(self.result, f"{c[self.array]} + {c.scalar(self.index, i32)} * {self.stride}", ctype="u32")
        if isinstance(self.result.type, SharedTile):
            c.line(
                f"const u32 {c[self.result]}_step = {c.scalar(self.index, i32)} * {self.stride // 16};"
            )  # of a descriptor
            if self.result.type.column:
                c.line(f"const int {c[self.result]}_col = {c[self.array]}_col;")


@dataclass(eq=False)
class Part(Op):
    """The rows x cols part of a shared tile whose first element is (row, col), in elements."""

    scope: Scope
    tile: Value
    row: Operand
    col: Operand
    rows: int
    cols: int

    collective = False

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        tile = self.tile.type
        if not isinstance(tile, SharedTile):
            raise TypeRuleError(
                f"a part is of a shared tile, not of {tile}", fix="slice the tile, not the array: tiles[i][0:16, :]"
            )
        for place, what in ((self.row, "row"), (self.col, "column")):
            check_index(place, f"the {what} where a part of {self.tile.label} begins")
        for first, extent, limit, what in (
            (self.row, self.rows, tile.rows, "rows"),
            (self.col, self.cols, tile.cols, "columns"),
        ):
            if isinstance(first, int) and not 0 <= first <= limit - extent:
                raise TypeRuleError(
                    f"{what} {first} to {first + extent} of {tile}", fix=f"stay within its {limit} {what}"
                )
        if known_multiple(self.col) * tile.dtype.size % 16:
            unit = 16 // tile.dtype.size
            raise TypeRuleError(
                f"a part of {tile} begins at a column that may not be a multiple of {unit}",
                fix=f"start parts at multiples of {unit} columns (16 bytes)",
            )
        column = tile.column or known_multiple(self.col) % tile.panel != 0
        row = tile.row or known_multiple(self.row) % 8 != 0
        return (replace(tile, rows=self.rows, cols=self.cols, column=column, row=row),)

    def _shift(self, row: Any, panel: Any) -> Any:
        tile = self.tile.type
        assert isinstance(tile, SharedTile)
        return row * tile.swizzle + panel * (tile.pitch * tile.swizzle)

    def numpy(self, m: NumpyMachine) -> Any:
        tile, type = self.tile.type, self.result.type
        assert isinstance(tile, SharedTile) and isinstance(type, SharedTile)
        row, col = m.unit_scalar(self.row), m.unit_scalar(self.col)
        m.check_index(row, tile.rows - self.rows + 1, self)
        m.check_index(col, tile.cols - self.cols + 1, self)
        if type.column:
            return m.shared(m.address(self.tile) + self._shift(row, 0), m.column(self.tile) + col)
        return m.shared(m.address(self.tile) + self._shift(row, col // tile.panel), 0)

    def cuda(self, c: CudaWriter) -> None:
        tile, type = self.tile.type, self.result.type
        assert isinstance(tile, SharedTile) and isinstance(type, SharedTile)
        row, col = c.scalar(self.row, i32), c.scalar(self.col, i32)
        shift = f"{row} * {tile.swizzle}"
        if not type.column:
            shift += f" + {col} / {tile.panel} * {tile.pitch * tile.swizzle}"
        c.define(self.result, f"{c[self.tile]} + {shift}", ctype="u32")
        if type.column:
            c.line(f"const int {c[self.result]}_col = {f'{c[self.tile]}_col + ' if tile.column else ''}{col};")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        whole = SharedTile(bf16, 32, 192)
        for row, col, rows, cols in (
            (0, 64, 16, 64),
            (16, 128, 16, 64),
            (8, 0, 24, 128),
            (0, 32, 32, 32),
            (8, 80, 16, 16),
            (0, 0, 16, 16),
            (3, 64, 16, 64),
            (13, 80, 16, 32),
        ):
            fields = {"tile": whole, "row": row, "col": col, "rows": rows, "cols": cols}
            yield Sample(
                fields, lambda tile, row, col, rows, cols: tile[row : row + rows, col : col + cols], exact=True
            )


SHARED = (SharedTile, SharedVector, BarrierType)


def root(target: Value | Place) -> Value:
    """The buffer or tensor that an access is to."""
    value = target.tensor if isinstance(target, Place) else target
    while isinstance(value.producer, (Item, Part)):
        value = value.producer.array if isinstance(value.producer, Item) else value.producer.tile
    return value
