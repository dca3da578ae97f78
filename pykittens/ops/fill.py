"""What register tiles and vectors hold to begin with, or are changed to: fills, the numbers of their rows and
columns, assignments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element
from ..loading import dataclass
from ..numerics import EXACT, MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Operand, Scope, Shares, Value, is_scalar
from ..types import (
    REGISTER_DTYPES,
    RegisterTile,
    RegisterVector,
    ScalarType,
    Type,
    bf16,
    bool_,
    f16,
    f32,
    i32,
    with_dtype,
)
from .broadcast import Register, common_type, move, moved, register_type, registers_of, spread
from .samples import Sample, tiles, vectors
from .scalars import as_dtype, check_fits, scalar_dtype


@dataclass(eq=False)
class Fill(Op):
    """A new tile or vector, every element `value`."""

    scope: Scope
    type: Register
    value: Operand

    numerics = MOVES
    pointwise = True

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.value)
        check_fits(self.value, self.type.dtype, "a fill")
        return (self.type,)

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = self.type.dtype
        return spread(moved(self.value, self.type, dtype)(m), (m.units, *self.type.shape))

    def cuda(self, c: CudaWriter) -> None:
        c.map(self.result, lambda r: as_dtype(c, self.value, self.type.dtype))

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return ((self.value, lambda: cotangents[0]),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in REGISTER_DTYPES:
            for type in (*tiles(dtype), *vectors(dtype)) if dtype in (f32, bf16) else tiles(dtype)[:1]:
                yield Sample(
                    {"type": type, "value": True if dtype is bool_ else 3},
                    lambda type, value: np.full(type.shape, value),
                )
        for value in (-np.inf, np.nan, 1e-40, -0.1, 3e38):
            yield Sample(
                {"type": RegisterTile(f32, 16, 16), "value": value}, lambda value: np.full((16, 16), value), exact=True
            )
        yield Sample(
            {"type": RegisterTile(bf16, 16, 16), "value": ScalarType(f32)},
            lambda value: np.full((16, 16), value),
            exact=True,
        )
        yield Sample(
            {"type": RegisterVector(i32, 32, "col"), "value": ScalarType(i32)}, lambda value: np.full(32, value)
        )


@dataclass(eq=False)
class Positions(Op):
    """The index of every row (column vector) or column (row vector) of a tile, or element of a vector, as int32.

    anew: NVRTC does not know that they are those that it has, and so keeps no registers for what follows from them.
    """

    scope: Scope
    type: RegisterVector
    anew: bool = False

    numerics = EXACT

    def types(self) -> tuple[Type, ...]:
        return (replace(self.type, dtype=i32, partial=False),)

    def numpy(self, m: NumpyMachine) -> Any:
        return np.broadcast_to(np.arange(self.type.length, dtype=np.int32), (m.units, self.type.length)).copy()

    def cuda(self, c: CudaWriter) -> None:
        type = self.result.type
        assert isinstance(type, RegisterVector)
        lane = c.lane
        if self.anew:
            lane = Sym(c.fresh("lane"))
            c.line(f'int {lane} = {c.lane}; asm volatile("" : "+r"({lane}));')
        c.map(self.result, lambda r: str(vector_element(type, c.warp(self.scope), lane, r)))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (*vectors(f32), *(tile.vector(kind) for tile in tiles(bf16) for kind in ("col", "row"))):
            yield Sample({"type": type}, lambda type: np.arange(type.length))
        yield Sample({"type": vectors(f32)[0], "anew": True}, lambda type: np.arange(type.length))


@dataclass(eq=False)
class Assign(Op):
    """`x[:] = value`: changes a tile or vector in place."""

    scope: Scope
    target: Value
    value: Operand

    writes = ("target",)
    numerics = MOVES
    pointwise = True

    def types(self) -> tuple[Type, ...]:
        target = register_type(self.target, "x[:] = ...")
        self.target.changes = True
        if is_scalar(self.value):
            scalar_dtype(self.value)
            check_fits(self.value, target.dtype, "x[:] = ...")
            return ()
        shape = common_type("x[:] = ...", self.target, self.value)
        value = self.value.type
        if shape != with_dtype(target, shape.dtype) or (
            isinstance(target, RegisterVector) and getattr(value, "partial", False) and not target.partial
        ):
            raise TypeRuleError(
                f"a {value} cannot be stored into a {target}", fix="make the target with the type of the value"
            )
        if value.dtype != target.dtype:
            raise TypeRuleError(
                f"a {value} cannot be stored into a {target}", fix=f"convert it: value.to(pk.{target.dtype})"
            )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        target = registers_of(self.target)
        value = moved(self.value, target, target.dtype)(m)
        m.assign(self.target, spread(value, (m.units, *target.shape)))

    def cuda(self, c: CudaWriter) -> None:
        type = registers_of(self.target)
        if not is_scalar(self.value) and self.value.type == type:
            c.copy(self.target, self.value)
        else:
            c.map(self.target, lambda r: move(c, self.value, type, r, type.dtype), declare=False)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return ((self.value, lambda: cotangents[0]),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in REGISTER_DTYPES:
            yield Sample(
                {"target": RegisterTile(dtype, 16, 32), "value": RegisterTile(dtype, 16, 32)},
                lambda value: value,
                exact=True,
            )
        for type in (*tiles(f32), *tiles(f16)):
            yield Sample(
                {"target": type, "value": type.vector("row")}, lambda target, value: target * 0 + value, exact=True
            )
            yield Sample(
                {"target": type, "value": ScalarType(f32)}, lambda target, value: target * 0 + value, exact=True
            )
        for vector in vectors(bf16):
            yield Sample({"target": vector, "value": vector}, lambda value: value, exact=True)
