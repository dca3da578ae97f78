"""Choices between elements: by a mask, or by what a row's end or a diagonal cuts off (ThunderKittens' right_fill and
left_fill).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, coalesced_column, fragment
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Operand, Scope, Shares, Value, is_scalar
from ..types import REGISTER_DTYPES, Coalesced, RegisterTile, ScalarType, Type, bf16, bool_, f32, i32, with_dtype
from .addressing import certain, known_multiple
from .broadcast import Fetch, common_type, move, moved, operand, read, register_type, registers_of, same_dtype, spread
from .samples import Sample, tiles
from .scalars import check_fits, promoted, scalar_dtype


@dataclass(eq=False)
class Select(Op):
    """a where the mask holds, else b (`pk.where`)."""

    scope: Scope
    mask: Operand
    a: Operand
    b: Operand

    numerics = MOVES
    pointwise = True

    def types(self) -> tuple[Type, ...]:
        dtype = scalar_dtype(self.mask) if is_scalar(self.mask) else register_type(self.mask, "where").dtype
        if dtype is not bool_:
            mask = self.mask.type if isinstance(self.mask, Value) else self.mask
            raise TypeRuleError(
                f"where chooses by a bool mask, not {mask}", fix="compare first, e.g. pk.where(x > 0, x, 0)"
            )
        shape = common_type("where", self.mask, *(x for x in (self.a, self.b)))
        values = [x for x in (self.a, self.b) if not is_scalar(x)]
        dtype = same_dtype("where", *values, self.a, self.b) if values else promoted(self.a, self.b)
        return (with_dtype(shape, dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        shape = registers_of(self.result)
        mask, a, b = self._fetched
        return spread(np.where(mask(m), a(m), b(m)), (m.units, *shape.shape))

    @functools.cached_property
    def _fetched(self) -> tuple[Fetch, Fetch, Fetch]:
        shape = registers_of(self.result)
        a, b = (moved(x, shape, shape.dtype) for x in (self.a, self.b))
        return operand(self.mask, shape, bool_), a, b

    def cuda(self, c: CudaWriter) -> None:
        shape = registers_of(self.result)
        dtype = shape.dtype
        c.map(
            self.result,
            lambda r: (
                f"{read(c, self.mask, shape, r, bool_)} ? {move(c, self.a, shape, r, dtype)} : "
                f"{move(c, self.b, shape, r, dtype)}"
            ),
        )

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        (c,) = cotangents
        return (self.a, lambda: d.where(self.mask, c, 0.0)), (self.b, lambda: d.where(self.mask, 0.0, c))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in REGISTER_DTYPES:
            tile = RegisterTile(dtype, 16, 32)
            yield Sample(
                {"mask": with_dtype(tile, bool_), "a": tile, "b": tile},
                lambda mask, a, b: np.where(mask, a, b),
                exact=True,
            )
        for type in tiles(f32):
            fields = {"mask": with_dtype(type, bool_), "a": type.vector("col"), "b": -math.inf}
            yield Sample(fields, lambda mask, a, b: np.where(mask, a[:, None], b), exact=True)
            yield Sample(
                {"mask": with_dtype(type.vector("row"), bool_), "a": type, "b": ScalarType(f32)},
                lambda mask, a, b: np.where(mask[None], a, b),
                exact=True,
            )
        tile = RegisterTile(f32, 16, 32)
        chosen: dict[str, Any] = {"mask": ScalarType(bool_), "a": tile, "b": tile.vector("col")}
        yield Sample(chosen, lambda mask, a, b: np.where(mask, a, b[:, None]), exact=True)
        yield Sample({"mask": RegisterTile(bool_, 16, 32), "a": 1, "b": 0}, lambda mask: np.where(mask, 1, 0))
        yield Sample(
            {"mask": RegisterTile(bool_, 16, 32), "a": 1.5, "b": 0.5}, lambda mask: np.where(mask, 1.5, 0.5), exact=True
        )


@dataclass(eq=False)
class SideFill(Op):
    """A tile with `value` in the columns from `col` on ("right"), or before it ("left")."""

    scope: Scope
    side: Literal["right", "left"]
    a: Value
    col: Operand
    value: Operand

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, f"{self.side}_fill")
        if not isinstance(type, RegisterTile):
            raise TypeRuleError(f"{self.side}_fill takes a tile, not {type}", fix="compare pk.iota(v) for vectors")
        scalar_dtype(self.value)
        check_fits(self.value, type.dtype, f"{self.side}_fill")
        if (scalar_dtype(self.col) or i32).kind not in "iu":
            raise TypeRuleError(f"{self.side}_fill at column {self.col}", fix="the column is an integer")
        return (type,)

    def numpy(self, m: NumpyMachine) -> Any:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        col, value = m.unit_scalar(self.col), moved(self.value, type, type.dtype)(m)
        col = col.reshape(-1, 1, 1) if isinstance(col, np.ndarray) else col
        columns = np.arange(type.cols)[None, None, :]
        filled = columns >= col if self.side == "right" else columns < col
        return np.where(filled, value, m[self.a])

    def cuda(self, c: CudaWriter) -> None:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        col, value, sign = (
            c.scalar(self.col, i32),
            move(c, self.value, type, Sym("i"), type.dtype),
            ">=" if self.side == "right" else "<",
        )

        def one(register: Sym) -> str:
            keep = ""
            if isinstance(type.layout, Coalesced):
                layout, each = type.layout, type.cols // type.layout.lanes
                inner, apart = register % each, layout.lanes * layout.width
                known = certain(self.col, "max" if self.side == "right" else "min")
                if known is not None:  # runs that lie on the kept side whatever the column is
                    sure = known // apart if self.side == "right" else -(-known // apart)
                    keep = f"{inner} {'<' if self.side == 'right' else '>='} {sure * layout.width} || "
                if known_multiple(self.col) % layout.width == 0:  # whole runs are on one side
                    inner = (inner // layout.width) * layout.width
                column: Any = coalesced_column(layout, type.warps, c.warp(self.scope), c.lane, inner)
            else:
                column = fragment(type, c.warp(self.scope), c.lane, register)[1]
            a = c.moved(self.a, register)
            return f"({keep}!({column} {sign} {col})) ? {a} : {value}"

        c.map(self.result, one)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        other: Literal["right", "left"] = "left" if self.side == "right" else "right"

        def kept(side: Literal["right", "left"]) -> Any:
            return d.recorded(SideFill(self.scope, side, cotangents[0], self.col, 0.0))

        return (self.a, lambda: kept(self.side)), (self.value, lambda: kept(other))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (*tiles(f32), *tiles(bf16)[:2]):
            for side in ("right", "left"):
                for col in (0, 8, 13, 1000, -5, ScalarType(i32)):
                    fields = {"side": side, "a": type, "col": col, "value": 7.0}
                    yield Sample(
                        fields,
                        lambda side, a, col, value: np.where(
                            (np.arange(a.shape[1]) >= col) == (side == "right"), value, a
                        ),
                        exact=True,
                    )
