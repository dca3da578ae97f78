"""Random bits by counter: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

A number depends on the seed and on its position only, so that both back ends, any layout and any grid agree bit by bit,
and a backward pass can make the same numbers again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, fragment
from ..loading import dataclass
from ..numerics import EXACT
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope
from ..types import Coalesced, RegisterTile, ScalarType, Type, f32, i32, u32, with_dtype
from .addressing import known_multiple
from .samples import Sample
from .scalars import scalar_dtype

PHILOX = """
__device__ __forceinline__ void pk_philox(u32* c, u32 k0, u32 k1) {
  PK_UNROLL for (int i = 0; i < 10; i++) {
    const u64 a = (u64)c[0] * 0xD2511F53u, b = (u64)c[2] * 0xCD9E8D57u;
    c[0] = (u32)(b >> 32) ^ c[1] ^ k0; c[1] = (u32)b; c[2] = (u32)(a >> 32) ^ c[3] ^ k1; c[3] = (u32)a;
    k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
  }
}
__device__ __forceinline__ u32 pk_philox_word(u32 col, u32 row, u32 k0, u32 k1) {
  u32 c[4] = {col >> 2, row, 0, 0};
  pk_philox(c, k0, k1);
  return col & 2 ? (col & 1 ? c[3] : c[2]) : (col & 1 ? c[1] : c[0]);
}
"""


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[np.ndarray, ...]:
    """The four words of each counter, as uint32 arrays."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(x, np.uint64) for x in counter]
    k0, k1 = (np.asarray(x).astype(np.int64).astype(np.uint64) & low for x in key)  # a negative seed is its 32 bits
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k0, b & low, (a >> np.uint64(32)) ^ c[3] ^ k1, a & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return tuple(x.astype(np.uint32) for x in c)


def random_bits(rows: Any, cols: Any, seed: tuple[Any, Any]) -> np.ndarray:
    """The 32 random bits of element (row, col), in NumPy: word col % 4 of counter (col // 4, row, 0, 0) under the key
    `seed`. `rows` and `cols` are broadcast: `random_bits(np.arange(n)[:, None], np.arange(m), (3, 0))`.
    """
    rows, cols = np.broadcast_arrays(np.asarray(rows, np.int64), np.asarray(cols, np.int64))
    words = np.stack(np.broadcast_arrays(*philox((cols // 4, rows & 0xFFFFFFFF, 0, 0), seed)))
    return np.take_along_axis(words, (cols % 4)[None], axis=0)[0]


@dataclass(eq=False)
class RandomBits(Op):
    """32 random bits for each element of a tile of `type` whose first element is (row, col) of something larger."""

    scope: Scope
    type: RegisterTile
    seed: tuple[Operand, Operand]
    row: Operand
    col: Operand

    numerics = EXACT

    def types(self) -> tuple[Type, ...]:
        if not isinstance(self.type, RegisterTile):
            raise TypeRuleError(f"random bits for {self.type}", fix="pass a register tile")
        for x in (*self.seed, self.row, self.col):
            dtype = scalar_dtype(x)
            if dtype is not None and dtype.kind not in "iu":
                raise TypeRuleError(f"random bits with a {dtype}", fix="seed, row and column are integers")
        return (with_dtype(self.type, u32),)

    def numpy(self, m: NumpyMachine) -> Any:
        row, col, *seed = (
            x.reshape(-1, 1, 1) if isinstance(x, np.ndarray) else x
            for x in map(m.unit_scalar, (self.row, self.col, *self.seed))
        )
        rows, cols = np.arange(self.type.rows)[None, :, None] + row, np.arange(self.type.cols)[None, None, :] + col
        return np.broadcast_to(random_bits(rows, cols, (seed[0], seed[1])), (m.units, *self.type.shape))

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(PHILOX)
        layout, key = self.type.layout, ", ".join(f"(u32){c.scalar(x, u32)}" for x in self.seed)
        row, col = c.scalar(self.row), c.scalar(self.col)
        if (
            isinstance(layout, Coalesced) and layout.width % 4 == 0 and known_multiple(self.col) % 4 == 0
        ):  # four words at a time
            c.declare(self.result)
            r, x = fragment(self.type, c.warp(self.scope), c.lane, Sym("i") * 4)
            c.line(f"PK_UNROLL for (int i = 0; i < {self.type.registers // 4}; i++) {{")
            c.line(f"u32 w[4] = {{(u32)({col} + {x}) >> 2, (u32)({row} + {r}), 0, 0}};")
            c.line(f"pk_philox(w, {key}); PK_UNROLL for (int j = 0; j < 4; j++) {c[self.result]}[4 * i + j] = w[j]; }}")
            return

        def one(register: Sym) -> str:
            r, x = fragment(self.type, c.warp(self.scope), c.lane, register)
            return f"pk_philox_word((u32)({col} + {x}), (u32)({row} + {r}), {key})"

        c.map(self.result, one)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (
            RegisterTile(f32, 16, 32),
            RegisterTile(f32, 8, 128, Coalesced(8, 4)),
            RegisterTile(f32, 8, 64, Coalesced(8, 2)),
        ):
            for col in (0, 4, 5, ScalarType(i32)):
                yield Sample(
                    {"type": type, "seed": (ScalarType(i32), 7), "row": ScalarType(i32), "col": col},
                    _expected_bits,
                    {"row": "counts", "col": "counts"},
                )


def _expected_bits(type: RegisterTile, seed: Any, row: Any, col: Any) -> np.ndarray:
    return random_bits(np.arange(type.rows)[:, None] + row, np.arange(type.cols)[None, :] + col, seed)
