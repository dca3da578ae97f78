"""Where a tile stands whose number is known, in a matrix of tiles that is walked some rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..loading import dataclass
from ..numerics import EXACT
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope
from ..types import ScalarType, Type, i32, i64, u32
from .conversion import convert
from .samples import Sample
from .scalars import as_dtype, as_number, promoted

# Both reciprocals are the same for all tiles, and leave the loop over them. floor(n * floor((2^b - 1) / d) / 2^b) is
# n / d, floored, or 1 less, for 0 <= n < 2^(b - 1).
# The empty assembly has the place worked out here: a compiler's choice is behind the products, where all wait for it.
GROUPED_TILE = """
__device__ __forceinline__ u32 pk_high(u32 a, u32 b) { return __umulhi(a, b); }
__device__ __forceinline__ u64 pk_high(u64 a, u64 b) { return __umul64hi(a, b); }
template<class T> __device__ __forceinline__ T pk_quotient(T n, T d, T reciprocal) {
  const T q = pk_high(n, reciprocal);
  return q + (n - q * d >= d);
}
template<class T, class S> __device__ __forceinline__ void pk_grouped_tile(
  S tile, S rows, S cols, T group, S& row, S& col) {
  const T together = max(group * (T)cols, (T)1), left = ((T)max(rows, (S)1) - 1) % group + 1;
  T by_together = ~(T)0 / together, by_left = ~(T)0 / left;
  asm("" : "+CONSTRAINT"(by_left));
  const T first = pk_quotient((T)tile, together, by_together) * group, inside = (T)tile - first * (T)cols;
  const bool full = first + group <= (T)rows;
  const T across = full ? inside / group : pk_quotient(inside, left, by_left);
  row = (S)(first + inside - across * (full ? group : left));
  col = (S)across;
  asm volatile("" : "+CONSTRAINT"(row), "+CONSTRAINT"(col));
}
"""


@dataclass(eq=False)
class GroupedTile(Op):
    """Row and column of tile number `tile` of rows x cols tiles: `group` rows at a time, column after column."""

    scope: Scope
    tile: Operand
    rows: Operand
    cols: Operand
    group: int

    collective = False
    numerics = EXACT

    @property
    def dtype(self) -> Any:
        """The integers that are counted with."""
        return i32 if promoted(self.tile, self.rows, self.cols) is i32 else i64

    def types(self) -> tuple[Type, ...]:
        return (ScalarType(self.dtype), ScalarType(self.dtype))

    def numpy(self, m: NumpyMachine) -> Any:
        tile, rows, cols = (as_number(m.scalar(x), i64) for x in (self.tile, self.rows, self.cols))
        first, inside = np.divmod(tile, np.maximum(self.group * cols, 1))
        height = np.maximum(np.minimum(rows - first * self.group, self.group), 1)
        across, down = np.divmod(inside, height)
        return convert(first * self.group + down, self.dtype), convert(across, self.dtype)

    def cuda(self, c: CudaWriter) -> None:
        wide = self.dtype is i64
        c.prelude(GROUPED_TILE.replace("CONSTRAINT", "l" if wide else "r"))
        given = ", ".join(as_dtype(c, x, self.dtype) for x in (self.tile, self.rows, self.cols))
        for x in self.results:
            c.define(x, "0", mutable=True)
        row, col = (c[x] for x in self.results)
        c.line(f"pk_grouped_tile({given}, {self.group}{'ull' if wide else 'u'}, {row}, {col});")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for group in (1, 3, 4):
            for rows, cols in ((7, 3), (8, 2), (2, 9)):
                order = [
                    (row, col)
                    for first in range(0, rows, group)
                    for col in range(cols)
                    for row in range(first, min(first + group, rows))
                ]

                def where(tile: Any, order: Any = order) -> Any:
                    return order[int(tile)]

                for dtype in (i32, u32, i64):
                    fields = {"tile": ScalarType(dtype), "rows": rows, "cols": cols, "group": group}
                    yield Sample(fields, where, {"tile": "counts"}, exact=True)
