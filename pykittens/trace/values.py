"""What kernel code holds: scalars, register tiles and vectors, shared tiles, tensors, each with its operators.

They are the `Value`s of the program; an operator records an operation and returns its result.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import TraceError, TypeRuleError, user_frame_objects
from ..ops import binary, element, fill, pairs, parts, reduce, scalars, swap, unary, views
from ..ops.sync import NamedBarrierType
from ..program import Operand, Place, Value
from ..types import BarrierType, Coalesced, DType, Global, RegisterTile, RegisterVector, ScalarType, SharedVector, Type, bool_, i32
from . import recorder
from .recorder import record, result, scope_of

THREAD = scalars.THREAD


def _refuse_bool(value: Value) -> NoReturn:
    raise TraceError(
        f"a Python condition on {value.label}, which is known only when the kernel runs",
        fix="write `with pk.when(condition):` for statements, pk.where(condition, a, b) for values",
    )


class Handle(Value):
    """Common to all values: they have no truth value, and compare by operators, not by identity."""

    __hash__ = Value.__hash__
    __array_ufunc__ = None  # NumPy's operators leave theirs to ours

    @property
    def label(self) -> str:
        """What an error calls it: the user's name for it, where there is one by now."""
        if not self.name and recorder.recording():
            recorder.name_locals(user_frame_objects())
        return super().label

    def __bool__(self) -> bool:
        _refuse_bool(self)

    def __index__(self) -> int:
        raise TraceError(
            f"{self.label} is known only when the kernel runs, so it cannot index a Python sequence or count a Python loop",
            fix="loop with pk.range, keep tiles in shared memory to index them, or use a Python int",
        )

    __int__ = __index__

    def __float__(self) -> float:
        raise TraceError(f"{self.label} is known only when the kernel runs", fix="use it in tile arithmetic, or pk.cast(x, pk.f32) to convert")

    def __len__(self) -> int:
        raise TraceError(f"{self.label}: {self.type} has no Python length", fix="use .rows and .cols")

    def __iter__(self) -> Any:
        raise TraceError(f"{self.label}: {self.type} cannot be iterated", fix="operate on the whole tile")

    def __repr__(self) -> str:
        return f"<{self.label}: {self.type}>" if self.name else f"<{self.type}>"


class Scalar(Handle):
    """A number known when the kernel runs, the same in all threads of a warp. Immutable; see `pk.var`."""

    type: ScalarType

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def _binary(self, kind: str, a: Operand, b: Operand) -> Any:
        for x in (a, b):
            if isinstance(x, Tile):
                return NotImplemented
            if not isinstance(x, (Scalar, int, float)) and not hasattr(x, "__float__"):
                return NotImplemented
        return result(scalars.ScalarBinary(THREAD, kind, _number(a), _number(b)))

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
        return result(scalars.ScalarUnary(THREAD, "neg", self))  # type: ignore[no-any-return]

    def __abs__(self) -> Scalar:
        return result(scalars.ScalarUnary(THREAD, "abs", self))  # type: ignore[no-any-return]

    def __invert__(self) -> Scalar:
        return result(scalars.ScalarUnary(THREAD, "not", self))  # type: ignore[no-any-return]


class Variable(Scalar):
    """A mutable scalar: `x.set(value)`, `x[:] = value`, `x += 1`."""

    def set(self, value: Operand) -> None:
        record(scalars.SetVariable(THREAD, self, _number(value)))

    def __setitem__(self, key: Any, value: Operand) -> None:
        if key != slice(None):
            raise TraceError("a variable is assigned as a whole", fix="x[:] = value")
        self.set(value)

    def __iadd__(self, other: Operand) -> Variable:
        self.set(self + other)
        return self

    def __isub__(self, other: Operand) -> Variable:
        self.set(self - other)
        return self

    def __imul__(self, other: Operand) -> Variable:
        self.set(self * other)
        return self

    def __ixor__(self, other: Operand) -> Variable:
        self.set(self ^ other)
        return self

    __hash__ = Value.__hash__


def _number(x: Any) -> Operand:
    """NumPy numbers as Python ones; everything else as it is."""
    return x.item() if hasattr(x, "item") and not isinstance(x, Value) and getattr(x, "ndim", 1) == 0 else x


def _captured(x: Any) -> None:
    if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, Value) and getattr(x, "ndim", 1):
        raise TraceError(f"an array of shape {tuple(x.shape)} is captured by the kernel", fix="pass it to the kernel as an operand")


class Tile(Handle):
    """A register tile or vector. Expressions make new ones; `x[:] = ...`, `+=`, `*=` change one in place."""

    type: RegisterTile | RegisterVector

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def rows(self) -> int:
        return self.type.rows if isinstance(self.type, RegisterTile) else self.type.length

    @property
    def cols(self) -> int:
        if not isinstance(self.type, RegisterTile):
            raise TypeRuleError(f"{self.type} has no columns", fix="use .length")
        return self.type.cols

    @property
    def length(self) -> int:
        if not isinstance(self.type, RegisterVector):
            raise TypeRuleError(f"{self.type} has no length", fix="use .rows and .cols")
        return self.type.length

    def _binary(self, kind: str, a: Operand, b: Operand) -> Any:
        _captured(a)
        _captured(b)
        return result(binary.Binary(scope_of(self.type.warps), kind, _number(a), _number(b)))

    def __add__(self, other: Operand) -> Tile:
        return self._binary("add", self, other)

    def __radd__(self, other: Operand) -> Tile:
        return self._binary("add", other, self)

    def __sub__(self, other: Operand) -> Tile:
        return self._binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Tile:
        return self._binary("sub", other, self)

    def __mul__(self, other: Operand) -> Tile:
        return self._binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Tile:
        return self._binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Tile:
        return self._binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Tile:
        return self._binary("div", other, self)

    def __and__(self, other: Operand) -> Tile:
        return self._binary("and", self, other)

    def __or__(self, other: Operand) -> Tile:
        return self._binary("or", self, other)

    def __xor__(self, other: Operand) -> Tile:
        return self._binary("xor", self, other)

    def __lshift__(self, other: Operand) -> Tile:
        return self._binary("shl", self, other)

    def __rshift__(self, other: Operand) -> Tile:
        return self._binary("shr", self, other)

    def __lt__(self, other: Operand) -> Tile:
        return self._binary("lt", self, other)

    def __le__(self, other: Operand) -> Tile:
        return self._binary("le", self, other)

    def __gt__(self, other: Operand) -> Tile:
        return self._binary("gt", self, other)

    def __ge__(self, other: Operand) -> Tile:
        return self._binary("ge", self, other)

    def __eq__(self, other: object) -> Tile:  # type: ignore[override]
        return self._binary("eq", self, other)

    def __ne__(self, other: object) -> Tile:  # type: ignore[override]
        return self._binary("ne", self, other)

    __hash__ = Value.__hash__

    def __neg__(self) -> Tile:
        return self._unary("neg")

    def __invert__(self) -> Tile:
        return self._unary("not")

    def __abs__(self) -> Tile:
        return self._unary("abs")

    def _unary(self, kind: str) -> Tile:
        return result(unary.Unary(scope_of(self.type.warps), kind, self))  # type: ignore[no-any-return]

    def __setitem__(self, key: Any, value: Operand) -> None:
        if not (isinstance(key, slice) and key == slice(None)):
            raise TraceError(
                "a register tile is assigned as a whole: its elements lie in different threads", fix="x[:] = value, with pk.where to choose elements"
            )
        _captured(value)
        record(fill.Assign(scope_of(self.type.warps), self, _number(value)))

    def __getitem__(self, key: Any) -> Tile:
        """A part of a tensor-core tile as a new tile: `acc[:, 64:128]`."""
        if not (isinstance(self.type, RegisterTile) and isinstance(key, tuple) and len(key) == 2 and all(isinstance(k, slice) for k in key)):
            raise TraceError(
                "a register tile has no elements to index: they lie in different threads", fix="take a part: x[:, 0:64], or go through shared memory"
            )
        (row, rows), (col, cols) = (_extent(k, n) for k, n in zip(key, self.type.shape, strict=True))
        return result(parts.TilePart(scope_of(self.type.warps), self, row, col, rows, cols))  # type: ignore[no-any-return]

    def _inplace(self, kind: str, other: Operand) -> Tile:
        self[:] = self._binary(kind, self, other)
        return self

    def __iadd__(self, other: Operand) -> Tile:
        return self._inplace("add", other)

    def __isub__(self, other: Operand) -> Tile:
        return self._inplace("sub", other)

    def __imul__(self, other: Operand) -> Tile:
        return self._inplace("mul", other)

    def __itruediv__(self, other: Operand) -> Tile:
        return self._inplace("div", other)

    def to(self, dtype: DType) -> Tile:
        """The same elements as another dtype, rounded to nearest even."""
        if dtype == self.type.dtype:
            return self
        return result(unary.Convert(scope_of(self.type.warps), self, dtype))  # type: ignore[no-any-return]

    def _reduce(self, kind: str, to: Any, partial: bool = False, cluster: bool = False) -> Tile:
        if to == "col" and isinstance(self.type, RegisterTile) and (cluster or isinstance(self.type.layout, Coalesced)):
            from .meeting import row_reduce

            return row_reduce(self, kind, cluster)  # type: ignore[no-any-return]
        return result(reduce.Reduce(scope_of(self.type.warps), kind, self, to, partial))  # type: ignore[no-any-return]

    def row_max(self, *, cluster: bool = False) -> Tile:
        """Column vector: the largest element of each row; `cluster`: of rows spread over the blocks of the cluster."""
        return self._reduce("max", "col", cluster=cluster)

    def row_min(self) -> Tile:
        """Column vector: the smallest element of each row."""
        return self._reduce("min", "col")

    def row_sum(self, partial: bool = False, *, cluster: bool = False) -> Tile:
        """Column vector: the sum of each row; `partial` leaves one term per thread, for `total()` later.

        `cluster`: of rows spread over the blocks of the cluster.
        """
        return self._reduce("sum", "col", partial, cluster)

    def row_prod(self) -> Tile:
        """Column vector: the product of each row."""
        return self._reduce("prod", "col")

    def col_max(self) -> Tile:
        """Row vector: the largest element of each column."""
        return self._reduce("max", "row")

    def col_min(self) -> Tile:
        """Row vector: the smallest element of each column."""
        return self._reduce("min", "row")

    def col_sum(self) -> Tile:
        """Row vector: the sum of each column."""
        return self._reduce("sum", "row")

    def col_prod(self) -> Tile:
        """Row vector: the product of each column."""
        return self._reduce("prod", "row")

    def total(self) -> Tile:
        """A partial vector summed over the four threads of each row."""
        return result(reduce.Total(scope_of(self.type.warps), "sum", self))  # type: ignore[no-any-return]

    def _scalar(self, kind: str) -> Scalar:
        if self.type.warps > 1 and isinstance(self.type, RegisterVector) and self.type.kind == "naive":
            from .meeting import vector_reduce

            return vector_reduce(self, kind)  # type: ignore[no-any-return]
        return result(reduce.VectorReduce(scope_of(self.type.warps), kind, self))  # type: ignore[no-any-return]

    def sum(self) -> Scalar:
        """The sum of a vector as a scalar; a naive vector of several warps meets in shared memory."""
        return self._scalar("sum")

    def max(self) -> Scalar:
        """The largest element of a vector."""
        return self._scalar("max")

    def min(self) -> Scalar:
        """The smallest element of a vector."""
        return self._scalar("min")

    def transpose(self) -> Tile:
        """The transposed tile, in the other layout, without moving data."""
        return result(swap.SwapLayout(scope_of(self.type.warps), self, True))  # type: ignore[no-any-return]

    def split_pairs(self) -> tuple[Tile, Tile]:
        """The even and the odd columns of a coalesced tile; `pk.join_pairs` puts them together again."""
        return record(pairs.SplitPairs(scope_of(self.type.warps), self)).results  # type: ignore[return-value]

    def swap_layout(self) -> Tile:
        """The same tile in the other register layout (16-bit dtypes)."""
        return result(swap.SwapLayout(scope_of(self.type.warps), self, False))  # type: ignore[no-any-return]


class Shared(Handle):
    """A shared tile, vector or barrier, or an array of `count` of them."""

    count = 1
    stride = 0

    @property
    def dtype(self) -> DType:
        return self.type.dtype  # type: ignore[union-attr]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape  # type: ignore[union-attr]

    @property
    def rows(self) -> int:
        return self.type.rows  # type: ignore[union-attr]

    @property
    def cols(self) -> int:
        return self.type.cols  # type: ignore[union-attr]

    @property
    def length(self) -> int:
        return self.type.length  # type: ignore[union-attr]

    def __getitem__(self, key: Any) -> Any:
        if self.count > 1:
            if isinstance(key, (slice, tuple)):
                raise TraceError(f"{self.label} is {self.count} items", fix="index one first: tiles[i][0:16, :]")
            item = result(views.Item(THREAD, self, _number(key), self.count, self.stride))
            item.name = f"{self.name}[{key.label if isinstance(key, Value) else key}]" if self.name else ""
            return item
        if isinstance(self.type, (SharedVector, BarrierType)):
            if isinstance(self.type, SharedVector) and not isinstance(key, slice):
                return result(element.LoadScalar(THREAD, self, _number(key)))
            raise TraceError(f"{self.label} is one {self.type}", fix="a vector is indexed by one integer")
        if not isinstance(key, tuple) or len(key) != 2 or not all(isinstance(k, slice) for k in key):
            raise TraceError(f"{self.label} is one {self.type}", fix="a part of a tile is written tile[row:row + 16, 0:64]")
        (row, rows), (col, cols) = (_extent(k, n) for k, n in zip(key, self.type.shape, strict=True))
        return self.part(row, col, rows, cols)

    def part(self, row: Operand, col: Operand, rows: int, cols: int) -> Shared:
        """The rows x cols part that begins at (row, col), in elements; both may be traced scalars."""
        view = result(views.Part(THREAD, self, _number(row), _number(col), rows, cols))
        view.landing = getattr(self, "landing", None)
        view.name = f"{self.name} part" if self.name else ""
        return view  # type: ignore[no-any-return]

    def __setitem__(self, key: Any, value: Operand) -> None:
        raise TraceError(f"{self.label} is in shared memory", fix="store into it: warp.store(tile, value)")


def _extent(key: slice, length: int) -> tuple[int, int]:
    for bound in (key.start, key.stop, key.step):
        if isinstance(bound, Value):
            raise TraceError("a slice with bounds known only when the kernel runs has no size", fix="use tile.part(row, col, rows, cols)")
    start, stop, step = key.indices(length)
    if step != 1:
        raise TraceError(f"a slice with step {step}", fix="parts of tiles are contiguous")
    return start, stop - start


class Tensor(Handle):
    """A global tensor. `batch`, `depth`, `rows`, `cols` are Python ints where static, else traced scalars."""

    type: Global

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def _dim(self, axis: int) -> Any:
        dim = self.type.padded[axis]
        if isinstance(dim, int):
            return dim
        cache = recorder.current().cache
        key = (self, axis)
        if key not in cache:
            made = result(scalars.Dimension(THREAD, self, axis))
            made.name = f"{self.name}.{('batch', 'depth', 'rows', 'cols')[axis]}"
            if recorder.current().block is not recorder.current().program.body:
                return made
            cache[key] = made
        return cache[key]

    @property
    def batch(self) -> Any:
        return self._dim(0)

    @property
    def depth(self) -> Any:
        return self._dim(1)

    @property
    def rows(self) -> Any:
        return self._dim(2)

    @property
    def cols(self) -> Any:
        return self._dim(3)

    def __getitem__(self, key: Any) -> Scalar:
        """One element as a scalar: tensor[row, col] or tensor[batch, depth, row, col], in elements."""
        return result(element.LoadScalar(THREAD, place(self, At(key if isinstance(key, tuple) else (key,)), (1,))))  # type: ignore[no-any-return]

    def __setitem__(self, key: Any, value: Operand) -> None:
        raise TraceError(f"{self.label} is in global memory", fix="store into it: warp.store(tensor, value, coordinate)")


class At(tuple):  # type: ignore[type-arg]
    """A coordinate in elements rather than in tiles: `pk.at(batch, depth, row, col)`."""


def place(tensor: Value, coordinate: Any, shape: tuple[int, ...]) -> Place:
    """The rectangle of `shape` at a coordinate: in elements (`At`), else row and column count tiles of that shape."""
    if not isinstance(tensor, Tensor):
        raise TypeRuleError(f"a coordinate goes with a global tensor, not {tensor.label}: {tensor.type}", fix="leave the coordinate out for shared memory")
    if coordinate is None:
        raise TypeRuleError(f"where in {tensor.label}: {tensor.type}?", fix="give a coordinate (batch, depth, row, col), counted in tiles")
    given = tuple(_number(x) for x in (coordinate if isinstance(coordinate, tuple) else (coordinate,)))
    rank = tensor.type.rank
    if len(given) not in (rank, 4):
        raise TypeRuleError(f"{len(given)} coordinates for {tensor.label}: {tensor.type}", fix=f"give {rank}, the last two counted in tiles")
    first = (0,) * (4 - len(given)) + given
    if not isinstance(coordinate, At):
        rows = shape[0] if len(shape) == 2 else 1
        first = (*first[:2], first[2] * rows if rows != 1 else first[2], first[3] * shape[-1])
    return Place(tensor, first, shape)  # type: ignore[arg-type]


class Barrier(Handle):
    """A named barrier of the hardware, or an array of them."""

    type: NamedBarrierType  # type: ignore[assignment]
    count = 1


def _make(type: Type) -> Value:
    if isinstance(type, ScalarType):
        return Variable(type) if type.mutable else Scalar(type)
    if isinstance(type, (RegisterTile, RegisterVector)):
        return Tile(type)
    if isinstance(type, Global):
        return Tensor(type)
    if isinstance(type, NamedBarrierType):
        return Barrier(type)
    return Shared(type)


recorder.make_value = _make

__all__ = ["At", "Barrier", "Scalar", "Shared", "Tensor", "Tile", "Variable", "bool_", "i32", "place"]
