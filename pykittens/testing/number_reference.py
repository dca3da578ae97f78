"""What numbers become, worked out independently of the operations: by tables, by exact integers, by float64.

The tests of the simulator's arithmetic and the random programs compare with it. Arrays have a dtype's NumPy type; NaNs
are the hardware's.
"""

from __future__ import annotations

import functools
import math
import operator
from fractions import Fraction
from typing import Any

import numpy as np

from ..types import DTYPES, DType, bf16, bool_, e4m3, e5m2, f16, f32, i64

Array = np.ndarray
# exponent bias, bits of the fraction, largest finite number
FORMATS = {e4m3: (7, 3, 448.0), e5m2: (15, 2, 57344.0), f16: (15, 10, 65504.0), bf16: (127, 7, 3.3895313892515355e38)}


def bits_of(array: Array) -> Array:
    """An array's bits as unsigned integers."""
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


@functools.cache
def _table(dtype: DType) -> Array:
    """The finite numbers from 0 up, by their bits."""
    bias, fraction, most = FORMATS[dtype]
    found = []
    for bits in range(1 << (dtype.bits - 1)):
        exponent, mantissa = bits >> fraction, bits & ((1 << fraction) - 1)
        value = (mantissa if exponent == 0 else mantissa + (1 << fraction)) * 2.0 ** (
            max(exponent, 1) - bias - fraction
        )
        if value > most:
            break
        found.append(value)
    return np.array(found)


def narrow(x: Array, dtype: DType) -> Array:
    """float32 (or float64) numbers as a 16- or 8-bit float: the nearest of all, of two the one with even bits."""
    table, size = _table(dtype), np.abs(x.astype(np.float64))
    above = np.searchsorted(table, size).clip(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    bits = np.where(up, above, above - 1)
    last = len(table) - 1
    if dtype in (e4m3, e5m2):
        bits = np.where(size > table[-1], last, bits)
    else:  # half way to what would come next, it is infinite
        bits = np.where(size >= table[-1] + (table[-1] - table[-2]) / 2, last + 1, bits)
    bits = np.where(np.signbit(x), bits | 1 << (dtype.bits - 1), bits)
    return np.where(np.isnan(x), (1 << (dtype.bits - 1)) - 1, bits).astype(f"u{dtype.size}").view(dtype.numpy)


def wide(x: Array) -> Array:
    """Floats as float64."""
    with np.errstate(invalid="ignore"):  # NumPy minds signalling NaNs
        return x.astype(np.float64)


def clean(x: Array) -> Array:
    """float32 numbers with the hardware's NaN."""
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF).view(np.float32), x)


def convert(x: Array, dtype: DType) -> Array:
    """An array as another dtype."""
    source = next(d for d in DTYPES.values() if d.numpy == x.dtype)
    with np.errstate(all="ignore"):
        if source is dtype:
            return x
        if dtype is bool_:
            return x.astype(np.float64) != 0 if source.kind == "f" else x != 0
        if dtype.kind in "iu":
            if source.kind != "f":
                return (x.astype(np.int64) & ((1 << dtype.bits) - 1 if dtype.bits < 64 else -1)).astype(dtype.numpy)
            low, high = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
            inside = np.clip(x.astype(np.float64), -(2.0**70), 2.0**70)  # Python has no int of an infinity
            whole = [(low if dtype is i64 else 0) if v != v else max(low, min(high, int(v))) for v in inside.ravel()]
            return np.array(whole, object).astype(dtype.numpy).reshape(x.shape)
        single = clean(x.astype(np.float32)) if source is not bf16 else x.astype(np.float32)
        return single if dtype is f32 else narrow(single, dtype)


_EXACT: dict[str, Any] = {
    **{"add": operator.add, "sub": operator.sub, "mul": operator.mul, "max": max, "min": min},
    **{"and": operator.and_, "or": operator.or_, "xor": operator.xor},
    "floordiv": lambda a, b: a // b if b else 0,  # of tiles; of scalars it is an error
    "mod": lambda a, b: a % b if b else 0,
}


def wrap(x: Array, dtype: DType) -> Array:
    """Integers of Python, of any size, as a dtype."""
    size = 1 << dtype.bits
    low = np.asarray(x, object) & (size - 1)
    signed = np.where(np.asarray(low >= size // 2, bool), np.asarray(low - size, object), np.asarray(low, object))
    return np.asarray(signed if dtype.kind == "i" else low, object).astype(dtype.numpy)


def calculate(kind: str, a: Array, b: Array, dtype: DType) -> Array:
    """a kind b of arrays of one dtype."""
    if kind in ("lt", "le", "gt", "ge", "eq", "ne"):
        a, b = (wide(x) if dtype.kind == "f" else x.astype(np.int64) for x in (a, b))
        return {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}[kind]
    if dtype is bool_:
        return {"and": a & b, "or": a | b, "xor": a ^ b}[kind]
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            return convert(clean(_of_floats(kind, wide(a), wide(b)).astype(np.float32)), dtype)
    shifts = {"shl": functools.partial(_shl, dtype.bits), "shr": functools.partial(_shr, dtype.bits)}
    apply = np.frompyfunc((_EXACT | shifts)[kind], 2, 1)
    return wrap(apply(a.astype(object), b.astype(object)), dtype)


def _of_floats(kind: str, a: Array, b: Array) -> Array:
    if kind in ("max", "min"):
        first = (a > b) if kind == "max" else (a < b)
        zeros = (a == 0) & (b == 0)
        first = np.where(zeros, np.signbit(a) == (kind == "min"), first)
        return np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(first, a, b))
    if kind in ("floordiv", "mod"):  # NumPy's own, of float32
        divide = np.floor_divide if kind == "floordiv" else np.remainder
        return wide(divide(a.astype(np.float32), b.astype(np.float32)))
    # float64 has more than twice the bits of float32: rounding twice is rounding once
    return {"add": a + b, "sub": a - b, "mul": a * b}[kind]


def fma(a: Array, b: Array, c: Array, dtype: DType) -> Array:
    """a * b + c, exact in fractions and rounded once to the dtype."""
    numbers = (np.ravel(wide(v)) for v in (a, b, c))
    out = [_fma(float(x), float(y), float(z), dtype) for x, y, z in zip(*numbers, strict=True)]
    return np.concatenate(out).reshape(a.shape)


def _fma(a: float, b: float, c: float, dtype: DType) -> Array:
    with np.errstate(all="ignore"):
        plain = np.asarray([np.float64(a) * np.float64(b) + np.float64(c)])
    if not np.isfinite(plain[0]) or plain[0] == 0:
        return convert(clean(plain.astype(np.float32)), dtype)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    bias, bits = (127, 23) if dtype is f32 else FORMATS[dtype][:2]
    exponent = 1 - bias
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - bits)
    rounded = math.copysign(float(round(exact / unit) * unit), exact)  # Python rounds halves to even
    with np.errstate(over="ignore"):
        return convert(np.asarray([rounded]).astype(np.float32), dtype)


def _shl(bits: int, a: int, n: int) -> int:
    return a << n if 0 <= n < bits else 0


def _shr(bits: int, a: int, n: int) -> int:
    return a >> (n if 0 <= n < bits else bits)


def unary(kind: str, a: Array, dtype: DType) -> Array:
    """What is exact or correctly rounded of one operand: neg, abs, relu, sqrt, not, invert."""
    if kind == "not":
        return np.logical_not(a)
    if dtype.kind != "f":
        functions: dict[str, Any] = {"neg": lambda x: -x, "abs": abs, "invert": lambda x: ~x}
        return wrap(np.frompyfunc(functions[kind], 1, 1)(a.astype(object)), dtype)
    with np.errstate(all="ignore"):
        x = wide(a)
        if kind == "relu":
            out = np.where(x > 0, x, np.where(np.isnan(x), np.nan, 0.0))
        else:
            whole = {"round": np.rint, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc}
            out = ({"neg": np.negative, "abs": np.abs, "sqrt": np.sqrt} | whole)[kind](x)
        return convert(clean(out.astype(np.float32)), dtype)


def reduce(kind: str, a: Array, axis: int, dtype: DType) -> Array:
    """max, min, sum or prod along an axis, where the order does not matter: integers, and the largest or smallest."""
    parts = [np.take(a, i, axis) for i in range(a.shape[axis])]
    return functools.reduce(lambda x, y: calculate({"sum": "add", "prod": "mul"}.get(kind, kind), x, y, dtype), parts)
