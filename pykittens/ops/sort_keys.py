"""Elements as keys: int64, all different, in the order of the elements and then of their places, the first on top.

Above, the value in the order of unsigned integers; below, what its index lacks to 2^32 - 1; and the sign turned, so
that the largest key is that of signed integers, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, fragment
from ..loading import dataclass
from ..numerics import EXACT
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import Coalesced, DType, RegisterTile, Type, bf16, bool_, f16, f32, i32, i64, u32
from .broadcast import compute, register_type, registers_of
from .conversion import convert
from .samples import Sample

# Of floats in the order of unsigned integers: negative ones complemented, others with the sign bit; NaN above all.
ORDER = """
__device__ __forceinline__ u32 pk_order(float x) {
  const u32 b = __float_as_uint(x + 0.0f);
  return x != x ? 0xffffffffu : b >> 31 ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ u32 pk_order(int x) { return (u32)x ^ 0x80000000u; }
__device__ __forceinline__ u32 pk_order(u32 x) { return x; }
__device__ __forceinline__ void pk_unorder(u32 k, float& x) {
  x = k == 0xffffffffu ? __uint_as_float(0x7fffffffu) : __uint_as_float(k >> 31 ? k ^ 0x80000000u : ~k);
}
__device__ __forceinline__ void pk_unorder(u32 k, int& x) { x = (int)(k ^ 0x80000000u); }
__device__ __forceinline__ void pk_unorder(u32 k, u32& x) { x = k; }
"""
LOW, SIGN = np.uint64(0xFFFFFFFF), np.uint64(1 << 63)


def ranked_type(a: Value, to: Literal["col", "row"]) -> RegisterTile:
    """The type of a tile whose rows ("col") or columns ("row") are ordered by keys."""
    type, name = register_type(a, "top-k"), "row" if to == "col" else "column"
    # A key has 32 bits for the value; int64 goes by `trace.largest`.
    if not isinstance(type, RegisterTile) or type.dtype in (bool_, i64):
        raise TypeRuleError(
            f"the largest of each {name} of {type}",
            fix="pass a tile of numbers; a mask as x.to(pk.i32)",
        )
    return type


def order_c(element: Any, dtype: DType, largest: bool) -> str:
    """C for an element's place in the order; with `largest` false the smallest is above."""
    return turned_c(f"pk_order({element})", dtype, largest)


def turned_c(order: str, dtype: DType, largest: bool) -> str:
    """C for a place in the order, turned round unless `largest`; NaN stays above."""
    if largest:
        return order
    return f"({order} == 0xffffffffu ? 0xffffffffu : ~{order})" if dtype.kind == "f" else f"~{order}"


def _order(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype.kind != "f":
        return x.view(np.uint32) ^ np.uint32(0x80000000 if dtype is i32 else 0)
    bits = np.ascontiguousarray(x + np.float32(0)).view(np.uint32)
    order = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return np.where(np.isnan(x), np.uint32(0xFFFFFFFF), order)


def _turned(order: np.ndarray, dtype: DType, largest: bool) -> np.ndarray:
    if largest:
        return order
    return np.where((order == 0xFFFFFFFF) & (dtype.kind == "f"), order, ~order)


@dataclass(eq=False)
class SortKeys(Op):
    """A key for each element of a tile, with its column ("col") or row ("row") as the place."""

    scope: Scope
    a: Value
    to: Literal["col", "row"]
    largest: bool = True

    no_vjp = "choose by the index instead: pk.where(pk.col_index(x) == x.row_argmax(), x, 0.0).row_sum()"
    numerics = EXACT.with_special("NaN comes before all; -0 counts as +0")

    def types(self) -> tuple[Type, ...]:
        return (replace(ranked_type(self.a, self.to), dtype=i64),)

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = registers_of(self.a).dtype
        array = compute(m[self.a], dtype)
        order = _turned(_order(array, dtype), dtype, self.largest).astype(np.uint64)
        place = np.arange(array.shape[2]) if self.to == "col" else np.arange(array.shape[1])[:, None]
        return ((order << np.uint64(32) | (LOW - place.astype(np.uint64))) ^ SIGN).view(np.int64)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(ORDER)
        tile = registers_of(self.a)
        assert isinstance(tile, RegisterTile)

        def key(r: Sym) -> str:
            place = fragment(tile, c.warp(self.scope), c.lane, r)[1 if self.to == "col" else 0]
            order = order_c(c.element(self.a, r), tile.dtype, self.largest)
            return f"(i64)(((u64){order} << 32 | (0xffffffffu - (u32)({place}))) ^ 0x8000000000000000ull)"

        c.map(self.result, key)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        layouts = ("row", 1), ("row", 4), (Coalesced(64, 2), 2)
        for dtype, inputs in ((f32, "special"), (bf16, "integers"), (f16, "special"), (i32, "bits"), (u32, "bits")):
            for (layout, warps), to in zip(layouts, ("col", "row", "col"), strict=True):
                rows, cols = (3, 256) if warps == 2 else (64, 16)
                for largest in (True, False):
                    type = RegisterTile(dtype, rows, cols, layout, warps)  # type: ignore[arg-type]

                    def keys(a: Any, x: str = to, up: bool = largest, d: DType = dtype) -> Any:
                        return _key_of(a, x, up, d)

                    yield Sample({"a": type, "to": to, "largest": largest}, keys, {"a": inputs}, exact=True)


def _key_of(a: Any, to: str, largest: bool, dtype: DType) -> Any:
    """Keys by arithmetic on Python's numbers: the sign and the size of each float's bits, as a sample has them."""
    out = np.empty(a.shape, object)
    for (row, col), x in np.ndenumerate(a):
        if dtype.kind == "f":
            bits = int(np.float32(abs(x)).view(np.uint32))
            value = 2**31 + bits if x >= 0 else 2**31 - 1 - bits
        else:
            value = int(x) + (2**31 if dtype is i32 else 0)
        nan = x != x
        value = 2**32 - 1 if nan else value if largest else 2**32 - 1 - value
        out[row, col] = (value << 32) + 2**32 - 1 - (col if to == "col" else row) - 2**63
    return out.astype(np.int64)


@dataclass(eq=False)
class FromKeys(Op):
    """The elements, of a `dtype`, that a vector of keys stands for, and their places (int32)."""

    scope: Scope
    a: Value
    dtype: DType
    largest: bool = True

    no_vjp = SortKeys.no_vjp
    numerics = EXACT.with_special("of equal elements the first; NaN comes before all; -0 becomes +0")

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "top-k")
        assert type.dtype is i64
        return replace(type, dtype=self.dtype), replace(type, dtype=i32)

    def numpy(self, m: NumpyMachine) -> Any:
        keys = m[self.a].view(np.uint64) ^ SIGN
        order = _turned((keys >> np.uint64(32)).astype(np.uint32), self.dtype, self.largest)
        place = (LOW - (keys & LOW)).astype(np.int64).astype(np.int32)
        if self.dtype.kind != "f":
            return [(order ^ np.uint32(0x80000000 if self.dtype is i32 else 0)).view(self.dtype.numpy), place]
        bits = np.where(order >> 31, order ^ np.uint32(0x80000000), ~order)
        bits = np.where(order == 0xFFFFFFFF, np.uint32(0x7FFFFFFF), bits)
        return [convert(bits.view(np.float32), self.dtype), place]

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(ORDER)
        type, held = registers_of(self.a), "float" if self.dtype.kind == "f" else self.dtype.c
        keys, found = c[self.a], c.fresh("found")
        order = f"((u32)((u64){keys}[i] >> 32) ^ 0x80000000u)"
        c.line(f"{held} {found}[{type.registers}];")
        text = f"pk_unorder({turned_c(order, self.dtype, self.largest)}, {found}[i]);"
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {text}")
        c.map(self.results[0], f"{found}[{{}}]".format)
        c.map(self.results[1], f"(int)(0xffffffffu - (u32){keys}[{{}}])".format)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        vectors = RegisterTile(i64, 64, 16, "row", 4).vector("row"), RegisterTile(i64, 16, 32).vector("col")
        for dtype in (f32, bf16, i32, u32):
            for vector in vectors:
                for largest in (True, False):

                    def back(a: Any, d: DType = dtype, up: bool = largest) -> Any:
                        values, places = [], []
                        for key in a.tolist():
                            value, place = divmod(key + 2**63, 2**32)
                            places.append((2**32 - 1 - place) % 2**32)
                            if value == 2**32 - 1 and d.kind == "f":
                                values.append(np.nan)
                                continue
                            value = value if up else 2**32 - 1 - value
                            if d.kind == "f":
                                bits = value - 2**31 if value >= 2**31 else 2**31 - 1 - value
                                number = float(np.uint32(bits).view(np.float32))
                                values.append(number if value >= 2**31 else -number)
                            else:
                                values.append(value - (2**31 if d is i32 else 0))
                        return np.array(values), np.array(places, np.uint32).astype(np.int32)

                    fields = {"a": vector, "dtype": dtype, "largest": largest}
                    yield Sample(fields, back, {"a": "bits"}, exact=True)
