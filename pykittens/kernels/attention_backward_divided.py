"""Attention backward where tiles of keys are too few for all multiprocessors: several blocks divide the work on each.

    dk = scale * sum(dk_p)        dv = sum(dv_p)        over parts p of the heads that share keys, and of the queries

`attention_backward_hopper` and `attention_backward_wide` make dk_p and dv_p, float32 in the order of registers, and
`merge` the sums, always in the same order. How many parts there are says a model of time:

    time = rounds * (start + step * steps of the longest block) + merging

where all blocks are as long; else as long as the longest, or all of them evenly on all multiprocessors. Its constants
are fitted, and judged at shapes that were not, as those of `schedule` are, with which they stand in `schedule.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warpgroup

from . import schedule
from .attention_backward_hopper import LINES, keys_of
from .schedule import ChosenWay, Constants, DeviceModel

ROWS = 64  # of a tile of dk and dv
MOST, ROOM, ROOM_IN_ORDER = 64, 2**28, 2**30  # parts, and bytes for them


@pk.kernel(grid=lambda sums, dk, **_: (sums.rows, dk.depth * dk.batch, 2))
def merge(
    sums: Annotated[Tensor, f32, "PB", "PG", "PT", pk.static("PL")],
    dk: Annotated[Tensor, (bf16, f16), "B", "G", "M", pk.static("D")],
    dv: Annotated[Tensor, (bf16, f16), "B", "G", "M", pk.static("DV")],
    scale: Annotated[Scalar, f32],
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    *,
    width: int,
) -> None:
    """dk and dv of all parts; `width`: columns of the tiles. Of packed sequences, the parts' tiles are those of
    `owners`.
    """
    row, cols = pk.block_index.x, sums.cols // ROWS
    head, batch = pk.block_index.y % dk.depth, pk.block_index.y // dk.depth
    queries, across = sums.depth // dk.depth, width // cols
    heads = sums.batch // (2 * dk.batch)
    staged = pk.shared(pk.st(dk.dtype, ROWS, cols), name="staged")
    rows, at_row = pk.stretch(dk), row // across
    if owners is not None:
        keys = keys_of(width)
        sequence = owners[pk.minimum(at_row * ROWS // keys, owners.cols - 1)]  # at d 256 the last tile may be no one's
        rows = pk.packed(k_offsets).covering(sequence, dk.rows)
        at_row = at_row - pk.packed(k_offsets).first(sequence, keys) * (keys // ROWS)

    def add(gradient: int, out: Any, by: Any) -> None:
        """All parts of a tile of dk (0) or dv (1)."""
        total = warpgroup.full_vec(f32, sums.cols, 0.0, width=4)
        for part in pk.range(heads * queries, unroll=2):
            at = ((gradient * heads + part // queries) * dk.batch + batch, part % queries * dk.depth + head, row, 0)
            total[:] = total + warpgroup.load_vec(sums, at)
        warpgroup.store(staged, (total.tile(ROWS, cols) * by).to(out.dtype))
        warpgroup.sync()
        warpgroup.store(out, staged, **rows.tile(batch, head, at_row, ROWS, row % across, cols))

    with pk.when(pk.block_index.z == 0):
        add(0, dk, scale)
    with pk.when(pk.block_index.z == 1):
        add(1, dv, 1.0)


def parts_of(batch: int, shared: int, m: int, width: int, heads: int, queries: int) -> tuple[int, int, int, int]:
    """The shape of `sums`, for `shared` heads of m keys: as many parts of the heads, and of the queries."""
    tiles = -(-m // 128) * 128 // ROWS
    return 2 * heads * batch, queries * shared, tiles * max(width // 128, 1), ROWS * min(width, 128)


class Cut(NamedTuple):
    """Into how many parts the heads that share keys, and the queries, are divided; of tiles of a width."""

    width: int
    heads: int = 1
    queries: int = 1

    @property
    def name(self) -> str:
        """What its constants stand under."""
        return str(self.width)

    @property
    def words(self) -> str:
        """For people."""
        return f"parts of heads={self.heads} of queries={self.queries}"


class Shape(NamedTuple):
    """Of an attention, `shared` of whose `heads` have keys. width: of the tiles; fixed: additions to dq have an order,
    in which parts of the queries would wait for one another.
    """

    batch: int
    heads: int
    shared: int
    n: int
    m: int
    width: int
    causal: bool
    fixed: bool
    pairs: bool = False  # of blocks, each with two tiles of keys

    @property
    def group(self) -> int:
        """Heads that share keys."""
        return self.heads // self.shared

    @property
    def steps(self) -> np.ndarray:
        """Tiles of queries that see each tile of keys."""
        rows, keys = 128 if self.width == 64 else 64, 128 if self.pairs else keys_of(self.width)
        tiles = -(-self.n // rows)
        first = np.arange(-(-self.m // keys)) * keys - (self.m - self.n)
        return np.maximum(tiles - np.maximum(first, 0) // rows, 0) if self.causal else np.full(len(first), tiles)

    def ways(self, sms: int = 0) -> Iterator[Cut]:
        """All that may be fastest."""
        yield Cut(self.width)
        room = ROOM_IN_ORDER if self.fixed else ROOM
        most = min(MOST, room // max(8 * self.batch * self.shared * self.m * self.width, 1))
        for heads in range(2, min(self.group, most) + 1):
            if -(-self.group // heads) < -(-self.group // (heads - 1)):  # the longest has fewer
                yield Cut(self.width, heads)
        if not self.fixed:
            longest = int(self.steps.max(initial=0))
            yield from (
                Cut(self.width, self.group, queries) for queries in range(2, min(most // self.group, longest // 2) + 1)
            )

    def microseconds(self, way: Cut, constants: Constants, common: Constants, machine: DeviceModel) -> float:
        """Predicted for a way. The constants of its width: before and after the loop, a tile of queries, and merging.
        Those of all: of a step, causal, where blocks of several heads are soon at different ones, so that what they
        read and add to is many times what L2 has room for; of merging, each part, and its bandwidth.
        """
        start, step, merge = constants
        apart, part, bandwidth = common
        sms, parts = machine.sms, way.heads * way.queries
        slots = max(sms // 2 if self.pairs else sms, 1)
        many = -(-self.group // way.heads)
        if self.causal and many > 1:
            at_once = min(self.batch * self.shared * parts, max(LINES // max(self.n * self.width, 1), 1))
            step *= math.hypot(1, apart * at_once * many * self.n * self.width / LINES)
        each = start + step * many * np.ceil(self.steps / way.queries)
        mean = start + step * self.group / way.heads * self.steps / way.queries  # of parts that may differ by one
        tiles, heads = mean.sum(), self.batch * self.shared * parts
        jobs = len(each) * heads
        if jobs <= slots or not self.causal:
            time = -(-jobs // slots) * each.max(initial=0.0)
        else:  # as many heads at a time as L2 has room for, each time the longest first
            times = -(-heads // max(LINES // max(self.n * self.width, 1), 1))
            last = each.max() / 2 if self.fixed else each.min()  # a fixed order begins with the shortest
            time = (heads - heads // times) * tiles / slots + max(each.max(), heads // times * tiles / slots + last)
        if parts == 1:
            return time
        moved = 16 * parts * self.batch * self.shared * self.m * self.width / 1e6  # MB, written and read
        return time + merge + max(part * parts, moved / bandwidth)


def choices(shape: Shape, machine: DeviceModel) -> list[ChosenWay]:
    """The ways of a backward pass, the best first."""
    known = schedule.constants()["backward"]
    times = (ChosenWay(way, shape.microseconds(way, known[way.name], known["all"], machine)) for way in shape.ways())
    return sorted(times, key=lambda choice: choice.microseconds)


@lru_cache(maxsize=4096)
def cut(shape: Shape, sms: int) -> tuple[int, int]:
    """Into how many parts the heads and the queries of a tile of keys are divided: (1, 1) for none."""
    _, heads, queries = choices(shape, DeviceModel(sms))[0].way
    return heads, queries
