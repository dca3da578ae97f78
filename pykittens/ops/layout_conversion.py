"""Tiles in another register layout, or transposed. Vectors: `vector_conversion.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import Coalesced, Layout, RegisterTile, RegisterVector, Type, bf16, bool_, f16, f32, i32, i64, u32
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
    the source that some lane of the warp needs for a register of the result. Elements do not leave their warp: where
    they would, `trace/layout_conversion.py` records an exchange through shared memory instead.
    """

    scope: Scope
    a: Value
    layout: Layout
    transpose: bool = False

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a, result = registers_of(self.a), converted(self.a, self.layout, self.transpose)
        assert isinstance(a, RegisterTile)
        if route(a, result, self.transpose) is None:
            word = "x.transpose()" if self.transpose else f"x.swap_layout({spelled(self.layout)})"
            raise TypeRuleError(
                f"{a} to {result}: elements would leave their warps",
                fix=f"write {word}, which goes through shared memory",
            )
        return (result,)

    def numpy(self, m: NumpyMachine) -> Any:
        return m[self.a].swapaxes(1, 2).copy() if self.transpose else m[self.a].copy()

    def cuda(self, c: CudaWriter) -> None:
        a, out = self.a.type, self.result.type
        assert isinstance(a, RegisterTile) and isinstance(out, RegisterTile)
        c.declare(self.result)
        sources = route(a, out, self.transpose)
        assert sources is not None
        if all(x == Source(tuple(range(32)), (i,) * 32) for i, x in enumerate(sources)):
            c.copy(self.result, self.a)
        elif a.dtype.packed and not self.transpose and _matrices(a, out):
            self._move_matrices(c, a)
        elif a.dtype.packed:
            Shuffles(c, self.a, self.result).pairs(sources)
        else:
            Shuffles(c, self.a, self.result).elements(sources)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        layout = registers_of(self.a).layout
        return ((self.a, lambda: d.converted(cotangents[0], layout, self.transpose)),)

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
        def sample(type: RegisterTile, layout: Layout, transpose: bool = False) -> Sample:
            formula = (lambda a: a.T) if transpose else (lambda a: a)
            return Sample({"a": type, "layout": layout, "transpose": transpose}, formula, exact=True)

        layouts: tuple[Layout, ...] = ("row", "col", Coalesced(8, 4), Coalesced(32, 2))
        for dtype in (bf16, f16, f32, i32, u32, i64, bool_):
            for own in layouts if dtype in (bf16, f32) else layouts[:3]:
                tile = RegisterTile(dtype, 32, 64, own)
                for other in layouts if dtype in (bf16, f32) else layouts[:2]:
                    if other != own:
                        yield sample(tile, other)
                yield sample(tile, "row" if own != "row" else "col", transpose=True)
        for dtype in (bf16, f32):  # the rows of a warp stay its own
            yield sample(RegisterTile(dtype, 64, 48, "row", 2), "col")


def converted(x: Value, layout: Layout, transpose: bool) -> Register:
    """The type of a tile or vector in another layout, or transposed; refuses what has none."""
    a = register_type(x, "transpose" if transpose else "swap_layout")
    if isinstance(a, RegisterVector) and (a.partial or a.kind == "naive" or transpose):
        raise TypeRuleError(
            f"{'transpose' if transpose else 'swap_layout'} of {a}",
            fix="sum it over its threads first: x.total()"
            if a.partial
            else "say what it shall be of: x.as_col(), x.as_row()",
        )
    if isinstance(a, RegisterTile) and transpose:
        return RegisterTile(a.dtype, a.cols, a.rows, layout, a.warps)
    return replace(a, layout=layout)


def _matrices(a: RegisterTile, out: RegisterTile) -> bool:
    return {a.layout, out.layout} == {"row", "col"}


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
