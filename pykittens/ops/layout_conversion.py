"""Tiles and vectors in another register layout, or transposed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import Coalesced, Layout, RegisterTile, RegisterVector, Type, bf16, bool_, f16, f32, i32, u32
from .broadcast import register_type, registers_of
from .layout_route import Register, Source, lane_expression, lane_mask, route, spelled
from .samples import Sample

MOVMATRIX = """
__device__ __forceinline__ u32 pk_movmatrix(u32 x) {
  u32 r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}
"""


@dataclass(eq=False)
class ConvertLayout(Op):
    """The same elements in another register layout, or (`transpose`) those of the transposed tile.

    Three ways, the cheapest that there is. The column-layout fragment of a tile is the row-layout fragment of its
    transpose: the registers only get another name. 16-bit tiles go between row and column layout by 8 x 8 matrices
    (PTX "movmatrix"). All others go from lane to lane in shuffles, as `layout_route` finds: one for each register of
    the source that some lane of the warp needs for a register of the result. Elements do not leave their warp.
    """

    scope: Scope
    a: Value
    layout: Layout
    transpose: bool = False

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a = register_type(self.a, "transpose" if self.transpose else "swap_layout")
        if isinstance(a, RegisterVector) and (a.partial or a.kind == "naive" or self.transpose):
            raise TypeRuleError(
                f"{'transpose' if self.transpose else 'swap_layout'} of {a}",
                fix="sum it over its threads first: x.total()"
                if a.partial
                else "store it to a shared vector, and load that with load_col or load_row",
            )
        result = self._result(a)
        if route(a, result, self.transpose) is None:
            raise TypeRuleError(
                f"{a} to {result}: elements would leave their warps",
                fix=in_parts(self.scope, a) if self.transpose else through_shared(self.scope, a, self.layout),
            )
        return (result,)

    def _result(self, a: Register) -> Register:
        if isinstance(a, RegisterTile) and self.transpose:
            return RegisterTile(a.dtype, a.cols, a.rows, self.layout, a.warps)
        return replace(a, layout=self.layout)

    def numpy(self, m: NumpyMachine) -> Any:
        return m[self.a].swapaxes(1, 2).copy() if self.transpose else m[self.a].copy()

    def cuda(self, c: CudaWriter) -> None:
        a, out = self.a.type, self.result.type
        assert isinstance(a, (RegisterTile, RegisterVector)) and isinstance(out, (RegisterTile, RegisterVector))
        c.declare(self.result)
        sources = route(a, out, self.transpose)
        assert sources is not None
        if all(x == Source(tuple(range(32)), (i,) * 32) for i, x in enumerate(sources)):
            c.copy(self.result, self.a)
        elif a.dtype.packed and isinstance(a, RegisterTile) and not self.transpose and _matrices(a, out):
            self._move_matrices(c, a)
        elif a.dtype.packed:
            Shuffles(c, self.a, self.result).pairs(sources)
        else:
            Shuffles(c, self.a, self.result).elements(sources)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        layout = registers_of(self.a).layout
        return ((self.a, lambda: d.recorded(ConvertLayout(self.scope, cotangents[0], layout, self.transpose))),)

    def _move_matrices(self, c: CudaWriter, a: RegisterTile) -> None:
        c.prelude(MOVMATRIX)
        rows, cols, name = a.warp_rows // 16, a.cols // 16, c[self.result]
        source, target = (
            (f"(r * {cols} + s)", f"(s * {rows} + r)")
            if a.layout == "row"
            else (f"(s * {rows} + r)", f"(r * {cols} + s)")
        )
        c.line(f"PK_UNROLL for (int r = 0; r < {rows}; r++) PK_UNROLL for (int s = 0; s < {cols}; s++) {{")
        for to, origin in ((0, 0), (1, 2), (2, 1), (3, 3)):  # the middle matrices trade places
            c.line(f"{name}[{target} * 4 + {to}] = pk_movmatrix({c[self.a]}[{source} * 4 + {origin}]);")
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        def sample(type: Register, layout: Layout, transpose: bool = False) -> Sample:
            formula = (lambda a: a.T) if transpose else (lambda a: a)
            return Sample({"a": type, "layout": layout, "transpose": transpose}, formula, exact=True)

        layouts: tuple[Layout, ...] = ("row", "col", Coalesced(8, 4), Coalesced(32, 2))
        for dtype in (bf16, f16, f32, i32, u32, bool_):
            for own in layouts if dtype in (bf16, f32) else layouts[:3]:
                tile = RegisterTile(dtype, 32, 64, own)
                for other in layouts if dtype in (bf16, f32) else layouts[:2]:
                    if other != own:
                        yield sample(tile, other)
                        if dtype is f32 and other in ("row", "col"):
                            yield sample(tile.vector("col"), other)
                            yield sample(tile.vector("row"), other)
                yield sample(tile, "row" if own != "row" else "col", transpose=True)
        for dtype in (bf16, f32):  # the rows of a warp stay its own
            yield sample(RegisterTile(dtype, 64, 48, "row", 2), "col")


def _matrices(a: Register, out: Register) -> bool:
    return {a.layout, out.layout} == {"row", "col"}


def through_shared(scope: Scope, type: Register, layout: Layout) -> str:
    """How to change a layout where elements leave their warps."""
    if type.dtype in (u32, bool_):
        return f"make it in that layout: convert what it comes from, or load that with layout={spelled(layout)}"
    if isinstance(type, RegisterVector):
        load = {"col": "load_col", "row": "load_row"}.get(type.kind, "load_vec")
        place, load = f"pk.sv(pk.{type.dtype}, {type.length})", f"{scope}.{load}(t, layout={spelled(layout)})"
    else:
        place = f"pk.st(pk.{type.dtype}, {type.rows}, {type.cols})"
        load = f"{scope}.load(t, layout={spelled(layout)})"
    return f"go through shared memory: t = pk.shared({place}); {scope}.store(t, x); {scope}.sync(); y = {load}"


def in_parts(scope: Scope, type: Register) -> str:
    """How to transpose a tile of several warps."""
    rows, cols = type.shape
    if type.dtype in (u32, bool_) or cols % (16 * scope.warps) or rows % 16:
        return f"transpose it where one warp holds it: a tile made by the warp, not by {scope}"
    place, part = (
        f"pk.st(pk.{type.dtype}, {rows}, {cols})",
        f"t.part(0, {cols // scope.warps} * warp.index, {rows}, {cols // scope.warps})",
    )
    return (
        f"let each warp transpose a part: t = pk.shared({place}); {scope}.store(t, x); {scope}.sync();"
        f" y = warp.load({part}).transpose()"
    )


class Shuffles:
    """C that takes a warp's elements from lane to lane, each word of the source once for all lanes that want it."""

    def __init__(self, c: CudaWriter, source: Value, target: Value):
        self.c, self.source, self.target, self.dtype = c, c[source], c[target], registers_of(source).dtype
        self.fetched: dict[tuple[int, tuple[int, ...]], str] = {}
        self.lanes: dict[tuple[int, ...], str] = {}

    def elements(self, sources: tuple[Source, ...]) -> None:
        """A register holds an element."""
        self.c.line("{")
        for i, source in enumerate(sources):
            self.c.line(f"{self.target}[{i}] = {self._chosen(source.registers, source.lanes)};")
        self.c.line("}")

    def pairs(self, sources: tuple[Source, ...]) -> None:
        """A register holds two 16-bit elements: `__byte_perm` puts together a half of one word and one of another."""
        self.c.line("{")
        for i in range(0, len(sources), 2):
            low, high = sources[i], sources[min(i + 1, len(sources) - 1)]
            words = [self._chosen(tuple(r // 2 for r in x.registers), x.lanes) for x in (low, high)]
            odd = [[r % 2 == 1 for r in x.registers] for x in (low, high)]
            first, second = _either(odd[0], "0x32", "0x10"), _either(odd[1], "0x7600", "0x5400")
            same = words[0] == words[1] and not any(odd[0]) and all(odd[1])
            text = words[0] if same else f"__byte_perm({words[0]}, {words[1]}, {first} | {second})"
            self.c.line(f"{self.target}[{i // 2}] = {text};")
        self.c.line("}")

    def _chosen(self, registers: tuple[int, ...], lanes: tuple[int, ...]) -> str:
        """What every lane wants of the registers of other lanes; the lanes that are asked do not know which of
        theirs.
        """
        first, *others = sorted(set(registers))
        text = self._fetch(first, lanes)
        for register in others:
            mask = lane_mask([r == register for r in registers])
            text = f"({mask} >> lane & 1 ? {self._fetch(register, lanes)} : {text})"
        return text

    def _fetch(self, register: int, lanes: tuple[int, ...]) -> str:
        if lanes == tuple(range(32)):
            return f"{self.source}[{register}]"
        if (register, lanes) not in self.fetched:
            if lanes not in self.lanes:
                self.lanes[lanes] = self.c.fresh("from")
                self.c.line(f"const int {self.lanes[lanes]} = {lane_expression(lanes)};")
            ctype = "u32" if self.dtype.packed else self.dtype.c
            word = f"{'(int)' if self.dtype is bool_ else ''}{self.source}[{register}]"
            name = self.fetched[register, lanes] = self.c.fresh("got")
            self.c.line(f"const {ctype} {name} = __shfl_sync(0xffffffffu, {word}, {self.lanes[lanes]});")
        return self.fetched[register, lanes]


def _either(chosen: list[bool], yes: str, no: str) -> str:
    """C for one of two numbers, by the lane."""
    if len(set(chosen)) == 1:
        return yes if chosen[0] else no
    return f"({lane_mask(chosen)} >> lane & 1 ? {yes} : {no})"
