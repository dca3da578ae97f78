"""Fills of a part of a tile, as ThunderKittens' right_fill and left_fill: what a row's end or a diagonal cuts off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, coalesced_column, fragment
from ..program import Op, Operand, Scope, Value
from ..types import Coalesced, RegisterTile, ScalarType, Type, bf16, f32, i32
from .maps import register_type
from .samples import Sample, tiles
from .scalars import scalar_dtype


@dataclass(eq=False)
class SideFill(Op):
    """A tile with `value` in the columns from `col` on ("right"), or before it ("left")."""

    scope: Scope
    side: Literal["right", "left"]
    a: Value
    col: Operand
    value: Operand

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, f"{self.side}_fill")
        if not isinstance(type, RegisterTile):
            raise TypeRuleError(f"{self.side}_fill takes a tile, not {type}", fix="compare pk.iota(v) for vectors")
        scalar_dtype(self.value)
        if (scalar_dtype(self.col) or i32).kind not in "iu":
            raise TypeRuleError(f"{self.side}_fill at column {self.col}", fix="the column is an integer")
        return (type,)

    def numpy(self, m: Any) -> Any:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        col, value = (x.reshape(-1, 1, 1) if isinstance(x, np.ndarray) else x for x in (m.unit_scalar(self.col), m.unit_scalar(self.value)))
        columns = np.arange(type.cols)[None, None, :]
        with np.errstate(all="ignore"):
            return np.where(columns >= col if self.side == "right" else columns < col, np.asarray(value, type.dtype.numpy), m[self.a])

    def cuda(self, c: Any) -> None:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        col, value, sign = c.scalar(self.col, i32), c.scalar(self.value, type.dtype), ">=" if self.side == "right" else "<"

        def one(register: Sym) -> str:
            keep = ""
            if isinstance(type.layout, Coalesced):
                layout, each = type.layout, type.cols // type.layout.lanes
                inner = register % each
                if isinstance(self.col, int):  # known when compiled: whole runs, and all but the last are on one side
                    if self.col % layout.width == 0:
                        inner = (inner // layout.width) * layout.width
                    if self.side == "right":
                        keep = f"{register % each} < {self.col // (layout.lanes * layout.width) * layout.width} || "
                column: Any = coalesced_column(layout, type.warps, c.warp(self.scope), c.lane, inner)
            else:
                column = fragment(type, c.warp(self.scope), c.lane, register)[1]
            a = c.element(self.a, register)
            return f"({keep}!({column} {sign} {col})) ? {a} : {value}"

        c.map(self.result, one)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (*tiles(f32), *tiles(bf16)[:2]):
            for side in ("right", "left"):
                for col in (0, 8, 13, 1000, -5, ScalarType(i32)):
                    fields = {"side": side, "a": type, "col": col, "value": 7.0}
                    yield Sample(fields, lambda side, a, col, value: np.where((np.arange(a.shape[1]) >= col) == (side == "right"), value, a), exact=True)
