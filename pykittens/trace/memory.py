"""Memory that kernel code holds: shared tiles and vectors, global tensors, and the rectangles of these that a
coordinate names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import TraceError, TypeRuleError
from ..ops import element, memory_order, thread_indices, views
from ..ops.indexed import Gather
from ..ops.scalars import THREAD
from ..program import MemoryScope, Operand, Order, Place, Scope, Value
from ..types import BarrierType, DType, Global, RegisterTile, RegisterVector, SharedTile, SharedVector, f32, i32
from .handle import Handle, extent, number
from .recorder import current, result, scope_of
from .scalar import Scalar

_OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
ARITHMETIC = [f"__{r}{name}__" for name in _OPERATORS for r in ("", "r")] + [
    *("__pos__", "__neg__", "__abs__", "__invert__", "__divmod__", "__rdivmod__")
]


def no_arithmetic(self: Handle, other: Any = None) -> Any:
    """Arithmetic is done in registers."""
    raise TypeRuleError(
        f"arithmetic with {self.label}: {self.type}, which is in memory",
        fix=f"load it into registers first: t = warp.load({self.name or 'x'}, (0, 0), rows=16)",
    )


def not_in_place(self: Handle, other: Any = None) -> Any:
    """`x += y` of memory would name a register tile, and change nothing."""
    raise TypeRuleError(
        f"{self.label}: {self.type} is in memory, and no operator changes it there",
        fix=f"store into it: warp.store({self.name or 'x'}, value), with a coordinate where it is a tensor",
    )


class Shared(Handle):
    """A shared tile, vector or barrier, or an array of `count` of them: made by `pk.shared` and `pk.barrier`.

    Arithmetic is done in registers. Beside a register tile or vector a shared one is loaded as that one lies: `x + s`.
    Where nothing says how, each warp that comes there loads all of it: `pk.exp(s)`, `s + 1.0`, `s.row_sum()` and all
    else that a register tile has are those of `warp.load(s)`, or of `warp.load_vec(v)`.
    """

    count = 1
    stride = 0

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype  # type: ignore[union-attr]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols) of a tile, (length,) of a vector, as Python ints."""
        return self.type.shape  # type: ignore[union-attr]

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.type.rows  # type: ignore[union-attr]

    @property
    def cols(self) -> int:
        """Columns of a tile."""
        return self.type.cols  # type: ignore[union-attr]

    @property
    def length(self) -> int:
        """Elements of a vector."""
        return self.type.length  # type: ignore[union-attr]

    def __getitem__(self, key: Any) -> Any:
        """An item of an array; of a vector an element; of a tile a part, `tile[0:16, 0:64]`. At int32 tiles or vectors
        (`vector[i]`, `tile[i, j]`) a tile or vector of elements, as a tensor has them.
        """
        if self.count > 1:
            if isinstance(key, (slice, tuple)):
                raise TraceError(f"{self.label} is {self.count} items", fix="index one first: tiles[i][0:16, :]")
            item = result(views.Item(THREAD, self, number(key), self.count, self.stride))
            item.name = f"{self.name}[{key.label if isinstance(key, Value) else key}]" if self.name else ""
            return item
        if isinstance(self.type, (SharedTile, SharedVector)):
            if found := indexed(self, key if isinstance(key, tuple) else (key,)):
                return result(Gather(scope_of(found[3]), self, found[1], found[2]))
        if isinstance(self.type, (SharedVector, BarrierType)):
            if isinstance(self.type, SharedVector) and not isinstance(key, slice):
                return result(element.LoadScalar(THREAD, self, number(key)))
            raise TraceError(f"{self.label} is one {self.type}", fix="a vector is indexed by one integer")
        if not isinstance(key, tuple) or len(key) != 2 or not all(isinstance(k, slice) for k in key):
            raise TraceError(
                f"{self.label} is one {self.type}", fix="a part of a tile is written tile[row:row + 16, 0:64]"
            )
        (row, rows), (col, cols) = (extent(k, n) for k, n in zip(key, self.shape, strict=True))
        return self.part(row, col, rows, cols)

    def part(self, row: Operand, col: Operand, rows: int, cols: int) -> Shared:
        """The rows x cols part that begins at (row, col), in elements; both may be traced scalars.

        It begins at any row, and at a column that is a multiple of 16 bytes; for TMA and wgmma at multiples of 8 rows.
        `tile[rows, cols]`, at indices, reads any elements.
        """
        view = result(views.Part(THREAD, self, number(row), number(col), rows, cols))
        view.landing = getattr(self, "landing", None)
        view.name = f"{self.name} part" if self.name else ""
        return view

    def __setitem__(self, key: Any, value: Operand) -> None:
        raise TraceError(
            f"{self.label} is in shared memory",
            fix="store into it: warp.store(tile, value), or one element of a vector: warp.set(vector, i, value)",
        )


def shared(type: SharedTile | SharedVector, count: int = 1, name: str = "") -> Shared:
    """Allocates `count` tiles or vectors of a `type` in shared memory, for the whole kernel; index the array when
    `count` > 1.

    `type`: `pk.st(dtype, rows, cols)` or `pk.sv(dtype, length)`. `name` is for reports and errors; unless given, that
    of the Python variable.

    Raises `TypeRuleError` for what is no type of shared memory, and a `count` below 1.
    """
    r = current()
    if not isinstance(type, (SharedTile, SharedVector)):
        raise TypeRuleError(f"pk.shared of {type!r}", fix="pass pk.st(dtype, rows, cols) or pk.sv(dtype, length)")
    if not isinstance(count, int) or count < 1:
        raise TypeRuleError(f"pk.shared with count={count!r}", fix="the count is a positive Python int")
    align = 8 * type.swizzle if isinstance(type, SharedTile) else 128  # the swizzle pattern repeats every 8 spans
    handle = r.buffer(type, count, align, name)
    assert isinstance(handle, Shared)
    handle.count, handle.stride = count, r.program.buffers[-1].item_bytes
    return handle


class Tensor(Handle):
    """A global tensor. `batch`, `depth`, `rows`, `cols` are Python ints where static, else traced scalars."""

    type: Global

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """Its dimensions, as `batch`, `depth`, `rows`, `cols` have them."""
        return tuple(self._dim(axis) for axis in range(4 - self.type.rank, 4))

    def _dim(self, axis: int) -> Any:
        dim = self.type.padded[axis]
        if isinstance(dim, int):
            return dim
        cache = current().cache
        key = (self, axis)
        if key not in cache:
            made = result(thread_indices.Dimension(THREAD, self, axis))
            made.name = f"{self.name}.{('batch', 'depth', 'rows', 'cols')[axis]}"
            if current().block is not current().program.body:
                return made
            cache[key] = made
        return cache[key]

    @property
    def batch(self) -> Any:
        """The length of the first of four dimensions; 1 of a tensor with fewer."""
        return self._dim(0)

    @property
    def depth(self) -> Any:
        """The length of the third dimension from the end; 1 of a tensor with fewer."""
        return self._dim(1)

    @property
    def rows(self) -> Any:
        """The length of the last dimension but one; 1 of a tensor with one."""
        return self._dim(2)

    @property
    def cols(self) -> Any:
        """The length of the last dimension."""
        return self._dim(3)

    def __getitem__(self, key: Any) -> Any:
        """One element as a scalar: as many coordinates as dimensions (tensor[i], tensor[row, col], tensor[depth, row,
        col]) or four, tensor[batch, depth, row, col], in elements.

        Where row or col is an int32 tile or vector, a tile or vector of elements: of floats float32, of integers int32
        (uint32 and int64 of these), and 0 where one lies outside. A column vector and a row vector make a tile, batch
        and depth are scalars: `images[n, channel, rows, cols]`.
        """
        given = key if isinstance(key, tuple) else (key,)
        if any(isinstance(x, slice) for x in given):
            fix = "load a rectangle: warp.load(x, pk.at(0, 0), rows=16, cols=64)"
            raise TraceError(f"a slice of {self.label}, which is in global memory", fix=fix)
        if found := indexed(self, given):
            spot, row, col, warps = found
            return result(Gather(scope_of(warps), spot, row, col))
        spot = place(self, At(key if isinstance(key, tuple) else (key,)), (1,))
        return result(element.LoadScalar(THREAD, spot))

    def load(self, at: Any, *, order: Order = "acquire", scope: MemoryScope = "gpu") -> Scalar:
        """One element, read by each warp with an order.

        `at`: its coordinate, in elements. `order`: "relaxed" or "acquire"; `scope`: whose writes it meets, "cta",
        "cluster" or "gpu" (PTX ISA, "Memory Consistency Model").
        """
        spot = place(self, At(at if isinstance(at, tuple) else (at,)), (1,))
        return result(memory_order.StrongLoad(Scope("warp", 1), spot, order, scope))

    def __setitem__(self, key: Any, value: Operand) -> None:
        raise TraceError(
            f"{self.label} is in global memory",
            fix="store into it: warp.store(tensor, value, coordinate), or one element: warp.set(tensor, at, value)",
        )


for _name in ARITHMETIC:
    setattr(Tensor, _name, no_arithmetic)


class At(tuple):  # type: ignore[type-arg]
    """A coordinate in elements rather than in tiles: `pk.at(batch, depth, row, col)`."""


def at(*coordinate: object) -> At:
    """A coordinate in elements rather than in tiles."""
    return At(coordinate)


def register_dtype(dtype: DType) -> DType:
    """What registers hold of a memory dtype: 8-bit floats widen to float32, 8-bit integers to int32."""
    if dtype.bits == 8:
        return f32 if dtype.kind == "f" else i32
    return dtype


def indexed(memory: Tensor | Shared, key: Sequence[Any]) -> tuple[Place | Shared, Any, Any, int] | None:
    """Where elements lie whose row or column is a tile or vector of indices: their matrix or shared memory, row and
    column, and how many warps hold the indices; None where all of the key are scalars."""
    wide = [x for x in key if isinstance(getattr(x, "type", None), (RegisterTile, RegisterVector))]
    if not wide:
        return None
    if isinstance(memory, Shared):
        wanted = 2 if isinstance(memory.type, SharedTile) else 1
        if len(key) != wanted:
            fix = f"give {'a row and a column' if wanted == 2 else 'one index'}, scalars or tiles of int32"
            raise TypeRuleError(f"{len(key)} indices of {memory.label}: {memory.type}", fix=fix)
        row, col = (0, *key)[-2:]
        return memory, number(row), number(col), wide[0].type.warps
    tensor = memory
    outer, (row, col) = (*(0,) * (4 - len(key)), *key)[:2], (0, *key)[-2:]
    if any(x is y for x in wide for y in outer):
        fix = "index rows and columns by tiles, batch and depth by scalars"
        raise TraceError(f"a tile as the index of an outer dimension of {tensor.label}", fix=fix)
    return place(tensor, At((*outer, 0, 0)), (1,)), number(row), number(col), wide[0].type.warps


def place(tensor: Value, coordinate: Any, shape: tuple[int, ...], within: Any = None, columns: Any = None) -> Place:
    """The rectangle of `shape` at a coordinate: in elements (`At`), else row and column count tiles of that shape.
    A vector of rows counts rows.

    within: (first, end) of the rows that it is kept to; columns: of the columns.
    """
    if not isinstance(tensor, Tensor):
        raise TypeRuleError(
            f"a coordinate goes with a global tensor, not {tensor.label}: {tensor.type}",
            fix="leave the coordinate out for shared memory",
        )
    if coordinate is None:
        raise TypeRuleError(
            f"where in {tensor.label}: {tensor.type}?",
            fix="give a coordinate (batch, depth, row, col), counted in tiles",
        )
    given = tuple(number(x) for x in (coordinate if isinstance(coordinate, tuple) else (coordinate,)))
    rank = tensor.type.rank
    if len(given) not in (rank, 4):
        raise TypeRuleError(
            f"{len(given)} coordinates for {tensor.label}: {tensor.type}",
            fix=f"give {rank}, the last {'one' if rank == 1 else 'two'} counted in tiles",
        )
    first = (0,) * (4 - len(given)) + given
    if not isinstance(coordinate, At):
        rows = shape[0] if len(shape) == 2 else 1
        counted = (
            first[2] if rows == 1 or isinstance(getattr(first[2], "type", None), RegisterVector) else first[2] * rows
        )
        first = (*first[:2], counted, first[3] * shape[-1])
    for name, word, kept in (("within", "row", within), ("columns", "column", columns)):
        if kept is not None and not (isinstance(kept, tuple) and len(kept) == 2):
            fix = f"give the first {word} and the one behind the last: {name}=(0, n)"
            raise TypeRuleError(f"{name}={kept!r}", fix=fix)
    return Place(tensor, first, shape, *(x and (number(x[0]), number(x[1])) for x in (within, columns)))
