"""Column reductions of a tile over several warps: each warp's terms into shared memory, and read back by all.

The tile lies in the tensor cores' fragments, so that each warp has rows of its own and all columns.
"""

from __future__ import annotations

from typing import Any

from ..layouts import Sym, vector_element
from ..loading import dataclass
from ..numerics import MOVES, Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import WarpLines
from ..types import RegisterVector, SharedVector, Type, f32, i32, i64, u32
from .addressing import MEMORY, VECTOR, vector_address
from .reduce import combined, pair_text, reduction_numerics


def line_vector(vector: RegisterVector) -> RegisterVector:
    """What one warp holds of a row vector."""
    return RegisterVector(vector.dtype, vector.length, "row", vector.layout)


@dataclass(eq=False)
class ShareColumns(Op):
    """The terms of a partial row vector into a shared vector: those of the first warp, of the second, and so on."""

    scope: Scope
    target: Value
    source: Value

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        vector, room = self.vector, SharedVector(self.vector.dtype, self.vector.length * self.vector.warps)
        assert vector.partial and self.target.type == room and vector.dtype in (f32, i32, u32, i64)
        return ()

    @property
    def vector(self) -> RegisterVector:
        type = self.source.type
        assert isinstance(type, RegisterVector)
        return type

    def numpy(self, m: NumpyMachine) -> None:
        m.write(self.target, m[self.source].swapaxes(1, 2).reshape(m.units, -1))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", WarpLines(line_vector(self.vector), own=True)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        vector = line_vector(self.vector)
        mine = f"{c.lane} % 4 == 0" if vector.ortho else f"{c.lane} / 4 == 0"
        at = vector_element(vector, 0, c.lane, Sym("i"))
        to = vector_address(c, self.target, Sym(f"({c.warp(self.scope)} * {vector.length} + {at})"))
        value = c.raw(f"{c[self.source]}[i]", vector.dtype)
        c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) if ({mine}) pk_st_shared({to}, {value});")


@dataclass(eq=False)
class CombineColumns(Op):
    """`kind` over the shared terms of every column: a complete row vector of type `vector`, the same in every warp."""

    scope: Scope
    kind: str
    source: Value
    vector: RegisterVector

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, self.vector.dtype)

    def types(self) -> tuple[Type, ...]:
        return (self.vector,)

    def numpy(self, m: NumpyMachine) -> Any:
        terms = m.read(self.source).reshape(-1, self.vector.warps, self.vector.length)
        return combined(self.kind, terms, 1)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", WarpLines(line_vector(self.vector), own=False)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        vector, acc = self.vector, c.fresh("acc")
        at = vector_element(line_vector(vector), 0, c.lane, Sym("i"))
        pair = pair_text(c, self.kind, vector.dtype)

        def term(warp: object) -> str:
            to = vector_address(c, self.source, Sym(f"({warp} * {vector.length} + {at})"))
            return str(c.bits(f"pk_ld_shared<{VECTOR[vector.dtype.size]}>({to})", vector.dtype))

        c.line(f"{vector.dtype.c} {acc}[{vector.registers}];")
        c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {{ {acc}[i] = {term(0)};")
        c.line(f"PK_UNROLL for (int w = 1; w < {vector.warps}; w++) {acc}[i] = {pair(f'{acc}[i]', term('w'))}; }}")
        c.map(self.result, f"{acc}[{{}}]".format)
