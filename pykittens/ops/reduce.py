"""Reductions of register tiles to vectors, and of vectors to scalars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_register
from ..program import Op, Scope, Value
from ..types import RegisterTile, RegisterVector, ScalarType, Type
from .maps import MATH, compute, register_type

# kind: (NumPy reduction, C of two floats, of two integers, identity for floats, for integers)
REDUCTIONS: dict[str, tuple[Any, str, str, Any, Any]] = {
    "max": (np.fmax.reduce, "fmaxf({a}, {b})", "max({a}, {b})", -np.inf, -(2**31)),
    "min": (np.fmin.reduce, "fminf({a}, {b})", "min({a}, {b})", np.inf, 2**31 - 1),
    "sum": (np.add.reduce, "({a} + {b})", "({a} + {b})", 0, 0),
    "prod": (np.multiply.reduce, "({a} * {b})", "({a} * {b})", 1, 1),
}


def identity(kind: str, float_: bool) -> Any:
    return REDUCTIONS[kind][3 if float_ else 4]


@dataclass(eq=False)
class Reduce(Op):
    """`kind` over each row (a column vector) or each column (a row vector) of a tile.

    A partial row reduction stays inside each thread: its four terms per row are combined later by `Total`.
    """

    scope: Scope
    kind: str
    a: Value
    to: Literal["col", "row"]
    partial: bool = False

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, f"{self.to}_{self.kind}")
        if not isinstance(type, RegisterTile):
            raise TypeRuleError(f"row and column reductions take a tile, not {type}", fix="a vector reduces to a scalar: v.sum(), v.max()")
        if self.to == "row" and type.warps > 1:
            raise TypeRuleError(
                f"a column reduction of {type} crosses warps", fix="reduce on the warp, or store to a shared tile and reduce there"
            )
        return (type.vector(self.to, partial=self.partial),)

    def numpy(self, m: Any) -> Any:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        array = compute(m[self.a], type.dtype)
        reduce = REDUCTIONS[self.kind][0]
        with np.errstate(all="ignore"):
            if self.partial:  # the four threads of a row hold columns 2t and 2t + 1 of every eight
                units, rows, cols = array.shape
                out = reduce(array.reshape(units, rows, cols // 8, 4, 2), axis=(2, 4))
            else:
                out = reduce(array, axis=2 if self.to == "col" else 1)
        return out.astype(type.dtype.numpy)

    def cuda(self, c: Any) -> None:
        c.prelude(MATH)
        tile, vector = self.a.type, self.result.type
        assert isinstance(tile, RegisterTile) and isinstance(vector, RegisterVector)
        is_float = tile.dtype.kind == "f"
        text = REDUCTIONS[self.kind][1 if is_float else 2]
        compute_c = "float" if is_float else tile.dtype.c
        acc = c.fresh("acc")
        c.line(f"{compute_c} {acc}[{vector.registers}];")
        c.line(f"UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {c.scalar(identity(self.kind, is_float), tile.dtype)};")
        r = Sym("i")
        if vector.ortho:  # the two neighbours share a row: combine them first, which halves the chain
            pair = text.format(a=c.element(self.a, r * 2), b=c.element(self.a, r * 2 + 1))
            index = vector_register(tile, vector, r * 2)
            c.line(f"UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {acc}[{index}] = {text.format(a=f'{acc}[{index}]', b=pair)};")
            lanes = (1, 2)
        else:
            index = vector_register(tile, vector, r)
            term = text.format(a=f"{acc}[{index}]", b=c.element(self.a, r))
            c.line(f"UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {term};")
            lanes = (4, 8, 16)
        if not self.partial:
            combine_lanes(c, acc, vector.registers, text, lanes)
        c.map(self.result, lambda r: f"{acc}[{r}]")


def combine_lanes(c: Any, acc: str, count: int, text: str, lanes: tuple[int, ...]) -> None:
    """Combines `acc` with the lanes whose number differs in the given bits."""
    for lane in lanes:
        other = f"__shfl_xor_sync(0xffffffffu, {acc}[i], {lane})"
        c.line(f"UNROLL for (int i = 0; i < {count}; i++) {acc}[i] = {text.format(a=f'{acc}[i]', b=other)};")


@dataclass(eq=False)
class Total(Op):
    """A partial column vector, summed (or `kind`ed) over the four threads of each row."""

    scope: Scope
    kind: str
    a: Value

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "total")
        if not isinstance(type, RegisterVector) or not type.partial:
            raise TypeRuleError(f"total takes a partial vector, not {type}", fix="it is complete already")
        return (RegisterVector(type.dtype, type.length, type.kind, type.layout, type.warps),)

    def numpy(self, m: Any) -> Any:
        with np.errstate(all="ignore"):
            return REDUCTIONS[self.kind][0](compute(m[self.a], self.a.type.dtype), axis=2).astype(self.a.type.dtype.numpy)  # type: ignore[union-attr]

    def cuda(self, c: Any) -> None:
        type = self.result.type
        assert isinstance(type, RegisterVector)
        acc = c.fresh("acc")
        c.line(f"float {acc}[{type.registers}];")
        c.line(f"UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[i] = {c.element(self.a, Sym('i'))};")
        combine_lanes(c, acc, type.registers, REDUCTIONS[self.kind][1], (1, 2))
        c.map(self.result, lambda r: f"{acc}[{r}]")


@dataclass(eq=False)
class VectorReduce(Op):
    """`kind` over all elements of a warp's vector: a scalar, the same in all its lanes."""

    scope: Scope
    kind: str
    a: Value

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, self.kind)
        if not isinstance(type, RegisterVector) or type.partial:
            raise TypeRuleError(f"{self.kind} to a scalar takes a complete vector, not {type}", fix="reduce the tile by rows or columns first")
        if type.warps > 1 and type.kind != "row":
            raise TypeRuleError(f"{self.kind} of {type} crosses warps", fix="use block.reduce(v, scratch), which meets in shared memory")
        return (ScalarType(type.dtype if type.dtype.bits == 32 else _wide(type)),)

    def numpy(self, m: Any) -> Any:
        with np.errstate(all="ignore"):
            out = REDUCTIONS[self.kind][0](compute(m[self.a], self.a.type.dtype), axis=1)  # type: ignore[union-attr]
        return m.per_warp(out)

    def cuda(self, c: Any) -> None:
        type = self.a.type
        assert isinstance(type, RegisterVector)
        text, lanes = REDUCTIONS[self.kind][1 if type.dtype.kind == "f" else 2], {True: (4, 8, 16), False: (1, 2)}[type.ortho]
        if type.kind == "naive":
            lanes = (1, 2, 4, 8, 16)
        start = c.scalar(identity(self.kind, type.dtype.kind == "f"), type.dtype)
        acc, r = c.fresh("acc"), Sym("i")
        term = str(c.element(self.a, r))
        if type.kind == "naive":
            from ..layouts import vector_element

            term = f"({vector_element(type, c.warp(self.scope), c.lane, r)} < {type.length} ? {term} : {start})"
        c.line(f"{'float' if type.dtype.kind == 'f' else type.dtype.c} {acc}[1] = {{{start}}};")
        c.line(f"UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[0] = {text.format(a=f'{acc}[0]', b=term)};")
        combine_lanes(c, acc, 1, text, lanes)
        c.define(self.result, f"{acc}[0]")


def _wide(type: RegisterVector) -> Any:
    from ..types import f32, i32

    return f32 if type.dtype.kind == "f" else i32
