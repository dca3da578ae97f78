"""A persistent kernel whose blocks take tiles as they come to need them, from a counter in global memory.

    work = pk.dynamic(counter, count)                 # counter: pk.gl(i32, 1), 0 before the first launch
    with pk.role("load", warps=4):
        for tile in work.take(): ...                  # one role takes tiles for its block,
    with pk.role("multiply", warpgroups=2):
        for tile in work: ...                         # the others are given the same ones

Where tiles differ in length, or blocks begin at different times, this is fairer than `pk.persistent`. The last block to
find no tile left sets the counter back to 0, so that the next launch, or the next replay of a CUDA graph, finds it so.
Kernels that may run at the same time need a counter each.

Parts of a block may take tiles for themselves, and clusters of blocks for all of theirs:

    work = pk.dynamic(counter, count, taker=(0, 1))   # 0 of the 1 takers in each block, or in each cluster

A taker's first tile is its own, so that nobody waits for an answer from global memory to begin; when its role has done
with a tile it asks for the next. In a cluster the first block asks, and tells the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from ..errors import TraceError, TypeRuleError
from ..program import Operand
from ..types import Coalesced, SharedVector, i32
from . import flow
from .elementwise import where
from .handle import number
from .hopper import cluster
from .memory import Tensor
from .memory_order import atomic_add
from .recorder import current
from .rings import Ring
from .scalar import Scalar, grid_size, var
from .scopes import warp


class Dynamic:
    """Made by `pk.dynamic`. `take` in one role; iterate in each of the others."""

    def __init__(self, counter: Tensor, count: Operand, ahead: int):
        if not isinstance(counter, Tensor) or counter.type.dtype is not i32:
            raise TypeRuleError(
                f"pk.dynamic counts in {getattr(counter, 'type', counter)}",
                fix="pass a tensor of one 32-bit integer: counter: pk.gl(pk.i32, 1)",
            )
        if current().program.cluster != (1, 1, 1) and not isinstance(self, DynamicTaker):
            raise TraceError(
                "pk.dynamic gives tiles to single blocks, and these come in clusters",
                fix="name a taker, who tells its cluster: pk.dynamic(counter, count, taker=(0, 1))",
            )
        self.counter, self.count, self.taken = counter, number(count), False
        self.ring = Ring(ahead, {"": SharedVector(i32, 4)}, "tiles", True)

    def _take_once(self) -> None:
        if self.taken:
            raise TraceError(
                "two roles take tiles from one pk.dynamic", fix="let one take them, and the others iterate over it"
            )
        self.taken = True

    def take(self) -> Iterator[Scalar]:
        """The tiles that this role takes for the block: numbers from 0 to count - 1, in increasing order."""
        self._take_once()
        blocks = grid_size.x * grid_size.y * grid_size.z
        for _ in flow.loop():
            tile = atomic_add(self.counter, 0, 1)
            with flow.when(tile == self.count + blocks - 1):  # every block has found that nothing is left
                atomic_add(self.counter, 0, -(self.count + blocks))
            self.ring.hand(where(tile < self.count, tile, -1))
            flow.break_if(tile >= self.count)
            yield tile

    def __iter__(self) -> Iterator[Scalar]:
        """The block's tiles, in the order in which they were taken."""
        for _ in flow.loop():
            tile = self.ring.receive()
            flow.break_if(tile < 0)
            yield tile


class DynamicTaker(Dynamic):
    """Made by `pk.dynamic(..., taker=...)`. `take` in a role of one warp; iterate in each of the others."""

    def __init__(self, counter: Tensor, count: Operand, ahead: int, taker: tuple[int, int]):
        super().__init__(counter, count, ahead)
        index, of = taker
        if not 0 <= index < of:
            raise TraceError(f"pk.dynamic with taker {index} of {of}", fix="count takers of a block from 0")
        stride = grid_size.x // cluster.size
        self.first, self.takers = cluster.index + index * stride, stride * of
        self.following: Scalar = self.first  # while one of the others is at a tile: the next one, or `count` and more

    def take(self) -> Iterator[Scalar]:
        """The tiles that this role takes, for the others of its block and of those of its cluster."""
        self._take_once()
        tile, leads = var(i32, self.first), cluster.rank == 0 if cluster.size > 1 else True
        for _ in flow.loop():
            flow.break_if(tile >= self.count)
            yield tile + 0
            drawn = var(i32, -1)
            with flow.when(leads) if cluster.size > 1 else nullcontext():
                drawn.set(atomic_add(self.counter, 0, 1))
            tile.set(self._told(drawn) + self.takers)
            self.ring.hand(tile)
        # Whoever has asked as often as there are tiles is the last to ask.
        with flow.when((tile == self.count + self.takers - 1) & leads):
            atomic_add(self.counter, 0, -self.count)

    def __iter__(self) -> Iterator[Scalar]:
        """The taker's tiles, in the order in which they were taken."""
        tile = var(i32, self.first)
        for _ in flow.loop():
            flow.break_if(tile >= self.count)
            now = tile + 0
            tile.set(self.ring.receive())
            self.following = tile
            yield now

    def _told(self, number: Scalar) -> Scalar:
        """What the first block of the cluster has drawn; what the others have is less."""
        if cluster.size == 1:
            return number
        return warp.full(i32, 1, 32, number, layout=Coalesced(32, 1)).row_max(cluster=True).max()


def dynamic(counter: Tensor, count: Operand, *, ahead: int = 2, taker: tuple[int, int] | None = None) -> Dynamic:
    """Tiles 0 to `count` - 1, each for one block of the grid; up to `ahead` of them wait for the block's slowest role.

    `counter`: a tensor of one int32, 0 before the first launch and after each. `taker`: this one of so many takers that
    each block has, or all blocks of a cluster together, for each of which there is a `pk.dynamic`: its first tile is
    its own, by its place in the grid, which has one dimension.
    """
    return Dynamic(counter, count, ahead) if taker is None else DynamicTaker(counter, count, ahead, taker)
