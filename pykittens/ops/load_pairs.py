"""Even and odd columns of 8-bit floats in shared memory, as two f16 tiles: operands of the tensor cores without a way
back through memory.

ldmatrix deals out 16-bit elements; here each is a pair of neighbouring columns. So a thread finds, in the registers of
one fragment, both columns of every element that the fragment has, and parts them: of (a0, b0, a1, b1) come (a0, a1) and
(b0, b1), one byte permutation and two conversions (PTX ISA "prmt", "cvt"). A sum over columns does not ask for
their order: scores are the even columns' products and the odd ones'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ..errors import TypeRuleError
from ..layouts import Sym
from ..loading import dataclass
from ..numerics import EXACT
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import MatrixPairs
from ..types import RegisterTile, SharedTile, Type, e4m3, e5m2, f16
from .addressing import shared_address
from .conversion import convert
from .ldmatrix import LDMATRIX, blocks_and_steps, matrix_row_col
from .samples import Sample


@dataclass(eq=False)
class LoadPairs(Op):
    """Two f16 tiles, in a fragment's layout, with the even and the odd columns of a shared tile of 8-bit floats."""

    spelling = "{scope}.load_pairs"

    scope: Scope
    source: Value
    layout: Literal["row", "col"]

    numerics = EXACT.with_special("a NaN stays one")

    def types(self) -> tuple[Type, ...]:
        source = self.source.type
        if not isinstance(source, SharedTile) or source.dtype not in (e4m3, e5m2) or source.cols % 32:
            fix = "it takes shared tiles of e4m3 and e5m2 whose columns are a multiple of 32; load others with load"
            raise TypeRuleError(f"load_pairs of {source}", fix=fix)
        if self.layout not in ("row", "col"):
            raise TypeRuleError(f"load_pairs in layout {self.layout!r}", fix="the fragments are 'row' and 'col'")
        return (self._type, self._type)

    @property
    def _type(self) -> RegisterTile:
        source = self.source.type
        assert isinstance(source, SharedTile)
        return RegisterTile(f16, source.rows, source.cols // 2, self.layout, self.scope.warps)

    def numpy(self, m: NumpyMachine) -> Any:
        array = convert(m.read(self.source), f16)
        return array[:, :, 0::2], array[:, :, 1::2]

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", MatrixPairs(self._type)),)

    def cuda(self, c: CudaWriter) -> None:
        source = self.source.type
        assert isinstance(source, SharedTile)
        c.prelude(LDMATRIX)
        even, odd = (c.declare(x) for x in self.results)
        blocks, steps = blocks_and_steps(self._type)
        row, col = matrix_row_col(c, self.scope, self._type, "b", "s")
        address = shared_address(c, self.source, row, str(Sym(col) * 2))
        c.line(f"PK_UNROLL for (int b = 0; b < {blocks}; b++) PK_UNROLL for (int s = 0; s < {steps}; s++) {{")
        c.line(f"u32 v[4]; pk_ldmatrix{'_trans' if self.layout == 'col' else ''}(v, {address});")
        c.line("PK_UNROLL for (int i = 0; i < 4; i++) {")
        low, high = (f"{name}[(b * {steps} + s) * 4 + i]" for name in (even, odd))
        c.line(c.pairs_from_memory("__byte_perm(v[i], 0, 0x3120)", source.dtype, low, high))
        c.line("} }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, rows, cols in ((e4m3, 16, 128), (e4m3, 48, 32), (e5m2, 32, 96)):
            for layout in ("row", "col"):
                fields = {"source": SharedTile(dtype, rows, cols), "layout": layout}
                yield Sample(
                    fields,
                    lambda source: (source[:, 0::2], source[:, 1::2]),
                    exact=True,
                    needs="fp8 conversions",
                )
