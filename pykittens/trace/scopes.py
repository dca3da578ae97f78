"""Scopes: the set of threads an operation is called on does it together, and a tile remembers it.

`warp`, `group(n)` (n warps) and `block` (all warps of the current role, or of the block outside roles).
Operations beyond every scope's common vocabulary (wgmma, TMA) are added by subclasses.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import TraceError, TypeRuleError
from ..ops import (
    cluster,
    copies,
    element,
    fill,
    global_add,
    global_reduce,
    load,
    memory_order,
    mma,
    mma_bytes,
    scalars,
    store,
    sync,
    thread_indices,
    transposed,
)
from ..ops.indexed import ScatterReduce
from ..program import MemoryScope, Operand, Order, Scope, Value, is_scalar
from ..suggestions import NoSuchWord
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
    f32,
    i32,
)
from . import recorder
from .handle import number
from .memory import At, Shared, Tensor, indexed, place, register_dtype
from .options import unless, unused
from .recorder import record, result
from .scalar import Scalar
from .tile import Tile
from .vector_forms import same_runs


class ScopeHandle:
    """The vocabulary of a scope. `warps`: how many warps it has; None for all of the current role."""

    def __init__(self, name: str, warps: int | None):
        self._name, self._warps = name, warps

    def __getattr__(self, name: str) -> NoReturn:
        raise NoSuchWord(f"the scope {self.__dict__.get('_name', '')!r}", name, lambda: dir(self))

    @property
    def warps(self) -> int:
        """Warps of one unit of this scope."""
        present = recorder.current().warps
        if self._warps is None:
            return present
        if present % self._warps:
            raise TraceError(
                f"a {self._name} has {self._warps} warps, the current role {present}",
                fix=f"give the role a multiple of {self._warps} warps",
            )
        return self._warps

    @property
    def scope(self) -> Scope:
        """The scope as operations know it."""
        return Scope(self._name, self.warps)

    @property
    def index(self) -> Scalar | int:
        """Which unit of this scope the running threads belong to, counted within the role (or block)."""
        if self.warps == recorder.current().warps:
            return 0
        return result(
            thread_indices.Index(scalars.THREAD, "unit")
            if self.warps == 1
            else thread_indices.Index(self.scope, "unit")
        )

    @property
    def count(self) -> int:
        """How many units of this scope the role (or block) has."""
        return recorder.current().warps // self.warps

    # Making register tiles and vectors ----------------------------------------------------------------

    def full(self, dtype: DType, rows: int, cols: int, value: Operand, *, layout: Layout = "row") -> Tile:
        """A new rows x cols tile of a `dtype` in a `layout`, every element `value`."""
        return result(fill.Fill(self.scope, RegisterTile(dtype, rows, cols, layout, self.warps), number(value)))

    def zeros(self, dtype: DType, rows: int, cols: int, *, layout: Layout = "row") -> Tile:
        """A new rows x cols tile of zeros; `dtype` and `layout` as `full`."""
        return self.full(dtype, rows, cols, 0, layout=layout)

    def ones(self, dtype: DType, rows: int, cols: int, *, layout: Layout = "row") -> Tile:
        """A new rows x cols tile of ones; `dtype` and `layout` as `full`."""
        return self.full(dtype, rows, cols, 1, layout=layout)

    def full_col(
        self, dtype: DType, length: int, value: Operand, *, layout: Layout = "row", partial: bool = False
    ) -> Tile:
        """A new column vector (one value per row of a tile with `length` rows), every element `value`.

        `dtype` and `layout` are the tile's; `partial`: one term per thread, to be summed by `total()`.
        """
        type = RegisterVector(dtype, length, "col", layout, self.warps, partial)
        return result(fill.Fill(self.scope, type, number(value)))

    def zeros_col(self, dtype: DType, length: int, *, layout: Layout = "row", partial: bool = False) -> Tile:
        """A new column vector of zeros: `dtype`, `length`, `layout` and `partial` as `full_col`."""
        return self.full_col(dtype, length, 0, layout=layout, partial=partial)

    def full_row(self, dtype: DType, length: int, value: Operand, *, layout: Layout = "row") -> Tile:
        """A new row vector (one value per column of a tile with `length` columns), every element `value`.

        `dtype` and `layout` are the tile's.
        """
        return result(fill.Fill(self.scope, RegisterVector(dtype, length, "row", layout, self.warps), number(value)))

    def zeros_row(self, dtype: DType, length: int, *, layout: Layout = "row") -> Tile:
        """A new row vector of zeros: `dtype`, `length` and `layout` as `full_row`."""
        return self.full_row(dtype, length, 0, layout=layout)

    def full_vec(self, dtype: DType, length: int, value: Operand, *, width: int = 1) -> Tile:
        """A new naive vector of `length` elements of a `dtype`, each `value`, spread over all threads of the scope in
        runs of `width`.
        """
        type = RegisterVector(dtype, length, "naive", "row", self.warps, width=width)
        return result(fill.Fill(self.scope, type, number(value)))

    def iota(self, length: int, *, width: int = 1) -> Tile:
        """A new naive vector of int32 with the numbers 0 to `length` - 1, in runs of `width`."""
        return self._iota(RegisterVector(i32, length, "naive", "row", self.warps, width=width))

    def iota_col(self, length: int, *, layout: Layout = "row") -> Tile:
        """A new column vector of int32 with the number of each row of a tile of `length` rows; `layout` is the
        tile's.
        """
        return self._iota(RegisterVector(i32, length, "col", layout, self.warps))

    def iota_row(self, length: int, *, layout: Layout = "row") -> Tile:
        """A new row vector of int32 with the number of each column of a tile of `length` columns; `layout` is the
        tile's.
        """
        return self._iota(RegisterVector(i32, length, "row", layout, self.warps))

    def _iota(self, type: RegisterVector) -> Tile:
        return result(fill.Positions(self.scope, type))

    # Moving data --------------------------------------------------------------------------------------

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
        self._memory(source, "load")
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
        self._whole(
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
        self._memory(source, "load")
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
            self._whole("load", source, coordinate, length=unless(length, source.type.length), within=within)
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

    def store(
        self,
        target: Value,
        source: Value,
        coordinate: Any = None,
        *,
        hint: str = "",
        rank: Operand | None = None,
        within: tuple[Operand, Operand] | None = None,
        columns: tuple[Operand, Operand] | None = None,
    ) -> None:
        """Register or shared `source` into the tensor `target` at a `coordinate`, or register `source` into a shared
        tile or vector `target`.

        Registers are converted to the dtype of the memory as by `x.to`: of floats, 8-bit integers take the nearest that
        fits, toward zero; of int32 the low bits. What lies past the tensor's end is not written. `hint="stream"`
        (coalesced tiles) says that nobody reads it soon. `rank`: into the shared tile of that block of the cluster.
        `within`: the rows of the tensor, from the first to the one behind the last, that a tile is kept to (of a
        vector, the elements); the coordinate may be negative then. `columns`: the same of the tensor's columns, for
        coalesced tiles. A column vector of i32 as the row scatters, as `load` gathers: rows that are there differ.

        Raises `TypeRuleError` for a source that is neither in registers nor shared, and between two shared tiles.
        """
        self._memory(target, "store")
        if not isinstance(source, (Tile, Shared)):
            raise TypeRuleError(
                f"store of {source!r}",
                fix="store(target, source, coordinate) takes a register or shared tile or vector as source",
            )
        shape = (source.type.length,) if isinstance(source.type, RegisterVector) else source.type.shape  # type: ignore[union-attr]
        where: Any = place(target, coordinate, shape, within, columns) if isinstance(target, Tensor) else target
        if not isinstance(target, Tensor):
            self._whole("store", target, coordinate, hint=hint, within=within, columns=columns)
        elif not isinstance(source.type, RegisterTile):
            unused(f"store of {source.label}", "leave it out: a tile in registers is kept to columns", columns=columns)
        if rank is not None:
            record(cluster.StoreRemote(self.scope, where, source, number(rank)))
        elif isinstance(source, Shared):
            if not isinstance(target, Tensor):
                raise TypeRuleError(
                    f"a store from {source.label} to {target.label}, both in shared memory",
                    fix="go through registers: load, then store",
                )
            unused(
                f"store of {source.label}, in shared memory,", "leave it out: tiles in registers carry hints", hint=hint
            )
            record(copies.CopyOut(self.scope, where, source))
        else:
            record(store.Store(self.scope, where, source, hint))

    def add(self, target: Tensor, source: Tile, coordinate: Any) -> None:
        """Adds a register tile or vector `source` to the tensor `target` at `coordinate`, atomically for each element.

        Floats of 32 and 16 bits (bf16 from sm_90), int32, uint32 or int64; a naive float32 vector (`x.registers()` of a
        tile) goes in the widest additions. What lies past the tensor's end is not added. A column vector of i32 as the
        row scatters a tile's rows, as `load` gathers them; rows may come twice. Row and column of `pk.at(...)` may also
        be an index for each element of the `source`: int32 tiles and vectors, as tensor[row, col] reads them. The
        source has the shape that such a read would have (`pk.full_like(index, 1)` counts); an index outside of the
        tensor, -1 say, adds nothing.
        """
        self._combine("add", target, source, coordinate)

    def min(self, target: Tensor, source: Tile, coordinate: Any) -> None:
        """Keeps the lesser of each element of `target` at `coordinate` and of a register tile or vector `source`,
        atomically for each element: float32, int32, uint32 or int64. Rows and elements may be indexed, as `add` has it.
        """
        self._combine("min", target, source, coordinate)

    def max(self, target: Tensor, source: Tile, coordinate: Any) -> None:
        """Keeps the greater of each element of `target` at `coordinate` and of a register tile or vector `source`,
        atomically for each element: float32, int32, uint32 or int64. Rows and elements may be indexed, as `add` has it.
        """
        self._combine("max", target, source, coordinate)

    def _combine(self, kind: Any, target: Tensor, source: Tile, coordinate: Any) -> None:
        self._memory(target, kind)
        if not isinstance(source, Tile):
            raise TypeRuleError(f"{kind} of {source!r} into memory", fix="pass a register tile or vector")
        found = indexed(target, coordinate) if isinstance(coordinate, At) else None
        if found and not (is_scalar(found[2]) and isinstance(source.type, RegisterTile)):  # else whole rows
            spot, row, col = found[:3]
            row, col, source = same_runs(row, col, source)
            record(ScatterReduce(self.scope, spot, row, col, source, kind))
            return
        spot = place(
            target, coordinate, (source.type.length,) if isinstance(source.type, RegisterVector) else source.shape
        )
        wide = kind == "add" and isinstance(source.type, RegisterVector) and source.type.kind == "naive"
        if wide and source.dtype is f32:
            record(global_add.AddVector(self.scope, spot, source))
        else:
            record(global_reduce.GlobalReduce(self.scope, spot, source, kind))

    def load_into(
        self,
        target: Value,
        source: Value,
        coordinate: Any = None,
        *,
        within: tuple[Operand, Operand] | None = None,
    ) -> None:
        """The rectangle of tensor `source` at `coordinate`, of the target's shape, into a shared tile or vector
        `target`. `within`: see `load`."""
        record(copies.CopyIn(self.scope, target, self._rectangle(target, source, coordinate, within)))

    def load_async(
        self,
        target: Value,
        source: Value,
        coordinate: Any = None,
        *,
        within: tuple[Operand, Operand] | None = None,
    ) -> None:
        """Like `load_into` (`target`, `source`, `coordinate`, `within`), but with cp.async: finished after `commit()`
        and `wait_loads()`.
        """
        record(copies.CopyAsync(self.scope, target, self._rectangle(target, source, coordinate, within)))

    def _rectangle(self, target: Value, source: Value, coordinate: Any, within: Any = None) -> Any:
        self._memory(target, "load")
        if (
            not isinstance(target, Shared)
            or not isinstance(target.type, (SharedTile, SharedVector))
            or not isinstance(source, Tensor)
        ):
            raise TypeRuleError(
                f"a copy from {source.label} to {target.label}",
                fix="load_into and load_async go from a tensor to a shared tile or vector",
            )
        return place(source, coordinate, target.type.shape, within)

    def _whole(self, what: str, memory: Value, coordinate: Any, **options: Any) -> None:
        """Shared memory is loaded and stored as a whole, so that coordinates and sizes would say nothing."""
        label = memory.label
        name = memory.name or "tile"
        part = f"take a part first: {name}[0:16, 0:64], or {name}.part(row, col, rows, cols)"
        fix = part if isinstance(memory.type, SharedTile) else "leave it out: a shared vector is moved as a whole"
        unused(f"{what} of {label}, in shared memory,", fix, coordinate=coordinate, **options)

    def _memory(self, x: Value, what: str) -> None:
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

    def load_transposed(self, source: Value) -> Tile:
        """A new register tile, in row layout, with the transpose of the shared tile `source` of 16-bit elements."""
        self._memory(source, "load_transposed")
        return result(transposed.LoadTransposed(self.scope, source))

    def store_transposed(self, target: Value, source: Tile) -> None:
        """The transpose of the register tile `source`, of 16-bit elements in row layout, into the shared tile
        `target`.
        """
        self._memory(target, "store_transposed")
        record(transposed.StoreTransposed(self.scope, target, source))

    def commit(self) -> None:
        """Closes a group of this scope's `load_async` copies."""
        record(copies.CommitCopies(self.scope))

    def wait_loads(self, pending: int = 0) -> None:
        """Waits until at most `pending` committed groups of this thread's copies are unfinished; others see them
        after a sync.
        """
        record(copies.WaitCopies(self.scope, pending))

    def set(
        self, target: Value, at: Any, value: Operand, *, order: Order = "weak", scope: MemoryScope | None = None
    ) -> None:
        """One element of `target` becomes `value`, set by one thread: of a shared vector (`at` its index) or of a
        tensor (`at` its coordinate, in elements).

        `order` ("relaxed" or "release", of a tensor's element) and its `scope` ("gpu" unless given): see
        `trace/memory_order.py`. A release tells what all threads of the scope did before.

        Raises `TypeRuleError` for an `order` of shared memory.
        """
        if order == "weak":
            unused(
                f"set of {getattr(target, 'label', target)} without an order",
                'pass order="release" or "relaxed", too',
                scope=scope,
            )
        if isinstance(target, Tensor):
            spot = place(target, At(at if isinstance(at, tuple) else (at,)), (1,))
            if order == "weak":
                record(element.StoreScalar(self.scope, spot, number(value)))
            else:
                record(memory_order.StrongStore(self.scope, spot, number(value), order, scope or "gpu"))
        elif order != "weak":
            raise TypeRuleError(
                f"set of {target.label} in shared memory with order={order!r}",
                fix="hand over through shared memory by a barrier: warp.sync(), pk.block.sync() or pk.barrier()",
            )
        else:
            record(element.StoreScalar(self.scope, target, number(value), number(at)))

    # Multiplying --------------------------------------------------------------------------------------

    def _mma(self, d: Value, a: Value, b: Value, ta: bool, tb: bool, overwrite: bool) -> None:
        if isinstance(d, Tile) and d.type.warps != self.warps:
            raise TypeRuleError(
                f"the accumulator {d.type} is not of this {self._name} ({self.warps} warps)",
                fix=f"make it with {self._name}.zeros(...)",
            )
        both = isinstance(a, Shared) and isinstance(b, Shared) and a.count == b.count == 1
        wide = both and a.type.dtype.bits != 16  # type: ignore[union-attr]
        record((mma_bytes.MmaBytes if wide else mma.Mma)(self.scope, d, a, b, ta, tb, overwrite))

    def mma_AB(self, d: Value, a: Value, b: Value) -> None:
        """d += a @ b."""
        self._mma(d, a, b, False, False, False)

    def mma_ABt(self, d: Value, a: Value, b: Value) -> None:
        """d += a @ b.T. In shared memory `a` and `b` may be 8-bit floats (from sm_89), 8-bit integers (`d` is then
        int32) or float32 (rounded to tf32), too.
        """
        self._mma(d, a, b, False, True, False)

    def mma_AtB(self, d: Value, a: Value, b: Value) -> None:
        """d += a.T @ b."""
        self._mma(d, a, b, True, False, False)

    def mma_AtBt(self, d: Value, a: Value, b: Value) -> None:
        """d += a.T @ b.T."""
        self._mma(d, a, b, True, True, False)

    def mm_AB(self, d: Value, a: Value, b: Value) -> None:
        """d = a @ b."""
        self._mma(d, a, b, False, False, True)

    def mm_ABt(self, d: Value, a: Value, b: Value) -> None:
        """d = a @ b.T."""
        self._mma(d, a, b, False, True, True)

    def mm_AtB(self, d: Value, a: Value, b: Value) -> None:
        """d = a.T @ b."""
        self._mma(d, a, b, True, False, True)

    def mm_AtBt(self, d: Value, a: Value, b: Value) -> None:
        """d = a.T @ b.T."""
        self._mma(d, a, b, True, True, True)

    # Meeting ------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """All threads of the scope meet; memory accesses before come before those after."""
        record(sync.Barrier(self.scope))

    def arrive_at(self, barrier: Value, index: Operand = 0) -> None:
        """Counts this scope's warps at a named `barrier` (number `index` of an array) and goes on."""
        record(sync.NamedArrive(self.scope, barrier, number(index)))

    def sync_at(self, barrier: Value, index: Operand = 0) -> None:
        """Counts this scope's warps at a named `barrier` (number `index` of an array) and waits for the others."""
        record(sync.NamedSync(self.scope, barrier, number(index)))


def group(warps: int) -> ScopeHandle:
    """The scope of `warps` consecutive warps."""
    return ScopeHandle(f"group({warps})", warps)


warp = ScopeHandle("warp", 1)
block = ScopeHandle("block", None)
