"""Scalars: one value for all threads of a warp. Arithmetic, comparison, conversion, choice."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import Diagnosis, TypeRuleError
from ..loading import dataclass
from ..numerics import EXACT, MOVES, NAN, ROUNDED, SIGN, WHOLE, Numerics, approximate
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Operand, Scope, Shares, Value
from ..types import DType, ScalarType, Type, bool_, f32, i32, i64, u32
from .arithmetic import ARITHMETIC, COMPARISONS, arithmetic_numerics, calculate, calculate_c, fma
from .conversion import conversion_numerics, convert, convert_c, limits
from .samples import Sample
from .slopes import binary_shares, slope

THREAD = Scope("thread", 1)

SYMBOLS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%"},
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


def scalar_dtype(x: Operand) -> DType | None:
    """The dtype of a scalar operand; None for a Python int, which takes that of what it stands beside."""
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
    if isinstance(producer, ScalarBinary) and depth:
        return f"({producer.described(depth - 1)})"
    if producer is not None and producer.expression:
        return producer.expression
    return x.name or str(x.type) if isinstance(x, Value) else str(x)


def promoted(*operands: Operand) -> DType:
    """The dtype in which scalars meet: float32 where one is a float, int64 where one is, and for int32 with uint32.

    Bools count as int32 unless all are bools. A Python int takes the dtype of the others, or int64 where it does not
    fit.
    """
    dtypes = [scalar_dtype(x) for x in operands]
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
    """Whether a Python int is a number of the dtype; everything else adapts to it."""
    if dtype.kind not in "iu" or isinstance(x, Value) or scalar_dtype(x) is not None:
        return True
    low, high = limits(dtype)
    return low <= int(x) <= high


def check_fits(x: Operand, dtype: DType, what: str) -> None:
    """Refuses a Python int that the dtype cannot hold."""
    if not fits(x, dtype):
        low, high = limits(dtype)
        raise TypeRuleError(f"{what}: {x} is no {dtype}", fix=f"use a number from {low} to {high}")


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


def small(x: Any) -> bool:
    """Whether it is a Python int that i32, u32 and i64 hold."""
    return type(x) is int and 0 <= x < 1 << 31


def power_of_two(x: Operand) -> int | None:
    """log2 of a positive power of two known now, else None."""
    return x.bit_length() - 1 if isinstance(x, int) and not isinstance(x, bool) and x > 0 and x & (x - 1) == 0 else None


@dataclass(eq=False)
class ScalarBinary(Op):
    """a `kind` b on scalars, in the dtype that `promoted` says; integer division and remainder floor, as in Python.

    kind: add, sub, mul, div, floordiv, mod, min, max, and, or, xor, shl, shr, or a comparison. div is a float's.
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


def _rounded(f: Any) -> Any:
    """A function of float64 as one of float32, rounded once."""
    return lambda x: convert(np.asarray(f(np.asarray(x, np.float64))), f32)


_FLOAT = "subnormals are kept; " + NAN
SCALAR_FUNCTIONS: dict[
    str, tuple[Any, str, Numerics]
] = {  # NumPy, C, promise (CUDA C++ Programming Guide, "Mathematical Functions")
    "neg": (np.negative, "pk_neg({})", SIGN),
    "not": (np.logical_not, "!{}", EXACT),
    "invert": (np.invert, "~{}", EXACT),
    "abs": (np.abs, "pk_abs({})", SIGN),
    "exp2": (_rounded(np.exp2), "exp2f({})", approximate(2, special=_FLOAT)),
    "log2": (_rounded(np.log2), "log2f({})", approximate(1, special=_FLOAT)),
    "exp": (_rounded(np.exp), "expf({})", approximate(2, special=_FLOAT)),
    "log": (_rounded(np.log), "logf({})", approximate(1, special=_FLOAT)),
    "sqrt": (_rounded(np.sqrt), "sqrtf({})", ROUNDED),
    "rsqrt": (_rounded(lambda x: 1 / np.sqrt(x)), "rsqrtf({})", approximate(2, special=_FLOAT)),
    "round": (np.rint, "rintf({})", WHOLE),
    "floor": (np.floor, "floorf({})", WHOLE),
    "ceil": (np.ceil, "ceilf({})", WHOLE),
    "trunc": (np.trunc, "truncf({})", WHOLE),
}


@dataclass(eq=False)
class ScalarUnary(Op):
    """`kind` of a scalar: neg, abs, not (of a bool), invert (of an integer), or a float function."""

    scope: Scope
    kind: str
    a: Operand

    collective = False
    pointwise = True

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return SCALAR_FUNCTIONS[self.kind][2]

    @property
    def common(self) -> DType:
        """The dtype of the operand as the function takes it."""
        if self.kind == "not":
            return bool_
        dtype = scalar_dtype(self.a) or i32
        return dtype if self.kind in ("neg", "abs", "invert") else f32

    def types(self) -> tuple[Type, ...]:
        if self.kind == "invert" and self.common.kind not in "iu":
            raise TypeRuleError(f"~ takes integers and bools, not {self.common}", fix="convert with pk.cast(x, pk.i32)")
        return (ScalarType(self.common),)

    def numpy(self, m: NumpyMachine) -> Any:
        x = as_number(m.scalar(self.a), self.common)
        with np.errstate(all="ignore"):
            return np.asarray(SCALAR_FUNCTIONS[self.kind][0](x)).astype(self.common.numpy, copy=False)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(ARITHMETIC)
        text = {"neg": "-{}", "abs": "fabsf({})"}.get(self.kind) if self.common.kind == "f" else None
        c.define(self.result, (text or SCALAR_FUNCTIONS[self.kind][1]).format(as_dtype(c, self.a, self.common)))

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return ((self.a, lambda: slope(d, self.kind, cotangents[0], self.a, self.result)),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in SCALAR_FUNCTIONS:
            formula = {
                "not": np.logical_not,
                "rsqrt": lambda a: a**-0.5,
                "neg": np.negative,
                "abs": np.abs,
            }.get(kind) or getattr(np, kind)
            of = {"not": (bool_,), "neg": (i32, i64, f32), "abs": (i32, i64, f32), "invert": (i32, i64)}
            for dtype in of.get(kind, (f32,)):
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
class ScalarFma(Op):
    """a * b + c of scalars as float32, rounded once (`pk.fma`)."""

    scope: Scope
    a: Operand
    b: Operand
    c: Operand

    collective = False
    pointwise = True
    numerics = ROUNDED

    def types(self) -> tuple[Type, ...]:
        for x in (self.a, self.b, self.c):
            scalar_dtype(x)
        return (ScalarType(f32),)

    def numpy(self, m: NumpyMachine) -> Any:
        a, b, c = (as_number(m.scalar(x), f32) for x in (self.a, self.b, self.c))
        return fma(a, b, c, f32)

    def cuda(self, c: CudaWriter) -> None:
        c.define(self.result, "fmaf({}, {}, {})".format(*(as_dtype(c, x, f32) for x in (self.a, self.b, self.c))))

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        (c,) = cotangents
        return (self.a, lambda: c * self.b), (self.b, lambda: c * self.a), (self.c, lambda: c)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for c in (ScalarType(f32), 0.5, ScalarType(i32)):
            yield Sample({"a": ScalarType(f32), "b": ScalarType(f32), "c": c}, lambda a, b, c: a * b + c, exact=True)


@dataclass(eq=False)
class ScalarCast(Op):
    """A scalar as another dtype (`pk.cast`), see `conversion.py`."""

    scope: Scope
    a: Operand
    dtype: DType

    collective = False
    pointwise = True

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(self._source(), self.dtype)

    def _source(self) -> DType:
        return scalar_dtype(self.a) or i64

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.a)
        return (ScalarType(self.dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        return as_number(m.scalar(self.a), self.dtype)

    def cuda(self, c: CudaWriter) -> None:
        source = self._source()
        c.define(self.result, convert_c(c.scalar(self.a, source), source, self.dtype))

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return ((self.a, lambda: cotangents[0]),)

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
    """a where the condition holds, else b, in the dtype that `promoted` says."""

    scope: Scope
    condition: Operand
    a: Operand
    b: Operand

    collective = False
    pointwise = True
    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        if scalar_dtype(self.condition) is not bool_:
            raise TypeRuleError("pk.where chooses by a bool", fix="compare first: pk.where(x > 0, a, b)")
        return (ScalarType(promoted(self.a, self.b)),)

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = promoted(self.a, self.b)
        a, b = (as_number(m.scalar(x), dtype) for x in (self.a, self.b))
        return np.where(m.scalar(self.condition), a, b)

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, ScalarType)
        a, b = as_dtype(c, self.a, type.dtype), as_dtype(c, self.b, type.dtype)
        c.define(self.result, f"{c.scalar(self.condition, bool_)} ? {a} : {b}")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        (c,) = cotangents
        return (self.a, lambda: d.where(self.condition, c, 0.0)), (self.b, lambda: d.where(self.condition, 0.0, c))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for a, b in (
            (ScalarType(i32), ScalarType(i32)),
            (ScalarType(f32), 0.5),
            (3, ScalarType(i64)),
            (ScalarType(i32), 0.5),
        ):
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
