"""Loads into the registers of a scope."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import TypeRuleError
from ..ops import load, load_pairs, transposed
from ..program import Operand, Value
from ..types import (
    Coalesced,
    DType,
    Global,
    Layout,
    RegisterTile,
    RegisterVector,
    SharedTile,
    SharedVector,
    check_sizes,
)
from .memory import Shared, Tensor, place, register_dtype
from .options import unless, unused
from .recorder import record, result
from .scope_threads import ScopeThreads
from .tile import Tile


class ScopeLoads(ScopeThreads):
    """What a scope loads into registers."""

    def load(
        self,
        source: Value,
        coordinate: Any = None,
        *,
        rows: int | None = None,
        cols: int | None = None,
        dtype: DType | None = None,
        layout: Layout = "row",
        hint: str = "",
        within: tuple[Operand, Operand] | None = None,
    ) -> Tile:
        """A new register tile with `source`: a shared tile, a shared vector as its only row (coalesced), or the rows x
        cols rectangle of a tensor.

        `coordinate` is (batch, depth, row, col), row and col counted in tiles (or `pk.at(...)`, in elements). `cols`
        defaults to all columns of the tensor where they are static. What lies past the end is zero. `dtype`: that of
        the registers; unless given the memory's, of 8 bits float32 or int32. `layout`: "row" and
        "col" are the tensor cores' fragments, `pk.coalesced(lanes, width)` is for tiles that only pass through;
        `hint="stream"` (coalesced tiles of a tensor) reads what nobody needs again. `within`: the rows of the tensor,
        from the first to the one behind the last, outside of which zeros are read; the row of `coordinate` may be
        negative then.

        A column vector of i32 as the row gathers: row i of the tile is row `vector[i]` of the tensor, zeros where there
        is no such row: `warp.load(table, (warp.load_col(index, (t,), length=16), 0), rows=16, cols=64)`.

        Raises `TypeRuleError` where the size is not known, for what is no tile in memory, and for an option that the
        access cannot have.
        """
        check_memory(source, "load")
        dtype = dtype or register_dtype(source.type.dtype)  # type: ignore[union-attr]
        if isinstance(source, Tensor):
            dynamic = cols is None and not isinstance(source.cols, int)
            cols = source.cols if cols is None else cols
            if rows is None or dynamic:
                raise TypeRuleError(
                    f"load of {source.label}: {source.type} needs the size of the tile",
                    fix="pass rows=16 (and cols=64 where columns are dynamic)",
                )
            type = RegisterTile(dtype, rows, cols, layout, self.warps)
            return result(load.Load(self.scope, place(source, coordinate, (rows, cols), within), type, hint))
        shared: Any = source.type
        whole = shared.shape if isinstance(shared, SharedTile) else (1, getattr(shared, "length", None))
        refuse_parts(
            "load",
            source,
            coordinate,
            rows=unless(rows, whole[0]),
            cols=unless(cols, whole[1]),
            hint=hint,
            within=within,
        )
        if isinstance(source.type, SharedVector) and isinstance(layout, Coalesced):
            return result(load.Load(self.scope, source, RegisterTile(dtype, 1, source.type.length, layout, self.warps)))
        if not isinstance(source.type, SharedTile):
            raise TypeRuleError(
                f"load makes a tile; {source.label} is {source.type}",
                fix="use load_vec, load_col or load_row for vectors",
            )
        return result(
            load.Load(self.scope, source, RegisterTile(dtype, source.type.rows, source.type.cols, layout, self.warps))
        )

    def _load_vector(
        self,
        kind: Any,
        source: Value,
        coordinate: Any,
        length: int | None,
        dtype: DType | None,
        layout: Layout,
        within: Any = None,
    ) -> Tile:
        check_memory(source, "load")
        dtype = dtype or register_dtype(source.type.dtype)  # type: ignore[union-attr]
        memory: Any = source
        if isinstance(source, Tensor):
            dynamic = length is None and not isinstance(source.cols, int)
            length = source.cols if length is None else length
            if dynamic:
                raise TypeRuleError(
                    f"load of {source.label}: {source.type} needs a length",
                    fix="pass length=..., the elements of the vector",
                )
            check_sizes("a register vector", length)
            memory = place(source, coordinate, (length,), within)
        elif isinstance(source.type, SharedVector):
            refuse_parts("load", source, coordinate, length=unless(length, source.type.length), within=within)
            length = source.type.length
        else:
            raise TypeRuleError(
                f"a vector is not loaded from {source.type}", fix="load the tile, or use a shared vector"
            )
        if kind == "naive":
            type = load.naive_vector(memory, dtype, length, self.warps)
        else:
            type = RegisterVector(dtype, length, kind, layout, self.warps)
        return result(load.Load(self.scope, memory, type))

    def load_vec(
        self,
        source: Value,
        coordinate: Any = None,
        *,
        length: int | None = None,
        dtype: DType | None = None,
        within: tuple[Operand, Operand] | None = None,
    ) -> Tile:
        """A new naive vector with a shared vector `source`, or with `length` neighbours of a tensor's row.

        `coordinate` and `dtype` as `load`; the column counts runs of `length`. `within`: the columns, from the first to
        the one behind the last, outside of which zeros are read. A thread holds runs of as many neighbours as the
        memory's dtype and alignment let it load at once. Vectors of different runs that meet are brought into the
        longer ones: in shuffles, of several warps through shared memory.
        """
        return self._load_vector("naive", source, coordinate, length, dtype, "row", within)

    def load_col(
        self,
        source: Value,
        coordinate: Any = None,
        *,
        length: int | None = None,
        dtype: DType | None = None,
        layout: Layout = "row",
        within: tuple[Operand, Operand] | None = None,
    ) -> Tile:
        """A new column vector (one value per row of a tile) with a shared vector `source`, or with `length` neighbours
        of a tensor's row at `coordinate`. `dtype` and `layout` as `load`, `within` as `load_vec`.
        """
        return self._load_vector("col", source, coordinate, length, dtype, layout, within)

    def load_row(
        self,
        source: Value,
        coordinate: Any = None,
        *,
        length: int | None = None,
        dtype: DType | None = None,
        layout: Layout = "row",
    ) -> Tile:
        """A new row vector (one value per column of a tile) with a shared vector `source`, or with `length` neighbours
        of a tensor's row at `coordinate`. `dtype` and `layout` as `load`.
        """
        return self._load_vector("row", source, coordinate, length, dtype, layout)

    def load_transposed(self, source: Value) -> Tile:
        """A new register tile, in row layout, with the transpose of the shared tile `source` of 16-bit elements."""
        check_memory(source, "load_transposed")
        return result(transposed.LoadTransposed(self.scope, source))

    def load_pairs(self, source: Value, *, layout: Literal["row", "col"] = "row") -> tuple[Tile, Tile]:
        """The even and the odd columns of `source`, a shared tile of 8-bit floats, as two f16 tiles in a fragment's
        `layout`.

        So one ldmatrix, a byte permutation and two conversions make operands of the tensor cores of what has 8 bits.
        The tile has a multiple of 32 columns. Rows times rows, `q @ k.T`, is the sum of both halves' products;
        of `p @ v` each half makes every other column, which `pk.join_pairs` puts together in coalesced tiles.
        """
        check_memory(source, "load_pairs")
        return record(load_pairs.LoadPairs(self.scope, source, layout)).results  # type: ignore[return-value]


def refuse_parts(what: str, memory: Value, coordinate: Any, **options: Any) -> None:
    """Shared memory is loaded and stored as a whole, so that coordinates and sizes would say nothing."""
    label = memory.label
    name = memory.name or "tile"
    part = f"take a part first: {name}[0:16, 0:64], or {name}.part(row, col, rows, cols)"
    fix = part if isinstance(memory.type, SharedTile) else "leave it out: a shared vector is moved as a whole"
    unused(f"{what} of {label}, in shared memory,", fix, coordinate=coordinate, **options)


def check_memory(x: Value, what: str) -> None:
    """Refuses what is no memory that a scope loads from or stores to as one."""
    if not isinstance(x, Value):
        raise TypeRuleError(f"{what}: {x!r} is not a tile or tensor", fix="pass arrays to the kernel as operands")
    if isinstance(x, Shared) and x.count > 1:
        raise TypeRuleError(
            f"{what}: {x.label} is an array of {x.count} {x.type}", fix=f"index one: {x.name or 'tiles'}[i]"
        )
    if not isinstance(x.type, (Global, SharedTile, SharedVector)):
        raise TypeRuleError(
            f"{what}: {x.label} is {x.type}, not memory",
            fix="store(target, source) and load(source) take shared tiles and tensors",
        )
