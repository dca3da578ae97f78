"""Elementwise operations on register tiles and vectors: fill, unary, binary, fused, select, convert, indices.

A column vector broadcasts along rows and a row vector along columns; a column vector with a row
vector makes a tile. 16-bit floats compute in float32 and round once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, vector_element, vector_register
from ..program import Op, Operand, Scope, Value, is_scalar
from ..types import REGISTER_DTYPES, DType, RegisterTile, RegisterVector, ScalarType, Type, bf16, bool_, f16, f32, i32, u32, with_dtype
from .samples import Sample, tiles, vectors
from .scalars import scalar_dtype

Register = RegisterTile | RegisterVector

# kind: (NumPy function, C expression in {a}); floats unless said
UNARY: dict[str, tuple[Any, str]] = {
    "neg": (np.negative, "-{a}"),
    "abs": (np.abs, "fabsf({a})"),
    "exp": (np.exp, "ex2({a} * 1.4426950408889634f)"),
    "exp2": (np.exp2, "ex2({a})"),
    "log": (np.log, "lg2({a}) * 0.6931471805599453f"),
    "log2": (np.log2, "lg2({a})"),
    "relu": (lambda x: np.fmax(x, np.float32(0)), "fmaxf({a}, 0.0f)"),
    "sqrt": (np.sqrt, "sqrtf({a})"),
    "rsqrt": (lambda x: np.float32(1) / np.sqrt(x), "rsqrtf({a})"),
    "rcp": (lambda x: np.float32(1) / x, "rcp({a})"),
    "tanh": (np.tanh, "tanh_exact({a})"),
    "sigmoid": (lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)), "rcp(1.0f + ex2({a} * -1.4426950408889634f))"),
    "erf": (lambda x: _erf(x), "erff({a})"),
    "sin": (np.sin, "sin_reduced({a})"),
    "cos": (np.cos, "cos_reduced({a})"),
    "not": (np.logical_not, "!{a}"),
}

# kind: (NumPy function, C expression for floats, for integers and bools or "")
FORMULAS: dict[str, Any] = {  # of float64, for the conformance tests
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "relu": lambda a: np.fmax(a, 0),
    "sqrt": np.sqrt, "rsqrt": lambda a: 1 / np.sqrt(a), "rcp": lambda a: 1 / a, "tanh": np.tanh, "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "erf": np.vectorize(math.erf), "sin": np.sin, "cos": np.cos, "not": np.logical_not,
}  # fmt: skip

BINARY: dict[str, tuple[Any, str, str]] = {
    "add": (np.add, "{a} + {b}", "{a} + {b}"),
    "sub": (np.subtract, "{a} - {b}", "{a} - {b}"),
    "mul": (np.multiply, "{a} * {b}", "{a} * {b}"),
    "div": (np.divide, "fdiv({a}, {b})", ""),
    "max": (np.maximum, "fmaxf({a}, {b})", "max({a}, {b})"),
    "min": (np.minimum, "fminf({a}, {b})", "min({a}, {b})"),
    "and": (np.bitwise_and, "", "{a} & {b}"),
    "or": (np.bitwise_or, "", "{a} | {b}"),
    "xor": (np.bitwise_xor, "", "{a} ^ {b}"),
    "shl": (np.left_shift, "", "{a} << {b}"),
    "shr": (np.right_shift, "", "{a} >> {b}"),
    "lt": (np.less, "{a} < {b}", "{a} < {b}"),
    "le": (np.less_equal, "{a} <= {b}", "{a} <= {b}"),
    "gt": (np.greater, "{a} > {b}", "{a} > {b}"),
    "ge": (np.greater_equal, "{a} >= {b}", "{a} >= {b}"),
    "eq": (np.equal, "{a} == {b}", "{a} == {b}"),
    "ne": (np.not_equal, "{a} != {b}", "{a} != {b}"),
}
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")

MATH = """
__device__ __forceinline__ float ex2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float lg2(float x) { float r; asm("lg2.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float rcp(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float fdiv(float a, float b) { float r; asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
__device__ __forceinline__ float reduced(float x) {  // by a multiple of 2 pi = 6.28125 + 1.9353072e-3 + 1.0253376e-11, to 1e-6 for |x| < 1e5
  const float k = rintf(x * 0.15915494309189535f);
  return fmaf(k, -1.0253376e-11f, fmaf(k, -1.9353071795864769e-3f, fmaf(k, -6.28125f, x)));
}
__device__ __forceinline__ float sin_reduced(float x) { float r; asm("sin.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(reduced(x))); return r; }
__device__ __forceinline__ float cos_reduced(float x) { float r; asm("cos.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(reduced(x))); return r; }
__device__ __forceinline__ float tanh_exact(float x) { return 1.0f - 2.0f * rcp(1.0f + ex2(x * 2.885390081777927f)); }
"""


# Two 16-bit floats at a time; a product is a * b + -0.
PACKED_FMA = """
__device__ __forceinline__ u32 fma_bf16(u32 a, u32 b, u32 c) { u32 r; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
__device__ __forceinline__ u32 fma_f16(u32 a, u32 b, u32 c) { u32 r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
"""


def _erf(x: np.ndarray) -> np.ndarray:
    """Abramowitz and Stegun 7.1.26 in float64: absolute error under 1.5e-7."""
    y = np.abs(np.asarray(x, np.float64))
    t = 1 / (1 + 0.3275911 * y)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - poly * np.exp(-y * y))


def register_type(x: Operand, what: str) -> Register:
    """The type of a register operand, or the user's error."""
    if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector)):
        return x.type
    kind = x.type if isinstance(x, Value) else repr(x)
    raise TypeRuleError(f"{what} takes a register tile or vector, not {kind}", fix="load it into registers first, e.g. warp.load(x)")


def common_type(what: str, *operands: Operand) -> Register:
    """The shape that operands broadcast to, with the dtype of the first register operand."""
    types = [x.type for x in operands if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector))]
    if not types:
        raise TypeRuleError(f"{what} needs a register tile or vector among its operands", fix="use plain scalars, or pk.full for a tile")
    for x in operands:
        if not is_scalar(x):
            register_type(x, what)
    if len({t.warps for t in types}) > 1:
        listed = " and ".join(str(t) for t in types)
        raise TypeRuleError(f"{what} mixes scopes: {listed}", fix="make both on the same scope (warp, warpgroup, block or group)")
    tiles = [t for t in types if isinstance(t, RegisterTile)]
    vectors = [t for t in types if isinstance(t, RegisterVector)]
    if tiles:
        shape: Register = tiles[0]
    elif {v.kind for v in vectors} == {"col", "row"}:
        col, row = (next(v for v in vectors if v.kind == kind) for kind in ("col", "row"))
        shape = RegisterTile(col.dtype, col.length, row.length, col.layout, col.warps)
    else:
        shape = next((v for v in vectors if v.partial), vectors[0])
    for t in types:
        if not _fits(t, shape):
            raise TypeRuleError(f"{what}: {t} does not fit {shape}", fix=_fitting_advice(t, shape))
    return shape


def _fits(t: Register, shape: Register) -> bool:
    if isinstance(t, RegisterTile):
        return isinstance(shape, RegisterTile) and (t.rows, t.cols, t.layout) == (shape.rows, shape.cols, shape.layout)
    if isinstance(shape, RegisterTile):
        return not t.partial and t.kind != "naive" and t.layout == shape.layout and t.length == shape.vector(t.kind).length
    same = (t.length, t.kind, t.layout, t.width) == (shape.length, shape.kind, shape.layout, shape.width)
    return same and (not t.partial or shape.partial)


def _fitting_advice(t: Register, shape: Register) -> str:
    if isinstance(t, RegisterVector) and t.partial:
        return "sum the partial vector over its threads first: x.total()"
    if isinstance(t, (RegisterTile, RegisterVector)) and t.layout != shape.layout:
        return "swap the layout of one of them: x.swap_layout()"
    return "shapes must agree; a column vector has one value per row, a row vector one per column"


def same_dtype(what: str, *operands: Operand) -> DType:
    """The one dtype of all register operands; scalars adapt to it."""
    dtypes = {x.type.dtype for x in operands if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector))}
    if len(dtypes) != 1:
        listed = " and ".join(sorted(d.name for d in dtypes))
        raise TypeRuleError(f"{what} mixes {listed}", fix="convert one with x.to(pk.f32)")
    (dtype,) = dtypes
    for x in operands:
        if is_scalar(x):
            scalar = scalar_dtype(x)
            if scalar is not None and scalar.kind == "f" and dtype.kind != "f":
                raise TypeRuleError(f"{what} mixes a {dtype} tile with the float {x}", fix="convert the tile with x.to(pk.f32)")
    return dtype


def broadcast(m: Any, x: Operand, shape: Register) -> Any:
    """Operand `x` as an array that broadcasts against one of type `shape` (first axis: units)."""
    if is_scalar(x):
        value = m.unit_scalar(x)
        return value.reshape(value.shape + (1,) * len(shape.shape)) if isinstance(value, np.ndarray) else value
    array = m[x]
    if isinstance(shape, RegisterTile) and isinstance(x.type, RegisterVector):
        return array[:, :, None] if x.type.kind == "col" else array[:, None, :]
    if isinstance(shape, RegisterVector) and shape.partial and not x.type.partial:
        return array[:, :, None]
    return array


def compute(array: Any, dtype: DType) -> Any:
    """16-bit floats as float32; everything else as it is."""
    return array.astype(np.float32) if isinstance(array, np.ndarray) and dtype.packed else array


def read(c: Any, x: Operand, shape: Register, register: Sym, dtype: DType) -> str:
    """C for the element of operand `x` that goes with `register` of a value of type `shape`."""
    if is_scalar(x):
        return str(c.scalar(x, dtype))
    if isinstance(shape, RegisterTile) and isinstance(x.type, RegisterVector):
        register = vector_register(shape, x.type, register)
    return str(c.element(x, register))


@dataclass(eq=False)
class Fill(Op):
    """A new tile or vector, every element `value`."""

    scope: Scope
    type: Register
    value: Operand

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.value)
        return (self.type,)

    def numpy(self, m: Any) -> Any:
        full = np.empty((m.units, *self.type.shape), self.type.dtype.numpy)
        full[:] = broadcast(m, self.value, self.type)
        return full

    def cuda(self, c: Any) -> None:
        c.map(self.result, lambda r: c.scalar(self.value, self.type.dtype))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in REGISTER_DTYPES:
            for type in (*tiles(dtype), *vectors(dtype)) if dtype in (f32, bf16) else tiles(dtype)[:1]:
                yield Sample({"type": type, "value": True if dtype is bool_ else 3}, lambda type, value: np.full(type.shape, value))
        for value in (-np.inf, np.nan, 1e-40, -0.1, 3e38):
            yield Sample({"type": RegisterTile(f32, 16, 16), "value": value}, lambda value: np.full((16, 16), value), exact=True)
        yield Sample({"type": RegisterTile(bf16, 16, 16), "value": ScalarType(f32)}, lambda value: np.full((16, 16), value), exact=True)
        yield Sample({"type": RegisterVector(i32, 32, "col"), "value": ScalarType(i32)}, lambda value: np.full(32, value))


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
            raise TypeRuleError(f"{self.kind} of a partial vector would not be {self.kind} of its sum", fix="sum it first: x.total()")
        return (type,)

    def numpy(self, m: Any) -> Any:
        type = self.a.type
        with np.errstate(all="ignore"):
            return UNARY[self.kind][0](compute(m[self.a], type.dtype)).astype(type.dtype.numpy)  # type: ignore[union-attr]

    def cuda(self, c: Any) -> None:
        c.prelude(MATH)
        text = UNARY[self.kind][1]
        if self.kind == "abs" and self.a.type.dtype.kind != "f":  # type: ignore[union-attr]
            text = "abs({a})"
        c.map(self.result, lambda r: text.format(a=c.element(self.a, r)))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in UNARY:
            formula, inputs = FORMULAS[kind], {"a": "positive" if kind in ("log", "log2", "sqrt", "rsqrt") else "normal"}
            dtypes = (bool_,) if kind == "not" else (f32, bf16, f16, i32) if kind in ("neg", "abs") else (f32, bf16)
            for dtype in dtypes:
                yield Sample({"kind": kind, "a": RegisterTile(dtype, 16, 32)}, lambda a, f=formula: f(a), inputs if dtype.kind == "f" else {})
            if kind != "not":
                yield Sample({"kind": kind, "a": RegisterTile(f32, 16, 32)}, lambda a, f=formula: f(a), {"a": "special"})
        for type in (*tiles(f32), *vectors(bf16)):
            yield Sample({"kind": "relu", "a": type}, lambda a: np.maximum(a, 0), exact=True)
        yield Sample({"kind": "neg", "a": RegisterVector(f32, 32, "col", partial=True)}, lambda a: -a.sum(1))


@dataclass(eq=False)
class Binary(Op):
    """a `kind` b, elementwise, with vectors broadcast."""

    scope: Scope
    kind: str
    a: Operand
    b: Operand

    def types(self) -> tuple[Type, ...]:
        shape = common_type(self.kind, self.a, self.b)
        dtype = same_dtype(self.kind, self.a, self.b)
        if self.kind == "div" and dtype.kind != "f":
            raise TypeRuleError(f"/ takes floats, not {dtype}", fix="convert with x.to(pk.f32)")
        if self.kind in ("and", "or", "xor", "shl", "shr") and dtype.kind == "f":
            raise TypeRuleError(f"{self.kind} takes integers and masks, not {dtype}", fix="compare first, or convert")
        partial = [isinstance(x, Value) and getattr(x.type, "partial", False) for x in (self.a, self.b)]
        linear = {"add": all(partial), "sub": all(partial), "mul": sum(partial) < 2, "div": not partial[1]}
        if any(partial) and not linear.get(self.kind, False):
            raise TypeRuleError(f"{self.kind} of a partial vector would change its sum", fix="sum it first: x.total()")
        return (with_dtype(shape, bool_ if self.kind in COMPARISONS else dtype),)

    def _dtype(self) -> DType:
        return same_dtype(self.kind, self.a, self.b)

    def numpy(self, m: Any) -> Any:
        shape, dtype = self.result.type, self._dtype()
        wide = np.dtype(np.float32) if dtype.kind == "f" else dtype.numpy
        a, b = (broadcast(m, x, shape) for x in (self.a, self.b))
        a, b = (x.astype(wide) if isinstance(x, np.ndarray) and x.dtype != wide else x for x in (a, b))
        a, b = (wide.type(x) if not isinstance(x, np.ndarray) else x for x in (a, b))
        with np.errstate(all="ignore"):
            out = BINARY[self.kind][0](a, b)
        if self.kind in ("max", "min") and dtype.kind == "f":
            out = np.where(np.isnan(a), b, np.where(np.isnan(b), a, out))  # PTX max/min: a NaN operand loses
        return np.broadcast_to(out, (m.units, *shape.shape)).astype(shape.dtype.numpy)

    def cuda(self, c: Any) -> None:
        c.prelude(MATH)
        shape, dtype = self.result.type, self._dtype()
        if self.kind == "mul" and dtype.packed and all(isinstance(x, Value) and x.type == shape for x in (self.a, self.b)):
            self._packed_product(c, shape, dtype)
            return
        text = BINARY[self.kind][1 if dtype.kind == "f" else 2]
        c.map(self.result, lambda r: text.format(a=read(c, self.a, shape, r, dtype), b=read(c, self.b, shape, r, dtype)))

    def _packed_product(self, c: Any, shape: Register, dtype: DType) -> None:
        """Two products with one instruction: a product of 16-bit floats is exact in float32, so one rounding is the same as two."""
        c.prelude(PACKED_FMA)
        name = c.declare(self.result)
        c.line(f"UNROLL for (int i = 0; i < {-(-shape.registers // 2)}; i++) {name}[i] = fma_{dtype}({c[self.a]}[i], {c[self.b]}[i], 0x80008000u);")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind, (formula, of_floats, of_integers) in BINARY.items():
            ours = {"max": np.fmax, "min": np.fmin}.get(kind, formula)  # a NaN operand loses
            dtypes = ((f32, bf16, f16) if of_floats else ()) + ((i32, u32) if of_integers else ())
            for dtype in (*dtypes, *((bool_,) if kind in ("and", "or", "xor", "eq", "ne") else ())):
                tile = RegisterTile(dtype, 16, 32)
                inputs = {"a": "bits", "b": "counts" if kind in ("shl", "shr") else "bits"} if dtype.kind in "iu" else {}
                if kind in COMPARISONS and dtype.kind != "b":
                    inputs = {"a": "integers" if dtype is not u32 else "counts", "b": "counts"}
                yield Sample({"kind": kind, "a": tile, "b": tile}, lambda a, b, f=ours: f(a, b), inputs)
            if of_floats:
                tile = RegisterTile(f32, 16, 32)
                yield Sample({"kind": kind, "a": tile, "b": tile}, lambda a, b, f=ours: f(a, b), {"a": "special", "b": "special"})
        for type in (*tiles(f32), *tiles(bf16)):
            col, row = ({"kind": "mul", "a": type, "b": type.vector("col")}, {"kind": "sub", "a": type.vector("row"), "b": type})
            yield Sample({"kind": "mul", "a": type, "b": type}, lambda a, b: a * b)
            yield Sample(col, lambda a, b: a * b[:, None])
            yield Sample(row, lambda a, b: a[None, :] - b)
            yield Sample({"kind": "add", "a": type.vector("col"), "b": type.vector("row")}, lambda a, b: a[:, None] + b[None, :])
        for vector in vectors(f32):
            yield Sample({"kind": "sub", "a": vector, "b": vector}, lambda a, b: a - b)
        for scalar in (2.5, 3, ScalarType(f32), ScalarType(i32)):
            yield Sample({"kind": "sub", "a": RegisterTile(f32, 16, 32), "b": scalar}, lambda a, b: a - b)
            yield Sample({"kind": "sub", "a": scalar, "b": RegisterTile(bf16, 16, 32)}, lambda a, b: a - b)
        partial = RegisterVector(f32, 32, "col", partial=True)
        yield Sample({"kind": "add", "a": partial, "b": partial}, lambda a, b: (a + b).sum(1))
        yield Sample({"kind": "mul", "a": partial, "b": RegisterVector(f32, 32, "col")}, lambda a, b: a.sum(1) * b)


@dataclass(eq=False)
class Fma(Op):
    """a * b + c, elementwise, rounded once."""

    scope: Scope
    a: Operand
    b: Operand
    c: Operand

    def types(self) -> tuple[Type, ...]:
        dtype = same_dtype("fma", self.a, self.b, self.c)
        if dtype.kind != "f":
            raise TypeRuleError(f"fma takes floats, not {dtype}", fix="write a * b + c")
        return (with_dtype(common_type("fma", self.a, self.b, self.c), dtype),)

    def numpy(self, m: Any) -> Any:
        shape = self.result.type
        a, b, c = (np.asarray(broadcast(m, x, shape), np.float64) for x in (self.a, self.b, self.c))
        with np.errstate(all="ignore"):
            out = a * b + c
            return np.broadcast_to(out, (m.units, *shape.shape)).astype(np.float32).astype(shape.dtype.numpy)

    def cuda(self, c: Any) -> None:
        shape, dtype = self.result.type, self.result.type.dtype
        if dtype.packed and all(isinstance(x, Value) and x.type == shape for x in (self.a, self.b, self.c)):
            c.prelude(PACKED_FMA)
            name, words = c.declare(self.result), -(-shape.registers // 2)
            c.line(f"UNROLL for (int i = 0; i < {words}; i++) {name}[i] = fma_{dtype}({c[self.a]}[i], {c[self.b]}[i], {c[self.c]}[i]);")
            return
        c.map(self.result, lambda r: "fmaf({}, {}, {})".format(*(read(c, x, shape, r, dtype) for x in (self.a, self.b, self.c))))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (*tiles(f32), *tiles(bf16), RegisterTile(f16, 16, 32)):
            yield Sample({"a": type, "b": type, "c": type}, lambda a, b, c: a * b + c)
            yield Sample({"a": type, "b": type.vector("col"), "c": 0.5}, lambda a, b, c: a * b[:, None] + c)
        yield Sample({"a": ScalarType(f32), "b": RegisterTile(f32, 16, 32), "c": RegisterVector(f32, 32, "row")}, lambda a, b, c: a * b + c[None, :])


@dataclass(eq=False)
class Select(Op):
    """a where the mask holds, else b (`pk.where`)."""

    scope: Scope
    mask: Value
    a: Operand
    b: Operand

    def types(self) -> tuple[Type, ...]:
        mask = register_type(self.mask, "where")
        if mask.dtype is not bool_:
            raise TypeRuleError(f"where chooses by a bool mask, not {mask}", fix="compare first, e.g. pk.where(x > 0, x, 0)")
        shape = common_type("where", self.mask, *(x for x in (self.a, self.b)))
        values = [x for x in (self.a, self.b) if not is_scalar(x)]
        dtype = same_dtype("where", *values) if values else (scalar_dtype(self.a) or scalar_dtype(self.b) or f32)
        return (with_dtype(shape, dtype),)

    def numpy(self, m: Any) -> Any:
        shape = self.result.type
        mask, a, b = (broadcast(m, x, shape) for x in (self.mask, self.a, self.b))
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.where(mask, a, b), (m.units, *shape.shape)).astype(shape.dtype.numpy)

    def cuda(self, c: Any) -> None:
        shape, dtype = self.result.type, self.result.type.dtype
        c.map(self.result, lambda r: f"{read(c, self.mask, shape, r, bool_)} ? {read(c, self.a, shape, r, dtype)} : {read(c, self.b, shape, r, dtype)}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in REGISTER_DTYPES:
            tile = RegisterTile(dtype, 16, 32)
            yield Sample({"mask": with_dtype(tile, bool_), "a": tile, "b": tile}, lambda mask, a, b: np.where(mask, a, b), exact=True)
        for type in tiles(f32):
            fields = {"mask": with_dtype(type, bool_), "a": type.vector("col"), "b": -math.inf}
            yield Sample(fields, lambda mask, a, b: np.where(mask, a[:, None], b), exact=True)
            yield Sample(
                {"mask": with_dtype(type.vector("row"), bool_), "a": type, "b": ScalarType(f32)}, lambda mask, a, b: np.where(mask[None], a, b), exact=True
            )
        yield Sample({"mask": RegisterTile(bool_, 16, 32), "a": 1, "b": 0}, lambda mask: np.where(mask, 1, 0))
        yield Sample({"mask": RegisterTile(bool_, 16, 32), "a": 1.5, "b": 0.5}, lambda mask: np.where(mask, 1.5, 0.5), exact=True)


@dataclass(eq=False)
class Convert(Op):
    """The same elements as another dtype, rounded to nearest even."""

    scope: Scope
    a: Value
    dtype: DType

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "to")
        if self.dtype not in REGISTER_DTYPES:
            raise TypeRuleError(f"registers cannot hold {self.dtype}", fix="store the float32 tile to a shared or global tile of that dtype")
        return (with_dtype(type, self.dtype),)

    def numpy(self, m: Any) -> Any:
        array = m[self.a]
        if self.dtype in (bf16, f16) and array.dtype != self.dtype.numpy:
            array = array.astype(np.float32)
        with np.errstate(all="ignore"):
            return array.astype(self.dtype.numpy)

    def cuda(self, c: Any) -> None:
        cast = {"f": "(float)", "b": "(bool)"}.get(self.dtype.kind, f"({self.dtype.c})")
        c.map(self.result, lambda r: f"{cast}{c.element(self.a, r)}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for source in REGISTER_DTYPES:
            for target in REGISTER_DTYPES:
                inputs = {"f": "hundreds" if target is not u32 else "positive", "i": "bits", "u": "bits", "b": "mask"}[source.kind]
                fields = {"a": RegisterTile(source, 16, 32), "dtype": target}
                yield Sample(fields, lambda a, dtype: a.astype(np.float32) if dtype.packed else a, {"a": inputs}, exact=True)
        for type in (*tiles(f32), *vectors(f32)):
            yield Sample({"a": type, "dtype": bf16}, lambda a: a, {"a": "wide"}, exact=True)
        for target in (bf16, f16):
            for inputs in ("wide", "special"):
                yield Sample({"a": RegisterTile(f32, 16, 32), "dtype": target}, lambda a: a, {"a": inputs}, exact=True)


@dataclass(eq=False)
class Positions(Op):
    """The index of every row (column vector) or column (row vector) of a tile, or element of a vector, as int32."""

    scope: Scope
    type: RegisterVector

    def types(self) -> tuple[Type, ...]:
        return (replace(self.type, dtype=i32, partial=False),)

    def numpy(self, m: Any) -> Any:
        return np.broadcast_to(np.arange(self.type.length, dtype=np.int32), (m.units, self.type.length)).copy()

    def cuda(self, c: Any) -> None:
        type = self.result.type
        c.map(self.result, lambda r: str(vector_element(type, c.warp(self.scope), c.lane, r)))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (*vectors(f32), *(tile.vector(kind) for tile in tiles(bf16) for kind in ("col", "row"))):
            yield Sample({"type": type}, lambda type: np.arange(type.length))


@dataclass(eq=False)
class Assign(Op):
    """`x[:] = value`: changes a tile or vector in place."""

    scope: Scope
    target: Value
    value: Operand

    writes = ("target",)

    def types(self) -> tuple[Type, ...]:
        target = register_type(self.target, "x[:] = ...")
        if is_scalar(self.value):
            scalar_dtype(self.value)
            return ()
        shape = common_type("x[:] = ...", self.target, self.value)
        value = self.value.type
        if shape != with_dtype(target, shape.dtype) or (isinstance(target, RegisterVector) and getattr(value, "partial", False) and not target.partial):
            raise TypeRuleError(f"a {value} cannot be stored into a {target}", fix="make the target with the type of the value")
        if value.dtype != target.dtype:
            raise TypeRuleError(f"a {value} cannot be stored into a {target}", fix=f"convert it: value.to(pk.{target.dtype})")
        return ()

    def numpy(self, m: Any) -> None:
        target = self.target.type
        out = np.empty((m.units, *target.shape), target.dtype.numpy)
        out[:] = broadcast(m, self.value, target)
        m.assign(self.target, out)

    def cuda(self, c: Any) -> None:
        type = self.target.type
        if not is_scalar(self.value) and self.value.type == type:
            c.copy(self.target, self.value)
        else:
            c.map(self.target, lambda r: read(c, self.value, type, r, type.dtype), declare=False)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in REGISTER_DTYPES:
            yield Sample({"target": RegisterTile(dtype, 16, 32), "value": RegisterTile(dtype, 16, 32)}, lambda value: value, exact=True)
        for type in (*tiles(f32), *tiles(f16)):
            yield Sample({"target": type, "value": type.vector("row")}, lambda target, value: target * 0 + value, exact=True)
            yield Sample({"target": type, "value": ScalarType(f32)}, lambda target, value: target * 0 + value, exact=True)
        for vector in vectors(bf16):
            yield Sample({"target": vector, "value": vector}, lambda value: value, exact=True)


def element_position(c: Any, tile: RegisterTile, scope: Scope, register: Sym) -> tuple[Any, Any]:
    """(row, column) of a register of a tile as C."""
    return fragment(tile, c.warp(scope), c.lane, register)
