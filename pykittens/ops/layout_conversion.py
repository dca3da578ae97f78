"""Tiles in the other register layout, or transposed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import TypeRuleError
from ..numerics import MOVES
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import RegisterTile, Type, bf16, f16, f32
from .broadcast import register_type
from .samples import Sample

MOVMATRIX = """
__device__ __forceinline__ u32 pk_movmatrix(u32 x) { u32 r; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x)); return r; }
"""


@dataclass(eq=False)
class SwapLayout(Op):
    """The same elements in the other register layout, or the transposed elements in the same registers.

    `transpose` only renames: the column-layout fragment of a tile is the row-layout fragment of its transpose.
    Swapping a 16-bit tile moves 8 x 8 matrices with movmatrix (PTX "movmatrix").
    """

    scope: Scope
    a: Value
    transpose: bool

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a = register_type(self.a, "swap_layout")
        if not isinstance(a, RegisterTile) or (a.warps > 1):
            raise TypeRuleError(
                f"swap_layout and transpose take a warp's tile, not {a}", fix="go through a shared tile"
            )
        other = "col" if a.layout == "row" else "row"
        if self.transpose:
            return (RegisterTile(a.dtype, a.cols, a.rows, other),)  # type: ignore[arg-type]
        if not a.dtype.packed:
            raise TypeRuleError(
                f"swap_layout moves 16-bit floats, not {a.dtype}", fix="convert first, or go through a shared tile"
            )
        return (RegisterTile(a.dtype, a.rows, a.cols, other),)  # type: ignore[arg-type]

    def numpy(self, m: NumpyMachine) -> Any:
        return m[self.a].swapaxes(1, 2).copy() if self.transpose else m[self.a].copy()

    def cuda(self, c: CudaWriter) -> None:
        a, out = self.a.type, self.result.type
        assert isinstance(a, RegisterTile) and isinstance(out, RegisterTile)
        if self.transpose:
            c.declare(self.result)
            c.copy(self.result, self.a)
            return
        c.prelude(MOVMATRIX)
        c.declare(self.result)
        (rows, cols), name = (a.rows // 16, a.cols // 16), c[self.result]
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
        for layout in ("row", "col"):
            for dtype in (bf16, f16, f32):
                yield Sample({"a": RegisterTile(dtype, 32, 48, layout), "transpose": True}, lambda a: a.T, exact=True)
                if dtype is not f32:
                    yield Sample(
                        {"a": RegisterTile(dtype, 32, 48, layout), "transpose": False}, lambda a: a, exact=True
                    )
