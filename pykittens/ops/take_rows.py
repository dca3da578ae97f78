"""Rows of a register tile taken by number: a gather whose places are known when the kernel is traced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import RegisterTile, Type, bf16, f32, i32
from .broadcast import register_type
from .layout_conversion import Shuffles
from .layout_route import row_route
from .samples import Sample


@dataclass(eq=False)
class TakeRows(Op):
    """A tile of the same type whose row i is row rows[i] of `a`: a shuffle for each register."""

    scope: Scope
    a: Value
    rows: tuple[int, ...]

    numerics = MOVES
    no_vjp = "rows may be taken twice, and their cotangents would meet: take rows of what has been differentiated"

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "take_rows")
        if not isinstance(type, RegisterTile) or len(self.rows) != type.rows:
            fix = "pass one row number for each row of a tile"
            raise TypeRuleError(f"take_rows of {type} with {len(self.rows)} rows", fix=fix)
        if not all(isinstance(row, int) and 0 <= row < type.rows for row in self.rows):
            raise TypeRuleError(f"take_rows of {type}: {self.rows}", fix=f"use Python ints from 0 to {type.rows - 1}")
        if row_route(type, self.rows) is None:
            fix = "take them in a tile that one warp holds, or go through shared memory"
            raise TypeRuleError(f"take_rows of {type}: rows would leave their warps", fix=fix)
        return (type,)

    def numpy(self, m: NumpyMachine) -> Any:
        return m[self.a][:, list(self.rows)]

    def cuda(self, c: CudaWriter) -> None:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        c.declare(self.result)
        sources = row_route(type, self.rows)
        assert sources is not None
        shuffles = Shuffles(c, self.a, self.result)
        (shuffles.pairs if type.dtype.packed else shuffles.elements)(sources)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (
            RegisterTile(f32, 32, 16),
            RegisterTile(bf16, 32, 16),
            RegisterTile(i32, 16, 32, "col"),
            RegisterTile(f32, 64, 16, "row", 4),
        ):
            for size in (2, 8):
                rows = tuple(i // size * size + size // 2 - 1 for i in range(type.rows))
                yield Sample({"a": type, "rows": rows}, lambda a, r=rows: a[list(r)], exact=True)
        reversed = tuple(range(31, -1, -1))
        yield Sample({"a": RegisterTile(f32, 32, 16), "rows": reversed}, lambda a: a[::-1], exact=True)
