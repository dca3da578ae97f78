"""Scalars, one value for all threads of a warp: what they are as operands, in NumPy and as C.

What is done with them: `scalar_arithmetic.py`, `scalar_functions.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..program import CudaWriter, Operand, Scope, Value
from ..types import DType, ScalarType, bool_, f32, i32, i64, u32
from .conversion import convert, convert_c, limits

THREAD = Scope("thread", 1)


def scalar_dtype(x: Operand) -> DType | None:
    """The dtype of a scalar operand; None for a Python int, which takes that of what it stands beside."""
    if isinstance(x, Value):
        if not isinstance(x.type, ScalarType):
            raise TypeRuleError(
                f"{x.label} is {x.type}, where a scalar is needed",
                fix="pass a number or a traced scalar: x.sum(), or of a mask x.any() or x.all()",
            )
        return x.type.dtype
    if isinstance(x, (bool, np.bool_)):
        return bool_
    if isinstance(x, (int, np.integer)):
        return None
    if isinstance(x, (float, np.floating)):
        return f32
    raise TypeRuleError(f"{x!r} is not a scalar", fix="pass a number or a traced scalar")


def check_index(x: Operand, what: str) -> None:
    """Refuses what is no integer where one is counted with: a coordinate, an index, a rank."""
    if isinstance(x, Value) and not isinstance(x.type, ScalarType):
        fix = "pass an int or a traced integer: one place for all threads, not a tile or vector of them"
        raise TypeRuleError(f"{what} is {x.label}: {x.type}", fix=fix)
    dtype = scalar_dtype(x)
    if dtype is not None and dtype.kind not in "iu":
        raise TypeRuleError(
            f"{what} is {described(x)}: {dtype}", fix="pass an integer; pk.cast(x, pk.i32) makes one of a float"
        )


def described(x: Operand, depth: int = 3) -> str:
    """What an error calls a scalar operand: its name, or the expression that made it as far as `depth` allows."""
    producer = x.producer if isinstance(x, Value) and not x.name else None
    if depth and (inner := getattr(producer, "described", None)):  # of an operation on others
        return f"({inner(depth - 1)})"
    if producer is not None and producer.expression:
        return producer.expression
    return x.name or str(x.type) if isinstance(x, Value) else str(x)


def promoted(*operands: Operand) -> DType:
    """The dtype in which scalars meet: float32 where one is a float, int64 where one is, and for int32 with uint32.

    Bools count as int32 unless all are bools. A Python int takes the dtype of the others, or int64 where it does not
    fit.
    """
    dtypes = [scalar_dtype(x) for x in operands]
    if dtypes[0] in (i32, f32) and all(d is dtypes[0] for d in dtypes):  # what most are
        return dtypes[0]
    if all(d is bool_ for d in dtypes):
        return bool_
    found = {d for d in dtypes if d is not None and d is not bool_}
    if any(d.kind == "f" for d in found):
        return f32
    dtype = i64 if i64 in found or {i32, u32} <= found else next(iter(found), i32)
    for x, own in zip(operands, dtypes, strict=True):
        if own is None and not fits(x, dtype):
            dtype = i64
            check_fits(x, i64, "an operation on scalars")
    return dtype


def fits(x: Operand, dtype: DType) -> bool:
    """Whether a Python number is one of the dtype: a whole one of integers, 0 or 1 of bools, and of floats any that has
    a nearest one. Values adapt, and so do floats to narrower floats.
    """
    if isinstance(x, Value):
        return True
    if dtype.kind == "f":
        try:
            return isinstance(float(x), float)
        except OverflowError:
            return False
    if isinstance(x, (float, np.floating)) and not float(x).is_integer():
        return False
    low, high = (0, 1) if dtype is bool_ else limits(dtype)
    return low <= int(x) <= high


def check_fits(x: Operand, dtype: DType, what: str) -> None:
    """Refuses a Python number that the dtype cannot hold."""
    if fits(x, dtype):
        return
    if dtype.kind == "f":
        fact = f"{what}: an integer of {int(x).bit_length()} bits is no {dtype}"
        raise TypeRuleError(fact, fix="use a float, such as math.inf, or a smaller number")
    low, high = (0, 1) if dtype is bool_ else limits(dtype)
    number = "number" if isinstance(x, (int, np.integer)) else "whole number"
    raise TypeRuleError(f"{what}: {x} is no {dtype}", fix=f"use a {number} from {low} to {high}")


def as_dtype(c: CudaWriter, x: Operand, dtype: DType) -> str:
    """C for a scalar as a dtype, by the rules of `conversion.py`: C's own would compare signed with unsigned."""
    if not isinstance(x, Value):
        return str(c.scalar(x, dtype))
    own = scalar_dtype(x)
    assert own is not None
    return convert_c(c[x], own, f32 if dtype.kind == "f" else dtype)


def as_number(x: Any, dtype: DType) -> Any:
    """A scalar of the simulator (a Python int or bool, a float32, or an array of them) as a NumPy number or array of
    `dtype`.
    """
    return convert(np.asarray(x, np.int64) if type(x) is int else x, dtype)


def literal(x: float | int | bool, dtype: DType) -> str:
    """A number as a C literal of `dtype`."""
    if dtype is bool_:
        return "true" if x else "false"
    if dtype.kind == "f":
        value = float(np.float32(x))
        if math.isnan(value):
            return "__int_as_float(0x7fffffff)"
        if math.isinf(value):
            return "__int_as_float(0x7f800000)" if value > 0 else "__int_as_float(0xff800000)"
        text = repr(value) if abs(value) >= 1e-30 or value == 0 else value.hex()
        return f"{text}f"
    number = int(as_number(x, dtype))
    if dtype is i64:
        return f"{number}ll" if number > -(2**63) else "(-9223372036854775807ll - 1)"
    if dtype is u32:
        return f"{number}u"
    return f"{number}" if number > -(2**31) else "(-2147483647 - 1)"
