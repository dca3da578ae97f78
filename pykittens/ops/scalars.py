"""Scalars: one value for all threads of a warp. Arithmetic, comparison, conversion, choice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope, Value
from ..types import DType, ScalarType, Type, bool_, f32, i32, i64, u32
from .samples import Sample

THREAD = Scope("thread", 1)

ARITHMETIC = {"add": "+", "sub": "-", "mul": "*"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
BITS = {"and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>"}
FUNCTIONS = {"min", "max", "div", "floordiv", "mod"}

FLOOR = """
__device__ __forceinline__ i64 pk_floor_div(i64 a, i64 b) { i64 q = a / b; return q - ((a % b != 0) & ((a < 0) != (b < 0))); }
__device__ __forceinline__ int pk_floor_div(int a, int b) { int q = a / b; return q - ((a % b != 0) & ((a < 0) != (b < 0))); }
__device__ __forceinline__ u32 pk_floor_div(u32 a, u32 b) { return a / b; }
__device__ __forceinline__ u32 pk_floor_mod(u32 a, u32 b) { return a % b; }
__device__ __forceinline__ i64 pk_floor_mod(i64 a, i64 b) { return a - pk_floor_div(a, b) * b; }
__device__ __forceinline__ int pk_floor_mod(int a, int b) { return a - pk_floor_div(a, b) * b; }
"""


def scalar_dtype(x: Operand) -> DType | None:
    """The dtype of a scalar operand; None for a Python number that fits any."""
    if isinstance(x, Value):
        if not isinstance(x.type, ScalarType):
            raise TypeRuleError(
                f"{x.label} is {x.type}, where a scalar is needed", fix="pass a number or a traced scalar"
            )
        return x.type.dtype
    if isinstance(x, (bool, np.bool_)):
        return bool_
    if isinstance(x, (int, np.integer)):
        return None
    if isinstance(x, (float, np.floating)):
        return f32
    raise TypeRuleError(f"{x!r} is not a scalar", fix="pass a number or a traced scalar")


def described(x: Operand, depth: int = 3) -> str:
    """What an error calls a scalar operand: its name, or the expression that made it as far as `depth` allows."""
    producer = x.producer if isinstance(x, Value) and not x.name else None
    if isinstance(producer, ScalarBinary) and depth:
        return f"({producer.described(depth - 1)})"
    if producer is not None and producer.expression:
        return producer.expression
    return x.name or str(x.type) if isinstance(x, Value) else str(x)


def promoted(a: Operand, b: Operand) -> DType:
    """The dtype of an arithmetic result: float over int, 64 bits over 32, and of signed with unsigned."""
    found = [d for d in (scalar_dtype(a), scalar_dtype(b)) if d is not None and d is not bool_]
    if any(d.kind == "f" for d in found):
        return f32
    return i64 if i32 in found and u32 in found else max(found, key=lambda d: d.bits, default=i32)


def as_dtype(c: CudaWriter, x: Operand, dtype: DType) -> str:
    """C for a scalar as a dtype: C's own conversions would take the wrong overload, or compare signed with unsigned."""
    own = x.type.dtype if isinstance(x, Value) and isinstance(x.type, ScalarType) else dtype
    return f"({dtype.c}){c.scalar(x, dtype)}" if own != dtype and dtype is i64 else str(c.scalar(x, dtype))


def power_of_two(x: Operand) -> int | None:
    """log2 of a positive power of two known now, else None."""
    return x.bit_length() - 1 if isinstance(x, int) and not isinstance(x, bool) and x > 0 and x & (x - 1) == 0 else None


@dataclass(eq=False)
class ScalarBinary(Op):
    """a `kind` b on scalars; integer division and remainder floor, as in Python."""

    scope: Scope
    kind: str
    a: Operand
    b: Operand

    collective = False

    def types(self) -> tuple[Type, ...]:
        dtype = promoted(self.a, self.b)
        if self.kind in COMPARE:
            return (ScalarType(bool_),)
        if self.kind in BITS and dtype.kind == "f":
            raise TypeRuleError(f"{self.kind} takes integers, not {dtype}", fix="convert with pk.cast(x, pk.i32) first")
        if self.kind in ("and", "or") and scalar_dtype(self.a) is bool_ and scalar_dtype(self.b) is bool_:
            return (ScalarType(bool_),)
        if self.kind == "div":
            return (ScalarType(f32),)
        if self.kind in ("floordiv", "mod") and dtype.kind == "f":
            raise TypeRuleError("// and % take integers", fix="divide with /, or convert with pk.cast(x, pk.i32) first")
        return (ScalarType(dtype),)

    @property
    def expression(self) -> str:
        return self.described(3)

    def described(self, depth: int) -> str:
        """The expression as an error shows it."""
        operator = (ARITHMETIC | COMPARE | BITS | {"div": "/", "floordiv": "//", "mod": "%"}).get(self.kind)
        a, b = (described(x, depth) for x in (self.a, self.b))
        return f"{a} {operator} {b}" if operator else f"{self.kind}({a}, {b})"

    def numpy(self, m: NumpyMachine) -> Any:
        a, b, kind = m.scalar(self.a), m.scalar(self.b), self.kind
        type = self.result.type
        assert isinstance(type, ScalarType)
        value = PYTHON[kind](a, b)
        if type.dtype.kind == "f":
            return np.float32(value) if not isinstance(value, np.ndarray) else value.astype(np.float32)
        return m.checked_int(value, type.dtype, self)

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, ScalarType)
        common = promoted(self.a, self.b)
        a, b = as_dtype(c, self.a, common), as_dtype(c, self.b, common)
        shift = power_of_two(self.b)
        if self.kind in ("floordiv", "mod"):
            if shift is not None:
                text = f"{a} >> {shift}" if self.kind == "floordiv" else f"{a} & {(1 << shift) - 1}"
            else:
                c.prelude(FLOOR)
                text = f"pk_floor_{'div' if self.kind == 'floordiv' else 'mod'}({a}, {b})"
        elif self.kind in ("min", "max"):
            text = f"{'f' if common.kind == 'f' else ''}{self.kind}{'f' if common.kind == 'f' else ''}({a}, {b})"
        elif self.kind == "div":
            text = f"(float){a} / (float){b}"
        else:
            text = f"{a} {(ARITHMETIC | COMPARE | BITS)[self.kind]} {b}"
        c.define(self.result, text)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        formulas = {**PYTHON, "div": lambda a, b: a / b, "min": min, "max": max}
        for kind in (*ARITHMETIC, *COMPARE, "min", "max"):
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
                    lambda a, b, f=formulas[kind]: f(a, b),
                    inputs,
                    exact=True,
                )
        for kind in BITS:
            for left in (i32, i64, u32):
                inputs = {"a": "integers" if left is not u32 else "large", "b": "counts"}
                yield Sample(
                    {"kind": kind, "a": ScalarType(left), "b": ScalarType(i32 if left is not u32 else u32)},
                    lambda a, b, f=formulas[kind]: f(a, b),
                    inputs,
                )
        for kind in ("floordiv", "mod"):
            for right in (4, 3, -3, 1, ScalarType(i32), ScalarType(i64)):
                fields, inputs = {"kind": kind, "a": ScalarType(i32), "b": right}, {"a": "integers", "b": "large"}
                yield Sample(fields, lambda a, b, f=formulas[kind]: f(a, b), inputs)
                yield Sample({**fields, "a": ScalarType(i64)}, lambda a, b, f=formulas[kind]: f(a, b), inputs)
            yield Sample(
                {"kind": kind, "a": -7, "b": ScalarType(i32)}, lambda a, b, f=formulas[kind]: f(a, b), {"b": "large"}
            )
            yield Sample(
                {"kind": kind, "a": ScalarType(u32), "b": 8}, lambda a, b, f=formulas[kind]: f(a, b), {"a": "large"}
            )
            yield Sample(
                {"kind": kind, "a": ScalarType(u32), "b": 7}, lambda a, b, f=formulas[kind]: f(a, b), {"a": "huge"}
            )
        yield Sample({"kind": "div", "a": ScalarType(i32), "b": ScalarType(f32)}, lambda a, b: a / b)
        yield Sample({"kind": "mul", "a": ScalarType(i32), "b": 0.5}, lambda a, b: a * b)
        yield Sample({"kind": "and", "a": ScalarType(bool_), "b": ScalarType(bool_)}, lambda a, b: a & b)
        yield Sample({"kind": "or", "a": ScalarType(bool_), "b": ScalarType(bool_)}, lambda a, b: a | b)


def _div(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.divide(np.float32(a), np.float32(b))


PYTHON: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "div": _div,
    "min": lambda a, b: (
        min(a, b) if not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) else np.minimum(a, b)
    ),
    "max": lambda a, b: (
        max(a, b) if not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) else np.maximum(a, b)
    ),
}


def _on_float(f: Any) -> Any:
    def apply(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(np.float32(x))

    return apply


SCALAR_FUNCTIONS: dict[str, tuple[Any, str]] = {
    "neg": (lambda x: -x, "-{}"),
    "not": (lambda x: np.logical_not(x) if isinstance(x, np.ndarray) else not x, "!{}"),
    "exp2": (_on_float(np.exp2), "exp2f({})"),
    "log2": (_on_float(np.log2), "log2f({})"),
    "exp": (_on_float(np.exp), "expf({})"),
    "log": (_on_float(np.log), "logf({})"),
    "sqrt": (_on_float(np.sqrt), "sqrtf({})"),
    "rsqrt": (_on_float(lambda x: np.float32(1) / np.sqrt(x)), "rsqrtf({})"),
    "abs": (abs, "abs({})"),
}


@dataclass(eq=False)
class ScalarUnary(Op):
    """`kind` of a scalar: neg, not, abs, or a float function."""

    scope: Scope
    kind: str
    a: Operand

    collective = False

    def types(self) -> tuple[Type, ...]:
        dtype = scalar_dtype(self.a) or i32
        if self.kind in ("neg", "abs"):
            return (ScalarType(dtype),)
        return (ScalarType(bool_ if self.kind == "not" else f32),)

    def numpy(self, m: NumpyMachine) -> Any:
        return SCALAR_FUNCTIONS[self.kind][0](m.scalar(self.a))

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, ScalarType)
        text = SCALAR_FUNCTIONS[self.kind][1]
        if self.kind == "abs" and type.dtype.kind == "f":
            text = "fabsf({})"
        c.define(self.result, text.format(c.scalar(self.a, type.dtype)))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in SCALAR_FUNCTIONS:
            formula = {"not": np.logical_not, "rsqrt": lambda a: a**-0.5, "neg": np.negative, "abs": np.abs}.get(
                kind
            ) or getattr(np, kind)
            for dtype in (bool_,) if kind == "not" else (i32, i64, f32) if kind in ("neg", "abs") else (f32,):
                inputs = {
                    "a": "positive"
                    if kind in ("log", "log2", "sqrt", "rsqrt")
                    else "normal"
                    if dtype is f32
                    else "mask"
                    if dtype is bool_
                    else "large"
                }
                yield Sample({"kind": kind, "a": ScalarType(dtype)}, lambda a, f=formula: f(a), inputs)


@dataclass(eq=False)
class ScalarCast(Op):
    """A scalar as another dtype: float to int truncates toward zero."""

    scope: Scope
    a: Operand
    dtype: DType

    collective = False

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.a)
        return (ScalarType(self.dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        a = m.scalar(self.a)
        if isinstance(a, np.ndarray):
            return a.astype(self.dtype.numpy)
        return np.float32(a) if self.dtype.kind == "f" else bool(a) if self.dtype is bool_ else int(a)

    def cuda(self, c: CudaWriter) -> None:
        c.define(self.result, f"({self.dtype.c}){c.scalar(self.a, scalar_dtype(self.a) or self.dtype)}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for source in (i32, i64, u32, f32, bool_):
            for target in (i32, i64, u32, f32):
                inputs = {
                    "a": "mask" if source is bool_ else "counts" if target is u32 or source is u32 else "hundreds"
                }
                yield Sample(
                    {"a": ScalarType(source), "dtype": target},
                    lambda a, f=np.asarray if target is f32 else np.trunc: f(a),
                    inputs,
                    exact=True,
                )


@dataclass(eq=False)
class ScalarSelect(Op):
    """a where the condition holds, else b."""

    scope: Scope
    condition: Operand
    a: Operand
    b: Operand

    collective = False

    def types(self) -> tuple[Type, ...]:
        if scalar_dtype(self.condition) is not bool_:
            raise TypeRuleError("pk.where chooses by a bool", fix="compare first: pk.where(x > 0, a, b)")
        return (ScalarType(promoted(self.a, self.b)),)

    def numpy(self, m: NumpyMachine) -> Any:
        cond, a, b = m.scalar(self.condition), m.scalar(self.a), m.scalar(self.b)
        return np.where(cond, a, b) if isinstance(cond, np.ndarray) else (a if cond else b)

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, ScalarType)
        a, b = as_dtype(c, self.a, type.dtype), as_dtype(c, self.b, type.dtype)
        c.define(self.result, f"{c.scalar(self.condition, bool_)} ? {a} : {b}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for a, b in ((ScalarType(i32), ScalarType(i32)), (ScalarType(f32), 0.5), (3, ScalarType(i64))):
            yield Sample(
                {"condition": ScalarType(bool_), "a": a, "b": b},
                lambda condition, a, b: a if condition else b,
                exact=True,
            )


def literal(x: float | int | bool, dtype: DType) -> str:
    """A number as a C literal of `dtype`."""
    if dtype is bool_:
        return "true" if x else "false"
    if dtype.kind == "f":
        value = float(np.float32(x))
        if math.isnan(value):
            return "__int_as_float(0x7fc00000)"
        if math.isinf(value):
            return "__int_as_float(0x7f800000)" if value > 0 else "__int_as_float(0xff800000)"
        text = repr(value) if abs(value) >= 1e-30 or value == 0 else value.hex()
        return f"{text}f"
    if dtype is i64:
        return f"{int(x)}ll" if x > -(2**63) else "(-9223372036854775807ll - 1)"
    if dtype is u32:
        return f"{int(x) & 0xFFFFFFFF}u"
    return f"{int(x)}" if -(2**31) < x < 2**31 else "(-2147483647 - 1)" if x == -(2**31) else f"{int(x)}u"
