"""The inverse of a unit lower triangular tile, (I + L)^-1: what chunked delta rules solve with.

The 16 x 16 blocks on the diagonal are inverted in float32 by forward substitution, a rank-one update a column; then
neighbours are merged, 16 to 32 to 64 rows, on the tensor cores:

    [A 0]^-1   [   A^-1          0 ]
    [C B]    = [-B^-1 C A^-1   B^-1]

Operands of a merge are sums of two bf16 terms, high and low, of whose products the low by low is left out: 16 bits
of each factor count, over the whole range of float32 (tf32 or f16 would keep 11, and f16 overflows).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import Numerics, approximate
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import RegisterTile, Type, f32
from .broadcast import register_type
from .layout_conversion import MOVMATRIX
from .mma import mma_text
from .samples import Sample

# Registers of a 16 x 16 fragment: 0 to 3 the left, 4 to 7 the right 8 columns; 2, 3, 6, 7 the lower 8 rows.
INVERSE = """
__device__ __forceinline__ void pk_invert_16(float* t, int lane) {
  float x[8];
  PK_UNROLL for (int i = 0; i < 8; i++)
    x[i] = lane / 4 + i / 2 % 2 * 8 == lane % 4 * 2 + i % 2 + i / 4 * 8 ? 1.0f : 0.0f;
  PK_UNROLL for (int j = 0; j < 15; j++) {
    const int r = j % 2 + j / 8 * 4, owner = lane / 4 * 4 + j % 8 / 2, from = j % 8 * 4 + lane % 4;
    float l[2], y[4];
    PK_UNROLL for (int h = j / 8; h < 2; h++) {
      l[h] = __shfl_sync(0xffffffffu, t[r + h * 2], owner);
      if (lane / 4 + h * 8 <= j) l[h] = 0.0f;
    }
    PK_UNROLL for (int c = 0; c < (j < 8 ? 2 : 4); c++)
      y[c] = __shfl_sync(0xffffffffu, x[c % 2 + c / 2 * 4 + j / 8 * 2], from);
    PK_UNROLL for (int h = j / 8; h < 2; h++) PK_UNROLL for (int c = 0; c < (j < 8 ? 2 : 4); c++)
      x[c % 2 + c / 2 * 4 + h * 2] -= l[h] * y[c];
  }
  PK_UNROLL for (int i = 0; i < 8; i++) t[i] = x[i];
}
__device__ __forceinline__ void pk_bf16_terms(const float* t, u32* high, u32* low) {
  PK_UNROLL for (int i = 0; i < 4; i++) {
    const float a = t[2 * i], b = t[2 * i + 1];
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(high[i]) : "f"(b), "f"(a));
    const float a_low = a - __uint_as_float(high[i] << 16), b_low = b - __uint_as_float(high[i] & 0xffff0000u);
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(low[i]) : "f"(b_low), "f"(a_low));
  }
}
// d += a b of 16 x 16 blocks
__device__ __forceinline__ void pk_add_product(float* d, const float* a, const float* b) {
  u32 ah[4], al[4], bh[4], bl[4];
  pk_bf16_terms(a, ah, al);
  pk_bf16_terms(b, bh, bl);
  PK_UNROLL for (int i = 0; i < 4; i++) { bh[i] = pk_movmatrix(bh[i]); bl[i] = pk_movmatrix(bl[i]); }
  PK_UNROLL for (int c = 0; c < 2; c++) {
    pk_mma_bf16(d + 4 * c, al, bh[2 * c], bh[2 * c + 1]);
    pk_mma_bf16(d + 4 * c, ah, bl[2 * c], bl[2 * c + 1]);
    pk_mma_bf16(d + 4 * c, ah, bh[2 * c], bh[2 * c + 1]);
  }
}
// t: N x N blocks, row by row; what lies below the diagonal counts
template<int N> __device__ __forceinline__ void pk_unit_lower_inverse(float* t, int lane) {
  PK_UNROLL for (int i = 0; i < N; i++) pk_invert_16(t + (i * N + i) * 8, lane);
  PK_UNROLL for (int size = 1; size < N; size *= 2)
    PK_UNROLL for (int first = 0; first < N; first += 2 * size)
      PK_UNROLL for (int j = 0; j < size; j++) {
        float p[N / 2 + 1][8];
        PK_UNROLL for (int i = 0; i < size; i++) {
          PK_UNROLL for (int r = 0; r < 8; r++) p[i][r] = 0.0f;
          PK_UNROLL for (int k = j; k < size; k++)
            pk_add_product(p[i], t + ((first + size + i) * N + first + k) * 8, t + ((first + k) * N + first + j) * 8);
        }
        PK_UNROLL for (int i = 0; i < size; i++) {
          float s[8];
          PK_UNROLL for (int r = 0; r < 8; r++) s[r] = 0.0f;
          PK_UNROLL for (int k = 0; k <= i; k++)
            pk_add_product(s, t + ((first + size + i) * N + first + size + k) * 8, p[k]);
          PK_UNROLL for (int r = 0; r < 8; r++) t[((first + size + i) * N + first + j) * 8 + r] = -s[r];
        }
      }
  PK_UNROLL for (int i = 0; i < N; i++) PK_UNROLL for (int j = i + 1; j < N; j++)
    PK_UNROLL for (int r = 0; r < 8; r++) t[(i * N + j) * 8 + r] = 0.0f;
}
"""
SIZES = (16, 32, 64)


@dataclass(eq=False)
class UnitLowerInverse(Op):
    """(I + L)^-1, where L is what lies below the diagonal of a warp's float32 tile of 16, 32 or 64 rows. The rest of
    the tile is not read.
    """

    scope: Scope
    a: Value

    no_vjp = "the derivative of an inverse T is two products, -T^t dT T^t below the diagonal: write them"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return approximate(
            bound="of 16 rows float32's forward substitution; above, merges of halves within 2^-14 of the sum of the "
            "magnitudes |T| |L| |T| that make an element",
            special="an infinity of L becomes NaN; NaN reaches what lies below it or left of it",
        )

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "unit_lower_inverse")
        good = isinstance(type, RegisterTile) and type.dtype is f32 and type.layout == "row" and type.warps == 1
        if not good or type.shape not in {(n, n) for n in SIZES}:
            raise TypeRuleError(
                f"unit_lower_inverse of {type}",
                fix="make a float32 tile of 16, 32 or 64 rows, and as many columns, on a warp",
            )
        return (type,)

    def numpy(self, m: NumpyMachine) -> Any:
        lower = np.tril(m[self.a].astype(np.float64), -1)
        found = np.zeros_like(lower) + np.eye(lower.shape[1])
        for i in range(1, lower.shape[1]):
            found[:, i, :i] -= (lower[:, i : i + 1, :i] @ found[:, :i, :i])[:, 0]
        return found.astype(np.float32)

    def cuda(self, c: CudaWriter) -> None:
        for text in (MOVMATRIX, mma_text("bf16"), INVERSE):
            c.prelude(text)
        c.declare(self.result)
        c.copy(self.result, self.a)
        c.line(f"pk_unit_lower_inverse<{self.a.type.rows // 16}>({c[self.result]}, {c.lane});")  # type: ignore[union-attr]

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for rows, drawn in ((16, "unit"), (16, "ones"), (32, "small"), (64, "small")):
            yield Sample(
                {"a": RegisterTile(f32, rows, rows)},
                lambda a, n=rows: np.linalg.inv(np.eye(n) + np.tril(a, -1)),
                {"a": drawn},
                tolerance=2.0**-13,
            )
