"""Loads and stores of a tile across shared memory: the transpose of what lies there, by ldmatrix and stmatrix (PTX
".trans"), which turn 8 x 8 matrices of 16-bit elements on their way.

The warps of a scope share the rows of the register tile, so the columns of the memory: what a product's register
operand wants where the other operand's way through memory is the transposed one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import TypeRuleError
from ..layouts import Sym, transposed_matrix_place
from ..loading import dataclass
from ..numerics import MOVES
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import Matrices
from ..types import RegisterTile, SharedTile, Type, bf16, f16
from .addressing import shared_address
from .broadcast import register_type
from .ldmatrix import LDMATRIX, STMATRIX, blocks_and_steps
from .samples import Sample


def _each_matrix(c: CudaWriter, scope: Scope, memory: Value, tile: RegisterTile, name: str, registers: str) -> None:
    """C that moves all 16 x 16 matrices of a tile."""
    blocks, steps = blocks_and_steps(tile)
    row, col = transposed_matrix_place(tile, c.warp(scope), c.lane, Sym("b"), Sym("s"))
    address, held = shared_address(c, memory, str(row), str(col)), f"{registers} + (b * {steps} + s) * 4"
    c.line(f"PK_UNROLL for (int b = 0; b < {blocks}; b++) PK_UNROLL for (int s = 0; s < {steps}; s++)")
    c.line(f"  {name}({f'{held}, {address}' if 'ld' in name else f'{address}, {held}'});")


@dataclass(eq=False)
class LoadTransposed(Op):
    """A new row-layout register tile with the transpose of a shared tile of 16-bit elements."""

    spelling = "{scope}.load_transposed"

    scope: Scope
    source: Value

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        source = self.source.type
        if not isinstance(source, SharedTile) or source.dtype not in (bf16, f16):
            raise TypeRuleError(
                f"load_transposed of {source}", fix="it takes shared tiles of bf16 and f16; load others with load"
            )
        return (self._type,)

    @property
    def _type(self) -> RegisterTile:
        source = self.source.type
        assert isinstance(source, SharedTile)
        return RegisterTile(source.dtype, source.cols, source.rows, "row", self.scope.warps)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.read(self.source).swapaxes(1, 2).copy()

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", Matrices(self._type, transposed=True)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(LDMATRIX)
        c.declare(self.result)
        _each_matrix(c, self.scope, self.source, self._type, "pk_ldmatrix_trans", c[self.result])

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (bf16, f16):
            yield Sample({"source": SharedTile(dtype, 32, 64)}, lambda source: source.T, exact=True)
        yield Sample({"source": SharedTile(bf16, 48, 128)}, lambda source: source.T, exact=True, warps=4)


@dataclass(eq=False)
class StoreTransposed(Op):
    """The transpose of a row-layout register tile into a shared tile of the same 16-bit dtype."""

    spelling = "{scope}.store_transposed"

    scope: Scope
    target: Value
    source: Value

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        source, target = register_type(self.source, "store_transposed"), self.target.type
        good = isinstance(source, RegisterTile) and source.layout == "row" and source.dtype in (bf16, f16)
        if not good or not isinstance(target, SharedTile) or target.dtype is not source.dtype:
            fix = "it takes a row-layout tile of bf16 or f16, converted with x.to(target.dtype), and a shared tile"
            raise TypeRuleError(f"store_transposed of {source} into {target}", fix=fix)
        if target.shape != source.shape[::-1]:
            fix = "the shared tile has as many rows as the register tile has columns, and the other way"
            raise TypeRuleError(f"store_transposed of {source} into {target}", fix=fix)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        m.write(self.target, m[self.source].swapaxes(1, 2))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", Matrices(self.source.type, transposed=True)),)  # type: ignore[arg-type]

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    def cuda(self, c: CudaWriter) -> None:
        c.require("stmatrix", self)
        c.prelude(STMATRIX)
        tile = self.source.type
        assert isinstance(tile, RegisterTile)
        _each_matrix(c, self.scope, self.target, tile, "pk_stmatrix_trans", c[self.source])

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (bf16, f16):
            fields = {"target": SharedTile(dtype, 32, 64), "source": RegisterTile(dtype, 64, 32)}
            yield Sample(fields, lambda source: source.T, exact=True)
        wide = {"target": SharedTile(bf16, 48, 128), "source": RegisterTile(bf16, 128, 48, "row", 4)}
        yield Sample(wide, lambda source: source.T, exact=True)
