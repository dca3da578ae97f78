"""Register tiles and vectors with their operators and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import TraceError, TypeRuleError
from ..ops import binary, fill, pairs, reduce, register_order, slice_concat, triangular, unary
from ..ops.conversion import limits
from ..ops.masks import Select
from ..ops.take_rows import TakeRows
from ..program import Operand, Value, is_scalar
from ..types import Coalesced, DType, Layout, RegisterTile, RegisterVector, SharedTile, SharedVector, bool_, f32, i32
from .cross_warp_reduction import column_total, row_reduce, row_terms, row_total, vector_reduce
from .handle import AUGMENTED, Handle, Rounded, changes_in_place, extent, number, refuse_array
from .largest import best
from .layout_conversion import convert_layout
from .memory import ARITHMETIC, Shared, Tensor, no_arithmetic, not_in_place
from .options import unused
from .recorder import record, result, scope_of
from .scalar import Scalar
from .scans import scan
from .shared_operands import alone, in_registers, together
from .vector_forms import as_vector


class Tile(Rounded, Handle):
    """A register tile or vector. Expressions make new ones; `x[:] = ...`, `+=`, `*=` change one in place."""

    type: RegisterTile | RegisterVector

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols) of a tile, (length,) of a vector, as Python ints."""
        return self.type.shape

    @property
    def rows(self) -> int:
        """Rows of a tile, or the length of a vector."""
        return self.type.rows if isinstance(self.type, RegisterTile) else self.type.length

    @property
    def cols(self) -> int:
        """Columns of a tile; raises `TypeRuleError` for a vector."""
        if not isinstance(self.type, RegisterTile):
            raise TypeRuleError(f"{self.type} has no columns", fix="use .length")
        return self.type.cols

    @property
    def length(self) -> int:
        """Elements of a vector; raises `TypeRuleError` for a tile."""
        if not isinstance(self.type, RegisterVector):
            raise TypeRuleError(f"{self.type} has no length", fix="use .rows and .cols")
        return self.type.length

    def _binary(self, kind: str, a: Operand, b: Operand) -> Any:
        refuse_array(a)
        refuse_array(b)
        return result(binary.Binary(scope_of(self.type.warps), kind, *together(number(a), number(b))))

    def __add__(self, other: Operand) -> Tile:
        """Elementwise, as `-`, `*`, `/`, `//` and `%` are. Both have one dtype (`x.to` converts) and layout; naive
        vectors may have different runs.

        A number or scalar goes with every element, and takes the tile's dtype. A column vector beside a tile spreads
        along the rows, a row vector along the columns; a column vector with a row vector makes a tile. A shared tile or
        vector is loaded as the other operand lies: `x + weights`.
        """
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

    def __mod__(self, other: Operand) -> Tile:
        return self._binary("mod", self, other)

    def __rmod__(self, other: Operand) -> Tile:
        return self._binary("mod", other, self)

    def __floordiv__(self, other: Operand) -> Tile:
        return self._binary("floordiv", self, other)

    def __rfloordiv__(self, other: Operand) -> Tile:
        return self._binary("floordiv", other, self)

    def __pow__(self, other: Operand) -> Tile:
        """Elementwise: of floats with a number, a scalar or a tile as the exponent, of integers with a Python int from
        0 on. Small whole powers are products.
        """
        return self._binary("pow", self, other)

    def __rpow__(self, other: Operand) -> Tile:
        return self._binary("pow", other, self)

    def __matmul__(self, other: Operand) -> Tile:
        fix = "name the accumulator and the layouts: warp.mma_AB(acc, a, b)"
        raise TypeRuleError(f"@ of {self.type}: products of tiles have words of their own", fix=fix)

    def __and__(self, other: Operand) -> Tile:
        """Of masks (with parentheses: `(a < b) & (c < d)`), or bit by bit of integers; so are `|` and `^`."""
        return self._binary("and", self, other)

    def __rand__(self, other: Operand) -> Tile:
        return self._binary("and", other, self)

    def __or__(self, other: Operand) -> Tile:
        return self._binary("or", self, other)

    def __ror__(self, other: Operand) -> Tile:
        return self._binary("or", other, self)

    def __xor__(self, other: Operand) -> Tile:
        return self._binary("xor", self, other)

    def __rxor__(self, other: Operand) -> Tile:
        return self._binary("xor", other, self)

    def __lshift__(self, other: Operand) -> Tile:
        return self._binary("shl", self, other)

    def __rlshift__(self, other: Operand) -> Tile:
        return self._binary("shl", other, self)

    def __rshift__(self, other: Operand) -> Tile:
        return self._binary("shr", self, other)

    def __rrshift__(self, other: Operand) -> Tile:
        return self._binary("shr", other, self)

    def __lt__(self, other: Operand) -> Tile:
        """A mask, a tile or vector of bools, as from `<=`, `>`, `>=`, `==` and `!=`; operands meet as in `x + y`."""
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
        return self._unary("not" if self.type.dtype is bool_ else "invert")

    def __abs__(self) -> Tile:
        return self._unary("abs")

    def _unary(self, kind: str) -> Tile:
        return result(unary.Unary(scope_of(self.type.warps), kind, self))

    def __setitem__(self, key: Any, value: Operand) -> None:
        """Changes the tile in place; `x = y` would only name another. `x += y` and its like do so, too."""
        if not _whole(key):
            raise TraceError(
                "a register tile is assigned as a whole: its elements lie in different threads",
                fix="x[:] = value, with pk.where to choose elements",
            )
        refuse_array(value)
        value = together(self, number(value))[1]
        own, new = self.type, getattr(value, "type", None)
        if isinstance(own, RegisterVector) and isinstance(new, RegisterVector) and new.kind == "naive":
            if new == replace(own, dtype=new.dtype, width=new.width):
                value = as_vector(value, own)
        record(fill.Assign(scope_of(self.type.warps), self, value))

    def __getitem__(self, key: Any) -> Tile:
        """A part of a tensor-core tile as a new tile: `acc[:, 64:128]`, in multiples of 16 rows and columns. A column
        of any tile as a column vector, `x[:, j]`, a row as a row vector, `x[i, :]`: the index may be a traced scalar,
        and finds nothing outside of the tile (-inf, of integers the smallest).
        """
        if isinstance(self.type, RegisterTile) and isinstance(key, tuple) and len(key) == 2:
            lines: Any = (("row", *key), ("col", *key[::-1]))
            for places, whole, one in lines:
                if isinstance(whole, slice) and whole == slice(None) and not isinstance(one, slice) and is_scalar(one):
                    return self._line(places, number(one))
        if key is Ellipsis or (isinstance(key, slice) and _whole(key)):
            raise TraceError(
                f"{self.label}[:] as a value",
                fix="write the name alone: x += y changes it in place, y = x + 0 makes another",
            )
        if isinstance(self.type, RegisterVector):
            raise TraceError(
                "a register vector has no elements to index: they lie in different threads",
                fix="choose one, pk.where(pk.iota(x) == i, x, 0).sum(), or store it into a shared vector",
            )
        if not (isinstance(key, tuple) and len(key) == 2 and all(isinstance(k, slice) for k in key)):
            raise TraceError(
                "a register tile has no elements to index: they lie in different threads",
                fix="take a part: x[:, 0:64], or go through shared memory",
            )
        (row, rows), (col, cols) = (extent(k, n) for k, n in zip(key, self.type.shape, strict=True))
        return result(slice_concat.TilePart(scope_of(self.type.warps), self, row, col, rows, cols))

    def _line(self, places: Literal["row", "col"], at: Operand) -> Tile:
        """The row or column at a place: the largest of what lies there and of what is below everything."""
        type, dtype = self.type, self.type.dtype
        if dtype is bool_:
            return self.to(i32)._line(places, at) != 0
        length = type.cols if places == "row" else type.rows  # type: ignore[union-attr]
        if isinstance(at, int):
            check = f"{'column' if places == 'row' else 'row'} {at} of {type}"
            if not -length <= at < length:
                raise TypeRuleError(check, fix=f"use 0 to {length - 1}")
            at %= length
        scope = scope_of(type.warps)
        here = result(fill.Positions(scope, type.vector(places, i32))) == at  # type: ignore[union-attr]
        least = -float("inf") if dtype.kind == "f" else limits(dtype)[0]
        chosen = result(Select(scope, here, self, least))
        return chosen.row_max() if places == "row" else chosen.col_max()

    def to(self, dtype: DType) -> Tile:
        """The same elements as another `dtype`: floats are rounded to nearest even; integers take the low bits, and
        of floats the nearest that fits (NaN: 0), toward zero: `pk.round` before it rounds.

        `dtype`: bf16, f16, f32, i32, u32, i64 or bool. Other dtypes are memory's, and a store converts to them.
        """
        if dtype == self.type.dtype:
            return self
        if dtype is f32 and (parts := unary.near_parts(self)) is not None:  # few conversions for many elements
            kind, a, b = parts
            return self._binary(kind, a.to(f32), b.to(f32))
        return result(unary.Convert(scope_of(self.type.warps), self, dtype))

    def _reduce(
        self,
        kind: str,
        to: Any,
        partial: bool = False,
        cluster: bool = False,
        onto: Tile | None = None,
        times: Tile | None = None,
        fade: Tile | None = None,
    ) -> Tile:
        if to == "col" and isinstance(self.type, RegisterTile) and (cluster or isinstance(self.type.layout, Coalesced)):
            fix = "leave it out: rows of such tiles are reduced at once; add vectors with +"
            what = f"row_{kind} of {self.type}{' over the cluster' if cluster else ''}"
            unused(what, fix, partial=partial and (cluster or self.type.warps == 1), onto=onto, fade=fade)
            return row_terms(self, kind, times) if partial else row_reduce([self], kind, cluster, times)[0]
        scope = scope_of(self.type.warps)
        if to == "row" and self.type.warps > 1 and not partial and not isinstance(self.type.layout, Coalesced):
            wide = self.to(f32) if self.type.dtype.packed else self
            terms = result(reduce.Reduce(scope, kind, wide, to, True))
            return column_total(terms, kind).to(self.type.dtype)
        return result(reduce.Reduce(scope, kind, self, to, partial, onto, times, fade))

    def row_max(self, *, cluster: bool = False) -> Tile:
        """Column vector: the largest element of each row; `cluster`: of rows spread over the blocks of the cluster."""
        return self._reduce("max", "col", cluster=cluster)

    def row_min(self) -> Tile:
        """Column vector: the smallest element of each row."""
        return self._reduce("min", "col")

    def row_sum(
        self, partial: bool = False, *, cluster: bool = False, onto: Tile | None = None, fade: Tile | None = None
    ) -> Tile:
        """Column vector: the sum of each row; `partial` leaves one term per thread (of a coalesced tile of several
        warps, per warp; of one warp its sums are complete), for `total()` later. Of a mask: how many elements hold,
        int32.

        `cluster`: of rows spread over the blocks of the cluster. `onto`: a partial vector that it is added to, element
        after element; with `fade` first multiplied by that, in one rounding with the first addition.
        """
        return self._numbers()._reduce("sum", "col", partial, cluster, onto, fade=fade)

    def row_dot(self, other: Tile, partial: bool = False, *, cluster: bool = False, onto: Tile | None = None) -> Tile:
        """Column vector: the sum of each row's products with the `other` tile's, each fused into its addition.

        `partial`, `cluster` and `onto` are those of `row_sum`; both tiles have one type, and hold floats.
        """
        return self._reduce("sum", "col", partial, cluster, onto, other)

    def row_prod(self) -> Tile:
        """Column vector: the product of each row."""
        return self._reduce("prod", "col")

    def col_max(self) -> Tile:
        """Row vector: the largest element of each column."""
        return self._reduce("max", "row")

    def col_min(self) -> Tile:
        """Row vector: the smallest element of each column."""
        return self._reduce("min", "row")

    def col_sum(self, partial: bool = False) -> Tile:
        """Row vector: the sum of each column; of several warps `partial` leaves one term per warp, for `total()` later.
        Of a mask: how many elements hold, int32.
        """
        return self._numbers()._reduce("sum", "row", partial)

    def col_prod(self) -> Tile:
        """Row vector: the product of each column."""
        return self._reduce("prod", "row")

    def _numbers(self) -> Tile:
        """A mask as 0 and 1; everything else as it is."""
        return self.to(i32) if self.type.dtype is bool_ else self

    def _counted(self, what: str) -> Tile:
        if self.type.dtype is not bool_:
            raise TypeRuleError(f"{what} of {self.type}, which is no mask", fix=f"compare first: (x > 0).{what}()")
        return self.to(i32)

    def row_any(self) -> Tile:
        """Column vector of a mask: whether any element of each row holds."""
        return self._counted("row_any").row_max() != 0

    def row_all(self) -> Tile:
        """Column vector of a mask: whether all elements of each row hold."""
        return self._counted("row_all").row_min() != 0

    def col_any(self) -> Tile:
        """Row vector of a mask: whether any element of each column holds."""
        return self._counted("col_any").col_max() != 0

    def col_all(self) -> Tile:
        """Row vector of a mask: whether all elements of each column hold."""
        return self._counted("col_all").col_min() != 0

    def any(self) -> Scalar:
        """Whether any element of a mask holds, as a scalar."""
        return self._counted("any").max() != 0

    def all(self) -> Scalar:
        """Whether all elements of a mask hold, as a scalar."""
        return self._counted("all").min() != 0

    def row_topk(self, k: int) -> list[tuple[Tile, Tile]]:
        """The `k` largest elements of each row, largest first: k pairs of column vectors, the elements and their
        columns (int32). Of equal elements the first comes first; NaN before all.
        """
        found = best(self, k, "col")
        return list(zip(found[:k], found[k:], strict=True))

    def row_argmax(self) -> Tile:
        """Column vector (int32): the column of each row's largest element; of equal ones the first, NaN before all."""
        return best(self, 1, "col")[1]

    def row_argmin(self) -> Tile:
        """Column vector (int32): the column of each row's smallest element; of equal ones the first, NaN before all."""
        return best(self, 1, "col", False)[1]

    def col_argmax(self) -> Tile:
        """Row vector (int32): the row of each column's largest element; of equal ones the first, NaN before all."""
        return best(self, 1, "row")[1]

    def col_argmin(self) -> Tile:
        """Row vector (int32): the row of each column's smallest element; of equal ones the first, NaN before all."""
        return best(self, 1, "row", False)[1]

    def _scan(self, kind: str, along: Any, reverse: bool) -> Tile:
        return scan(self, kind, along, reverse)

    def row_cumsum(self, *, reverse: bool = False) -> Tile:
        """Each element with all before it in its row summed; `reverse`: with all behind it."""
        return self._scan("sum", "row", reverse)

    def row_cumprod(self, *, reverse: bool = False) -> Tile:
        """The products of each element with all before it in its row; `reverse`: with all behind it."""
        return self._scan("prod", "row", reverse)

    def row_cummax(self, *, reverse: bool = False) -> Tile:
        """The largest of each element and all before it in its row; `reverse`: and all behind it."""
        return self._scan("max", "row", reverse)

    def row_cummin(self, *, reverse: bool = False) -> Tile:
        """The smallest of each element and all before it in its row; `reverse`: and all behind it."""
        return self._scan("min", "row", reverse)

    def col_cumsum(self, *, reverse: bool = False) -> Tile:
        """Each element with all above it in its column summed; `reverse`: with all below it."""
        return self._scan("sum", "col", reverse)

    def col_cumprod(self, *, reverse: bool = False) -> Tile:
        """The products of each element with all above it in its column; `reverse`: with all below it."""
        return self._scan("prod", "col", reverse)

    def col_cummax(self, *, reverse: bool = False) -> Tile:
        """The largest of each element and all above it in its column; `reverse`: and all below it."""
        return self._scan("max", "col", reverse)

    def col_cummin(self, *, reverse: bool = False) -> Tile:
        """The smallest of each element and all above it in its column; `reverse`: and all below it."""
        return self._scan("min", "col", reverse)

    def cumsum(self, *, reverse: bool = False) -> Tile:
        """Each element of a vector with all before it summed; `reverse`: with all behind it."""
        return self._scan("sum", "", reverse)

    def cumprod(self, *, reverse: bool = False) -> Tile:
        """The products of each element of a vector with all before it; `reverse`: with all behind it."""
        return self._scan("prod", "", reverse)

    def cummax(self, *, reverse: bool = False) -> Tile:
        """The largest of each element of a vector and all before it; `reverse`: and all behind it."""
        return self._scan("max", "", reverse)

    def cummin(self, *, reverse: bool = False) -> Tile:
        """The smallest of each element of a vector and all before it; `reverse`: and all behind it."""
        return self._scan("min", "", reverse)

    def total(self) -> Tile:
        """A partial vector summed: over the four threads of each row, or (of columns, and of rows of coalesced tiles)
        over the warps, through shared memory.
        """
        if isinstance(self.type, RegisterVector) and self.type.partial and self.type.kind == "row":
            return column_total(self, "sum")
        if isinstance(self.type, RegisterVector) and self.type.partial and isinstance(self.type.layout, Coalesced):
            return row_total(self, "sum")
        return result(reduce.Total(scope_of(self.type.warps), "sum", self))

    def _scalar(self, kind: str) -> Scalar:
        if isinstance(self.type, RegisterTile):
            wide = self.to(f32) if self.type.dtype.packed else self
            return wide._reduce(kind, "col")._scalar(kind)
        if reduce.divided(self.type):
            return vector_reduce(self, kind)
        return result(reduce.VectorReduce(scope_of(self.type.warps), kind, self))

    def sum(self) -> Scalar:
        """The sum of all elements of a vector or tile, as a scalar: float32 of 16-bit floats. Of bools: how many hold,
        int32. Elements of several warps meet in shared memory.
        """
        return self._numbers()._scalar("sum")

    def max(self) -> Scalar:
        """The largest element of a vector or tile, as a scalar; elements of several warps meet in shared memory."""
        return self._scalar("max")

    def min(self) -> Scalar:
        """The smallest element of a vector or tile, as a scalar; elements of several warps meet in shared memory."""
        return self._scalar("min")

    def take_rows(self, rows: Sequence[int]) -> Tile:
        """A tile whose row i is row rows[i] of this one: `rows` are Python ints, one for each row. No row may leave its
        warp. Raises `TypeRuleError` for traced indices.
        """
        if isinstance(rows, Value):
            fix = (
                "pass Python ints, x.take_rows(range(15, -1, -1)); at traced indices memory is read: tensor[rows, cols]"
            )
            raise TypeRuleError(f"take_rows of {self.type} at {rows!r}", fix=fix)
        return result(TakeRows(scope_of(self.type.warps), self, tuple(rows)))

    def unit_lower_inverse(self) -> Tile:
        """The inverse of the unit lower triangular matrix with this tile's elements below the diagonal: a float32 tile
        of a warp, of 16, 32 or 64 rows. What stands on the diagonal and above is not read.
        """
        return result(triangular.UnitLowerInverse(scope_of(self.type.warps), self))

    def transpose(self, layout: Layout | None = None) -> Tile:
        """The transposed tile: unless given otherwise, of a row-layout tile in column layout, of every other in row
        layout.

        One warp moves no data between row and column layout, and shuffles otherwise. A tile over several warps goes
        through shared memory, as in `swap_layout`. Raises `TypeRuleError` where the result's lengths do not suit its
        layout.
        """
        return convert_layout(self, layout or ("col" if self.type.layout == "row" else "row"), True)

    def registers(self, width: int | None = None) -> Tile:
        """A naive vector of this tile's elements in the order in which threads hold them, to be stored in whole lines.

        Only `x.tile(...)` of a vector in that order makes sense of it again: it is for scratch memory. `width`: the
        elements of a run, as many as 16 bytes hold unless given.
        """
        return result(register_order.ToVector(scope_of(self.type.warps), self, width or 0))

    def tile(self, rows: int, cols: int, *, layout: Layout = "row") -> Tile:
        """The rows x cols tile, of that `layout`, whose `registers()` this vector has."""
        type = RegisterTile(self.type.dtype, rows, cols, layout, self.type.warps)
        return result(register_order.FromVector(scope_of(self.type.warps), self, type))

    def split_pairs(self) -> tuple[Tile, Tile]:
        """The even and the odd columns of a coalesced tile; `pk.join_pairs` puts them together again."""
        return record(pairs.SplitPairs(scope_of(self.type.warps), self)).results  # type: ignore[return-value]

    def swap_layout(self, layout: Layout | None = None) -> Tile:
        """The same tile or vector in another register layout; unless given, column for row and row for every other.

        16-bit tiles between row and column move by matrices; everything else in shuffles, some for each register.
        Where elements leave their warp they go through shared memory: the compiler takes room for the whole tile, once
        for all conversions between two types, and the warps of the tile's scope meet once or twice, so that all of
        them must come here. The order in which it lies there keeps bank conflicts rare.
        """
        own = self.type.layout
        wanted = layout or ("col" if own == "row" else "row")
        return self if wanted == own else convert_layout(self, wanted, False)

    def as_vec(self, *, width: int = 1) -> Tile:
        """This vector as a naive one, in runs of `width`. Elements of several warps meet in shared memory."""
        return self._as("naive", "row", width)

    def as_col(self, *, layout: Layout = "row") -> Tile:
        """This vector as the column vector of a tile of that `layout`: one value a row. Elements of several warps meet
        in shared memory.
        """
        return self._as("col", layout)

    def as_row(self, *, layout: Layout = "row") -> Tile:
        """This vector as the row vector of a tile of that `layout`: one value a column. Elements of several warps meet
        in shared memory.
        """
        return self._as("row", layout)

    def _as(self, kind: Literal["col", "row", "naive"], layout: Layout, width: int = 1) -> Tile:
        own = self.type
        if not isinstance(own, RegisterVector) or own.partial:
            fix = "reduce a tile first: x.row_sum(); sum a partial vector: x.total()"
            raise TypeRuleError(
                f"as_{'vec' if kind == 'naive' else kind} of {own}, which is no complete vector", fix=fix
            )
        return as_vector(self, RegisterVector(own.dtype, own.length, kind, layout, own.warps, width=width))


changes_in_place(Tile)


def _whole(key: Any) -> bool:
    """Whether `x[key]` is all of x: `x[:]`, `x[:, :]` or `x[...]`."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(part is Ellipsis or (isinstance(part, slice) and part == slice(None)) for part in parts)


def _through_registers(name: str) -> Any:
    def apply(self: Shared, *others: Any) -> Any:
        found = in_registers(self, *others)
        if found[0] is not self:
            return getattr(found[0], name)(*found[1:])
        return NotImplemented if any(isinstance(x, Tile) for x in others) else no_arithmetic(self)

    return apply


def _of_registers(self: Shared, name: str) -> Any:
    """What a register tile has of that name, of a shared tile or vector too."""
    own = name.startswith("_") or name in vars(Shared) or not isinstance(self.type, (SharedTile, SharedVector))
    return Handle.__getattr__(self, name) if own or not hasattr(Tile, name) else getattr(alone(self), name)


def _equality(name: str, elementwise: Callable[..., Any]) -> Any:
    """Memory is compared with numbers and registers by its elements, where Python would say False; with memory and all
    else it is the same or not, which passes ask, too.
    """
    same = getattr(Handle, name)

    def apply(self: Handle, other: object) -> Any:
        values = isinstance(other, (Tile, Scalar, int, float, np.generic))
        return elementwise(self, other) if values else same(self, other)

    return apply


_ORDER = ["__lt__", "__le__", "__gt__", "__ge__"]
for _name in [*ARITHMETIC, *_ORDER]:
    setattr(Shared, _name, _through_registers(_name))
for _name in _ORDER:
    setattr(Tensor, _name, no_arithmetic)
for _name in ["__eq__", "__ne__"]:
    setattr(Shared, _name, _equality(_name, _through_registers(_name)))
    setattr(Tensor, _name, _equality(_name, no_arithmetic))
for _name in AUGMENTED:
    setattr(Shared, f"__i{_name}__", not_in_place)
    setattr(Tensor, f"__i{_name}__", not_in_place)
Shared.__getattr__ = _of_registers  # type: ignore[method-assign, assignment]
