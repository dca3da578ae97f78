"""Reductions of register tiles to vectors, and of vectors to scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element, vector_register
from ..loading import dataclass
from ..numerics import Numerics, approximate
from ..program import CLUSTER, CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..thread_map import Registers
from ..types import Coalesced, DType, RegisterTile, RegisterVector, ScalarType, Type, bf16, f32, i32, i64, u32
from .arithmetic import arithmetic_numerics, calculate, calculate_c
from .broadcast import compute, register_type
from .conversion import canonical, convert, limits
from .samples import Sample, tiles

Pair = Callable[[Any, Any], str]  # C for two terms as one

KINDS = {"max": "max", "min": "min", "sum": "add", "prod": "mul"}  # as an operation on two numbers


def identity(kind: str, dtype: DType) -> Any:
    """What a reduction begins with: x combined with it is x, for every x (-0 + -0 is -0)."""
    if kind in ("sum", "prod"):
        return 1 if kind == "prod" else -0.0 if dtype.kind == "f" else 0
    if dtype.kind == "f":
        return -np.inf if kind == "max" else np.inf
    return limits(dtype)[0 if kind == "max" else 1]


def combined(kind: str, array: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """`kind` over some axes of an array: float32 or integers."""
    if kind in ("sum", "prod"):
        ufunc, start = (np.add, 0) if kind == "sum" else (np.multiply, 1)
        if array.dtype.kind != "f":
            return np.asarray(ufunc.reduce(array, axis=axis, dtype=array.dtype, initial=start))
        return canonical(np.asarray(ufunc.reduce(array, axis=axis, initial=np.float32(-0.0 if kind == "sum" else 1))))
    out = np.asarray((np.maximum if kind == "max" else np.minimum).reduce(array, axis=axis))
    if array.dtype.kind != "f":
        return out
    wanted = (array == 0) & (np.signbit(array) == (kind == "min"))  # of zeros: +0 is larger than -0
    zero = np.where(wanted.any(axis=axis) == (kind == "max"), np.float32(0), np.float32(-0.0))
    return canonical(np.where(out == 0, zero, out))


def pair_text(c: CudaWriter, kind: str, dtype: DType) -> Pair:
    """C for two terms as one."""
    return lambda a, b: calculate_c(c, KINDS[kind], dtype, a, b)


def held_c(dtype: DType) -> str:
    """The C type of terms: 16-bit floats are summed as float."""
    return "float" if dtype.kind == "f" else dtype.c


def reduction_numerics(kind: str, dtype: DType) -> Numerics:
    """What a reduction promises."""
    if kind in ("max", "min") or dtype.kind != "f":
        return arithmetic_numerics(KINDS[kind], dtype)
    what = "the sum of the terms' magnitudes" if kind == "sum" else "the result"
    then = "" if dtype is f32 else "; then rounded to the dtype"
    return approximate(
        bound=f"float32, in an order that the layout says: within (n - 1) 2^-24 of {what}, n the number of terms{then}"
    )


def check_numbers(kind: str, type: RegisterTile | RegisterVector) -> None:
    if type.dtype.kind == "b":
        raise TypeRuleError(
            f"{kind} of {type}", fix="count with x.row_sum(), ask x.row_any() or x.row_all(), or convert: x.to(pk.i32)"
        )


@dataclass(eq=False)
class Reduce(Op):
    """`kind` over each row (a column vector) or each column (a row vector) of a tile.

    A partial row reduction stays inside each thread: its four terms per row are combined later by `Total`. Of a
    coalesced tile it stays inside each warp: its terms meet in shared memory (`ShareTerms`, `Combine`). So does a
    column reduction over several warps (`ShareColumns`, `CombineColumns`).

    `onto` is a vector like the result that the terms are added to, one after another: who makes it comes first, then.
    With `fade` it is onto * fade, fused into the first addition (a complete vector for a partial `onto` too).
    `times`: the sum is of the products with this tile's elements, each fused into its addition (`row_dot`).
    """

    scope: Scope
    kind: str
    a: Value
    to: Literal["col", "row"]
    partial: bool = False
    onto: Value | None = None
    times: Value | None = None
    fade: Value | None = None

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, self.a.type.dtype)  # type: ignore[union-attr]

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, f"{self.to}_{self.kind}")
        if not isinstance(type, RegisterTile):
            raise TypeRuleError(
                f"row and column reductions take a tile, not {type}",
                fix="a vector reduces to a scalar: v.sum(), v.max()",
            )
        check_numbers(self.kind, type)
        crosses = type.warps > 1 and isinstance(type.layout, Coalesced) == (self.to == "col")
        if self.partial != crosses and (isinstance(type.layout, Coalesced) or self.to == "row"):
            raise TypeRuleError(
                f"{'row' if self.to == 'col' else 'column'} {self.kind} of {type} with partial={self.partial}",
                fix="leave partial out: row_sum(), col_sum() and the others meet in shared memory as needed",
            )
        vector = type.vector(self.to, partial=self.partial)
        if self.onto is not None and (
            self.onto.type != vector or not vector.ortho or isinstance(type.layout, Coalesced)
        ):
            raise TypeRuleError(
                f"{self.to}_{self.kind} of {type} onto {self.onto.type}",
                fix=f"pass a {vector}, which a tile of row layout gives",
            )
        if self.onto is not None and not self.partial and self.kind not in ("max", "min"):
            raise TypeRuleError(
                f"{self.to}_{self.kind} of {type} onto complete {self.onto.type}, which each thread of a row would add",
                fix="make both partial, row_sum(True, onto=part), and complete the last: .total()",
            )
        if self.fade is not None and (
            self.onto is None or self.fade.type not in (vector, replace(vector, partial=False))
        ):
            raise TypeRuleError(
                f"{self.to}_{self.kind} of {type} with fade={self.fade.type}",
                fix=f"pass a {vector} as onto, and as fade",
            )
        if self.times is not None and (self.times.type != type or type.dtype.kind != "f" or self.kind != "sum"):
            raise TypeRuleError(
                f"row_dot of {type} and {self.times.type}", fix="pass two tiles of one type that hold floats"
            )
        return (vector,)

    def numpy(self, m: NumpyMachine) -> Any:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        array = compute(m[self.a], type.dtype)
        if self.times is not None:
            array = calculate("mul", array, compute(m[self.times], type.dtype))
        units, rows, cols = array.shape
        if self.partial and isinstance(type.layout, Coalesced):  # a warp holds every warps-th run of 32 threads
            array = array.reshape(units, rows, -1, type.warps, 32 * type.layout.width)
            out = combined(self.kind, array, (2, 4))
        elif self.to == "row" and self.partial:  # warps hold 16 rows in turn
            out = combined(self.kind, array.reshape(units, -1, type.warps, 16, cols), (1, 3)).swapaxes(1, 2)
        elif self.partial:  # the four threads of a row hold columns 2t and 2t + 1 of every eight
            out = combined(self.kind, array.reshape(units, rows, cols // 8, 4, 2), (2, 4))
        else:
            out = combined(self.kind, array, 2 if self.to == "col" else 1)
        if self.onto is not None:
            onto = compute(m[self.onto], type.dtype)
            if self.fade is not None:
                fade = compute(m[self.fade], type.dtype)
                onto = calculate("mul", onto, fade if fade.ndim == onto.ndim else fade[..., None])
            out = calculate(KINDS[self.kind], onto, out)
        return convert(out, type.dtype)

    def cuda(self, c: CudaWriter) -> None:
        tile, vector = self.a.type, self.result.type
        assert isinstance(tile, RegisterTile) and isinstance(vector, RegisterVector)
        pair, compute_c = pair_text(c, self.kind, tile.dtype), held_c(tile.dtype)
        acc = c.fresh("acc")
        if isinstance(tile.layout, Coalesced):
            self._coalesced(c, tile, vector, tile.layout, acc, pair)
            return
        start, r = c.scalar(identity(self.kind, tile.dtype), tile.dtype), Sym("i")
        if self.onto is not None:
            index = str(vector_register(tile, vector, r))
            c.line(f"{compute_c} {acc}[{vector.registers}];")
            c.line(
                f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {c.element(self.onto, Sym('i'))};"
            )
            term = self._added(c, pair, f"{acc}[{index}]", r)
            if self.fade is not None:  # the first element of the first pair of either row of a fragment
                first = f"i / 2 % {tile.registers // vector.registers} < 2 && i % 2 == 0"
                begin = self._added(c, pair, f"{acc}[{index}] * {c.element(self.fade, index)}", r)
                if self.times is None:
                    begin = f"fmaf({acc}[{index}], {c.element(self.fade, index)}, {c.element(self.a, r)})"
                term = f"{first} ? {begin} : {term}"
            c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {term};")
            lanes: tuple[int, ...] = (1, 2)
        elif (
            vector.ortho
        ):  # two chains for each result, and the two neighbours that share a row combined first: short chains
            c.line(f"{compute_c} {acc}[{2 * vector.registers}] = {{}};")
            if self.times is None:
                two = pair(c.element(self.a, r * 2), c.element(self.a, r * 2 + 1))
                more = pair(f"{acc}[{{index}}]", two)
            else:
                two = self._added(c, pair, f"{c.element(self.a, r * 2)} * {c.element(self.times, r * 2)}", r * 2 + 1)
                more = self._added(c, pair, self._added(c, pair, f"{acc}[{{index}}]", r * 2), r * 2 + 1)
            index, pairs = f"{vector_register(tile, vector, r * 2)} * 2 + i / 2 % 2", tile.registers // vector.registers
            c.line(
                f"PK_UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{"
            )  # no identity: the compiler keeps 0.0f + x and fmaxf(-inf, x)
            c.line(f"  {acc}[{index}] = i % {pairs} < 4 ? {two} : {more.format(index=index)}; }}")
            both = pair(f"{acc}[2 * i]", f"{acc}[2 * i + 1]")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {both};")
            lanes = (1, 2)
        else:
            c.line(f"{compute_c} {acc}[{vector.registers}];")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {acc}[i] = {start};")
            index = str(vector_register(tile, vector, r))
            term = self._added(c, pair, f"{acc}[{index}]", r)
            c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {term};")
            lanes = (4, 8, 16)
        if not self.partial or self.to == "row":
            combine_lanes(c, acc, vector.registers, pair, lanes)
        c.map(self.result, lambda r: f"{acc}[{r}]")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        (c,) = cotangents
        type, a = self.a.type, d.wide(self.a)
        if self.times is not None:
            factor, terms = d.wide(self.times), d.full(type, c)
            yield self.times, lambda: terms * a
            yield self.a, lambda: terms * factor
        else:
            yield self.a, lambda: reduction_share(d, self.kind, c, a, self.result, type)
        if self.onto is not None:
            onto, fade = self.onto, self.fade
            if self.kind != "sum":
                raise TypeRuleError(
                    f"the derivative of row_{self.kind} onto a vector", fix="reduce first, then combine"
                )
            yield onto, lambda: c if fade is None else c * fade
            if fade is not None:
                yield fade, lambda: d.summed(c * onto, fade.type)

    def _added(self, c: CudaWriter, pair: Pair, total: str, register: Sym) -> str:
        """C for a total with the term of one register."""
        term = c.element(self.a, register)
        return pair(total, term) if self.times is None else f"fmaf({term}, {c.element(self.times, register)}, {total})"

    def _coalesced(
        self, c: CudaWriter, tile: RegisterTile, vector: RegisterVector, layout: Coalesced, acc: str, pair: Pair
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
        start, ctype = c.scalar(identity(self.kind, tile.dtype), tile.dtype), held_c(tile.dtype)
        count = vector.registers * chains
        c.line(f"{ctype} {acc}[{count}];")
        c.line(f"PK_UNROLL for (int i = 0; i < {count}; i++) {acc}[i] = {start};")
        term = self._added(c, pair, f"{acc}[{index}]", Sym("i"))
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {acc}[{index}] = {term};")
        while chains > 1:
            chains //= 2
            both = pair(f"{acc}[2 * i]", f"{acc}[2 * i + 1]")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers * chains}; i++) {acc}[i] = {both};")
        combine_lanes(c, acc, vector.registers, pair, lanes)
        c.map(self.result, lambda r: f"{acc}[{r}]")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind in ("max", "min", "sum", "prod"):
            of = {"max": np.maximum, "min": np.minimum, "sum": np.add, "prod": np.multiply}
            formula = of[kind].reduce
            for dtype in (f32, bf16, i32, u32, i64):
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
                    {"kind": "max", "a": type, "to": "row"}, lambda a: np.maximum.reduce(a, axis=0), {"a": "special"}
                )  # zeros of either sign are the same
        run: dict[str, Any] = {"kind": "sum", "a": RegisterTile(f32, 32, 48), "to": "col", "partial": True}
        yield Sample(run, lambda a: a.sum(1))
        yield Sample(
            run | {"onto": RegisterVector(f32, 32, "col", partial=True)}, lambda a, onto: a.sum(1) + onto.sum(1)
        )
        fields = run | {"onto": RegisterVector(f32, 32, "col", partial=True), "fade": RegisterVector(f32, 32, "col")}
        yield Sample(fields, lambda a, onto, fade: a.sum(1) + onto.sum(1) * fade)
        for type in tiles(f32):
            if type.warps == 1 or not isinstance(type.layout, Coalesced):
                yield Sample(
                    {"kind": "sum", "a": type, "to": "col", "times": type}, lambda a, times: (a * times).sum(1)
                )
        run = {"kind": "max", "a": RegisterTile(f32, 32, 48), "to": "col", "onto": RegisterVector(f32, 32, "col")}
        yield Sample(run, lambda a, onto: np.maximum(a.max(1), onto), exact=True)


def reduction_share(d: Derivation, kind: str, c: Any, a: Any, y: Any, type: Type) -> Any:
    """The share of what was reduced in the cotangent of y: of extremes, all that are equal share it evenly."""
    terms = d.full(type, c)
    if kind == "sum":
        return terms
    if kind == "prod":  # with zeros, y / x does not say what the others' product is
        zero = a == 0
        count = d.reduced("sum", d.where(zero, d.full(type, 1.0), 0.0), y.type)
        others = d.reduced("prod", d.where(zero, d.full(type, 1.0), a), y.type)
        whole = d.where(zero, 0.0, d.full(type, others) / d.where(zero, 1.0, a))
        alone = d.where(zero, d.full(type, others), 0.0)
        return terms * d.where(d.full(type, count) == 0, whole, d.where(d.full(type, count) == 1, alone, 0.0))
    found = d.where(a == d.full(type, d.reduced(kind, a, y.type)), d.full(type, 1.0), 0.0)
    return terms * found / d.full(type, d.reduced("sum", found, y.type))


def combine_lanes(c: CudaWriter, acc: str, count: int, pair: Pair, lanes: tuple[int, ...]) -> None:
    """Combines `acc` with the lanes whose number differs in the given bits."""
    for lane in lanes:
        other = f"__shfl_xor_sync(0xffffffffu, {acc}[i], {lane})"
        c.line(f"PK_UNROLL for (int i = 0; i < {count}; i++) {acc}[i] = {pair(f'{acc}[i]', other)};")


@dataclass(eq=False)
class Total(Op):
    """A partial column vector, summed (or `kind`ed) over the four threads of each row."""

    scope: Scope
    kind: str
    a: Value

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, self.a.type.dtype)  # type: ignore[union-attr]

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "total")
        if not isinstance(type, RegisterVector) or not type.partial:
            raise TypeRuleError(f"total takes a partial vector, not {type}", fix="it is complete already")
        if isinstance(type.layout, Coalesced) or type.kind == "row":
            raise TypeRuleError(
                f"the terms of {type} lie in different warps",
                fix="reduce the tile with row_sum() or col_sum(), which meet in shared memory",
            )
        return (RegisterVector(type.dtype, type.length, type.kind, type.layout, type.warps),)

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = self.a.type.dtype  # type: ignore[union-attr]
        return convert(combined(self.kind, compute(m[self.a], dtype), 2), dtype)

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, RegisterVector)
        acc = c.fresh("acc")
        c.line(f"{held_c(type.dtype)} {acc}[{type.registers}];")
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[i] = {c.element(self.a, Sym('i'))};")
        combine_lanes(c, acc, type.registers, pair_text(c, self.kind, type.dtype), (1, 2))
        c.map(self.result, lambda r: f"{acc}[{r}]")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        if self.kind != "sum":
            raise TypeRuleError(f"the derivative of the {self.kind} of a partial vector", fix="reduce rows at once")
        return ((self.a, lambda: cotangents[0]),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        yield Sample({"kind": "sum", "a": RegisterVector(f32, 48, "col", partial=True)}, lambda a: a.sum(1))


@dataclass(eq=False)
class VectorReduce(Op):
    """`kind` over all elements of a warp's vector: a scalar, the same in all its lanes.

    Where the elements are spread over several warps (`divided`) it is one scalar for each: of what that warp holds.
    """

    scope: Scope
    kind: str
    a: Value

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, self.a.type.dtype)  # type: ignore[union-attr]

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return 1 if divided(self.a.type) else CLUSTER  # type: ignore[arg-type]

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, self.kind)
        if not isinstance(type, RegisterVector) or type.partial:
            raise TypeRuleError(
                f"{self.kind} to a scalar takes a complete vector, not {type}",
                fix="reduce the tile by rows or columns first",
            )
        check_numbers(self.kind, type)
        return (ScalarType(f32 if type.dtype.kind == "f" else type.dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        type = self.a.type
        assert isinstance(type, RegisterVector)
        array = compute(m[self.a], type.dtype)
        if not divided(type):
            return m.per_warp(combined(self.kind, array, 1))
        start = np.full((m.units, 1), identity(self.kind, type.dtype), array.dtype)  # a warp may hold nothing
        held = (np.unique(x[x >= 0]) for x in Registers(type).moves(type.shape, type.warps)[0])
        terms = [combined(self.kind, np.hstack([start, array[:, mine]]), 1) for mine in held]
        return np.stack(terms, axis=1).ravel()

    def cuda(self, c: CudaWriter) -> None:
        type = self.a.type
        assert isinstance(type, RegisterVector)
        pair = pair_text(c, self.kind, type.dtype)
        lanes: tuple[int, ...] = (4, 8, 16) if type.ortho else (1, 2)
        if type.kind == "naive":
            lanes = (1, 2, 4, 8, 16)
        elif isinstance(type.layout, Coalesced):  # the others hold copies
            lanes = tuple(x for x in (1, 2, 4, 8, 16) if (x < type.layout.lanes) == (type.kind == "row"))
        start = c.scalar(identity(self.kind, type.dtype), type.dtype)
        acc, r = c.fresh("acc"), Sym("i")
        term = str(c.element(self.a, r))
        if type.kind == "naive":
            term = f"({vector_element(type, c.warp(self.scope), c.lane, r)} < {type.length} ? {term} : {start})"
        c.line(f"{held_c(type.dtype)} {acc}[1] = {{{start}}};")
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[0] = {pair(f'{acc}[0]', term)};")
        combine_lanes(c, acc, 1, pair, lanes)
        c.define(self.result, f"{acc}[0]")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        (c,), type, a = cotangents, self.a.type, d.wide(self.a)
        return ((self.a, lambda: reduction_share(d, self.kind, c, a, self.result, type)),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for kind, formula in (("max", np.max), ("min", np.min), ("sum", np.sum)):
            for type in (
                RegisterTile(f32, 32, 48).vector("col"),
                RegisterTile(bf16, 32, 48).vector("row"),
                RegisterTile(f32, 32, 48, "col").vector("col"),
                RegisterVector(f32, 100, "naive", width=4),
                RegisterVector(i32, 33, "naive"),
                RegisterVector(i64, 33, "naive"),
                RegisterTile(f32, 64, 32, "row", 4).vector("row"),
                RegisterTile(f32, 8, 64, Coalesced(8, 4)).vector("col"),
                RegisterTile(f32, 8, 64, Coalesced(8, 4)).vector("row"),
                RegisterTile(f32, 3, 256, Coalesced(64, 2), 2).vector("col"),
            ):
                yield Sample({"kind": kind, "a": type}, lambda a, f=formula: f(a))


def divided(vector: RegisterVector) -> bool:
    """Whether each warp holds elements of a vector that others do not."""
    if isinstance(vector.layout, Coalesced) and vector.kind != "naive":
        return vector.kind == "row" and vector.warps > 1
    return vector.kind != "row" and vector.warps > 1
