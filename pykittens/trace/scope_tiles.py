"""Register tiles and vectors that a scope makes of numbers."""

from __future__ import annotations

from ..ops import fill
from ..program import Operand
from ..types import DType, Layout, RegisterTile, RegisterVector, i32
from .handle import number
from .recorder import result
from .scope_threads import ScopeThreads
from .tile import Tile


class ScopeTiles(ScopeThreads):
    """What a scope makes of numbers."""

    def full(self, dtype: DType, rows: int, cols: int, value: Operand, *, layout: Layout = "row") -> Tile:
        """A new rows x cols tile of a `dtype` in a `layout`, every element `value`."""
        return result(fill.Fill(self.scope, RegisterTile(dtype, rows, cols, layout, self.warps), number(value)))

    def zeros(self, dtype: DType, rows: int, cols: int, *, layout: Layout = "row") -> Tile:
        """A new rows x cols tile of zeros; `dtype` and `layout` as `full`."""
        return self.full(dtype, rows, cols, 0, layout=layout)

    def ones(self, dtype: DType, rows: int, cols: int, *, layout: Layout = "row") -> Tile:
        """A new rows x cols tile of ones; `dtype` and `layout` as `full`."""
        return self.full(dtype, rows, cols, 1, layout=layout)

    def full_col(
        self, dtype: DType, length: int, value: Operand, *, layout: Layout = "row", partial: bool = False
    ) -> Tile:
        """A new column vector (one value per row of a tile with `length` rows), every element `value`.

        `dtype` and `layout` are the tile's; `partial`: one term per thread, to be summed by `total()`.
        """
        type = RegisterVector(dtype, length, "col", layout, self.warps, partial)
        return result(fill.Fill(self.scope, type, number(value)))

    def zeros_col(self, dtype: DType, length: int, *, layout: Layout = "row", partial: bool = False) -> Tile:
        """A new column vector of zeros: `dtype`, `length`, `layout` and `partial` as `full_col`."""
        return self.full_col(dtype, length, 0, layout=layout, partial=partial)

    def full_row(self, dtype: DType, length: int, value: Operand, *, layout: Layout = "row") -> Tile:
        """A new row vector (one value per column of a tile with `length` columns), every element `value`.

        `dtype` and `layout` are the tile's.
        """
        return result(fill.Fill(self.scope, RegisterVector(dtype, length, "row", layout, self.warps), number(value)))

    def zeros_row(self, dtype: DType, length: int, *, layout: Layout = "row") -> Tile:
        """A new row vector of zeros: `dtype`, `length` and `layout` as `full_row`."""
        return self.full_row(dtype, length, 0, layout=layout)

    def full_vec(self, dtype: DType, length: int, value: Operand, *, width: int = 1) -> Tile:
        """A new naive vector of `length` elements of a `dtype`, each `value`, spread over all threads of the scope in
        runs of `width`.
        """
        type = RegisterVector(dtype, length, "naive", "row", self.warps, width=width)
        return result(fill.Fill(self.scope, type, number(value)))

    def iota(self, length: int, *, width: int = 1) -> Tile:
        """A new naive vector of int32 with the numbers 0 to `length` - 1, in runs of `width`."""
        return self._iota(RegisterVector(i32, length, "naive", "row", self.warps, width=width))

    def iota_col(self, length: int, *, layout: Layout = "row") -> Tile:
        """A new column vector of int32 with the number of each row of a tile of `length` rows; `layout` is the
        tile's.
        """
        return self._iota(RegisterVector(i32, length, "col", layout, self.warps))

    def iota_row(self, length: int, *, layout: Layout = "row") -> Tile:
        """A new row vector of int32 with the number of each column of a tile of `length` columns; `layout` is the
        tile's.
        """
        return self._iota(RegisterVector(i32, length, "row", layout, self.warps))

    def _iota(self, type: RegisterVector) -> Tile:
        return result(fill.Positions(self.scope, type))
