"""Operators on two or three register tiles, vectors or scalars, elementwise. 16-bit floats compute in float32 and
round once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym
from ..loading import dataclass
from ..numerics import ROUNDED, Numerics
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Operand, Scope, Shares, Value, is_scalar
from ..types import (
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
from . import unary
from .arithmetic import COMPARISONS, OPERATIONS, arithmetic_numerics, calculate, calculate_c, fma, whole_power_c
from .broadcast import Fetch, Register, common_type, operand, read, registers_of, same_dtype, spread, vector_register
from .conversion import convert
from .samples import Sample, tiles, vectors
from .scalar_arithmetic import FORMULAS, power_of_two
from .scalars import described, scalar_dtype
from .slopes import binary_shares

# Two 16-bit floats at a time; a product is a * b + -0.
PACKED_FMA = """
__device__ __forceinline__ u32 pk_fma_bf16(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
__device__ __forceinline__ u32 pk_fma_f16(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
"""


@dataclass(eq=False)
class Binary(Op):
    """a `kind` b, elementwise, with vectors broadcast."""

    scope: Scope
    kind: str
    a: Operand
    b: Operand

    pointwise = True

    def types(self) -> tuple[Type, ...]:
        shape = common_type(self.kind, self.a, self.b)
        self._check_masks()
        dtype = same_dtype(self.kind, self.a, self.b)
        if self.kind == "div" and dtype.kind != "f":
            raise TypeRuleError(f"/ takes floats, not {dtype}", fix="convert with x.to(pk.f32)")
        self._check_power(dtype)
        if self.kind in ("and", "or", "xor", "shl", "shr") and dtype.kind == "f":
            raise TypeRuleError(f"{self.kind} takes integers and masks, not {dtype}", fix="compare first, or convert")
        partial = [isinstance(x, Value) and getattr(x.type, "partial", False) for x in (self.a, self.b)]
        linear = {"add": all(partial), "sub": all(partial), "mul": sum(partial) < 2, "div": not partial[1]}
        if any(partial) and not linear.get(self.kind, False):
            raise TypeRuleError(f"{self.kind} of a partial vector would change its sum", fix="sum it first: x.total()")
        return (with_dtype(shape, bool_ if self.kind in COMPARISONS else dtype),)

    def _check_masks(self) -> None:
        found = [x.type.dtype for x in (self.a, self.b) if isinstance(getattr(x, "type", None), Register)]
        if bool_ in found and self.kind not in ("and", "or", "xor", "eq", "ne"):
            found += [scalar_dtype(x) or i32 for x in (self.a, self.b) if is_scalar(x)]
            fix = f"convert the mask with x.to(pk.{next((x for x in found if x is not bool_), i32)})"
            raise TypeRuleError(f"{self.kind} takes numbers, not {bool_}", fix=fix)

    def _check_power(self, dtype: DType) -> None:
        whole = isinstance(self.b, int) and not isinstance(self.b, bool)
        if self.kind == "pow" and dtype.kind in "iu" and not (whole and self.b >= 0):
            raise TypeRuleError(
                f"** of {dtype} with exponent {described(self.b)}",
                fix="an integer tile takes a Python int from 0 on: x ** 3; convert for others: x.to(pk.f32) ** y",
            )

    def _dtype(self) -> DType:
        return same_dtype(self.kind, self.a, self.b)

    @functools.cached_property
    def _fetched(self) -> tuple[Fetch, Fetch]:
        shape, dtype = registers_of(self.result), self._dtype()
        return operand(self.a, shape, dtype), operand(self.b, shape, dtype)

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return arithmetic_numerics(self.kind, self._dtype())

    def numpy(self, m: NumpyMachine) -> Any:
        a, b = self._fetched
        shape = registers_of(self.result)
        return convert(spread(calculate(self.kind, a(m), b(m)), (m.units, *shape.shape)), shape.dtype)

    def cuda(self, c: CudaWriter) -> None:
        shape, dtype = registers_of(self.result), self._dtype()
        if self.kind == "pow" and (factors := whole_power_c(c, dtype, self.b)):
            c.map(self.result, lambda r: factors.format(a=read(c, self.a, shape, r, dtype)))
            return
        if self.kind in ("floordiv", "mod") and dtype.kind != "f":
            self._integer_division(c, shape, dtype)
            return
        if (
            self.kind == "mul"
            and dtype.packed
            and all(isinstance(x, Value) and x.type == shape for x in (self.a, self.b))
        ):
            self._packed_product(c, shape, dtype)
            return
        if dtype is f32 and self.kind in ("add", "sub") and isinstance(shape, RegisterTile):
            for x, other in ((self.a, self.b), (self.b, self.a)):
                if unary.small(other) and unary.small(x) and unary.first_and_steps(x.producer.a, Sym("r")) is not None:
                    c.map(self.result, lambda r, x=x: self._from_first(c, shape, x, r))  # type: ignore[misc]
                    return
        c.map(
            self.result,
            lambda r: calculate_c(c, self.kind, dtype, *(read(c, x, shape, r, dtype) for x in (self.a, self.b))),
        )

    def _from_first(self, c: CudaWriter, shape: RegisterTile, x: Any, r: Sym) -> str:
        """C for an element, where vector `x` holds steps from its first: (first + y) + step, all of small integers and
        so exact, takes one addition for each column of a row, and none for the vector's own elements.
        """
        step = f"(float)({unary.first_and_steps(x.producer.a, vector_register(shape, x.type, r))})"
        a, b = (c.element(y, Sym("0")) if y is x else read(c, y, shape, r, f32) for y in (self.a, self.b))
        sign = "-" if self.kind == "sub" else "+"
        return f"({a} {sign} {b}) {sign if x is self.b else '+'} {step}"

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return binary_shares(d, self.kind, cotangents[0], self.a, self.b)

    def _integer_division(self, c: CudaWriter, shape: Register, dtype: DType) -> None:
        """Where the divisor is 0 the result is, too; by a power of two known now it is a shift, or a mask."""
        shift = power_of_two(self.b)

        def one(r: Sym) -> str:
            a, b = (read(c, x, shape, r, dtype) for x in (self.a, self.b))
            if shift is not None:
                return f"{a} >> {shift}" if self.kind == "floordiv" else f"{a} & {c.scalar((1 << shift) - 1, dtype)}"
            text = calculate_c(c, self.kind, dtype, a, b)
            return text if isinstance(self.b, int) and self.b else f"({b}) != 0 ? {text} : 0"

        c.map(self.result, one)

    def _packed_product(self, c: CudaWriter, shape: Register, dtype: DType) -> None:
        """Two products with one instruction: a product of 16-bit floats is exact in float32, so one rounding is the
        same as two.
        """
        c.prelude(PACKED_FMA)
        name = c.declare(self.result)
        c.line(
            f"PK_UNROLL for (int i = 0; i < {-(-shape.registers // 2)}; i++) {name}[i] = "
            f"pk_fma_{dtype}({c[self.a]}[i], {c[self.b]}[i], 0x80008000u);"
        )

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        yield from cls._division_samples()
        for kind, (_, of_floats, of_integers) in OPERATIONS.items():
            if kind in ("floordiv", "mod", "pow"):
                continue
            ours = np.divide if kind == "div" else FORMULAS[kind]
            dtypes = ((f32, bf16, f16) if of_floats else ()) + ((i32, u32, i64) if of_integers else ())
            for dtype in (*dtypes, *((bool_,) if kind in ("and", "or", "xor", "eq", "ne") else ())):
                tile = RegisterTile(dtype, 16, 32)
                inputs = (
                    {"a": "bits", "b": "counts" if kind in ("shl", "shr") else "bits"} if dtype.kind in "iu" else {}
                )
                if kind in COMPARISONS and dtype.kind != "b":
                    inputs = {"a": "integers" if dtype is not u32 else "counts", "b": "counts"}
                yield Sample({"kind": kind, "a": tile, "b": tile}, lambda a, b, f=ours: f(a, b), inputs)
            if of_floats:
                tile = RegisterTile(f32, 16, 32)
                yield Sample(
                    {"kind": kind, "a": tile, "b": tile}, lambda a, b, f=ours: f(a, b), {"a": "special", "b": "special"}
                )
        for type in (*tiles(f32), *tiles(bf16)):
            col, row = (
                {"kind": "mul", "a": type, "b": type.vector("col")},
                {"kind": "sub", "a": type.vector("row"), "b": type},
            )
            yield Sample({"kind": "mul", "a": type, "b": type}, lambda a, b: a * b)
            yield Sample(col, lambda a, b: a * b[:, None])
            yield Sample(row, lambda a, b: a[None, :] - b)
            yield Sample(
                {"kind": "add", "a": type.vector("col"), "b": type.vector("row")}, lambda a, b: a[:, None] + b[None, :]
            )
        for vector in vectors(f32):
            yield Sample({"kind": "sub", "a": vector, "b": vector}, lambda a, b: a - b)
        for scalar in (2.5, 3, ScalarType(f32), ScalarType(i32)):
            yield Sample({"kind": "sub", "a": RegisterTile(f32, 16, 32), "b": scalar}, lambda a, b: a - b)
            yield Sample({"kind": "sub", "a": scalar, "b": RegisterTile(bf16, 16, 32)}, lambda a, b: a - b)
        partial = RegisterVector(f32, 32, "col", partial=True)
        yield Sample({"kind": "add", "a": partial, "b": partial}, lambda a, b: (a + b).sum(1))
        yield Sample({"kind": "mul", "a": partial, "b": RegisterVector(f32, 32, "col")}, lambda a, b: a.sum(1) * b)

    @classmethod
    def _division_samples(cls) -> Iterable[Sample]:
        """//, % and **."""
        for kind, formula in (("floordiv", np.floor_divide), ("mod", np.remainder)):
            for dtype, inputs in (
                (f32, "between"),
                (bf16, "between"),
                (i32, "bits100"),
                (u32, "counts"),
                (i64, "bits"),
            ):
                tile = RegisterTile(dtype, 16, 32)
                for b in (tile, 8, 3):
                    given = {"a": inputs, "b": "nonzero"}
                    yield Sample({"kind": kind, "a": tile, "b": b}, lambda a, b, f=formula: f(a, b), given, exact=True)
            tile = RegisterTile(i32, 16, 32)
            yield Sample({"kind": kind, "a": tile, "b": -3}, lambda a, b, f=formula: f(a, b), {"a": "bits"}, exact=True)
            fields = {"kind": kind, "a": tile, "b": 0}
            yield Sample(fields, lambda a: np.zeros_like(a), {"a": "bits"}, exact=True)
        for power in (0, 1, 2, 3, 4, 7, 0.5, -1, RegisterTile(f32, 16, 32)):
            given = {"a": "positive", "b": "unit"}
            yield Sample({"kind": "pow", "a": RegisterTile(f32, 16, 32), "b": power}, lambda a, b: a**b, given)
        yield Sample({"kind": "pow", "a": RegisterTile(bf16, 16, 32), "b": 2}, lambda a, b: a**b)
        for b in (0, 1, 2, 5):
            for dtype in (i32, i64):
                fields = {"kind": "pow", "a": RegisterTile(dtype, 16, 32), "b": b}
                yield Sample(fields, lambda a, b: a**b, {"a": "integers"}, exact=True)


@dataclass(eq=False)
class Fma(Op):
    """a * b + c, elementwise, rounded once."""

    scope: Scope
    a: Operand
    b: Operand
    c: Operand

    pointwise = True

    def types(self) -> tuple[Type, ...]:
        dtype = same_dtype("fma", self.a, self.b, self.c)
        if dtype.kind != "f":
            raise TypeRuleError(f"fma takes floats, not {dtype}", fix="write a * b + c")
        return (with_dtype(common_type("fma", self.a, self.b, self.c), dtype),)

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        narrow = registers_of(self.result).dtype.packed
        return ROUNDED.with_special("numbers are rounded to the dtype first") if narrow else ROUNDED

    def numpy(self, m: NumpyMachine) -> Any:
        shape = registers_of(self.result)
        a, b, c = (convert(fetch(m), shape.dtype) for fetch in self._fetched)
        return spread(fma(a, b, c, shape.dtype), (m.units, *shape.shape))

    @functools.cached_property
    def _fetched(self) -> list[Fetch]:
        shape = registers_of(self.result)
        return [operand(x, shape, shape.dtype) for x in (self.a, self.b, self.c)]

    def cuda(self, c: CudaWriter) -> None:
        shape = registers_of(self.result)
        dtype = shape.dtype
        operands = (self.a, self.b, self.c)
        if not dtype.packed:
            c.map(self.result, lambda r: "fmaf({}, {}, {})".format(*(read(c, x, shape, r, dtype) for x in operands)))
            return
        c.prelude(PACKED_FMA)
        name = c.declare(self.result)
        words = ", ".join(self._word(c, x, shape) for x in operands)
        c.line(f"PK_UNROLL for (int i = 0; i < {-(-shape.registers // 2)}; i++) {name}[i] = pk_fma_{dtype}({words});")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        (c,) = cotangents
        return (self.a, lambda: c * d.wide(self.b)), (self.b, lambda: c * d.wide(self.a)), (self.c, lambda: c)

    def _word(self, c: CudaWriter, x: Operand, shape: Register) -> str:
        """C for the two elements of an operand that go with word `i` of the result."""
        if isinstance(x, Value) and x.type == shape:
            return f"{c[x]}[i]"
        last = shape.registers - 1  # an odd number of registers leaves half of the last word
        pair = (read(c, x, shape, Sym(text), shape.dtype) for text in ("(2 * i)", f"min(2 * i + 1, {last})"))
        return f"pk_pack_{shape.dtype}({', '.join(pair)})"

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (*tiles(f32), *tiles(bf16), RegisterTile(f16, 16, 32)):
            yield Sample({"a": type, "b": type, "c": type}, lambda a, b, c: a * b + c)
            yield Sample({"a": type, "b": type.vector("col"), "c": 0.5}, lambda a, b, c: a * b[:, None] + c)
        yield Sample(
            {"a": ScalarType(f32), "b": RegisterTile(f32, 16, 32), "c": RegisterVector(f32, 32, "row")},
            lambda a, b, c: a * b + c[None, :],
        )
