"""Register tiles and vectors combined with global memory, atomically for each element (PTX "red"): added, or the lesser
or greater kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Place, Scope, Value
from ..thread_map import Registers
from ..types import Coalesced, DType, RegisterTile, RegisterVector, Type, bf16, f16, f32, i32, i64, u32
from .addressing import GlobalText, row_c
from .broadcast import registers_of
from .load_store import LAYOUTS, check_pair, naive_limit
from .red import check_combined, combined_numerics, needed, red, red_name
from .samples import Rectangle, Sample, cut, gathers, inside, pasted, tiles, vectors


@dataclass(eq=False)
class GlobalReduce(Op):
    """Each element of a rectangle becomes itself `kind` the element of a tile or vector; past the end nothing does."""

    spelling = "{scope}.{kind}"

    scope: Scope
    target: Place
    source: Value
    kind: Literal["add", "min", "max"]

    @property
    def name(self) -> str:
        return self.kind

    @property
    def dtype(self) -> DType:
        return self.target.type.dtype

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return combined_numerics(self.kind, self.dtype)

    def types(self) -> tuple[Type, ...]:
        check_pair(self.source, self.target, self.kind)
        check_combined(self.kind, self.source, self.target)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        m.reduce(self.target, m[self.source], self.kind)

    def effects(self) -> tuple[Effect, ...]:
        map = Registers(registers_of(self.source), once=True)
        return (Access(self.target, "reduce", map, order="relaxed", reduction=self.kind),)

    def cuda(self, c: CudaWriter) -> None:
        type = registers_of(self.source)
        if feature := needed(self.dtype):
            c.require(feature, self)
        c.prelude(red(self.kind, self.dtype))
        c.line("{")
        g, warp = GlobalText(c, self.target, const=False), c.warp(self.scope)
        if isinstance(type, RegisterTile):
            row, col = fragment(type, warp, c.lane, Sym("i"))
            row = row_c(c, self.target, type, row, Sym("i"))
            tests, place = [g.inside("r", "x")], "r"
            c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {{ const int r = {row}, x = {col};")
        else:
            tests, place = [*holds_once(c, self.scope, type), g.inside("0", "x")], "0"
            at = vector_element(type, warp, c.lane, Sym("i"))
            c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {{ const int x = {at};")
        guard = " && ".join(filter(None, tests))
        call = f"{red_name(self.kind, self.dtype)}({g.at(place, 'x')}, {c.moved(self.source, Sym('i'))});"
        c.line(f"{f'if ({guard}) ' if guard else ''}{call} }}")
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        combine = {"add": np.add, "min": np.minimum, "max": np.maximum}
        for kind, f in combine.items():
            few: list[RegisterTile | RegisterVector] = [RegisterTile(dtype, 16, 32) for dtype in (i32, u32, i64)]
            halves = RegisterTile(f16, 16, 32), RegisterTile(bf16, 16, 32, "col")
            for type in (*few, *halves, *tiles(f32), *vectors(i32)) if kind == "add" else (*few, *tiles(f32)[:2]):
                shape = type.shape if isinstance(type, RegisterTile) else (type.length,)
                rows, cols = (1, *shape)[-2:]
                for ragged in (False, True) if type.dtype is f32 else (True,):
                    size = (rows + 2, cols) if not ragged else (rows + 1, cols - 3)
                    place = Rectangle(type.dtype, shape, size, (2, 0), static=not ragged)
                    inputs = dict.fromkeys(("target", "source"), "counts" if type.dtype is u32 else "integers")
                    yield Sample(
                        {"target": place, "source": type, "kind": kind},
                        lambda target, source, p=place, f=f: pasted(target, f(cut(target, p), source), p),
                        inputs,
                        exact=True,
                        needs=needed(type.dtype),
                    )
        for layout in LAYOUTS:
            for place in gathers(f32, layout, once=False):

                def added(target: np.ndarray, source: np.ndarray, p: Rectangle = place) -> np.ndarray:
                    out = target.copy()
                    for row, mine in inside(out, p):
                        part = out[row, p.at[1] : p.at[1] + 32]
                        part += source[mine, : len(part)]
                    return out

                fields = {"target": place, "source": RegisterTile(f32, 16, 32, layout), "kind": "add"}
                yield Sample(fields, added, dict.fromkeys(("target", "source"), "integers"), exact=True)


def holds_once(c: CudaWriter, scope: Scope, vector: RegisterVector) -> list[str]:
    """C for: this thread is the one of those that hold an element of a vector which acts for it."""
    if vector.kind == "naive":
        return [f"x < {limit}"] if (limit := naive_limit(vector)) else []
    if isinstance(vector.layout, Coalesced):
        thread, lanes = c.thread(scope), vector.layout.lanes
        return [f"{thread} % {lanes} == 0" if vector.kind == "col" else f"{thread} / {lanes} == 0"]
    first = f"{c.lane} % 4 == 0" if vector.ortho else f"{c.lane} / 4 == 0"
    return [first, f"{c.warp(scope)} == 0" if vector.kind == "row" and vector.warps > 1 else ""]
