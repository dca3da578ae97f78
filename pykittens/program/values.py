"""Values, the scopes that work on them, and rectangles of global memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import Frame
from ..loading import dataclass
from ..types import Global, ScalarType, Type

if TYPE_CHECKING:  # who makes a value stands after it in the pipeline
    from .op import Block, Op


class Value:
    """What an operation made, or a parameter or buffer of the kernel.

    `name` is what a diagnosis calls it; `location` is the line that made it.
    """

    def __init__(self, type: Type, name: str = ""):
        self.type, self.name = type, name
        self.location: tuple[Frame, ...] = ()
        self.block: Block | None = None  # the region that made it; None for parameters and buffers
        self.producer: Op | None = None
        self.multiple = 1  # of an integer without a producer: a number it is certainly a multiple of
        self.most: int | None = None  # of integers: what is known to be no less than the size of any
        self.changes = False  # whether an operation changes it in place

    @property
    def label(self) -> str:
        """What an error calls it: its name, the expression that made it, or its type."""
        return self.name or (self.producer.expression if self.producer is not None else "") or str(self.type)


Operand = Any  # Value | int | float: a scalar operand may be a Python number, known at trace time


@dataclass(frozen=True)
class Scope:
    """The set of threads that does an operation together: `warps` consecutive warps."""

    name: str
    warps: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Place:
    """A rectangle (or run) of elements of a global tensor: first element and shape, in elements.

    `first` is (batch, depth, row, col). What lies past the end of rows or columns reads as zero
    and is not written; so do rows (of a run: elements) before or behind those of `within`, where it is given: (first,
    end). Coordinates along it may be negative then. `columns` keeps stores of coalesced tiles to columns in the same
    way; what a copy by TMA reads outside of them is unknown. A column vector of i32 as the row gathers: row i is row
    `vector[i]` of the tensor, and one that does not exist (negative, too) reads as zero and is not written.
    """

    tensor: Value
    first: tuple[Operand, Operand, Operand, Operand]
    shape: tuple[int, ...]  # (rows, cols), or (length,) along the columns
    within: tuple[Operand, Operand] | None = None
    columns: tuple[Operand, Operand] | None = None

    @property
    def type(self) -> Global:
        type = self.tensor.type
        assert isinstance(type, Global)
        return type

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def gathered(self) -> Value | None:
        """The vector of rows, where each row of the rectangle has one of its own."""
        row = self.first[2]
        return row if isinstance(row, Value) and not isinstance(row.type, ScalarType) else None

    def inside_columns(self) -> bool:
        """Whether no column can lie past the end, whatever the arguments are."""
        dim, col = self.type.padded[3], self.first[3]
        kept = self.columns is not None or (self.within is not None and len(self.shape) == 1)
        return not kept and isinstance(dim, int) and isinstance(col, int) and col + self.cols <= dim

    def inside_rows(self) -> bool:
        """Whether no row can lie past the end, whatever the arguments are."""
        dim, row = self.type.padded[2], self.first[2]
        kept = (self.within is not None and len(self.shape) == 2) or self.gathered is not None
        return not kept and isinstance(dim, int) and isinstance(row, int) and row + self.rows <= dim


def values_in(item: Any) -> list[Value]:
    """The values inside an operand: a value, a tuple or list of them, or a place."""
    if isinstance(item, Value):
        return [item]
    if isinstance(item, (tuple, list)):
        return [value for part in item for value in values_in(part)]
    return values_in((item.tensor, item.first, item.within, item.columns)) if isinstance(item, Place) else []


def mapped(item: Any, change: Callable[[Value], Value]) -> Any:
    """An operand with every value in it replaced by `change(value)`."""
    if isinstance(item, Value):
        return change(item)
    if isinstance(item, tuple):
        return tuple(mapped(part, change) for part in item)
    if isinstance(item, Place):
        kept = mapped(item.within, change), mapped(item.columns, change)
        return Place(change(item.tensor), mapped(item.first, change), item.shape, *kept)
    return item


def is_scalar(operand: Operand) -> bool:
    """Whether an operand is a number known now or a traced scalar."""
    return isinstance(operand, (bool, int, float)) or (
        isinstance(operand, Value) and isinstance(operand.type, ScalarType)
    )
