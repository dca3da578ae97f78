"""What becomes of a number in another dtype: one meaning, as NumPy and as CUDA C (PTX "cvt").

* floats to integers: toward zero, and what does not fit becomes the nearest that does. NaN is 0; of a float64, or to
  int64, it is the hardware's 2 ** (bits - 1), the smallest number of a signed dtype;
* floats to narrower floats: to the nearest, ties to even; past the largest it is infinite, but in 8 bits the largest
  itself (infinity too). 16- and 8-bit floats convert to and from everything else through float32;
* integers to integers keep the low bits; integers to floats are rounded to float32;
* anything but zero is True, NaN too.

A NaN that is converted becomes the hardware's: 0x7fffffff, 0x7fff, 0x7f. From bf16 to float32 the bits stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..numerics import EXACT, Numerics
from ..types import DTYPES, DType, bf16, e4m3, e5m2, f16, f32, f64, i64

_BY_NUMPY = {d.numpy: d for d in DTYPES.values()}
NAN_BITS = {f32: 0x7FFFFFFF, bf16: 0x7FFF, f16: 0x7FFF, e4m3: 0x7F, e5m2: 0x7F}
_BITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
LARGEST = {e4m3: 448.0, e5m2: 57344.0}  # finite


def limits(dtype: DType) -> tuple[int, int]:
    """The smallest and the largest number of an integer dtype."""
    return (0, 2**dtype.bits - 1) if dtype.kind == "u" else (-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1)


def nan(dtype: DType) -> Any:
    """The NaN that the hardware makes, as a NumPy number."""
    return _BITS[dtype.size](NAN_BITS[dtype]).view(dtype.numpy)


def canonical(array: np.ndarray, dtype: DType = f32) -> np.ndarray:
    """An array of `dtype` whose NaNs are those that the hardware makes."""
    return np.where(array != array, nan(dtype), array) if _has_nan(array) else array


def _has_nan(array: np.ndarray) -> bool:
    """Whether a NaN is among numbers: it is then the largest."""
    most = np.maximum.reduce(array, axis=None) if array.size else 0
    return bool(most != most)


def convert(x: Any, dtype: DType) -> np.ndarray:
    """An array (or NumPy number) as another dtype; a plain Python float is a float32."""
    if type(x) is float:
        x = canonical(np.asarray(np.float32(x)))
    array = np.asarray(x)
    source = _BY_NUMPY.get(array.dtype)
    if source is dtype:
        return array
    if dtype.kind == "b":
        return array.astype(np.bool_)
    if dtype.kind in "iu":
        return _to_integer(array, source, dtype) if _is_float(array) else array.astype(dtype.numpy)
    if dtype is f64 or (dtype is f32 and source is bf16):
        return array.astype(dtype.numpy)
    narrow = array.astype(np.float32)
    if dtype in LARGEST:
        most = LARGEST[dtype]
        narrow = np.clip(narrow, -most, most)  # a NaN stays
    out = narrow if dtype is f32 else narrow.astype(dtype.numpy)
    return np.where(narrow != narrow, nan(dtype), out) if _is_float(array) and _has_nan(narrow) else out


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind not in "iub"  # ml_dtypes' are of kind V


def _to_integer(array: np.ndarray, source: DType | None, dtype: DType) -> np.ndarray:
    low, high = limits(dtype)
    whole = np.trunc(array.astype(np.float64))
    fits = (whole >= low) & (whole < float(high + 1))
    out = np.where(fits, whole, 0.0).astype(dtype.numpy)
    if not fits.all():
        hardware = source is f64 or dtype is i64
        of_nan = 0 if not hardware else low if dtype.kind == "i" or dtype.bits == 8 else 1 << (dtype.bits - 1)
        for wrong, value in ((whole >= float(high + 1), high), (whole < low, low), (whole != whole, of_nan)):
            out = np.where(wrong, dtype.numpy.type(value), out)
    return out


def convert_c(text: str, source: DType, dtype: DType) -> str:
    """C for a number as another dtype. 8- and 16-bit floats stand as float, 8-bit integers as int (see
    `Writer.element`).
    """
    if dtype is source or (dtype.kind == source.kind == "f" and f64 not in (source, dtype)):
        return text
    if dtype is f64:
        return f"(double)({text})"
    if dtype.kind == "b":
        return f"({text} != 0)"
    if dtype.kind == "f":
        return f"(float)({text})"
    if source.kind == "f":
        of = "double" if source is f64 else "float"
        if dtype.bits == 8:  # two conversions of 32 bits: what the first one saturates the second does too
            low, high = limits(dtype)
            return f"min(max(__{of}2int_rz({text}), {low}), {high})"
        return f"__{of}2{ {'i32': 'int', 'u32': 'uint', 'i64': 'll'}[dtype.name] }_rz({text})"
    return f"({dtype.c})({text})"


def conversion_numerics(source: DType, dtype: DType) -> Numerics:
    """What a conversion promises."""
    if source is dtype or dtype.kind == "b" or source.kind == "b":
        return EXACT
    if dtype.kind in "iu":
        if source.kind in "iu":
            return EXACT if _holds(dtype, source) else EXACT.with_special("the low bits are kept")
        return EXACT.with_special("toward zero; what does not fit becomes the nearest that does; NaN is 0")
    if source.kind in "iu":
        through = "" if dtype in (f32, f64) else "rounded to float32, then to the dtype"
        return Numerics("correctly rounded", special=through)
    if dtype.bits >= source.bits and not (dtype.bits == source.bits == 16):
        return EXACT.with_special("a NaN stays one")
    over = "what is past the largest finite number becomes it" if dtype in LARGEST else "overflow is infinite"
    return Numerics(
        "correctly rounded", special=f"ties to even; subnormals are kept; {over}; NaN is 0x{NAN_BITS[dtype]:x}"
    )


def _holds(wide: DType, narrow: DType) -> bool:
    (a, b), (low, high) = limits(wide), limits(narrow)
    return a <= low and high <= b
