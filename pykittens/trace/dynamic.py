"""A persistent kernel whose blocks take tiles as they come to need them, from a counter in global memory.

    work = pk.dynamic(counter, count)                 # counter: pk.gl(i32, 1), 0 before the first launch
    with pk.role("load", warps=4):
        for tile in work.take(): ...                  # one role takes tiles for its block,
    with pk.role("multiply", warpgroups=2):
        for tile in work: ...                         # the others are given the same ones

Where tiles differ in length, or blocks begin at different times, this is fairer than `pk.persistent`. The last block to
find no tile left sets the counter back to 0, so that the next launch, or the next replay of a CUDA graph, finds it so.
Kernels that may run at the same time need a counter each.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import TraceError, TypeRuleError
from ..program import Operand
from ..types import SharedVector, i32
from . import flow
from .elementwise import where
from .handle import number
from .memory import Tensor
from .memory_order import atomic_add
from .recorder import current
from .rings import Ring
from .scalar import Scalar, grid_size


class Dynamic:
    """Made by `pk.dynamic`. `take` in one role; iterate in each of the others."""

    def __init__(self, counter: Tensor, count: Operand, ahead: int):
        if not isinstance(counter, Tensor) or counter.type.dtype is not i32:
            raise TypeRuleError(
                f"pk.dynamic counts in {getattr(counter, 'type', counter)}",
                fix="pass a tensor of one 32-bit integer: counter: pk.gl(pk.i32, 1)",
            )
        if current().program.cluster != (1, 1, 1):
            raise TraceError(
                "pk.dynamic gives tiles to single blocks, and these come in clusters",
                fix="use pk.persistent, whose clusters walk together",
            )
        self.counter, self.count, self.taken = counter, number(count), False
        self.ring = Ring(ahead, {"": SharedVector(i32, 4)}, "tiles", True)

    def take(self) -> Iterator[Scalar]:
        """The tiles that this role takes for the block: numbers from 0 to count - 1, in increasing order."""
        if self.taken:
            raise TraceError(
                "two roles take tiles from one pk.dynamic", fix="let one take them, and the others iterate over it"
            )
        self.taken = True
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


def dynamic(counter: Tensor, count: Operand, *, ahead: int = 2) -> Dynamic:
    """Tiles 0 to `count` - 1, each for one block of the grid; up to `ahead` of them wait for the block's slowest role.

    `counter`: a tensor of one int32, 0 before the first launch and after each.
    """
    return Dynamic(counter, count, ahead)
