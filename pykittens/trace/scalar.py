"""Scalars with their operators, and variables: scalars that change."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import TraceError, TypeRuleError
from ..ops import scalar_arithmetic, scalar_functions, thread_indices, variables
from ..ops.scalars import THREAD
from ..program import Operand, Value
from ..types import DType, RegisterTile, RegisterVector, ScalarType, bool_, f32, i32, i64, u32
from .handle import Handle, Rounded, changes_in_place, number
from .recorder import record, result


class Scalar(Rounded, Handle):
    """A number known when the kernel runs, the same in all threads of a warp. Immutable; see `pk.var`."""

    type: ScalarType

    @property
    def dtype(self) -> DType:
        """The number's type."""
        return self.type.dtype

    def _binary(self, kind: str, a: Operand, b: Operand) -> Any:
        for x in (a, b):
            if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector)):
                return NotImplemented  # the tile's own operator does it
            if not isinstance(x, (Scalar, int, float)) and not hasattr(x, "__float__"):
                return NotImplemented
        return result(scalar_arithmetic.ScalarBinary(THREAD, kind, number(a), number(b)))

    def __add__(self, other: Operand) -> Any:
        return self._binary("add", self, other)

    def __radd__(self, other: Operand) -> Any:
        return self._binary("add", other, self)

    def __sub__(self, other: Operand) -> Any:
        return self._binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Any:
        return self._binary("sub", other, self)

    def __mul__(self, other: Operand) -> Any:
        return self._binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Any:
        return self._binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Any:
        return self._binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Any:
        return self._binary("div", other, self)

    def __floordiv__(self, other: Operand) -> Any:
        return self._binary("floordiv", self, other)

    def __rfloordiv__(self, other: Operand) -> Any:
        return self._binary("floordiv", other, self)

    def __mod__(self, other: Operand) -> Any:
        return self._binary("mod", self, other)

    def __rmod__(self, other: Operand) -> Any:
        return self._binary("mod", other, self)

    def __pow__(self, other: Operand) -> Any:
        """Of floats with any exponent, of integers with a Python int from 0 on. Small whole powers are products."""
        return self._binary("pow", self, other)

    def __rpow__(self, other: Operand) -> Any:
        return self._binary("pow", other, self)

    def __and__(self, other: Operand) -> Any:
        return self._binary("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Operand) -> Any:
        return self._binary("or", self, other)

    __ror__ = __or__

    def __xor__(self, other: Operand) -> Any:
        return self._binary("xor", self, other)

    __rxor__ = __xor__

    def __lshift__(self, other: Operand) -> Any:
        return self._binary("shl", self, other)

    def __rlshift__(self, other: Operand) -> Any:
        return self._binary("shl", other, self)

    def __rshift__(self, other: Operand) -> Any:
        return self._binary("shr", self, other)

    def __rrshift__(self, other: Operand) -> Any:
        return self._binary("shr", other, self)

    def __lt__(self, other: Operand) -> Any:
        return self._binary("lt", self, other)

    def __le__(self, other: Operand) -> Any:
        return self._binary("le", self, other)

    def __gt__(self, other: Operand) -> Any:
        return self._binary("gt", self, other)

    def __ge__(self, other: Operand) -> Any:
        return self._binary("ge", self, other)

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return self._binary("ne", self, other)

    __hash__ = Value.__hash__

    def __neg__(self) -> Scalar:
        return self._unary("neg")

    def __abs__(self) -> Scalar:
        return self._unary("abs")

    def __invert__(self) -> Scalar:
        return self._unary("not" if self.dtype is bool_ else "invert")

    def _unary(self, kind: str) -> Scalar:
        return result(scalar_functions.ScalarUnary(THREAD, kind, self))


class Variable(Scalar):
    """A mutable scalar: `x.set(value)`, `x[:] = value`, `x += 1`, `x //= 2` and the like."""

    def set(self, value: Operand) -> None:
        """Gives it a new `value`."""
        record(variables.SetVariable(THREAD, self, number(value)))

    def __setitem__(self, key: Any, value: Operand) -> None:
        if key != slice(None):
            raise TraceError("a variable is assigned as a whole", fix="x[:] = value")
        self.set(value)

    __hash__ = Value.__hash__


changes_in_place(Variable)


def cast(x: Operand, dtype: DType) -> Scalar:
    """A scalar `x` as another `dtype`, converted as tiles are: see `Tile.to`.

    Raises `TypeRuleError` for what is no dtype.
    """
    if not isinstance(dtype, DType):
        raise TypeRuleError(f"pk.cast to {dtype!r}", fix="name a dtype: pk.cast(x, pk.f32)")
    return result(scalar_functions.ScalarCast(THREAD, number(x), dtype))


def var(dtype: DType, initial: Operand = 0) -> Variable:
    """A mutable scalar, for state that changes in run-time loops and branches.

    `dtype`: i32, i64, u32, f32 or bool. `initial`: its first value.

    Raises `TypeRuleError` for another dtype.
    """
    if not isinstance(dtype, DType) or dtype not in (i32, i64, u32, f32, bool_):
        raise TypeRuleError(f"a variable of {dtype!r}", fix="name i32, i64, u32, f32 or bool_: pk.var(pk.f32, 0)")
    return result(variables.DeclareVariable(THREAD, dtype, number(initial)))


def cdiv(a: Any, b: Any) -> Any:
    """a / b rounded up, for integers: Python's or traced."""
    return (a + b - 1) // b


class _Axes:
    """`.x`, `.y`, `.z` of the block's index or of the grid's size."""

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, *axis: Any) -> NoReturn:
        word = f"pk.{'block_index' if self.kind == 'block' else 'grid_size'}"
        raise TraceError(f"{word} has three axes", fix=f"name one: {word}.x, {word}.y or {word}.z")

    __getitem__ = __call__

    def _axis(self, axis: str) -> Scalar:
        return result(thread_indices.Index(THREAD, f"{self.kind}_{axis}"))

    @property
    def x(self) -> Scalar:
        """Along the first axis of the grid."""
        return self._axis("x")

    @property
    def y(self) -> Scalar:
        """Along the second axis of the grid."""
        return self._axis("y")

    @property
    def z(self) -> Scalar:
        """Along the third axis of the grid."""
        return self._axis("z")


block_index, grid_size = _Axes("block"), _Axes("grid")
