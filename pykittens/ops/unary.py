"""Functions of one register tile or vector, elementwise. 16-bit floats compute in float32 and round once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import (
    REGISTER_DTYPES,
    DType,
    RegisterTile,
    RegisterVector,
    Type,
    bf16,
    bool_,
    f16,
    f32,
    i32,
    u32,
    with_dtype,
)
from .broadcast import compute, register_type
from .samples import Sample, tiles, vectors

# kind: (NumPy function, C expression in {a}); floats unless said
UNARY: dict[str, tuple[Any, str]] = {
    "neg": (np.negative, "-{a}"),
    "abs": (np.abs, "fabsf({a})"),
    "exp": (np.exp, "pk_ex2({a} * 1.4426950408889634f)"),
    "exp2": (np.exp2, "pk_ex2({a})"),
    "log": (np.log, "pk_lg2({a}) * 0.6931471805599453f"),
    "log2": (np.log2, "pk_lg2({a})"),
    "relu": (lambda x: np.fmax(x, np.float32(0)), "fmaxf({a}, 0.0f)"),
    "sqrt": (np.sqrt, "sqrtf({a})"),
    "rsqrt": (lambda x: np.float32(1) / np.sqrt(x), "rsqrtf({a})"),
    "rcp": (lambda x: np.float32(1) / x, "pk_rcp({a})"),
    "tanh": (np.tanh, "pk_tanh_exact({a})"),
    "sigmoid": (
        lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)),
        "pk_rcp(1.0f + pk_ex2({a} * -1.4426950408889634f))",
    ),
    "erf": (lambda x: _erf(x), "erff({a})"),
    "sin": (np.sin, "pk_sin_reduced({a})"),
    "cos": (np.cos, "pk_cos_reduced({a})"),
    "not": (np.logical_not, "!{a}"),
}


FORMULAS: dict[str, Any] = {  # of float64, for the conformance tests
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "relu": lambda a: np.fmax(a, 0),
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "rcp": lambda a: 1 / a,
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "erf": np.vectorize(math.erf),
    "sin": np.sin,
    "cos": np.cos,
    "not": np.logical_not,
}


MATH = """
__device__ __forceinline__ float pk_ex2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float pk_lg2(float x) { float r; asm("lg2.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float pk_rcp(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float pk_fdiv(float a, float b) { float r; asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
__device__ __forceinline__ float pk_reduced(float x) {  // by a multiple of 2 pi = 6.28125 + 1.9353072e-3 + 1.0253376e-11, to 1e-6 for |x| < 1e5
  const float k = rintf(x * 0.15915494309189535f);
  return fmaf(k, -1.0253376e-11f, fmaf(k, -1.9353071795864769e-3f, fmaf(k, -6.28125f, x)));
}
__device__ __forceinline__ float pk_sin_reduced(float x) { float r; asm("sin.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(pk_reduced(x))); return r; }
__device__ __forceinline__ float pk_cos_reduced(float x) { float r; asm("cos.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(pk_reduced(x))); return r; }
__device__ __forceinline__ float pk_tanh_exact(float x) { return 1.0f - 2.0f * pk_rcp(1.0f + pk_ex2(x * 2.885390081777927f)); }
"""


def _erf(x: np.ndarray) -> np.ndarray:
    """Abramowitz and Stegun 7.1.26 in float64: absolute error under 1.5e-7."""
    y = np.abs(np.asarray(x, np.float64))
    t = 1 / (1 + 0.3275911 * y)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - poly * np.exp(-y * y))


@dataclass(eq=False)
class Unary(Op):
    """`kind` of every element."""

    scope: Scope
    kind: str
    a: Value

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, self.kind)
        if type.dtype.kind != "f" and self.kind not in ("neg", "not", "abs"):
            raise TypeRuleError(f"{self.kind} takes floats, not {type}", fix="convert with x.to(pk.f32)")
        if (self.kind == "not") != (type.dtype is bool_):
            raise TypeRuleError(f"{self.kind} does not take {type}", fix="~ takes bool masks; arithmetic takes numbers")
        if isinstance(type, RegisterVector) and type.partial and self.kind != "neg":
            raise TypeRuleError(
                f"{self.kind} of a partial vector would not be {self.kind} of its sum", fix="sum it first: x.total()"
            )
        return (type,)

    def numpy(self, m: NumpyMachine) -> Any:
        type = self.a.type
        with np.errstate(all="ignore"):
            return UNARY[self.kind][0](compute(m[self.a], type.dtype)).astype(type.dtype.numpy)  # type: ignore[union-attr]

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MATH)
        text = UNARY[self.kind][1]
        if self.kind == "abs" and self.a.type.dtype.kind != "f":  # type: ignore[union-attr]
            text = "abs({a})"
        c.map(self.result, lambda r: text.format(a=c.element(self.a, r)))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in UNARY:
            formula, inputs = (
                FORMULAS[kind],
                {"a": "positive" if kind in ("log", "log2", "sqrt", "rsqrt") else "normal"},
            )
            dtypes = (bool_,) if kind == "not" else (f32, bf16, f16, i32) if kind in ("neg", "abs") else (f32, bf16)
            for dtype in dtypes:
                yield Sample(
                    {"kind": kind, "a": RegisterTile(dtype, 16, 32)},
                    lambda a, f=formula: f(a),
                    inputs if dtype.kind == "f" else {},
                )
            if kind != "not":
                yield Sample(
                    {"kind": kind, "a": RegisterTile(f32, 16, 32)}, lambda a, f=formula: f(a), {"a": "special"}
                )
        for type in (*tiles(f32), *vectors(bf16)):
            yield Sample({"kind": "relu", "a": type}, lambda a: np.maximum(a, 0), exact=True)
        yield Sample({"kind": "neg", "a": RegisterVector(f32, 32, "col", partial=True)}, lambda a: -a.sum(1))


@dataclass(eq=False)
class Convert(Op):
    """The same elements as another dtype, rounded to nearest even."""

    scope: Scope
    a: Value
    dtype: DType

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "to")
        if self.dtype not in REGISTER_DTYPES:
            raise TypeRuleError(
                f"registers cannot hold {self.dtype}",
                fix="store the float32 tile to a shared or global tile of that dtype",
            )
        return (with_dtype(type, self.dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        array = m[self.a]
        if self.dtype in (bf16, f16) and array.dtype != self.dtype.numpy:
            array = array.astype(np.float32)
        with np.errstate(all="ignore"):
            return array.astype(self.dtype.numpy)

    def cuda(self, c: CudaWriter) -> None:
        cast = {"f": "(float)", "b": "(bool)"}.get(self.dtype.kind, f"({self.dtype.c})")
        c.map(self.result, lambda r: f"{cast}{c.element(self.a, r)}")

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
