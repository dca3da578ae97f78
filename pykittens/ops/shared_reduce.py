"""Register tiles and vectors combined with shared memory, atomically for each element (PTX "red"): added, or the lesser
or greater kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import Registers
from ..types import RegisterTile, RegisterVector, SharedTile, SharedVector, Type, bf16, f16, f32, i32, i64, u32
from .addressing import shared_address, vector_address
from .broadcast import registers_of
from .global_reduce import holds_once
from .load_store import check_pair
from .red import check_combined, combined_numerics, needed, red, red_name
from .samples import Sample, tiles, vectors


@dataclass(eq=False)
class SharedReduce(Op):
    """Each element of a shared tile or vector becomes itself `kind` the element of a register tile or vector."""

    spelling = "{scope}.{kind}"

    scope: Scope
    target: Value
    source: Value
    kind: Literal["add", "min", "max"]

    @property
    def name(self) -> str:
        return self.kind

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return combined_numerics(self.kind, registers_of(self.source).dtype, shared=True)

    def types(self) -> tuple[Type, ...]:
        check_pair(self.source, self.target, self.kind)
        check_combined(self.kind, self.source, self.target)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        array = m[self.source]
        vector = isinstance(self.target.type, SharedVector)
        m.reduce(self.target, array[:, 0] if vector and array.ndim == 3 else array, self.kind)  # the only row of a tile

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "reduce", Registers(registers_of(self.source), once=True), reduction=self.kind),)

    def cuda(self, c: CudaWriter) -> None:
        type, warp = registers_of(self.source), c.warp(self.scope)
        if feature := needed(type.dtype):
            c.require(feature, self)
        c.prelude(red(self.kind, type.dtype, shared=True))
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {{")
        if isinstance(type, RegisterTile):
            row, col = fragment(type, warp, c.lane, Sym("i"))
            c.line(f"const int r = {row}, x = {col};")
            guard = ""
        else:
            c.line(f"const int x = {vector_element(type, warp, c.lane, Sym('i'))};")
            guard = " && ".join(filter(None, holds_once(c, self.scope, type)))
        tile = isinstance(self.target.type, SharedTile)
        at = shared_address(c, self.target, "r", "x") if tile else vector_address(c, self.target, "x")
        name = red_name(self.kind, type.dtype, shared=True)
        c.line(f"{f'if ({guard}) ' if guard else ''}{name}({at}, {c.moved(self.source, Sym('i'))}); }}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        combine = {"add": np.add, "min": np.minimum, "max": np.maximum}
        for kind, f in combine.items():
            few = [RegisterTile(dtype, 16, 32) for dtype in (i32, u32, i64)]
            halves = [RegisterTile(f16, 16, 32), RegisterTile(bf16, 16, 32, "col")]
            layouts = [type for type in tiles(f32) if type.rows % 8 == 0]
            some: list[RegisterTile | RegisterVector] = [*few, *halves, *layouts, *vectors(i32)]
            for type in some if kind == "add" else [*few, *layouts[:2]]:
                tile = isinstance(type, RegisterTile)
                shared = (SharedTile if tile else SharedVector)(type.dtype, *type.shape)  # type: ignore[arg-type]
                yield Sample(
                    {"target": shared, "source": type, "kind": kind},
                    lambda target, source, f=f: f(target, source),
                    dict.fromkeys(("target", "source"), "counts" if type.dtype is u32 else "integers"),
                    exact=True,
                    needs=needed(type.dtype),
                )
