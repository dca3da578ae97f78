"""Prefix sums and their like: each element of a row, a column or a vector combined with all that come before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import Coalesced, RegisterTile, RegisterVector, Type, bf16, f32, i32, i64, u32
from .arithmetic import calculate
from .broadcast import compute, register_type
from .conversion import convert
from .load_store import naive_limit
from .reduce import KINDS, check_numbers, held_c, identity, pair_text, reduction_numerics
from .samples import Sample, tiles, vectors

Along = Literal["row", "col"]


@dataclass(eq=False)
class Scan(Op):
    """`kind` over the beginning of each row (`along` "row"), each column or a vector, up to each element, itself
    included; `reverse`: over its end, from each element on.

    A thread combines its own neighbours, then what the threads before it in the line have (log2 of their number
    shuffles), then what came before those; 16-bit floats are combined as float32.
    """

    scope: Scope
    kind: str
    a: Value
    along: Along = "row"
    reverse: bool = False

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, self.a.type.dtype)  # type: ignore[union-attr]

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, f"cum{self.kind}")
        check_numbers(self.kind, type)
        if isinstance(type, RegisterVector) and type.partial:
            raise TypeRuleError(f"cum{self.kind} of {type}", fix="sum it first: x.total()")
        assert not crosses(type, self.along)  # `segment_scan`
        return (type,)

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = self.a.type.dtype  # type: ignore[union-attr]
        array = compute(m[self.a], dtype)
        axis = 1 if array.ndim == 2 or self.along == "col" else 2
        return convert(accumulated(self.kind, array, axis, self.reverse), dtype)

    def cuda(self, c: CudaWriter) -> None:
        acc = scan_c(c, self.scope, self.kind, self.a, self.along, self.reverse)
        c.map(self.result, lambda r: f"{acc}[{r}]")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        if self.kind != "sum":
            raise TypeRuleError(f"the derivative of cum{self.kind}", fix="only cumsum has a derivative")
        scan = Scan(self.scope, "sum", cotangents[0], self.along, not self.reverse)
        return ((self.a, lambda: d.recorded(scan)),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        of = {"max": np.maximum, "min": np.minimum, "sum": np.add, "prod": np.multiply}
        for kind, ufunc in of.items():
            for dtype in (f32, bf16, i32, u32, i64):
                floats = dtype.kind == "f"
                drawn = "ones" if kind == "prod" and floats else "counts" if dtype is u32 else "normal"
                for along, axis in (("row", 1), ("col", 0)):
                    fields = {"kind": kind, "a": RegisterTile(dtype, 16, 32), "along": along}
                    inputs = {"a": drawn if floats or dtype is u32 else "bits"}
                    exact = kind in ("max", "min") or not floats
                    yield Sample(fields, lambda a, f=ufunc, x=axis: f.accumulate(a, axis=x), inputs, exact=exact)
        for type in tiles(f32):
            for along, axis in (("row", 1), ("col", 0)):
                if crosses(type, along):
                    continue
                for reverse in (False, True):
                    step = -1 if reverse else 1
                    fields = {"kind": "sum", "a": type, "along": along, "reverse": reverse}
                    yield Sample(
                        fields,
                        lambda a, x=axis, s=step: np.flip(np.cumsum(np.flip(a, x), x), x) if s < 0 else np.cumsum(a, x),
                    )
        for vector in vectors(f32):
            if not crosses(vector):
                yield Sample({"kind": "sum", "a": vector}, lambda a: np.cumsum(a))
                fields = {"kind": "max", "a": vector, "reverse": True}
                yield Sample(fields, lambda a: np.maximum.accumulate(a[::-1])[::-1], exact=True)


def accumulated(kind: str, array: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
    """`kind` over the beginning (`reverse`: the end) of each line along an axis, up to each element."""
    lines = np.moveaxis(array, axis, 0)[:: -1 if reverse else 1].copy()
    for i in range(1, len(lines)):
        lines[i] = calculate(KINDS[kind], lines[i - 1], lines[i])
    return np.moveaxis(lines[:: -1 if reverse else 1], 0, axis)


def scan_c(
    c: CudaWriter,
    scope: Scope,
    kind: str,
    a: Value,
    along: str,
    reverse: bool,
    ended: Callable[[str, int, str], None] | None = None,
) -> str:
    """C of a scan; the name of the array that holds it. With `ended` of each segment alone: it writes what becomes of
    its total, given its name, its last register, and the condition that holds in the thread that has it.
    """
    type = a.type
    assert isinstance(type, (RegisterTile, RegisterVector))
    run, lanes, stride = segment_of(type, along)
    dtype = type.dtype
    pair, acc, kept = pair_text(c, kind, dtype), c.fresh("acc"), held_c(dtype)
    c.line(f"{kept} {acc}[{type.registers}];")
    term = str(c.element(a, Sym("i")))
    limit = naive_limit(type) if isinstance(type, RegisterVector) else 0
    if limit:
        inside = f"{vector_element(type, c.warp(scope), c.lane, Sym('i'))} < {limit}"  # type: ignore[arg-type]
        term = f"({inside}) ? {term} : {c.scalar(identity(kind, dtype), dtype)}"
    c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[i] = {term};")
    place, last = f"(lane / {stride} % {lanes})", f"lane % {stride} + lane / {stride * lanes} * {stride * lanes}"
    shift = "__shfl_up_sync"
    if reverse:
        place, shift = f"({lanes - 1} - {place})", "__shfl_down_sync"
    else:
        last += f" + {stride * (lanes - 1)}"
    for registers in lines(type, along):
        runs = [registers[i : i + run] for i in range(0, len(registers), run)]
        carry = ""
        for own in reversed(runs) if reverse else runs:
            own = own[::-1] if reverse else own
            for i, j in pairwise(own):
                c.line(f"{acc}[{j}] = {pair(f'{acc}[{i}]', f'{acc}[{j}]')};")
            before, total = carry, f"{acc}[{own[-1]}]"
            if lanes > 1:
                sum, other = c.fresh("sum"), c.fresh("other")
                c.line(f"{kept} {sum} = {total}, {other};")
                distance = 1
                while distance < lanes:
                    c.line(f"{other} = {shift}(0xffffffffu, {sum}, {distance * stride});")
                    c.line(f"if ({place} >= {distance}) {sum} = {pair(other, sum)};")
                    distance *= 2
                if ended:
                    ended(sum, own[-1], f"{place} == {lanes - 1}")
                c.line(f"{other} = {shift}(0xffffffffu, {sum}, {stride});")
                total = f"__shfl_sync(0xffffffffu, {sum}, {last})"
                before = f"{place} ? {pair(carry, other) if carry else other} : {carry or '0'}"
                whole = c.fresh("whole")
                c.line(f"const {kept} {whole} = {before};")
                guard = "" if carry else f"if ({place}) "
                before = whole
            else:
                guard = ""
            if before:
                for i in own:
                    c.line(f"{guard}{acc}[{i}] = {pair(before, f'{acc}[{i}]')};")
                if lanes == 1:
                    total = f"{acc}[{own[-1]}]"
            if ended:  # the next segment begins anew
                continue
            after = c.fresh("carry")
            c.line(f"const {kept} {after} = {pair(carry, total) if carry and lanes > 1 else total};")
            carry = after
    return acc


def segment_of(type: RegisterTile | RegisterVector, along: str = "row") -> tuple[int, int, int]:
    """How a line (a row, a column, a vector) is spread over a warp, in segments that follow one another: the neighbours
    of a thread, how many threads follow one another, and how far apart their lanes are.
    """
    layout = type.layout
    if isinstance(type, RegisterVector) and type.kind == "naive":
        return type.width, 32, 1
    if isinstance(layout, Coalesced):
        of_rows = along == "row" if isinstance(type, RegisterTile) else type.kind == "row"
        if of_rows:
            return layout.width, min(32, layout.lanes), 1
        return (1, 1, 1) if layout.lanes > 32 else (1, 32 // layout.lanes, layout.lanes)
    if isinstance(type, RegisterVector):
        return (1, 8, 4) if type.ortho else (2, 4, 1)
    return (2, 4, 1) if (along == "row") == (layout == "row") else (1, 8, 4)


def crosses(type: RegisterTile | RegisterVector, along: str = "row") -> bool:
    """Whether a line lies in several warps."""
    if type.warps == 1:
        return False
    if isinstance(type, RegisterVector):
        return type.kind == "naive" or (type.kind == "row" if isinstance(type.layout, Coalesced) else type.spread > 1)
    return along == ("row" if isinstance(type.layout, Coalesced) else "col")


def lines(type: RegisterTile | RegisterVector, along: str) -> list[list[int]]:
    """The registers of a thread in each line that it has elements of, in order."""
    registers = np.arange(type.registers)
    if isinstance(type, RegisterVector):
        return [sorted(registers.tolist(), key=lambda r: int(vector_element(type, 0, 0, r)))]
    row, col = fragment(type, 0, 0, registers)
    row, col = np.broadcast_to(row, registers.shape), np.broadcast_to(col, registers.shape)
    line, place = (row, col) if along == "row" else (col, row)
    return [
        sorted(registers[line == which].tolist(), key=lambda r: int(place[r])) for which in sorted(set(line.tolist()))
    ]
