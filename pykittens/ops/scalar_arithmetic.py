"""Arithmetic and comparison of two scalars."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import Diagnosis, TypeRuleError
from ..loading import dataclass
from ..numerics import ROUNDED, Numerics
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Operand, Scope, Shares
from ..types import DType, ScalarType, Type, bool_, f32, i32, i64, u32
from .arithmetic import COMPARISONS, arithmetic_numerics, calculate, calculate_c, whole_power_c
from .samples import Sample
from .scalars import as_dtype, as_number, described, promoted
from .slopes import binary_shares

SYMBOLS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "pow": "**"},
    **{"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="},
    **{"and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>"},
}
BITS = ("and", "or", "xor", "shl", "shr")
# Of ints that every integer dtype holds, with a result that they hold too, Python's own value is the dtype's (`small`).
OF_INTS: dict[str, Callable[[int, int], Any]] = {
    **{kind: getattr(operator, kind) for kind in ("add", "sub", "mul", "floordiv", "mod")},
    **{kind: getattr(operator, kind) for kind in ("lt", "le", "gt", "ge", "eq", "ne", "xor")},
    **{"and": operator.and_, "or": operator.or_, "min": min, "max": max},
}


def small(x: Any) -> bool:
    """Whether it is a Python int that i32, u32 and i64 hold."""
    return type(x) is int and 0 <= x < 1 << 31


def power_of_two(x: Operand) -> int | None:
    """log2 of a positive power of two known now, else None."""
    return x.bit_length() - 1 if isinstance(x, int) and not isinstance(x, bool) and x > 0 and x & (x - 1) == 0 else None


@dataclass(eq=False)
class ScalarBinary(Op):
    """a `kind` b on scalars, in the dtype that `promoted` says; integer division and remainder floor, as in Python.

    kind: add, sub, mul, div, floordiv, mod, pow, min, max, and, or, xor, shl, shr, or a comparison. div is a float's.
    """

    scope: Scope
    kind: str
    a: Operand
    b: Operand

    collective = False
    pointwise = True

    @functools.cached_property
    def common(self) -> DType:
        """The dtype in which the operands meet."""
        dtype = promoted(self.a, self.b)
        return f32 if self.kind == "div" else i32 if dtype is bool_ and self.kind not in BITS[:3] else dtype

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return ROUNDED if self.kind == "div" else arithmetic_numerics(self.kind, self.common)

    def types(self) -> tuple[Type, ...]:
        dtype = self.common
        whole = type(self.b) is int and self.b >= 0
        if self.kind == "pow" and dtype.kind != "f" and (dtype is bool_ or not whole):
            raise TypeRuleError(
                f"** of {dtype} with exponent {described(self.b)}",
                fix="of integers the exponent is a Python int from 0 on: n ** 3; or convert: pk.cast(n, pk.f32) ** y",
            )
        if self.kind in BITS and dtype.kind == "f":
            raise TypeRuleError(f"{self.kind} takes integers, not {dtype}", fix="convert with pk.cast(x, pk.i32) first")
        return (ScalarType(bool_ if self.kind in COMPARISONS else dtype),)

    @property
    def expression(self) -> str:
        return self.described(3)

    def described(self, depth: int) -> str:
        """The expression as an error shows it."""
        symbol = SYMBOLS.get(self.kind)
        a, b = (described(x, depth) for x in (self.a, self.b))
        return f"{a} {symbol} {b}" if symbol else f"{self.kind}({a}, {b})"

    def numpy(self, m: NumpyMachine) -> Any:
        a, b = m.scalar(self.a), m.scalar(self.b)
        if small(a) and small(b) and self.kind in OF_INTS and (b or self.kind not in ("floordiv", "mod")):
            out = OF_INTS[self.kind](a, b)
            if small(out) or out is True or out is False:
                return out
        dtype = self.common
        a, b = as_number(a, dtype), as_number(b, dtype)
        if self.kind in ("floordiv", "mod") and dtype.kind != "f" and not np.all(b):
            raise Diagnosis(
                f"{described(self.a)} {SYMBOLS[self.kind]} {described(self.b)} divides by 0",
                fix="divide by pk.maximum(x, 1), or only where it is not 0",
                location=self.location,
            )
        return calculate(self.kind, a, b)

    def cuda(self, c: CudaWriter) -> None:
        dtype = self.common
        a, b = as_dtype(c, self.a, dtype), as_dtype(c, self.b, dtype)
        shift = power_of_two(self.b)
        if self.kind == "floordiv" and shift is not None and dtype.kind != "f":
            text = f"{a} >> {shift}"
        elif self.kind == "mod" and shift is not None and dtype.kind != "f":
            text = f"{a} & {c.scalar((1 << shift) - 1, dtype)}"
        elif self.kind == "div":
            text = f"{a} / {b}"
        elif self.kind == "pow" and (factors := whole_power_c(c, dtype, self.b)):
            text = factors.format(a=a)
        else:
            text = calculate_c(c, self.kind, dtype, a, b)
        c.define(self.result, text)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return binary_shares(d, self.kind, cotangents[0], self.a, self.b)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in ("add", "sub", "mul", *COMPARISONS, "min", "max"):
            for dtype in (i32, f32, i64, u32):
                inputs = (
                    {"a": "counts", "b": "counts"}
                    if dtype is u32 and kind != "sub"
                    else {"a": "integers", "b": "integers"}
                    if dtype is not u32
                    else {"a": "large", "b": "counts"}
                )
                yield Sample(
                    {"kind": kind, "a": ScalarType(dtype), "b": ScalarType(dtype)},
                    lambda a, b, f=FORMULAS[kind]: f(a, b),
                    inputs,
                    exact=True,
                )
        for kind in BITS:
            for left in (i32, i64, u32):
                inputs = {"a": "integers" if left is not u32 else "large", "b": "counts"}
                yield Sample(
                    {"kind": kind, "a": ScalarType(left), "b": ScalarType(i32 if left is not u32 else u32)},
                    lambda a, b, f=FORMULAS[kind]: f(a, b),
                    inputs,
                )
        for kind in ("floordiv", "mod"):
            for right in (4, 3, -3, 1, ScalarType(i32), ScalarType(i64)):
                fields, inputs = {"kind": kind, "a": ScalarType(i32), "b": right}, {"a": "integers", "b": "large"}
                yield Sample(fields, lambda a, b, f=FORMULAS[kind]: f(a, b), inputs)
                yield Sample({**fields, "a": ScalarType(i64)}, lambda a, b, f=FORMULAS[kind]: f(a, b), inputs)
            yield Sample(
                {"kind": kind, "a": -7, "b": ScalarType(i32)}, lambda a, b, f=FORMULAS[kind]: f(a, b), {"b": "large"}
            )
            yield Sample(
                {"kind": kind, "a": ScalarType(u32), "b": 8}, lambda a, b, f=FORMULAS[kind]: f(a, b), {"a": "large"}
            )
            yield Sample(
                {"kind": kind, "a": ScalarType(u32), "b": 7}, lambda a, b, f=FORMULAS[kind]: f(a, b), {"a": "huge"}
            )
        for exponent in (0, 1, 2, 5):
            for dtype in (i32, u32, i64):
                fields, inputs = {"kind": "pow", "a": ScalarType(dtype), "b": exponent}, {"a": "counts"}
                yield Sample(fields, lambda a, n=exponent: a**n, inputs, exact=True)
        for power in (0, 2, 3, -1, 0.5):
            fields = {"kind": "pow", "a": ScalarType(f32), "b": power}
            yield Sample(fields, lambda a, n=power: np.power(a, n), {"a": "positive"})
        yield Sample({"kind": "pow", "a": ScalarType(f32), "b": ScalarType(f32)}, lambda a, b: a**b, {"a": "positive"})
        yield Sample({"kind": "div", "a": ScalarType(i32), "b": ScalarType(f32)}, lambda a, b: a / b)
        yield Sample({"kind": "mul", "a": ScalarType(i32), "b": 0.5}, lambda a, b: a * b)
        for kind in BITS[:3]:
            fields = {"kind": kind, "a": ScalarType(bool_), "b": ScalarType(bool_)}
            yield Sample(fields, lambda a, b, f=FORMULAS[kind]: f(a, b))


FORMULAS: dict[str, Any] = {  # of float64, int64 and bool, for the conformance tests
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "min": np.minimum,
    "max": np.maximum,
}
