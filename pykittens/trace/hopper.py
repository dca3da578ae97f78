"""Hopper's scopes: the warpgroup with its asynchronous tensor core, the tensor memory accelerator, the cluster."""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError, user_frame_objects
from ..ops import bulk_copy, mbarrier, thread_indices, wgmma
from ..ops import cluster as cluster_ops
from ..ops import tma as tma_ops
from ..ops.scalars import THREAD
from ..program import Operand, Scope, Value
from ..types import SharedTile, SharedVector
from .flow import when
from .functions import named_barrier
from .handle import number
from .memory import Shared, Tensor, place
from .recorder import current, name_locals, record, result
from .scalar import Scalar
from .scopes import ScopeHandle, block
from .tile import Tile


class WarpgroupHandle(ScopeHandle):
    """Four warps. Its products run on the asynchronous tensor core: `wait` before touching what they touch."""

    @property
    def tma(self) -> Tma:
        """TMA operations issued once per warpgroup."""
        return Tma(self)

    def _mma(self, d: Value, a: Value, b: Value, ta: bool, tb: bool, overwrite: bool) -> None:
        if isinstance(d, Tile) and not d.name:  # for what is said of it later, when the kernel's frame is gone
            name_locals(user_frame_objects())
        record(wgmma.Wgmma(self.scope, d, a, b, ta, tb, overwrite))

    def wait(self, *tiles: Tile, pending: int | None = None) -> None:
        """Waits for the products that write (or read from registers) these tiles; without tiles, for all but `pending`.

        The compiler may wait earlier, so that less arithmetic runs beside the products: `ring.release(after=x)` keeps
        the wait behind x.
        """
        record(wgmma.WgmmaWait(self.scope, tiles, pending if not tiles else None))


class Tma:
    """TMA operations, issued by one elected thread of `scope` (by default of the whole role)."""

    def __init__(self, handle: ScopeHandle):
        self._handle = handle

    @property
    def _scope(self) -> Scope:
        return self._handle.scope if self._handle is not block else Scope("role", current().warps)

    def load(
        self,
        target: Shared,
        source: Tensor,
        coordinate: Any,
        barrier: Value | None = None,
        *,
        hint: str | None = None,
        multicast: Operand | None = None,
        within: tuple[Operand, Operand] | None = None,
        columns: tuple[Operand, Operand] | None = None,
    ) -> None:
        """The rectangle of tensor `source` at `coordinate` into the shared tile `target`, paid to `barrier` (by default
        the tile's ring slot's) when it has landed.

        Outside a ring the barrier must expect the bytes: see `expect`. `hint`: evict_first, evict_last. `multicast`:
        a mask of blocks of the cluster that all receive the tile at the same place. `within`: (first, end) of the rows
        of the tensor that the rectangle is kept to: from `end` on zeros are loaded. It may not begin before `first`.
        `columns`: (first, end) of the columns whose elements are wanted. In others whatever lies there is loaded, while
        somebody may write it, too; on the simulator that is NaN, or the largest integer.

        TMA takes tensors that begin, and whose rows begin, at multiples of 16 bytes: others go by `load_async`.

        Raises `TypeRuleError` where no barrier is paid, and of such others.
        """
        barrier = getattr(target, "landing", None) if barrier is None else barrier
        if barrier is None:
            raise TypeRuleError(
                f"tma.load into {getattr(target, 'label', target)} completes on no barrier",
                fix="load a ring's slot, or pass a barrier from pk.barrier()",
            )
        _check_target(target)
        where = place(source, coordinate, target.shape, within, columns)
        record(tma_ops.TmaLoad(self._scope, target, where, barrier, hint, multicast))

    def share(self, target: Shared, source: Tensor, coordinate: Any, *, hint: str | None = None) -> None:
        """Like `load` of a ring's slot, by all blocks of the cluster: each loads its part of the rows, to all of
        them.

        `target`, `source`, `coordinate` and `hint` are those of `load`; the rows are 8 or more for each block.

        Raises `TypeRuleError` where the rows do not divide over the blocks.
        """
        count = cluster.size
        if count == 1:
            self.load(target, source, coordinate, hint=hint)
            return
        _check_target(target)
        rows = target.type.rows // count  # type: ignore[union-attr]
        if rows % 8:
            raise TypeRuleError(
                f"{target.label}: {target.type} does not divide over {count} blocks",
                fix=f"make its rows a multiple of {8 * count}",
            )
        part = target.part(cluster.rank * rows, 0, rows, target.type.cols)  # type: ignore[union-attr]
        *outer, row, col = coordinate
        self.load(
            part,
            source,
            (*outer, row * count + cluster.rank, col),
            getattr(target, "landing", None),
            hint=hint,
            multicast=cluster.everyone,
        )

    def send(self, target: Shared, source: Shared, rank: Operand, barrier: Value) -> None:
        """The shared tile `source` into the place of `target` in block `rank` of the cluster, paid to `barrier` there,
        which must expect the bytes (PTX "cp.async.bulk.shared::cluster").

        `source` may be overwritten, and this block may end, once the other block is known to have received it.
        """
        _check_target(target)
        _check_target(source)
        mask = 1 << rank if isinstance(rank, int) else number(1) << rank
        record(bulk_copy.BulkSend(self._scope, target, source, barrier, mask, cluster.size))

    def exchange(self, target: Shared, source: Shared) -> None:
        """The shared tile `source` into the ring's slot `target` of the other block, in a cluster of two that both do
        so (PTX "cp.async.bulk.shared::cluster").

        `source` may be overwritten once the other block is known to have received it.

        Raises `TypeRuleError` for a target that is no ring's slot, and a cluster of any other size.
        """
        landing = getattr(target, "landing", None)
        if landing is None:
            raise TypeRuleError(
                f"tma.exchange into {getattr(target, 'label', target)} completes on no barrier",
                fix="exchange into a ring's slot: with ring.fill() as slot: pk.tma.exchange(slot, tile)",
            )
        if cluster.size != 2:
            raise TypeRuleError(
                f"tma.exchange in a cluster of {cluster.size}",
                fix="give the kernel a cluster of two blocks: @pk.kernel(cluster=2, ...)",
            )
        _check_target(target)
        _check_target(source)
        record(bulk_copy.BulkSend(self._scope, target, source, landing, number(2 - cluster.rank), 2))

    def expect(self, barrier: Value, *tiles: Shared, bytes: Operand = 0) -> None:
        """Arrives at `barrier` and promises the bytes of these tiles."""
        tile_bytes = [t.type.bytes * t.count for t in tiles]  # type: ignore[union-attr]
        total = bytes + sum(tile_bytes) if tiles else bytes
        record(mbarrier.Arrive(self._scope, barrier, total))

    def store(
        self,
        target: Tensor,
        source: Shared,
        coordinate: Any,
        *,
        within: tuple[Operand, Operand] | None = None,
    ) -> None:
        """The shared tile `source` into the tensor `target` at `coordinate`, asynchronously: `commit` and `wait` before
        the tile is overwritten. `within`: (first, end) of the rows that are written, see `load`.
        """
        self._store(target, source, coordinate, "store", within)

    def store_add(self, target: Tensor, source: Shared, coordinate: Any) -> None:
        """Adds a shared tile to a tensor, atomically for each element. `target`, `source`, `coordinate`: as `store`."""
        self._store(target, source, coordinate, "add")

    def store_min(self, target: Tensor, source: Shared, coordinate: Any) -> None:
        """Elementwise minimum into a tensor. `target`, `source`, `coordinate`: as `store`."""
        self._store(target, source, coordinate, "min")

    def store_max(self, target: Tensor, source: Shared, coordinate: Any) -> None:
        """Elementwise maximum into a tensor. `target`, `source`, `coordinate`: as `store`."""
        self._store(target, source, coordinate, "max")

    def _store(self, target: Tensor, source: Shared, coordinate: Any, kind: Any, within: Any = None) -> None:
        _check_target(source)
        shape = source.type.shape  # type: ignore[union-attr]
        record(tma_ops.TmaStore(self._scope, place(target, coordinate, shape, within), source, kind))

    def prefetch(self, source: Tensor, coordinate: Any, like: Shared) -> None:
        """Brings the rectangle of `source` at `coordinate` that would be loaded into a tile like `like` into L2."""
        _check_target(like)
        shape = like.type.shape  # type: ignore[union-attr]
        record(tma_ops.TmaPrefetch(self._scope, place(source, coordinate, shape), like))

    def commit(self) -> None:
        """Closes a group of this thread's stores."""
        record(tma_ops.CommitBulk(self._scope))

    def wait(self, pending: int = 0, *, read: bool = False) -> None:
        """Waits until at most `pending` groups of stores are unfinished; `read`: until they have read their tiles."""
        record(tma_ops.WaitBulk(self._scope, pending, read))


def _check_target(tile: Any) -> None:
    if not isinstance(tile, Shared) or not isinstance(tile.type, (SharedTile, SharedVector)):
        raise TypeRuleError(
            f"TMA moves shared tiles, not {tile!r}", fix="pass a shared tile: pk.shared(pk.st(...)) or a ring's slot"
        )
    if tile.count > 1:
        raise TypeRuleError(f"{tile.label} is an array of {tile.count} {tile.type}", fix=f"index one: {tile.name}[i]")


def arrive(barrier: Value, *, scope: ScopeHandle | None = None, rank: Operand | None = None) -> None:
    """One thread of the `scope` (by default the role) arrives at the mbarrier `barrier`; `rank`: at that of another
    block of the cluster.
    """
    where = scope.scope if scope is not None else Scope("role", current().warps)
    record(mbarrier.Arrive(where, barrier, 0, None if rank is None else number(rank)))


def wait(barrier: Value, phase: Operand, *, scope: ScopeHandle | None = None) -> None:
    """All threads of the `scope` (by default the role) wait until the phase of the mbarrier `barrier` with the parity
    `phase` (0, 1) has ended.
    """
    where = scope.scope if scope is not None else Scope("role", current().warps)
    record(mbarrier.Wait(where, barrier, number(phase)))


class Turns:
    """Ping-pong: the warpgroups of a role take turns to issue work. One warpgroup alone needs none: nothing is
    recorded.
    """

    def __init__(self, count: int):
        self.count = count
        self.barrier = named_barrier(warps=8, count=count) if count > 1 else None

    def start(self, me: Operand) -> None:
        """Before the first turn: the last warpgroup hands the first turn to warpgroup 0. `me`: which one runs."""
        if self.barrier is not None:
            with when(me == self.count - 1):
                warpgroup.arrive_at(self.barrier, 0)

    def wait(self, me: Operand) -> None:
        """Waits for this warpgroup's turn. `me`: which one runs."""
        if self.barrier is not None:
            warpgroup.sync_at(self.barrier, me)

    def give(self, me: Operand) -> None:
        """Hands the turn to the next warpgroup. `me`: which one runs."""
        if self.barrier is not None:
            following = (1 - me) if self.count == 2 else (me + 1) % self.count
            warpgroup.arrive_at(self.barrier, following)

    def finish(self, me: Operand) -> None:
        """After the last turn: warpgroup 0 takes the turn that nobody uses, so that arrivals balance. `me`: which one
        runs.
        """
        if self.barrier is not None:
            with when(me == 0):
                warpgroup.sync_at(self.barrier, 0)


def turns(count: int) -> Turns:
    """Turns among `count` warpgroups of a role, on as many hardware barriers."""
    return Turns(count)


class Cluster:
    """The blocks of a cluster."""

    @property
    def rank(self) -> Scalar:
        """Which block of the cluster this is."""
        return result(thread_indices.Index(THREAD, "cluster_rank"))

    @property
    def index(self) -> Scalar:
        """Which cluster of a one-dimensional grid this is."""
        return result(thread_indices.Index(THREAD, "cluster_x" if self.size > 1 else "block_x"))

    @property
    def size(self) -> int:
        """How many blocks it has."""
        x, y, z = current().program.cluster
        return x * y * z

    @property
    def everyone(self) -> int:
        """The mask of all its blocks, for `pk.tma.load(..., multicast=pk.cluster.everyone)`."""
        return (1 << self.size) - 1

    def load(self, source: Shared, rank: Operand, *, scope: ScopeHandle | None = None) -> Tile:
        """A new register tile of `scope` (a warpgroup) with the shared tile that block `rank` of the cluster has in
        the place of `source`.

        Raises `TypeRuleError` where no barrier is paid.
        """
        return result(cluster_ops.LoadRemote((scope or warpgroup).scope, source, number(rank)))

    def sync(self) -> None:
        """All threads of all blocks of the cluster meet."""
        record(cluster_ops.ClusterBarrier(Scope("block", current().program.warps)))


def wait_for_previous(*, independent: tuple[Tensor, ...] = ()) -> None:
    """Waits for the kernel before this one in the stream (programmatic dependent launch, PTX "griddepcontrol.wait").

    No tensor may be touched before, but for the `independent` ones, which the kernels before do not write (nor read,
    where this one writes them): weights that are loaded early, say.

    Raises `TypeRuleError` for an independent one that is no tensor.
    """
    for tensor in independent:
        if not isinstance(tensor, Tensor):
            raise TypeRuleError(
                f"pk.wait_for_previous(independent=...) of {tensor!r}",
                fix="pass a tuple of the kernel's global tensors",
            )
    record(cluster_ops.DependencyWait(Scope("role", current().warps), tuple(independent)))


def launch_next() -> None:
    """Lets the next kernel in the stream begin (PTX "griddepcontrol.launch_dependents")."""
    record(cluster_ops.DependencyLaunch(Scope("role", current().warps)))


warpgroup = WarpgroupHandle("warpgroup", 4)
tma = Tma(block)
cluster = Cluster()
