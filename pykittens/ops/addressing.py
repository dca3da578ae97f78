"""What the memory operations share: C for global rectangles and shared tiles, and how wide an access may be."""

from __future__ import annotations

import math
import re
from typing import Any

from ..errors import TypeRuleError
from ..layouts import Sym, shared_offset, vector_register
from ..program import CudaWriter, Op, Operand, Place, Value
from ..types import DType, Global, RegisterTile, RegisterVector, ScalarType, SharedTile, SharedVector, i32
from .scalar_arithmetic import ScalarBinary
from .scalar_functions import ScalarCast
from .scalars import check_index, scalar_dtype

GATHERING = ("load", "store", "globalreduce")  # what moves a row to or from wherever a vector says

# bytes -> (C type of that many bytes)
VECTOR = {16: "pk_u32x4", 8: "pk_u32x2", 4: "u32", 2: "u16", 1: "u8"}

MEMORY = """
struct __align__(16) pk_u32x4 { u32 x, y, z, w; };
struct __align__(8) pk_u32x2 { u32 x, y; };
__device__ __forceinline__ u64 pk_bits(pk_u32x2 v) { return (u64)v.y << 32 | v.x; }
__device__ __forceinline__ pk_u32x2 pk_words(u64 x) { return {(u32)x, (u32)(x >> 32)}; }
__device__ __forceinline__ void pk_st_shared(u32 a, pk_u32x4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
    :: "r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ void pk_st_shared(u32 a, pk_u32x2 v) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(a), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ void pk_st_shared(u32 a, u32 v) {
  asm volatile("st.shared.b32 [%0], %1;" :: "r"(a), "r"(v) : "memory");
}
__device__ __forceinline__ void pk_st_shared(u32 a, u16 v) {
  asm volatile("st.shared.b16 [%0], %1;" :: "r"(a), "h"(v) : "memory");
}
__device__ __forceinline__ void pk_st_shared(u32 a, u8 v) {
  asm volatile("st.shared.b8 [%0], %1;" :: "r"(a), "r"((u32)v) : "memory");
}
template<class T> __device__ __forceinline__ T pk_ld_shared(u32 a);
template<> __device__ __forceinline__ pk_u32x4 pk_ld_shared<pk_u32x4>(u32 a) {
  pk_u32x4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
    : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a) : "memory");
  return v;
}
template<> __device__ __forceinline__ pk_u32x2 pk_ld_shared<pk_u32x2>(u32 a) {
  pk_u32x2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(a) : "memory");
  return v;
}
template<> __device__ __forceinline__ u32 pk_ld_shared<u32>(u32 a) {
  u32 v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return v;
}
template<> __device__ __forceinline__ u16 pk_ld_shared<u16>(u32 a) {
  u16 v;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(v) : "r"(a) : "memory");
  return v;
}
template<> __device__ __forceinline__ u8 pk_ld_shared<u8>(u32 a) {
  u32 v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return (u8)v;
}
template<class V, class E> __device__ __forceinline__ V pk_load_tail(const E* p, int left) {
  union { V v; E e[sizeof(V) / sizeof(E)]; } u;
  PK_UNROLL for (int i = 0; i < (int)(sizeof(V) / sizeof(E)); i++) u.e[i] = i < left ? p[i] : E(0);
  return u.v;
}
template<class V, class E> __device__ __forceinline__ void pk_store_tail(E* p, V v, int left, int before = 0) {
  union { V v; E e[sizeof(V) / sizeof(E)]; } u;
  u.v = v;
  PK_UNROLL for (int i = 0; i < (int)(sizeof(V) / sizeof(E)); i++) if (i >= before && i < left) p[i] = u.e[i];
}
"""


def known_multiple(x: Operand) -> int:
    """A number that the scalar is certainly a multiple of (0 for the constant 0)."""
    if isinstance(x, int):
        return abs(x)
    producer: Op | None = x.producer if isinstance(x, Value) else None
    if producer is None:
        return x.multiple if isinstance(x, Value) else 1
    if isinstance(producer, ScalarCast) and (scalar_dtype(producer.a) or i32).kind in "iu":
        return known_multiple(producer.a)
    if isinstance(producer, ScalarBinary):
        a, b = known_multiple(producer.a), known_multiple(producer.b)
        if producer.kind == "mul":
            return a * b
        if producer.kind in ("add", "sub", "min", "max"):
            return math.gcd(a, b)
        if producer.kind == "shl" and isinstance(producer.b, int):
            return a << producer.b
    return 1


def certain(x: Operand, kind: str) -> int | None:
    """A number that a scalar is certainly not below (`kind` "max"), or not above ("min"), because it was made so."""
    if isinstance(x, int):
        return x
    made = x.producer if isinstance(x, Value) else None
    if not isinstance(made, ScalarBinary) or made.kind != kind:
        return None
    return next((y for y in (made.a, made.b) if isinstance(y, int)), None)


def vector_bytes(place: Place) -> int:
    """How many bytes one thread may move at once: what pointer, strides and first column are all multiples of."""
    size = place.type.dtype.size
    return math.gcd(16, place.type.align, known_multiple(place.first[3]) * size, place.cols * size)


def check_place(place: Place, what: str, said: str = "") -> None:
    """Coordinates are integers, within the columns where these are known; rows that are gathered have a vector. `said`:
    `what` as the author spells it.
    """
    said = said or what
    if place.gathered is not None:
        check_gathered(place, what)
    for x in place.first:
        if x is not place.gathered:
            check_index(x, f"{what}: a coordinate")
    for x in place.within or ():
        check_index(x, f"{what}: a row of within")
    for x in place.columns or ():
        check_index(x, f"{what}: one of columns")
    if (
        isinstance(place.first[3], int)
        and isinstance(place.type.padded[3], int)
        and place.first[3] >= place.type.padded[3]
    ):
        raise TypeRuleError(
            f"{said}: column {place.first[3]} is past the {place.type.padded[3]} columns of {place.tensor.label}",
            fix="coordinates count tiles; pk.at(row, col), and x[row, col], count elements",
        )


def check_gathered(place: Place, what: str) -> None:
    """Each row of a tile has its own row of the tensor: what moves it can do that, and nothing else chooses rows."""
    vector, rows = place.gathered, place.rows
    assert vector is not None
    type = vector.type
    if what not in GATHERING or len(place.shape) != 2:
        raise TypeRuleError(
            f"{what} takes one row of {place.tensor.label}, not the rows of {vector.label}: {type}",
            fix="move whole rows, which make a tile: warp.load(x, (index, 0), rows=16, cols=64), or warp.store",
        )
    if not (isinstance(type, RegisterVector) and type.dtype is i32 and type.kind == "col" and type.length == rows):
        raise TypeRuleError(
            f"{what}: {vector.label}: {type} cannot be the rows of {place.tensor.label}",
            fix=f"give a column vector of {rows} i32: warp.load_col(index, (0,), length={rows})",
        )
    if place.within is not None or place.columns is not None:
        raise TypeRuleError(
            f"{what}: rows that are gathered are not kept to others",
            fix="leave within= and columns= out: a row that does not exist reads as zero and is not written",
        )


def memory_c(dtype: DType) -> str:
    """The C type that holds an element in memory."""
    return {1: "u8", 2: "u16", 4: dtype.c if dtype.kind != "b" else "u32", 8: dtype.c}[dtype.size]


def row_stride(tensor: str, type: Global) -> str:
    """C for how many elements lie between rows: a constant where that is known."""
    return str(type.padded[3]) if type.dense else f"{tensor}.stride[2]"


def apart(x: Operand) -> tuple[Operand, int]:
    """A scalar as another and a number more: what several rows have in common, and how far each is from it."""
    made = x.producer if isinstance(x, Value) else None
    if isinstance(made, ScalarBinary) and made.kind in ("add", "sub") and made.common is i32:
        a, b = (made.b, made.a) if isinstance(made.a, int) and made.kind == "add" else (made.a, made.b)
        steady = isinstance(a, Value) and isinstance(a.type, ScalarType) and not a.type.mutable
        if type(b) is int and steady:  # a variable may have changed since
            return a, b if made.kind == "add" else -b
    return x, 0


class GlobalText:
    """C names for a rectangle of a global tensor: its pointer, row stride, and how many rows and columns lie inside."""

    def __init__(self, c: CudaWriter, place: Place, const: bool = True):
        self.place = place
        tensor, t = c[place.tensor], memory_c(place.type.dtype)
        self.pointer, self.element = c.fresh("p"), t
        b, d, row, col = ("0" if x is place.gathered else c.scalar(x, i32) for x in place.first)
        self.stride = row_stride(tensor, place.type)
        steps = (f"{tensor}.stride[0]", f"{tensor}.stride[1]", self.stride)
        start, more = apart(place.first[2]) if place.type.dense and place.gathered is None else (place.first[2], 0)
        line = row if more == 0 else c.scalar(start, i32)
        terms = [f"(i64){x} * {step}" for x, step in zip((b, d, line), steps, strict=True) if x != "0"] + [col]
        terms += [f"(i64){more} * {self.stride}"] if more else []
        self.qualifier = q = "const " if const else ""
        c.line(f"{q}{t}* {self.pointer} = ({q}{t}*){tensor}.data + {' + '.join(terms)};")
        self.rows_left = "" if place.inside_rows() else c.fresh("rows_left")
        self.cols_left = "" if place.inside_columns() else c.fresh("cols_left")
        self.rows_before = self.cols_before = ""
        end, last, along = "", "", 2 if len(place.shape) == 2 else 3
        if place.gathered is not None:
            self.rows_before = "0"
        if place.within is not None:
            before = c.fresh("rows_before" if along == 2 else "cols_before")
            start, end = (c.scalar(x, i32) for x in place.within)
            c.line(f"const int {before} = max({start}, 0) - {row if along == 2 else col};")
            self.rows_before, self.cols_before = (before, "") if along == 2 else ("", before)
        if place.columns is not None:
            self.cols_before = c.fresh("cols_before")
            start, last = (c.scalar(x, i32) for x in place.columns)
            c.line(f"const int {self.cols_before} = max({start}, 0) - {col};")
        for name, axis, first in ((self.rows_left, 2, row), (self.cols_left, 3, col)):
            if name:
                dim = place.type.padded[axis]
                length = str(dim) if isinstance(dim, int) else f"{tensor}.shape[{axis}]"
                if axis == along and end:
                    length = f"min({end}, {length})"
                if axis == 3 and last:
                    length = f"min({last}, {length})"
                c.line(f"const int {name} = {length} - {first};")

    def inside(self, row: Any, col: Any, width: int = 1) -> str:
        """C condition that `width` columns at (row, col) exist; empty when they always do."""
        tests = self.row_tests(row)
        if self.cols_left:
            tests.append(f"{col} + {width} <= {self.cols_left}" if width > 1 else f"{col} < {self.cols_left}")
        if self.cols_before:
            tests.append(f"{col} >= {self.cols_before}")
        return " && ".join(tests)

    def row_tests(self, row: Any) -> list[str]:
        """C conditions that a row exists; none when it always does."""
        tests = [f"{row} < {self.rows_left}"] if self.rows_left else []
        return [f"{row} >= {self.rows_before}", *tests] if self.rows_before else tests

    def at(self, row: Any, col: Any) -> str:
        """C address of element (row, col) of the rectangle."""
        line = f" + (i64)({row}) * {self.stride}" if len(self.place.shape) == 2 else ""
        return f"{self.pointer}{line} + {col}"


def row_c(c: CudaWriter, memory: Value | Place, type: RegisterTile, row: Any, register: Any) -> Any:
    """C for the row in memory of what `register` of a tile holds, which lies in its row `row`."""
    vector = memory.gathered if isinstance(memory, Place) else None
    if vector is None:
        return row
    assert isinstance(vector.type, RegisterVector)
    return c.element(vector, vector_register(type, vector.type, register))


SWIZZLED = """
__device__ __forceinline__ u32 pk_swizzled(u32 address, u32 bits) { return address ^ ((address >> 7 & bits) << 4); }
"""


def shared_address(c: CudaWriter, tile: Value, row: Any, col: Any) -> str:
    """C address (32 bits) of element (row, col) of a shared tile."""
    type = tile.type
    assert isinstance(type, SharedTile)
    row, col = (Sym(str(x) if re.fullmatch(r"\w+", str(x)) else f"({x})") for x in (row, col))
    if type.column:
        col = Sym(f"({c[tile]}_col + {col})")
    if type.row:  # the swizzle is one of addresses: tiles begin where its pattern does
        c.prelude(SWIZZLED)
        plain = c[tile] + f" + {(col // type.panel) * (type.pitch * type.swizzle) + row * type.swizzle}"
        return f"pk_swizzled({plain} + {(col % type.panel) * type.dtype.size}, {type.swizzle // 16 - 1})"
    return f"{c[tile]} + {shared_offset(type, row, col)}"


def vector_address(c: CudaWriter, vector: Value, element: Any) -> str:
    """C address of an element of a shared vector."""
    type = vector.type
    assert isinstance(type, SharedVector)
    return f"{c[vector]} + ({element}) * {type.dtype.size}"
