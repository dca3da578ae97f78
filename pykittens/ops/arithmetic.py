"""What arithmetic on two numbers of one dtype gives: one meaning, as NumPy and as CUDA C, for scalars, tiles and
reductions.

* integers wrap: the low bits of the true result. C computes them unsigned, where that is defined;
* a shift by the width of the dtype or more leaves nothing, or the sign; a negative count is such a one;
* floats are rounded to nearest, ties to even, once an operation: nothing is contracted into fused multiply-adds;
* the larger and the smaller of two floats are NaN where one of them is (as NumPy and torch have it), and +0 > -0
  (PTX "max.NaN"). So no reduction depends on its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..numerics import EXACT, NAN, ROUNDED, Numerics, approximate
from ..program import CudaWriter
from ..types import DType, f32
from .conversion import canonical, convert

ARITHMETIC = """
__device__ __forceinline__ int pk_add(int a, int b) { return (int)((u32)a + (u32)b); }
__device__ __forceinline__ int pk_sub(int a, int b) { return (int)((u32)a - (u32)b); }
__device__ __forceinline__ int pk_mul(int a, int b) { return (int)((u32)a * (u32)b); }
__device__ __forceinline__ int pk_neg(int a) { return (int)(0u - (u32)a); }
__device__ __forceinline__ int pk_abs(int a) { return a < 0 ? pk_neg(a) : a; }
__device__ __forceinline__ int pk_shl(int a, int n) { return (u32)n < 32u ? (int)((u32)a << n) : 0; }
__device__ __forceinline__ int pk_shr(int a, int n) { return a >> ((u32)n < 32u ? n : 31); }
__device__ __forceinline__ u32 pk_add(u32 a, u32 b) { return a + b; }
__device__ __forceinline__ u32 pk_sub(u32 a, u32 b) { return a - b; }
__device__ __forceinline__ u32 pk_mul(u32 a, u32 b) { return a * b; }
__device__ __forceinline__ u32 pk_neg(u32 a) { return 0u - a; }
__device__ __forceinline__ u32 pk_abs(u32 a) { return a; }
__device__ __forceinline__ u32 pk_shl(u32 a, u32 n) { return n < 32u ? a << n : 0u; }
__device__ __forceinline__ u32 pk_shr(u32 a, u32 n) { return n < 32u ? a >> n : 0u; }
__device__ __forceinline__ i64 pk_add(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
__device__ __forceinline__ i64 pk_sub(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
__device__ __forceinline__ i64 pk_mul(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
__device__ __forceinline__ i64 pk_neg(i64 a) { return (i64)(0ull - (u64)a); }
__device__ __forceinline__ i64 pk_abs(i64 a) { return a < 0 ? pk_neg(a) : a; }
__device__ __forceinline__ i64 pk_shl(i64 a, i64 n) { return (u64)n < 64u ? (i64)((u64)a << n) : 0ll; }
__device__ __forceinline__ i64 pk_shr(i64 a, i64 n) { return a >> ((u64)n < 64u ? n : 63); }
__device__ __forceinline__ float pk_max(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ float pk_min(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ float pk_divide(float a, float b) {
  float r;
  asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
"""

# Of magnitudes, unsigned: the smallest number divided by -1 wraps.
FLOOR = """
__device__ __forceinline__ int pk_floor_div(int a, int b) {
  const u32 m = a < 0 ? 0u - (u32)a : (u32)a, n = b < 0 ? 0u - (u32)b : (u32)b, q = m / n;
  return (a < 0) != (b < 0) ? (int)(0u - q - (m != q * n)) : (int)q;
}
__device__ __forceinline__ i64 pk_floor_div(i64 a, i64 b) {
  const u64 m = a < 0 ? 0ull - (u64)a : (u64)a, n = b < 0 ? 0ull - (u64)b : (u64)b, q = m / n;
  return (a < 0) != (b < 0) ? (i64)(0ull - q - (m != q * n)) : (i64)q;
}
__device__ __forceinline__ u32 pk_floor_div(u32 a, u32 b) { return a / b; }
__device__ __forceinline__ int pk_floor_mod(int a, int b) { return pk_sub(a, pk_mul(pk_floor_div(a, b), b)); }
__device__ __forceinline__ i64 pk_floor_mod(i64 a, i64 b) { return pk_sub(a, pk_mul(pk_floor_div(a, b), b)); }
__device__ __forceinline__ u32 pk_floor_mod(u32 a, u32 b) { return a % b; }
__device__ __forceinline__ float pk_floor_mod(float a, float b) {
  const float r = fmodf(a, b);
  return r == 0.0f ? copysignf(0.0f, b) : (r < 0.0f) != (b < 0.0f) ? r + b : r;
}
__device__ __forceinline__ float pk_floor_div(float a, float b) {
  if (b == 0.0f) return a / b;
  const float r = fmodf(a, b), q = (a - r) / b - (r != 0.0f && (r < 0.0f) != (b < 0.0f) ? 1.0f : 0.0f);
  const float f = floorf(q);
  return q == 0.0f ? copysignf(0.0f, a / b) : q - f > 0.5f ? f + 1.0f : f;
}
"""


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; of floats NaN where one is, and +0 rather than -0."""
    out = np.maximum(a, b)
    return np.where((a == 0) & (b == 0), a + b, out) if _is_float(out) else out


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; of floats NaN where one is, and -0 rather than +0."""
    out = np.minimum(a, b)
    return np.where((a == 0) & (b == 0), -((-a) + (-b)), out) if _is_float(out) else out


def shift_left(a: Any, n: Any) -> Any:
    """a * 2 ** n as far as it fits; 0 for a count outside of 0 to width - 1."""
    inside = _inside(a, n)
    return np.where(inside, np.left_shift(a, np.where(inside, n, 0)), 0)


def shift_right(a: Any, n: Any) -> Any:
    """a / 2 ** n, floored; 0, or -1 of a negative number, for a count outside of 0 to width - 1."""
    inside = _inside(a, n)
    return np.where(inside, np.right_shift(a, np.where(inside, n, 0)), np.where(a < 0, -1, 0))


def floor_divide(a: Any, b: Any) -> Any:
    """a / b, floored: of integers 0 where b is 0; of floats what the exact remainder leaves, as in NumPy and Python."""
    if not _is_float(a):
        return np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b)))
    r = np.fmod(a, b)
    q = (a - r) / b - np.where((r != 0) & ((r < 0) != (b < 0)), np.float32(1), np.float32(0))
    f = np.floor(q)
    whole = np.where(q == 0, np.copysign(np.float32(0), a / b), np.where(q - f > 0.5, f + np.float32(1), f))
    return np.where(b == 0, a / b, whole)


def remainder(a: Any, b: Any) -> Any:
    """What `floor_divide` leaves, with b's sign: of integers 0 where b is 0; of floats NaN."""
    if not _is_float(a):
        return np.where(b == 0, 0, np.remainder(a, np.where(b == 0, 1, b)))
    r = np.fmod(a, b)
    return np.where(r == 0, np.copysign(np.float32(0), b), np.where((r < 0) != (b < 0), r + b, r))


def power(a: Any, b: Any) -> Any:
    """a ** b: of integers the low bits; of floats rounded once."""
    if not _is_float(a):
        return np.power(a, b)
    return convert(np.power(np.asarray(a, np.float64), np.asarray(b, np.float64)).astype(np.float32), f32)


def _inside(a: Any, n: Any) -> Any:
    return (n >= 0) & (n < 8 * np.asarray(a).dtype.itemsize)


def _is_float(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"


class Arithmetic(NamedTuple):
    """One operation on two numbers: its NumPy function, and its C for floats and for integers and bools ("": it has
    none).
    """

    numpy: Callable[[Any, Any], Any]
    floats: str
    integers: str


OPERATIONS: dict[str, Arithmetic] = {
    "add": Arithmetic(np.add, "{a} + {b}", "pk_add({a}, {b})"),
    "sub": Arithmetic(np.subtract, "{a} - {b}", "pk_sub({a}, {b})"),
    "mul": Arithmetic(np.multiply, "{a} * {b}", "pk_mul({a}, {b})"),
    "div": Arithmetic(np.divide, "pk_divide({a}, {b})", ""),
    "floordiv": Arithmetic(floor_divide, "pk_floor_div({a}, {b})", "pk_floor_div({a}, {b})"),
    "mod": Arithmetic(remainder, "pk_floor_mod({a}, {b})", "pk_floor_mod({a}, {b})"),
    "pow": Arithmetic(power, "powf({a}, {b})", ""),
    "max": Arithmetic(maximum, "pk_max({a}, {b})", "max({a}, {b})"),
    "min": Arithmetic(minimum, "pk_min({a}, {b})", "min({a}, {b})"),
    "and": Arithmetic(np.bitwise_and, "", "{a} & {b}"),
    "or": Arithmetic(np.bitwise_or, "", "{a} | {b}"),
    "xor": Arithmetic(np.bitwise_xor, "", "{a} ^ {b}"),
    "shl": Arithmetic(shift_left, "", "pk_shl({a}, {b})"),
    "shr": Arithmetic(shift_right, "", "pk_shr({a}, {b})"),
    "lt": Arithmetic(np.less, "{a} < {b}", "{a} < {b}"),
    "le": Arithmetic(np.less_equal, "{a} <= {b}", "{a} <= {b}"),
    "gt": Arithmetic(np.greater, "{a} > {b}", "{a} > {b}"),
    "ge": Arithmetic(np.greater_equal, "{a} >= {b}", "{a} >= {b}"),
    "eq": Arithmetic(np.equal, "{a} == {b}", "{a} == {b}"),
    "ne": Arithmetic(np.not_equal, "{a} != {b}", "{a} != {b}"),
}
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


def calculate(kind: str, a: Any, b: Any) -> Any:
    """`a` kind `b`, of two arrays (or NumPy numbers) of one dtype: float32, integers or bools."""
    out = np.asarray(OPERATIONS[kind].numpy(a, b))
    if kind in COMPARISONS:
        return out
    return canonical(out) if out.dtype.kind == "f" else out.astype(np.asarray(a).dtype, copy=False)


def calculate_c(c: CudaWriter, kind: str, dtype: DType, a: Any, b: Any) -> str:
    """C for `a` kind `b`, of two expressions of one dtype; 16-bit floats stand as float."""
    c.prelude(ARITHMETIC)
    if kind in ("floordiv", "mod"):
        c.prelude(FLOOR)
    operation = OPERATIONS[kind]
    return (operation.floats if dtype.kind == "f" else operation.integers).format(a=a, b=b)


# Whole powers: of integers by squaring, with the exponent known when it is compiled; of floats by products.
POWERS = """
__device__ __forceinline__ i64 pk_power(i64 a, int n) {
  u64 x = (u64)a, r = 1ull;
  for (; n; n >>= 1, x *= x) if (n & 1) r *= x;
  return (i64)r;
}
template <typename T> __device__ __forceinline__ T pk_power(T a, int n) {
  u32 x = (u32)a, r = 1u;
  for (; n; n >>= 1, x *= x) if (n & 1) r *= x;
  return (T)r;
}
__device__ __forceinline__ float pk_power_1(float a) { return a; }
__device__ __forceinline__ float pk_power_2(float a) { return a * a; }
__device__ __forceinline__ float pk_power_3(float a) { return a * a * a; }
__device__ __forceinline__ float pk_power_4(float a) { return (a * a) * (a * a); }
"""


def whole_power_c(c: CudaWriter, dtype: DType, exponent: object) -> str:
    """C for a whole power known now, in {a}; "" where there is none. Products of floats are within what `**` promises
    up to the fourth.
    """
    c.prelude(POWERS)
    if dtype.kind != "f":
        return f"pk_power({{a}}, {exponent})"
    return f"pk_power_{exponent}({{a}})" if type(exponent) is int and 1 <= exponent <= 4 else ""


def arithmetic_numerics(kind: str, dtype: DType) -> Numerics:
    """What `calculate_c` promises."""
    if kind in COMPARISONS:
        return EXACT.with_special("NaN is unordered: only != holds; -0 == +0") if dtype.kind == "f" else EXACT
    if dtype.kind != "f":
        text = {
            "shl": "a count outside of the dtype's width leaves 0",
            "shr": "a count outside of the dtype's width leaves 0, or the sign",
            "floordiv": "rounds down; dividing by 0 gives 0 in tiles, and is an error of scalars",
            "mod": "has the divisor's sign; dividing by 0 gives 0 in tiles, and is an error of scalars",
            "pow": "wraps",
        }
        return EXACT.with_special(text.get(kind, "wraps" if kind in ("add", "sub", "mul") else ""))
    if kind in ("max", "min"):
        return EXACT.with_special(f"NaN where an operand is; +0 > -0; {NAN}")
    if kind in ("floordiv", "mod"):
        exact = (
            "the remainder is exact, then rounded; a quotient beyond 2^24 is within 1 ulp; by 0 it is a / b, and NaN"
        )
        found = EXACT.with_special(f"{exact}; {NAN}")
    elif kind in ("div", "pow"):
        found = approximate(3 if kind == "div" else 4, special=f"subnormals are kept; {NAN}")
    else:
        found = ROUNDED
    return found if dtype is f32 else found.with_special("computed in float32, then rounded to the dtype")


# Fused multiply-add ------------------------------------------------------------------------------------------


def fma(a: Any, b: Any, c: Any, dtype: DType) -> np.ndarray:
    """a * b + c of float32 (or narrower) numbers, rounded once to `dtype`.

    The product is exact in float64. The sum is rounded to odd, which keeps what a later rounding needs to know
    (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd").
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    term = np.asarray(c, np.float64)
    total = product + term
    back = total - product
    lost = (product - (total - back)) + (term - back)  # exactly what the sum's rounding took away
    total = _to_odd(total, np.where(np.isfinite(total), lost, 0.0), np.int64)
    if dtype.bits == 16:
        single = total.astype(np.float32)
        single = _to_odd(single, np.where(np.isfinite(total), total - single, 0.0), np.int32)
        return convert(single, dtype)
    return canonical(total.astype(np.float32))


def _to_odd(rounded: np.ndarray, lost: np.ndarray, bits: Any) -> np.ndarray:
    """Numbers rounded to nearest, as rounding to odd would have them: where something was lost, the odd neighbour."""
    even = (np.ascontiguousarray(rounded).view(bits) & 1).reshape(np.shape(rounded)) == 0
    toward = np.where(lost > 0, np.inf, -np.inf).astype(rounded.dtype)
    return np.where((lost != 0) & even, np.nextafter(rounded, toward), rounded)
