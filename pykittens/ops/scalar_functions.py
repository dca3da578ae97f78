"""Functions of one scalar, the fused multiply-add, conversion, choice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import EXACT, MOVES, NAN, ROUNDED, SIGN, WHOLE, Numerics, approximate
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Operand, Scope, Shares
from ..types import DType, ScalarType, Type, bool_, f32, i32, i64, u32
from .arithmetic import ARITHMETIC, fma
from .conversion import conversion_numerics, convert, convert_c
from .samples import Sample
from .scalars import as_dtype, as_number, promoted, scalar_dtype
from .slopes import slope


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
