"""Matrix product for Hopper: TMA, asynchronous tensor cores, persistent blocks, and an epilogue of the caller's.

    c = epilogue(a @ b)        or        c = epilogue((a @ b, a @ b2)), such as a gate and what it multiplies

a (m, k), b and b2 (k, n): bf16, f16 or 8-bit floats, in either order of rows and columns; c (m, n): bf16, f16 or f32;
float32 sums. An epilogue that returns several tiles fills c2 and c3 too: what a backward pass needs. One warp loads
slots of a and b with TMA; each of the other warpgroups owns some rows of the tile. Blocks stay and walk the tiles of c
in groups of rows that keep both operands in L2 (Triton's order); while a tile leaves through two small buffers a
warpgroup, the next one is being loaded. The blocks of a cluster share one operand, each loading its part of it to all,
or one tile, each summing a part of k and then some columns of all parts. What lies past the end of an operand reads as
zero and is not written. After fast.cu (Pranjal Shankhdhar 2024) and CUTLASS's persistent kernels.
`matmul.py` chooses the configuration.

Speed beside cuBLAS: docs/benchmarks.md, measured by `pykittens bench gemm`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, e4m3, e5m2, f16, f32, i32, warp, warpgroup

from .partial_sums import PartialSums

FLOATS = (bf16, f16, f32, e4m3, e5m2)
EXTRAS = (*FLOATS, i32)


@dataclass(frozen=True)
class Config:
    """A block makes rows x cols of c with `consumers` warpgroups, from `stages` slots of `depth` bytes along k.

    `group`: how many tiles stand below one another before the walk goes right. `cluster` blocks share something:
    operand "b" where they stand below one another, "a" where side by side, or one tile of c, of which each sums a part
    of "k". `residents` blocks share a multiprocessor. `rotate`: each column of tiles (row of swapped ones) begins
    elsewhere along k, so that not all blocks ask for the same lines of a small operand at once; not in clusters, whose
    blocks load the same. `once`: an operand, "a" or "b", that is read once: its lines give way in L2. `swap`: c.T = a @
    b is made, so that tiles have any multiple of 16 rows of c; on their other side tensor cores want 64.
    """

    rows: int = 128
    cols: int = 256
    stages: int = 4
    consumers: int = 2
    group: int = 8
    cluster: int = 1
    share: str = "b"
    depth: int = 128
    residents: int = 1
    rotate: bool = False
    once: str = ""
    swap: bool = False

    def __post_init__(self) -> None:
        unit = 16 if self.swap else 64
        if (
            self.rows % (64 * self.consumers)
            or self.cols % unit
            or self.cols > 256
            or self.share not in ("a", "b", "k")
            or self.cols % self.own
            or (self.rotate and self.cluster > 1)
        ):
            raise ValueError(
                f"{self}: rows are a multiple of 64 a consumer, columns of {unit} up to 256 (of what each block of a "
                "cluster finishes), share a, b or k, and clusters do not rotate"
            )

    @property
    def stack(self) -> tuple[int, int]:
        """How many blocks of a cluster stand below one another, and side by side."""
        return (self.cluster if self.share == "b" else 1, self.cluster if self.share == "a" else 1)

    @property
    def splits(self) -> bool:
        """Whether the blocks of a cluster make one tile together."""
        return self.cluster > 1 and self.share == "k"

    @property
    def own(self) -> int:
        """How many columns a block finishes."""
        return own_columns(self.cols, self.cluster) if self.splits else self.cols


def own_columns(cols: int, cluster: int) -> int:
    """How many columns of a tile that a cluster makes together a block of it finishes: 16 at least, and some none."""
    return -(-cols // (16 * cluster)) * 16


def sides(a: Any, b: Any, c: Any, ta: bool, tb: bool, swap: bool) -> tuple[Any, Any]:
    """The product's rows and columns. The operands may have more of them, which are zeros."""
    if c is None:
        return (a.cols if ta else a.rows, b.rows if tb else b.cols)
    return (c.cols, c.rows) if swap else (c.rows, c.cols)


def grid(
    a: Any, b: Any, c: Any, sms: int, config: Config, ta: bool = False, tb: bool = False, splits: Any = None, **_: Any
) -> int:
    """One block a multiprocessor, or as many as there is work for. Clusters that share k make one tile and end."""
    (down, right), (m, n) = config.stack, sides(a, b, c, ta, tb, config.swap)
    items = pk.cdiv(m, config.rows * down) * pk.cdiv(n, config.cols * right)
    items = items if splits is None else items * splits
    return (items if config.splits else min(items, max(1, sms * config.residents // config.cluster))) * config.cluster


def item(tiles: Any, index: Any) -> Any:
    """One of several shared tiles, or the only one."""
    return tiles[index] if tiles.count > 1 else tiles


def store_runs(target: Any, buffer: Any, at: tuple[Any, Any]) -> None:
    """Writes what TMA cannot address, by a warpgroup: a run of each row after another."""
    rows, cols = buffer.shape
    each = 8 if rows % 64 else 16  # rows of a warp
    for first in range(0, rows, 4 * each):
        row = first + warp.index % 4 * each
        with pk.when(row < rows):
            runs = warp.load(buffer.part(row, 0, each, cols), dtype=f32, layout=pk.coalesced(min(cols, 32), 1))
            warp.store(target, runs, pk.at(at[0] + row, at[1]))


@pk.kernel(
    warps=lambda config, **_: 4 + 4 * config.consumers,
    cluster=lambda config, **_: config.cluster,
    grid=grid,
    blocks_per_sm=lambda config, **_: config.residents,
    pdl=lambda dependent=False, **_: dependent,
)
def gemm(
    a: Annotated[Tensor, FLOATS, "AR", "AC"],
    b: Annotated[Tensor, FLOATS, "BR", "BC"],
    c: Annotated[Tensor, (bf16, f16, f32), "M", "N"],
    x0: Annotated[Tensor, EXTRAS, "R0", "C0"],
    x1: Annotated[Tensor, EXTRAS, "R1", "C1"],
    x2: Annotated[Tensor, EXTRAS, "R2", "C2"],
    x3: Annotated[Tensor, EXTRAS, "R3", "C3"],
    sms: Annotated[Scalar, pk.i32],
    b2: Annotated[Tensor, FLOATS, "B2R", "B2C"] | None = None,
    c2: Annotated[Tensor, (bf16, f16, f32), "M", "N"] | None = None,
    c3: Annotated[Tensor, (bf16, f16, f32), "M", "N"] | None = None,
    splits: Annotated[Scalar, i32] | None = None,
    parts: Annotated[Tensor, f32, "P", "L"] | None = None,
    flags: Annotated[Tensor, i32, "F"] | None = None,
    *,
    config: Config,
    ta: bool = False,
    tb: bool = False,
    epilogue: Callable[..., Any] | None = None,
    dependent: bool = False,
) -> None:
    """c = epilogue(a @ b); `ta`: a is given as (k, m), `tb`: b as (n, k), and b2 like it. Rows of (k, m) and (k, n) may
    be longer, with zeros: TMA is slow where a row ends inside a sector of 32 bytes. With `config.swap` c.T = a @ b, of
    16 bits, without an epilogue.

    `dependent`: the kernel before makes operands or clears `flags`, and may still run.

    `epilogue(x, row, col, *operands)` gets a float32 tile of the product (with b2: a pair), where in c it begins, and
    what is given of x0 to x3; it returns a tile for each of c, c2 and c3 that is given. Without c it gets 64 rows with
    all columns that a block has of them, and stores itself what it makes of them.

    `splits`: the tiles of the last round, fewer than blocks, are divided into so many parts of k (`pk.grouped`). All
    but the last write their sums into `parts`, a row for each piece that leaves at a time, and count in `flags`, which
    are 0 before: the last one adds them up (`partial_sums.py`).
    """
    depth, mine = config.depth // a.dtype.size, config.rows // config.consumers
    right_hand = {name: x for name, x in (("b", b), ("b2", b2)) if x is not None}
    outputs = [x for x in (c, c2, c3) if x is not None]
    slots: Any = {name: pk.st(b.dtype, *((config.cols, depth) if tb else (depth, config.cols))) for name in right_hand}
    ring = pk.ring(
        config.stages,
        a=pk.st(a.dtype, depth, config.rows) if ta else pk.st(a.dtype, config.rows, depth),
        **slots,
    )
    own = config.own
    width = own if c is None else min(own, 128 // c.dtype.size)
    corners = [(r, s, min(width, own - s)) for r in range(0, mine, 64) for s in range(0, own, width)]  # leave at a time
    buffers = len(corners) * len(outputs)  # they take turns over all tiles
    buffers = buffers if buffers % 2 else 2
    if c is not None:
        piece = pk.st(c.dtype, *((width, 64) if config.swap else (64, width)))
        leaving = pk.shared(piece, count=buffers * config.consumers, name="leaving")
    (down, right), (m, n) = config.stack, sides(a, b, c, ta, tb, config.swap)
    rank = pk.cluster.rank if config.cluster > 1 else 0
    high, wide = pk.cdiv(m, config.rows * down), pk.cdiv(n, config.cols * right)
    steps = pk.cdiv(a.rows if ta else a.cols, depth * (config.cluster if config.splits else 1))
    if config.splits:
        finishers = range(config.cols // own)
        inbox = pk.shared(pk.st(f32, mine, own), count=config.consumers * config.cluster, name="inbox")
        outbox = pk.shared(pk.st(f32, mine, own), count=config.consumers * len(finishers), name="outbox")
        arrived = pk.barrier(config.consumers)
    budget = (512 - 24) // config.consumers // 8 * 8 if config.consumers > 1 else 0  # registers a thread, of 512

    def each_tile() -> Any:
        """Row and column, in tiles, of this block's tiles, the steps along k, and which part of them of how many."""
        for row, col, *part in pk.grouped(high, wide, config.group, splits):
            if not config.splits:
                row, col = (row * down + rank, col) if config.share == "b" else (row, col * right + rank)
            begin, end = (
                (0, steps) if splits is None else (part[0] * steps // part[1], (part[0] + 1) * steps // part[1])
            )
            yield row, col, begin, end, part

    def load(operand: Any, slot: Any, source: Any, major: Any, k: Any, transposed: Any) -> None:
        move = pk.tma.share if config.share == operand else pk.tma.load
        move(
            slot,
            source,
            (k, major) if transposed else (major, k),
            hint="evict_first" if operand == config.once else None,
        )

    with pk.role("load", warps=4, registers=24 if budget else 0):
        if dependent:
            pk.wait_for_previous()
        for row, col, first, end, _part in each_tile():
            begin = rank * steps if config.splits else 0
            if config.rotate:
                begin = row * steps // high if config.swap else col * steps // wide
            for step in pk.range(first, end):
                k = step + begin
                if config.rotate:
                    k = pk.where(k < steps, k, k - steps)
                with ring.fill() as slot:
                    load("a", slot.a, a, row, k, ta)
                    for name, source in right_hand.items():
                        load("b", getattr(slot, name), source, col, k, not tb)
        if config.cluster > 1 and not config.splits:
            ring.drain()  # others release our slots: we may not end before
    with pk.role("multiply", warpgroups=config.consumers, registers=budget) as me:
        sums = [warpgroup.zeros(f32, mine, config.cols) for _ in right_hand]

        def product(kind: Any) -> None:
            slot = ring.read()
            rows = slot.a.part(0, me * mine, depth, mine) if ta else slot.a.part(me * mine, 0, mine, depth)
            for acc, name in zip(sums, right_hand, strict=True):
                getattr(warpgroup, f"{kind}_A{'t' * ta}B{'t' * tb}")(acc, rows, getattr(slot, name))

        for row, col, first, end, part in each_tile():
            product("mm")
            for _ in pk.range(first + 1, end):
                product("mma")
                warpgroup.wait(pending=len(sums))  # the product before has been read
                ring.release()
            warpgroup.wait(*sums)
            ring.release()

            def cut(whole: list[Any], i: int) -> list[Any]:
                """Piece i of each product."""
                down_by, right_by, wide = corners[i]
                return [acc[down_by : down_by + 64, right_by : right_by + wide] for acc in whole]

            def leave(whole: list[Any], left: Any = 0) -> None:
                """What is summed of a tile, from column `left` on, goes through the epilogue and to its tensors."""
                turn = 0  # the buffer of the next piece
                first_row, first_col = row * config.rows + me * mine, col * config.cols + left
                for i, (down_by, right_by, wide) in enumerate(corners):
                    place = (first_row + down_by, first_col + right_by)
                    at = pk.at(*(reversed(place) if config.swap else place))
                    x = cut(whole, i)
                    for j, tile in enumerate(x if splits is not None else ()):
                        others.add(tile, i * len(x) + j)
                    given = [y for y in (x0, x1, x2, x3) if y is not None]
                    y = epilogue(tuple(x) if b2 is not None else x[0], *at, *given) if epilogue is not None else x[0]
                    if not outputs:
                        continue
                    for target, tile in zip(outputs, y if isinstance(y, tuple) else (y,), strict=True):
                        buffer = item(leaving, me * buffers + turn % buffers)
                        turn += 1
                        if wide < width:
                            buffer = buffer.part(0, 0, wide, 64)
                        through_tma = target.type.align >= 16
                        if through_tma:
                            warpgroup.tma.wait(pending=buffers - 1, read=True)
                        warpgroup.sync()
                        (warpgroup.store_transposed if config.swap else warpgroup.store)(buffer, tile.to(target.dtype))
                        warpgroup.sync()
                        if through_tma:
                            warpgroup.tma.store(target, buffer, at)
                            warpgroup.tma.commit()
                        else:
                            store_runs(target, buffer, at)

            if config.splits:  # each block gets the others' sums for its own columns
                with pk.when(rank < len(finishers)):
                    warpgroup.tma.expect(arrived, *[inbox[me * config.cluster + r] for r in range(config.cluster)])
                for r in finishers:
                    warpgroup.store(item(outbox, me * len(finishers) + r), sums[0][:, r * own : (r + 1) * own])
                warpgroup.sync()
                for r in finishers:
                    theirs, ours = inbox[me * config.cluster + rank], item(outbox, me * len(finishers) + r)
                    warpgroup.tma.send(theirs, ours, r, arrived)

            def summed() -> list[Any]:
                """What this block finishes."""
                if not config.splits:
                    return [*sums]
                pk.wait(arrived, 0, scope=warpgroup)
                return [sum(warpgroup.load(inbox[me * config.cluster + r]) for r in range(config.cluster))]

            if splits is None:
                with pk.when(rank < len(finishers)) if config.splits else nullcontext():
                    leave(summed(), rank * own if config.splits else 0)
                continue
            index, of, which = part
            unit = which * config.consumers + me
            others = PartialSums(parts, flags, unit, index, of, len(corners) * len(sums))
            with pk.when(index < of - 1):
                others.send([x for i in range(len(corners)) for x in cut(sums, i)])
            with pk.otherwise():
                others.wait()
                leave(sums)
        if outputs:
            warpgroup.tma.wait(read=True)  # the end of the kernel finishes the writes
    if config.splits:
        pk.cluster.sync()  # nobody ends while its sums are on their way
