"""Reductions of register tiles to vectors, and of vectors to scalars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element, vector_register
from ..program import CLUSTER, CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import Coalesced, DType, RegisterTile, RegisterVector, ScalarType, Type, bf16, f32, i32, u32
from .broadcast import compute, register_type
from .samples import Sample, tiles
from .unary import MATH

# kind: (NumPy reduction, C of two floats, of two integers, identity for floats, for integers)
REDUCTIONS: dict[str, tuple[Any, str, str, Any, Any]] = {
    "max": (np.fmax.reduce, "fmaxf({a}, {b})", "max({a}, {b})", -np.inf, -(2**31)),
    "min": (np.fmin.reduce, "fminf({a}, {b})", "min({a}, {b})", np.inf, 2**31 - 1),
    "sum": (np.add.reduce, "({a} + {b})", "({a} + {b})", 0, 0),
    "prod": (np.multiply.reduce, "({a} * {b})", "({a} * {b})", 1, 1),
}


def identity(kind: str, dtype: DType) -> Any:
    """What a reduction begins with."""
    unsigned = {"max": 0, "min": 2**dtype.bits - 1} if dtype.kind == "u" else {}
    return unsigned.get(kind, REDUCTIONS[kind][3 if dtype.kind == "f" else 4])


def check_numbers(kind: str, type: RegisterTile | RegisterVector) -> None:
    if type.dtype.kind == "b":
        raise TypeRuleError(f"{kind} of {type}", fix="count with pk.where(mask, 1, 0), a tile of integers")


@dataclass(eq=False)
class Reduce(Op):
    """`kind` over each row (a column vector) or each column (a row vector) of a tile.

    A partial row reduction stays inside each thread: its four terms per row are combined later by `Total`. Of a
    coalesced tile it stays inside each warp: its terms meet in shared memory (`ShareTerms`, `Combine`).

    `onto` is a vector like the result that the terms are added to, one after another: who makes it comes first, then.
    """

    scope: Scope
    kind: str
    a: Value
    to: Literal["col", "row"]
    partial: bool = False
    onto: Value | None = None

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, f"{self.to}_{self.kind}")
        if not isinstance(type, RegisterTile):
            raise TypeRuleError(
                f"row and column reductions take a tile, not {type}",
                fix="a vector reduces to a scalar: v.sum(), v.max()",
            )
        check_numbers(self.kind, type)
        if self.to == "row" and type.warps > 1:
            raise TypeRuleError(
                f"a column reduction of {type} crosses warps",
                fix="reduce on the warp, or store to a shared tile and reduce there",
            )
        if isinstance(type.layout, Coalesced) and self.partial != (type.warps > 1):
            raise TypeRuleError(
                f"{self.to}_{self.kind} of {type}",
                fix="call row_sum(), row_max(), ... which meet in shared memory as needed",
            )
        vector = type.vector(self.to, partial=self.partial)
        if self.onto is not None and (
            self.onto.type != vector or not vector.ortho or isinstance(type.layout, Coalesced)
        ):
            raise TypeRuleError(
                f"{self.to}_{self.kind} of {type} onto {self.onto.type}",
                fix=f"pass a {vector}, which a tile of row layout gives",
            )
        return (vector,)

    def numpy(self, m: NumpyMachine) -> Any:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        array = compute(m[self.a], type.dtype)
        reduce = REDUCTIONS[self.kind][0]
        with np.errstate(all="ignore"):
            if self.partial and isinstance(type.layout, Coalesced):  # a warp holds every warps-th run of 32 threads
                units, rows, cols = array.shape
                out = reduce(array.reshape(units, rows, -1, type.warps, 32 * type.layout.width), axis=(2, 4))
            elif self.partial:  # the four threads of a row hold columns 2t and 2t + 1 of every eight
                units, rows, cols = array.shape
                out = reduce(array.reshape(units, rows, cols // 8, 4, 2), axis=(2, 4))
            else:
                out = reduce(array, axis=2 if self.to == "col" else 1)
            if self.onto is not None:
                out = reduce([compute(m[self.onto], type.dtype), out])
        return out.astype(type.dtype.numpy)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MATH)
        tile, vector = self.a.type, self.result.type
        assert isinstance(tile, RegisterTile) and isinstance(vector, RegisterVector)
        is_float = tile.dtype.kind == "f"
        text = REDUCTIONS[self.kind][1 if is_float else 2]
        compute_c = "float" if is_float else tile.dtype.c
        acc = c.fresh("acc")
        if isinstance(tile.layout, Coalesced):
            self._coalesced(c, tile, vector, tile.layout, acc, text)
            return
        start, r = c.scalar(identity(self.kind, tile.dtype), tile.dtype), Sym("i")
        if self.onto is not None:
            index = str(vector_register(tile, vector, r))
            c.line(f"{compute_c} {acc}[{vector.registers}];")
            c.line(
                f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {c.element(self.onto, Sym('i'))};"
            )
            c.line(
                f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {text.format(a=f'{acc}[{index}]', b=c.element(self.a, r))};"
            )
            lanes: tuple[int, ...] = (1, 2)
        elif (
            vector.ortho
        ):  # two chains for each result, and the two neighbours that share a row combined first: short chains
            c.line(f"{compute_c} {acc}[{2 * vector.registers}];")
            pair = text.format(a=c.element(self.a, r * 2), b=c.element(self.a, r * 2 + 1))
            index, pairs = f"{vector_register(tile, vector, r * 2)} * 2 + i / 2 % 2", tile.registers // vector.registers
            c.line(
                f"PK_UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{"
            )  # no identity: the compiler keeps 0.0f + x and fmaxf(-inf, x)
            c.line(f"  {acc}[{index}] = i % {pairs} < 4 ? {pair} : {text.format(a=f'{acc}[{index}]', b=pair)}; }}")
            both = text.format(a=f"{acc}[2 * i]", b=f"{acc}[2 * i + 1]")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {both};")
            lanes = (1, 2)
        else:
            c.line(f"{compute_c} {acc}[{vector.registers}];")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {start};")
            index = str(vector_register(tile, vector, r))
            term = text.format(a=f"{acc}[{index}]", b=c.element(self.a, r))
            c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {term};")
            lanes = (4, 8, 16)
        if not self.partial:
            combine_lanes(c, acc, vector.registers, text, lanes)
        c.map(self.result, lambda r: f"{acc}[{r}]")

    def _coalesced(
        self, c: CudaWriter, tile: RegisterTile, vector: RegisterVector, layout: Coalesced, acc: str, text: str
    ) -> None:
        """Inside a thread with up to four chains for each result, then across the lanes that share it."""
        if self.to == "row":
            chains, terms = 1, tile.registers // vector.registers
            index = "i % " + str(vector.registers)
            lanes = tuple(x for x in (1, 2, 4, 8, 16) if x >= layout.lanes)
        else:
            terms = tile.registers // vector.registers
            chains = next(x for x in (4, 2, 1) if terms % x == 0)
            index = f"i / {terms} * {chains} + i % {chains}"
            lanes = tuple(x for x in (16, 8, 4, 2, 1) if x < layout.lanes)
        is_float = tile.dtype.kind == "f"
        start, ctype = c.scalar(identity(self.kind, tile.dtype), tile.dtype), "float" if is_float else tile.dtype.c
        count = vector.registers * chains
        c.line(f"{ctype} {acc}[{count}];")
        c.line(f"PK_UNROLL for (int i = 0; i < {count}; i++) {acc}[i] = {start};")
        term = text.format(a=f"{acc}[{index}]", b=c.element(self.a, Sym("i")))
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {term};")
        while chains > 1:
            chains //= 2
            pair = text.format(a=f"{acc}[2 * i]", b=f"{acc}[2 * i + 1]")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers * chains}; i++) {acc}[i] = {pair};")
        combine_lanes(c, acc, vector.registers, text, lanes)
        c.map(self.result, lambda r: f"{acc}[{r}]")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in ("max", "min", "sum", "prod"):
            formula = {"max": np.fmax.reduce, "min": np.fmin.reduce, "sum": np.add.reduce, "prod": np.multiply.reduce}[
                kind
            ]
            for dtype in (f32, bf16, i32, u32):
                inputs = {
                    "a": "ones"
                    if kind == "prod" and dtype.kind == "f"
                    else "counts"
                    if dtype is u32
                    else "normal"
                    if dtype.kind == "f"
                    else "bits"
                }
                for to, axis in (("col", 1), ("row", 0)):
                    fields = {"kind": kind, "a": RegisterTile(dtype, 32, 48), "to": to}
                    yield Sample(
                        fields, lambda a, f=formula, axis=axis: f(a, axis=axis), inputs, exact=kind in ("max", "min")
                    )
        for type in tiles(f32):
            if type.warps == 1 or not isinstance(
                type.layout, Coalesced
            ):  # the terms of several warps meet in shared memory: trace/cross_warp_reduction.py
                yield Sample({"kind": "sum", "a": type, "to": "col"}, lambda a: a.sum(1))
            if type.warps == 1:
                yield Sample(
                    {"kind": "max", "a": type, "to": "row"}, lambda a: np.fmax.reduce(a, axis=0), {"a": "special"}
                )  # zeros of either sign are the same
        run: dict[str, Any] = {"kind": "sum", "a": RegisterTile(f32, 32, 48), "to": "col", "partial": True}
        yield Sample(run, lambda a: a.sum(1))
        yield Sample(
            run | {"onto": RegisterVector(f32, 32, "col", partial=True)}, lambda a, onto: a.sum(1) + onto.sum(1)
        )
        run = {"kind": "max", "a": RegisterTile(f32, 32, 48), "to": "col", "onto": RegisterVector(f32, 32, "col")}
        yield Sample(run, lambda a, onto: np.fmax(a.max(1), onto), exact=True)


def combine_lanes(c: CudaWriter, acc: str, count: int, text: str, lanes: tuple[int, ...]) -> None:
    """Combines `acc` with the lanes whose number differs in the given bits."""
    for lane in lanes:
        other = f"__shfl_xor_sync(0xffffffffu, {acc}[i], {lane})"
        c.line(f"PK_UNROLL for (int i = 0; i < {count}; i++) {acc}[i] = {text.format(a=f'{acc}[i]', b=other)};")


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
        if isinstance(type.layout, Coalesced):
            raise TypeRuleError(
                f"the terms of {type} lie in different warps",
                fix="reduce the tile with row_sum(), which meets in shared memory",
            )
        return (RegisterVector(type.dtype, type.length, type.kind, type.layout, type.warps),)

    def numpy(self, m: NumpyMachine) -> Any:
        with np.errstate(all="ignore"):
            return REDUCTIONS[self.kind][0](compute(m[self.a], self.a.type.dtype), axis=2).astype(
                self.a.type.dtype.numpy
            )  # type: ignore[union-attr]

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, RegisterVector)
        acc = c.fresh("acc")
        c.line(f"float {acc}[{type.registers}];")
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[i] = {c.element(self.a, Sym('i'))};")
        combine_lanes(c, acc, type.registers, REDUCTIONS[self.kind][1], (1, 2))
        c.map(self.result, lambda r: f"{acc}[{r}]")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        yield Sample({"kind": "sum", "a": RegisterVector(f32, 48, "col", partial=True)}, lambda a: a.sum(1))


@dataclass(eq=False)
class VectorReduce(Op):
    """`kind` over all elements of a warp's vector: a scalar, the same in all its lanes.

    Of a naive vector over several warps it is one scalar for each warp: what that warp holds.
    """

    scope: Scope
    kind: str
    a: Value

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return 1 if self.scope.warps > 1 and getattr(self.a.type, "kind", "") == "naive" else CLUSTER

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, self.kind)
        if not isinstance(type, RegisterVector) or type.partial:
            raise TypeRuleError(
                f"{self.kind} to a scalar takes a complete vector, not {type}",
                fix="reduce the tile by rows or columns first",
            )
        check_numbers(self.kind, type)
        if (type.warps > 1 and type.kind == "col") or isinstance(type.layout, Coalesced):
            raise TypeRuleError(
                f"{self.kind} of {type} to a scalar", fix="reduce a warp's vector, or a naive one of any scope"
            )
        return (ScalarType(type.dtype if type.dtype.bits == 32 else f32 if type.dtype.kind == "f" else i32),)

    def numpy(self, m: NumpyMachine) -> Any:
        with np.errstate(all="ignore"):
            array, type = compute(m[self.a], self.a.type.dtype), self.a.type  # type: ignore[union-attr]
            if type.kind != "naive" or type.warps == 1:  # type: ignore[union-attr]
                return m.per_warp(REDUCTIONS[self.kind][0](array, axis=1))
            assert isinstance(type, RegisterVector)
            step = 32 * type.warps * type.width
            start = identity(self.kind, type.dtype)
            whole = np.pad(array, ((0, 0), (0, -type.length % step)), constant_values=start)
            return REDUCTIONS[self.kind][0](
                whole.reshape(m.units, -1, type.warps, step // type.warps), axis=(1, 3)
            ).ravel()

    def cuda(self, c: CudaWriter) -> None:
        type = self.a.type
        assert isinstance(type, RegisterVector)
        text, lanes = (
            REDUCTIONS[self.kind][1 if type.dtype.kind == "f" else 2],
            {True: (4, 8, 16), False: (1, 2)}[type.ortho],
        )
        if type.kind == "naive":
            lanes = (1, 2, 4, 8, 16)
        start = c.scalar(identity(self.kind, type.dtype), type.dtype)
        acc, r = c.fresh("acc"), Sym("i")
        term = str(c.element(self.a, r))
        if type.kind == "naive":
            term = f"({vector_element(type, c.warp(self.scope), c.lane, r)} < {type.length} ? {term} : {start})"
        c.line(f"{'float' if type.dtype.kind == 'f' else type.dtype.c} {acc}[1] = {{{start}}};")
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[0] = {text.format(a=f'{acc}[0]', b=term)};")
        combine_lanes(c, acc, 1, text, lanes)
        c.define(self.result, f"{acc}[0]")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind, formula in (("max", np.max), ("min", np.min), ("sum", np.sum)):
            for type in (
                RegisterTile(f32, 32, 48).vector("col"),
                RegisterTile(bf16, 32, 48).vector("row"),
                RegisterTile(f32, 32, 48, "col").vector("col"),
                RegisterVector(f32, 100, "naive", width=4),
                RegisterVector(i32, 33, "naive"),
                RegisterTile(f32, 64, 32, "row", 4).vector("row"),
            ):
                yield Sample({"kind": kind, "a": type}, lambda a, f=formula: f(a))
