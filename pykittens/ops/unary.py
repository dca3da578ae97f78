"""Functions of one register tile or vector, elementwise. 16-bit floats compute in float32 and round once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element
from ..loading import dataclass
from ..numerics import EXACT, NAN, ROUNDED, SIGN, SMALLEST_NORMAL, WHOLE, Numerics, approximate
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import (
    REGISTER_DTYPES,
    DType,
    RegisterTile,
    RegisterVector,
    ScalarType,
    Type,
    bf16,
    bool_,
    f16,
    f32,
    i32,
    i64,
    u32,
    with_dtype,
)
from .arithmetic import ARITHMETIC, maximum
from .broadcast import compute, register_type
from .conversion import canonical, conversion_numerics, convert, convert_c
from .fill import Positions
from .samples import Sample, tiles, vectors
from .slopes import slope

_erf: Any = np.frompyfunc(math.erf, 1, 1)
SUBNORMALS = "subnormals are kept; " + NAN


class UnaryFunction(NamedTuple):
    """An elementwise function: of float64 (or integers, or bools), its C expression in {a}, and what it promises."""

    formula: Any
    floats: str
    numerics: Numerics


def _relu(x: Any) -> Any:
    return maximum(x, np.zeros_like(x))


# What the hardware's approximations promise is in the PTX ISA ("ex2", "lg2", "rsqrt", "rcp", "sin", "cos"), and in ulp
# in the CUDA programming guide, "Mathematical Functions" (exp2f 2, rcp 1, erff 2, rsqrtf 2). What is computed by
# several follows: the product before ex2 costs its relative error times |x|, sums and the last operation half an ulp
# each, and 1 - 2 r has the error of 2 r, in ulp of what is left (most at x = -0.2554). A test derives these bounds.
UNARY: dict[str, UnaryFunction] = {
    "neg": UnaryFunction(np.negative, "-{a}", SIGN),
    "abs": UnaryFunction(np.abs, "fabsf({a})", SIGN),
    "exp": UnaryFunction(
        np.exp,
        "pk_ex2({a} * 1.4426950408889634f)",
        approximate(3, per=1.25, flushes=True, special=f"overflow is inf; {NAN}"),
    ),
    "exp2": UnaryFunction(np.exp2, "pk_ex2({a})", approximate(3, flushes=True, special=f"overflow is inf; {NAN}")),
    "log": UnaryFunction(
        np.log, "pk_lg2({a}) * 0.6931471805599453f", approximate(3, absolute=2.0**-22, special=SUBNORMALS)
    ),
    "log2": UnaryFunction(np.log2, "pk_lg2({a})", approximate(2, absolute=2.0**-22, special=SUBNORMALS)),
    "relu": UnaryFunction(_relu, "pk_max({a}, 0.0f)", EXACT.with_special(f"NaN stays NaN; -0 becomes +0; {NAN}")),
    "sqrt": UnaryFunction(np.sqrt, "sqrtf({a})", ROUNDED),
    "rsqrt": UnaryFunction(lambda x: 1 / np.sqrt(x), "rsqrtf({a})", approximate(2, special=SUBNORMALS)),
    "rcp": UnaryFunction(lambda x: 1 / x, "pk_rcp({a})", approximate(2, flushes=True, special=NAN)),
    "tanh": UnaryFunction(np.tanh, "pk_tanh({a})", approximate(19, special=SUBNORMALS)),
    "sigmoid": UnaryFunction(
        lambda x: 1 / (1 + np.exp(-x)),
        "pk_rcp(1.0f + pk_ex2({a} * -1.4426950408889634f))",
        approximate(6, per=1.25, flushes=True, special=NAN),
    ),
    "erf": UnaryFunction(_erf, "erff({a})", approximate(2, special=SUBNORMALS)),
    "sin": UnaryFunction(
        np.sin, "pk_sin({a})", approximate(absolute=2e-6, flushes=True, special=f"for |x| up to 1e5; {NAN}")
    ),
    "cos": UnaryFunction(
        np.cos, "pk_cos({a})", approximate(absolute=2e-6, flushes=True, special=f"for |x| up to 1e5; {NAN}")
    ),
    "round": UnaryFunction(np.rint, "rintf({a})", WHOLE),
    "floor": UnaryFunction(np.floor, "floorf({a})", WHOLE),
    "ceil": UnaryFunction(np.ceil, "ceilf({a})", WHOLE),
    "trunc": UnaryFunction(np.trunc, "truncf({a})", WHOLE),
    "not": UnaryFunction(np.logical_not, "!{a}", EXACT),
    "invert": UnaryFunction(np.invert, "~{a}", EXACT),
}
WHOLES = ("round", "floor", "ceil", "trunc")
INTEGERS = {"neg": "pk_neg({a})", "abs": "pk_abs({a})", "invert": "~{a}"}  # C where it differs from that of floats


MATH = """
__device__ __forceinline__ float pk_ex2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float pk_lg2(float x) {
  float r;
  asm("lg2.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float pk_rcp(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// x less a multiple of 2 pi = 6.28125 + 1.9353072e-3 + 1.0253376e-11, to 1e-6 for |x| < 1e5
__device__ __forceinline__ float pk_reduced(float x) {
  const float k = rintf(x * 0.15915494309189535f);
  return fmaf(k, -1.0253376e-11f, fmaf(k, -1.9353071795864769e-3f, fmaf(k, -6.28125f, x)));
}
__device__ __forceinline__ float pk_sin(float x) {
  float r;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(pk_reduced(x)));
  return r;
}
__device__ __forceinline__ float pk_cos(float x) {
  float r;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(pk_reduced(x)));
  return r;
}
// 1 - 2 / (1 + exp(2 x)), which cancels near 0: there the first terms of the series
__device__ __forceinline__ float pk_tanh(float x) {
  const float y = x * x;
  const float series = fmaf(y, fmaf(y, -0.05396825396825397f, 0.13333333333333333f), -0.3333333333333333f);
  const float near = fmaf(x * y, series, x);
  return y < 0.0625f ? near : fmaf(-2.0f, pk_rcp(1.0f + pk_ex2(x * 2.885390081777927f)), 1.0f);
}
"""


def apply(kind: str, x: np.ndarray) -> np.ndarray:
    """`kind` of an array: floats (as float32) give the correctly rounded float32, flushed where the promise says so."""
    formula, promise = UNARY[kind].formula, UNARY[kind].numerics
    if x.dtype.kind != "f" or promise.kind == "exact":
        out = np.asarray(formula(x))
        return canonical(out) if out.dtype.kind == "f" else out
    wide = np.asarray(formula((flushed(x) if promise.flushes else x).astype(np.float64)), np.float64)
    single = convert(np.asarray(wide.astype(np.float32)), f32)
    return canonical(flushed(single) if promise.flushes else single)


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers as zeros of the same sign."""
    return np.where(np.abs(x) < np.float32(SMALLEST_NORMAL), np.copysign(np.float32(0), x), x)


@dataclass(eq=False)
class Unary(Op):
    """`kind` of every element."""

    scope: Scope
    kind: str
    a: Value

    pointwise = True

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, self.kind)
        if type.dtype.kind != "f" and self.kind not in ("neg", "not", "abs", "invert"):
            raise TypeRuleError(f"{self.kind} takes floats, not {type}", fix="convert with x.to(pk.f32)")
        if (self.kind == "not") != (type.dtype is bool_) or (self.kind == "invert" and type.dtype.kind == "f"):
            mask = "~x turns a mask round; arithmetic takes numbers: x.to(pk.i32)"
            fix = mask if type.dtype is bool_ else "~ takes masks and integers: convert with x.to(pk.i32)"
            raise TypeRuleError(f"{self.kind} does not take {type}", fix=fix)
        if isinstance(type, RegisterVector) and type.partial and self.kind != "neg":
            raise TypeRuleError(
                f"{self.kind} of a partial vector would not be {self.kind} of its sum", fix="sum it first: x.total()"
            )
        return (type,)

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        dtype = self.a.type.dtype  # type: ignore[union-attr]
        promise = UNARY[self.kind].numerics
        return promise.with_special("computed in float32, then rounded to the dtype") if dtype.packed else promise

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = self.a.type.dtype  # type: ignore[union-attr]
        return convert(apply(self.kind, compute(m[self.a], dtype)), dtype)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(ARITHMETIC)
        c.prelude(MATH)
        function = UNARY[self.kind]
        text = function.floats if self.a.type.dtype.kind == "f" else INTEGERS.get(self.kind, function.floats)  # type: ignore[union-attr]
        c.map(self.result, lambda r: text.format(a=c.element(self.a, r)))

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        x = d.wide(self.a)
        y = self.result if x is self.a else d.unary(self.kind, x)  # a rounded result would do for no slope
        return ((self.a, lambda: slope(d, self.kind, cotangents[0], x, y)),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        dtypes = {"not": (bool_,), "invert": (i32, u32, i64)} | dict.fromkeys(
            ("neg", "abs"), (f32, bf16, f16, i32, i64)
        )
        for kind, function in UNARY.items():
            positive = kind in ("log", "log2", "sqrt", "rsqrt")
            for dtype in dtypes.get(kind, (f32, bf16)):
                chosen = "positive" if positive else "between" if kind in WHOLES else "normal"
                inputs = {"a": chosen} if dtype.kind == "f" else {}
                yield Sample(
                    {"kind": kind, "a": RegisterTile(dtype, 16, 32)}, lambda a, f=function.formula: f(a), inputs
                )
            if kind not in ("not", "invert"):
                fields = {"kind": kind, "a": RegisterTile(f32, 16, 32)}
                yield Sample(fields, lambda a, f=function.formula: f(a), {"a": "special"})
        for type in (*tiles(f32), *vectors(bf16)):
            yield Sample({"kind": "relu", "a": type}, lambda a: np.maximum(a, 0), exact=True)
        yield Sample({"kind": "neg", "a": RegisterVector(f32, 32, "col", partial=True)}, lambda a: -a.sum(1))


NEAR = 2**22  # float32 has the sums of such integers


def size_of(x: Any) -> int | None:
    """What is no less than the size of any of these integers, as far as that is known."""
    if not isinstance(x, Value):
        return abs(x) if isinstance(x, int) else None
    if x.changes or x.most is not None:
        return None if x.changes else x.most
    if getattr(x.producer, "kind", "") in ("add", "sub"):  # of tiles or of scalars
        sizes = [size_of(y) for y in (x.producer.a, x.producer.b)]  # type: ignore[union-attr]
        return None if None in sizes else sum(sizes)  # type: ignore[arg-type]
    return None


def near_parts(x: Value) -> tuple[str, Any, Any] | None:
    """Of a tile of small integers, the sum or difference of a column vector and a row vector: "add" or "sub", and the
    vectors, which are as exact in float32."""
    op: Any = x.producer
    if x.changes or getattr(op, "kind", "") not in ("add", "sub") or (most := size_of(x)) is None or most >= NEAR:
        return None
    vectors = [getattr(y, "type", None) for y in (op.a, op.b)]
    kinds = {y.kind for y in vectors if isinstance(y, RegisterVector)}
    return (op.kind, op.a, op.b) if kinds == {"row", "col"} else None


def small(x: Any) -> bool:
    """Whether it is a vector of float32 that holds integers so small that float32 has their sums."""
    if not isinstance(getattr(x, "type", None), RegisterVector) or x.changes or not isinstance(x.producer, Convert):
        return False
    whole: Any = x.producer.a
    most = size_of(whole) if whole.type.dtype is i32 else None
    return most is not None and most < NEAR


def first_and_steps(x: Value, r: Any) -> Any | None:
    """How much register `r` of a thread holds more than its first, where that is the same number in all threads: of
    indices of a vector, and scalars more."""
    while getattr(x.producer, "kind", "") == "add" and not x.changes:
        op: Any = x.producer
        x = op.a if isinstance(getattr(op.b, "type", ScalarType(i32)), ScalarType) else op.b
        if not isinstance(getattr(x, "type", None), RegisterVector):
            return None
    if x.changes or not isinstance(x.producer, Positions) or not isinstance(x.type, RegisterVector):
        return None
    return vector_element(x.type, 0, 0, r)


@dataclass(eq=False)
class Convert(Op):
    """The same elements as another dtype, see `conversion.py`."""

    scope: Scope
    a: Value
    dtype: DType

    pointwise = True

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(self.a.type.dtype, self.dtype)  # type: ignore[union-attr]

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "to")
        if not isinstance(self.dtype, DType):
            raise TypeRuleError(f"x.to({self.dtype!r}), which is no dtype", fix="pass one of pk's: x.to(pk.f32)")
        if self.dtype not in REGISTER_DTYPES:
            raise TypeRuleError(
                f"registers cannot hold {self.dtype}",
                fix="store the float32 tile to a shared or global tile of that dtype, which converts",
            )
        return (with_dtype(type, self.dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        return convert(m[self.a], self.dtype)

    def cuda(self, c: CudaWriter) -> None:
        source = self.a.type.dtype  # type: ignore[union-attr]
        if source is i32 and self.dtype is f32 and (most := size_of(self.a)) is not None and most < NEAR:
            # The bits of 1.5 * 2^23 + x, less 1.5 * 2^23: exact, and a conversion runs at a quarter of additions' rate.
            def near(r: Any) -> str:
                return f"__int_as_float(0x4b400000 + ({c.element(self.a, r)})) - 12582912.0f"

            if first_and_steps(self.a, Sym("r")) is None:
                c.map(self.result, near)
                return
            first = c.fresh("first")
            c.line(f"const float {first} = {near(Sym('0'))};")
            c.map(self.result, lambda r: f"{first} + (float)({first_and_steps(self.a, r)})")
            return
        c.map(self.result, lambda r: convert_c(c.element(self.a, r), source, self.dtype))

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return ((self.a, lambda: cotangents[0]),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for source in REGISTER_DTYPES:
            for target in REGISTER_DTYPES:
                inputs = {"f": "hundreds" if target is not u32 else "positive", "i": "bits", "u": "bits", "b": "mask"}[
                    source.kind
                ]
                fields = {"a": RegisterTile(source, 16, 32), "dtype": target}
                yield Sample(
                    fields, lambda a, dtype: a.astype(np.float32) if dtype.packed else a, {"a": inputs}, exact=True
                )
        for type in (*tiles(f32), *vectors(f32)):
            yield Sample({"a": type, "dtype": bf16}, lambda a: a, {"a": "wide"}, exact=True)
        for target in (bf16, f16):
            for inputs in ("wide", "special"):
                yield Sample({"a": RegisterTile(f32, 16, 32), "dtype": target}, lambda a: a, {"a": inputs}, exact=True)
