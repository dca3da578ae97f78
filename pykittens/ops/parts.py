"""Parts of register tiles: copies that a compiler turns into nothing, since each thread keeps what it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import TypeRuleError
from ..program import Op, Scope, Value
from ..types import RegisterTile, Type
from .maps import register_type


@dataclass(eq=False)
class TilePart(Op):
    """The rows x cols part of a tensor-core tile that begins at (row, col), in elements, as a new tile.

    Rows go in blocks of 16 for each warp (a block of a warpgroup's tile is 64 rows), columns in steps of 16.
    """

    scope: Scope
    tile: Value
    row: int
    col: int
    rows: int
    cols: int

    def types(self) -> tuple[Type, ...]:
        tile = register_type(self.tile, "a part")
        if not isinstance(tile, RegisterTile) or tile.layout != "row":
            raise TypeRuleError(f"a part of {tile}", fix="parts are of row-layout tiles; store others to shared memory and load a part")
        block = 16 * tile.warps
        for first, extent, limit, step, what in ((self.row, self.rows, tile.rows, block, "rows"), (self.col, self.cols, tile.cols, 16, "columns")):
            if first < 0 or extent <= 0 or first + extent > limit:
                raise TypeRuleError(f"{what} {first} to {first + extent} of {tile}", fix=f"stay within its {limit} {what}")
            if first % step or extent % step:
                raise TypeRuleError(f"{what} {first} to {first + extent} of {tile}", fix=f"parts begin and end at multiples of {step} {what}")
        return (replace(tile, rows=self.rows, cols=self.cols),)

    def numpy(self, m: Any) -> Any:
        return m[self.tile][:, self.row : self.row + self.rows, self.col : self.col + self.cols]

    def cuda(self, c: Any) -> None:
        tile, part = self.tile.type, self.result.type
        assert isinstance(tile, RegisterTile) and isinstance(part, RegisterTile)
        word = 4 if tile.dtype.packed else 2  # columns that one register word of a thread spans: 8 columns are 4 elements
        a_block, p_block, first = tile.cols // word, part.cols // word, self.col // word
        to, name = c.declare(self.result), c[self.tile]
        for block in range(self.rows // (16 * tile.warps)):
            source = (self.row // (16 * tile.warps) + block) * a_block + first
            c.line(f"UNROLL for (int i = 0; i < {p_block}; i++) {to}[{block * p_block} + i] = {name}[{source} + i];")
