"""Stores and reductions of what a scope holds in registers."""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..ops import cluster, copies, element, global_add, global_reduce, memory_order, shared_reduce, store, transposed
from ..ops.scatter import Scatter, ScatterReduce
from ..program import MemoryScope, Operand, Order, Value, is_scalar
from ..types import RegisterTile, RegisterVector, f32
from .handle import number
from .memory import At, Shared, Tensor, indexed, place
from .options import unused
from .recorder import record
from .scope_loads import check_memory, refuse_parts
from .scope_threads import ScopeThreads
from .tile import Tile
from .vector_forms import same_runs


class ScopeStores(ScopeThreads):
    """What a scope stores, and reduces into tensors."""

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
        coalesced tiles. A column vector of i32 as the row scatters, as `load` gathers: rows that are there differ, and
        one outside, -1 say, is not written. Row and column of `pk.at(...)` may be an index for each element, too, in
        shared memory as well, as `add` has it: no two elements go to one place.

        Raises `TypeRuleError` for a source that is neither in registers nor shared, and between two shared tiles.
        """
        check_memory(target, "store")
        if not isinstance(source, (Tile, Shared)):
            what = "a register or shared tile or vector"
            fix = f"store(target, source, coordinate) takes {what}; warp.set(target, (row, col), x) stores one number"
            raise TypeRuleError(f"store of {source!r}", fix=fix)
        if isinstance(source, Tile) and (found := self._indexed(target, source, coordinate)):
            unused(
                f"store of {source.label} at indices",
                "leave it out: an index of -1 writes nothing",
                **{"hint": hint, "rank": rank, "within": within, "columns": columns},
            )
            record(Scatter(self.scope, *found))
            return
        shape = (source.type.length,) if isinstance(source.type, RegisterVector) else source.type.shape  # type: ignore[union-attr]
        where: Any = place(target, coordinate, shape, within, columns) if isinstance(target, Tensor) else target
        if not isinstance(target, Tensor):
            refuse_parts("store", target, coordinate, hint=hint, within=within, columns=columns)
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

    def add(self, target: Value, source: Tile, coordinate: Any = None) -> None:
        """Adds a register tile or vector `source` to the tensor `target` at `coordinate`, or to the shared tile or
        vector `target`, atomically for each element.

        Floats of 32 and 16 bits (bf16 from sm_90), int32, uint32 or int64; a naive float32 vector (`x.registers()` of a
        tile) goes in the widest additions. What lies past the tensor's end is not added. A column vector of i32 as the
        row scatters a tile's rows, as `load` gathers them; rows may come twice. Row and column of `pk.at(...)` may also
        be an index for each element of the `source`: int32 tiles and vectors, as tensor[row, col] reads them (of a
        shared vector one index). The source has the shape that such a read would have (`pk.full_like(index, 1)`
        counts); an index outside, -1 say, adds nothing.
        """
        self._combine("add", target, source, coordinate)

    def min(self, target: Value, source: Tile, coordinate: Any = None) -> None:
        """Keeps the lesser of each element of `target` (at `coordinate`) and of a register tile or vector `source`,
        atomically for each element: float32, int32, uint32 or int64. In shared memory, and at indices, as `add` has it.
        """
        self._combine("min", target, source, coordinate)

    def max(self, target: Value, source: Tile, coordinate: Any = None) -> None:
        """Keeps the greater of each element of `target` (at `coordinate`) and of a register tile or vector `source`,
        atomically for each element: float32, int32, uint32 or int64. In shared memory, and at indices, as `add` has it.
        """
        self._combine("max", target, source, coordinate)

    def _combine(self, kind: Any, target: Value, source: Tile, coordinate: Any) -> None:
        check_memory(target, kind)
        if not isinstance(source, Tile):
            raise TypeRuleError(f"{kind} of {source!r} into memory", fix="pass a register tile or vector")
        if found := self._indexed(target, source, coordinate):
            record(ScatterReduce(self.scope, *found, kind))
            return
        if isinstance(target, Shared):
            refuse_parts(kind, target, coordinate)
            record(shared_reduce.SharedReduce(self.scope, target, source, kind))
            return
        shape = (source.type.length,) if isinstance(source.type, RegisterVector) else source.shape
        spot = place(target, coordinate, shape)
        wide = kind == "add" and isinstance(source.type, RegisterVector) and source.type.kind == "naive"
        if wide and source.dtype is f32:
            record(global_add.AddVector(self.scope, spot, source))
        else:
            record(global_reduce.GlobalReduce(self.scope, spot, source, kind))

    def _indexed(self, target: Value, source: Tile, coordinate: Any) -> tuple[Any, Any, Any, Tile] | None:
        """Memory, rows, columns and elements, where there is an index for each element of `source`."""
        shared = isinstance(target, Shared)
        if not isinstance(target, (Shared, Tensor)) or not (shared or isinstance(coordinate, At)):
            return None
        found = indexed(target, coordinate if isinstance(coordinate, tuple) else (coordinate,))
        if found is None or (not shared and is_scalar(found[2]) and isinstance(source.type, RegisterTile)):
            return None  # whole rows
        row, col, source = same_runs(*found[1:3], source)
        return found[0], row, col, source

    def store_transposed(self, target: Value, source: Tile) -> None:
        """The transpose of the register tile `source`, of 16-bit elements in row layout, into the shared tile
        `target`.
        """
        check_memory(target, "store_transposed")
        record(transposed.StoreTransposed(self.scope, target, source))

    def set(
        self, target: Value, at: Any, value: Operand, *, order: Order = "weak", scope: MemoryScope | None = None
    ) -> None:
        """One element of `target` becomes `value`, set by one thread: of a shared vector (`at` its index) or of a
        tensor (`at` its coordinate, in elements).

        `order`: "relaxed" or "release", of a tensor's element: a release tells what all threads of the scope did
        before, to whoever acquires it (`tensor.load(at)`). `scope`: who may: "cta", "cluster" or, unless given, "gpu".

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
