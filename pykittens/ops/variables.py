"""Scalars that change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import TypeRuleError
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope, Value, values_in
from ..types import DType, ScalarType, Type, bool_, f32, i32, i64, u32
from .samples import Sample
from .scalars import scalar_dtype


@dataclass(eq=False)
class DeclareVariable(Op):
    """A mutable scalar (`pk.var`) with its first value."""

    scope: Scope
    dtype: DType
    initial: Operand

    collective = False

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.initial)
        return (ScalarType(self.dtype, mutable=True),)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.scalar(self.initial)

    def cuda(self, c: CudaWriter) -> None:
        c.define(self.result, c.scalar(self.initial, self.dtype), mutable=True)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, initial in ((i32, -3), (f32, 2), (f32, ScalarType(f32)), (i64, ScalarType(i64)), (bool_, True)):
            yield Sample({"dtype": dtype, "initial": initial}, lambda initial: initial, exact=True)


@dataclass(eq=False)
class SetVariable(Op):
    """Gives a variable a new value."""

    scope: Scope
    variable: Value
    value: Operand

    writes = ("variable",)
    collective = False

    def types(self) -> tuple[Type, ...]:
        type = self.variable.type
        assert isinstance(type, ScalarType)
        dtype = scalar_dtype(self.value)
        if dtype is not None and dtype.kind == "f" and type.dtype.kind != "f":
            raise TypeRuleError(
                f"{self.variable.label} is {type}, the new value {dtype}",
                fix=f"convert with pk.cast(x, pk.{type.dtype})",
            )
        return ()

    def depends_on(self) -> Iterable[Value]:
        return values_in(self.value)

    def numpy(self, m: NumpyMachine) -> None:
        m.assign(self.variable, m.scalar(self.value))

    def cuda(self, c: CudaWriter) -> None:
        type = self.variable.type
        assert isinstance(type, ScalarType)
        c.line(f"{c[self.variable]} = {c.scalar(self.value, type.dtype)};")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (i32, i64, u32, f32, bool_):
            yield Sample(
                {"variable": ScalarType(dtype, mutable=True), "value": ScalarType(dtype)},
                lambda value: value,
                exact=True,
            )
        yield Sample({"variable": ScalarType(f32, mutable=True), "value": 3}, lambda value: value, exact=True)
