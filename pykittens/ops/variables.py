"""Scalars that change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import Numerics
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope, Value, values_in
from ..types import DType, ScalarType, Type, bool_, f32, i32, i64, u32
from .conversion import conversion_numerics
from .samples import Sample
from .scalars import as_dtype, as_number, check_fits, scalar_dtype


@dataclass(eq=False)
class DeclareVariable(Op):
    """A mutable scalar (`pk.var`) with its first value."""

    scope: Scope
    dtype: DType
    initial: Operand

    collective = False
    no_vjp = "variables are for loops: a scalar that an expression makes has a derivative"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(scalar_dtype(self.initial) or self.dtype, self.dtype)

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.initial)
        check_fits(self.initial, self.dtype, "a variable")
        return (ScalarType(self.dtype, mutable=True),)

    def numpy(self, m: NumpyMachine) -> Any:
        return as_number(m.scalar(self.initial), self.dtype)

    def cuda(self, c: CudaWriter) -> None:
        c.define(self.result, as_dtype(c, self.initial, self.dtype), mutable=True)

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
    no_vjp = DeclareVariable.no_vjp

    @property
    def dtype(self) -> DType:
        """The variable's dtype, which the value becomes."""
        type = self.variable.type
        assert isinstance(type, ScalarType)
        return type.dtype

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(scalar_dtype(self.value) or self.dtype, self.dtype)

    def types(self) -> tuple[Type, ...]:
        given, dtype = scalar_dtype(self.value), self.dtype
        if given is not None and given.kind == "f" and dtype.kind != "f":
            raise TypeRuleError(
                f"{self.variable.label} is {dtype}, the new value {given}",
                fix=f"convert with pk.cast(x, pk.{dtype})",
            )
        check_fits(self.value, dtype, f"{self.variable.label} = ...")
        return ()

    def depends_on(self) -> Iterable[Value]:
        return values_in(self.value)

    def numpy(self, m: NumpyMachine) -> None:
        m.assign(self.variable, as_number(m.scalar(self.value), self.dtype))

    def cuda(self, c: CudaWriter) -> None:
        c.line(f"{c[self.variable]} = {as_dtype(c, self.value, self.dtype)};")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (i32, i64, u32, f32, bool_):
            yield Sample(
                {"variable": ScalarType(dtype, mutable=True), "value": ScalarType(dtype)},
                lambda value: value,
                exact=True,
            )
        yield Sample({"variable": ScalarType(f32, mutable=True), "value": 3}, lambda value: value, exact=True)
