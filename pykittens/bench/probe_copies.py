"""The probe's kernels for what moves between memories and blocks, and for how threads and blocks wait."""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, f32, i32, warp

from .probe_kernels import Sink, Steps, Ticks, Value, clock, tell

Rows = Annotated[Tensor, bf16, "M", 64]
SLOTS, HEIGHT = 4, 128  # tiles of 16 KiB
WAYS = ("plain loads and stores", "cp.async", "TMA")


@pk.kernel(warps=16, grid=lambda ticks, **_: ticks.cols)
def matrix_rate(ticks: Ticks, steps: Steps, sink: Sink, value: Value, *, store: bool) -> None:
    """Tiles of 16 x 64 bf16, one a warp, by ldmatrix or stmatrix; 8 rows of a matrix lie in different banks."""
    room, held = pk.shared(pk.st(bf16, 16, 64), count=16)[warp.index], warp.full(bf16, 16, 64, value)
    warp.store(room, held)
    warp.sync()
    begin = clock(held)
    for _ in pk.range(steps):
        if store:
            warp.store(room, held)
        else:
            held[:] = -warp.load(room)
    tell(ticks, begin, clock(held), sink, held.to(f32).row_max().max())


@pk.kernel(warps=8, grid=lambda sms, **_: sms * 2)
def copy_rate(x: Rows, y: Annotated[Tensor, f32, "B"], sms: Steps, passes: Steps, *, way: str) -> None:
    """All tiles into shared memory, `passes` times: three under way in each of two blocks of a multiprocessor."""
    tiles = pk.cdiv(x.rows, HEIGHT)
    mine, stride = pk.block_index.x, sms * 2
    count = pk.cdiv(tiles, stride) * passes
    room = pk.shared(pk.st(bf16, HEIGHT, 64), count=SLOTS, name="room")

    def place(i: Any) -> tuple[Any, int]:
        return (mine + i * stride) % tiles, 0

    if way == "plain loads and stores":
        for i in pk.range(count):
            pk.block.load_into(room[i % SLOTS], x, place(i))
            pk.block.sync()
    elif way == "cp.async":
        for i in range(SLOTS - 1):
            pk.block.load_async(room[i], x, place(i))
            pk.block.commit()
        for i in pk.range(count):
            pk.block.wait_loads(SLOTS - 2)
            pk.block.sync()
            pk.block.load_async(room[(i + SLOTS - 1) % SLOTS], x, place(i + SLOTS - 1))
            pk.block.commit()
        pk.block.wait_loads()
    else:
        landed = pk.barrier(1, SLOTS, name="landed")

        def load(i: Any) -> None:
            pk.tma.expect(landed[i % SLOTS], room[i % SLOTS])
            pk.tma.load(room[i % SLOTS], x, place(i), landed[i % SLOTS])

        for i in range(SLOTS - 1):
            load(i)
        for i in pk.range(count):
            pk.wait(landed[i % SLOTS], i // SLOTS % 2)
            pk.block.sync()
            load(i + SLOTS - 1)
        for i in pk.range(count, count + SLOTS - 1):
            pk.wait(landed[i % SLOTS], i // SLOTS % 2)
    pk.block.sync()
    with pk.when(warp.index == 0):
        warp.set(y, pk.block_index.x, pk.cast(warp.load(room[0].part(0, 0, 16, 64), dtype=f32).row_max().max(), f32))


@pk.kernel(warps=1, grid=1)
def copy_cost(x: Rows, ticks: Ticks, steps: Steps, *, way: str) -> None:
    """How long a warp is busy with copies of 16 KiB, not counting what it could do meanwhile."""
    room, landed, busy = pk.shared(pk.st(bf16, HEIGHT, 64)), pk.barrier(1), pk.var(pk.i64, 0)
    last = warp.full(f32, 16, 16, 0.5)
    for i in pk.range(steps):
        begin = clock(last)
        if way == "plain loads and stores":
            warp.load_into(room, x, (i % 4, 0))
        elif way == "cp.async":
            warp.load_async(room, x, (i % 4, 0))
            warp.commit()
        else:
            pk.tma.expect(landed, room)
            pk.tma.load(room, x, (i % 4, 0), landed)
        busy.set(busy + clock(last) - begin)
        if way == "cp.async":
            warp.wait_loads()
        elif way == "TMA":
            pk.wait(landed, i % 2)
        warp.sync()
    with pk.when(warp.index == 0):
        warp.set(ticks, pk.block_index.x, pk.cast(busy, i32))


@pk.kernel(warps=2, grid=1)
def mbarrier_cost(ticks: Ticks, steps: Steps) -> None:
    """Two warps hand over to each other: an arrival and a wait each way."""
    there, back, x = pk.barrier(1, name="there"), pk.barrier(1, name="back"), warp.full(f32, 16, 16, 0.5)
    with pk.role("asks", warps=1):
        begin = clock(x)
        for i in pk.range(steps):
            pk.arrive(there)
            pk.wait(back, i % 2)
        warp.set(ticks, pk.block_index.x, pk.cast(clock(x) - begin, i32))
    with pk.role("answers", warps=1):
        for i in pk.range(steps):
            pk.wait(there, i % 2)
            pk.arrive(back)


@pk.kernel(warps=4, grid=2, cluster=2)
def cluster_cost(ticks: Ticks, steps: Steps) -> None:
    """Barriers of a cluster of two blocks, one after another."""
    x = warp.full(f32, 16, 16, 0.5)
    begin = clock(x)
    for _ in pk.range(steps):
        pk.cluster.sync()
    with pk.when((warp.index == 0) & (pk.cluster.rank == 0)):
        warp.set(ticks, 0, pk.cast(clock(x) - begin, i32))


@pk.kernel(warps=16, grid=lambda ticks, **_: ticks.cols, cluster=2)
def remote_rate(ticks: Ticks, steps: Steps, sink: Sink, value: Value, *, own: bool = False) -> None:
    """Tiles of 16 x 64 float32, one a warp, from the shared memory of the other block of a cluster, or the own."""
    room, total = pk.shared(pk.st(f32, 16, 64), count=16), warp.full(f32, 16, 64, value)
    warp.store(room[warp.index], total)
    pk.cluster.sync()
    begin, rank = clock(total), pk.cluster.rank if own else 1 - pk.cluster.rank
    for i in pk.range(steps):  # another tile each time, or one load would do for all
        total += pk.cluster.load(room[(warp.index + i) % 16], rank, scope=warp)
    tell(ticks, begin, clock(total), sink, total.row_max().max())
    pk.cluster.sync()  # nobody ends while others read


@pk.kernel(warps=1, grid=1)
def line_latency(x: Annotated[Tensor, i32, "M"], ticks: Annotated[Tensor, i32, "L"], steps: Steps) -> None:
    """Each of many lines of L2, read again and again by one multiprocessor: some are near, some far. x is zeros."""
    for line in pk.range(ticks.cols):
        at, out = pk.var(i32, line * 32), warp.full_vec(f32, 32, 0.5)
        at.set(line * 32 + x.load(at, order="relaxed"))
        begin = clock(out + pk.cast(at, f32))
        for _ in pk.range(steps):
            at.set(line * 32 + x.load(at, order="relaxed"))
        end = clock(out + pk.cast(at, f32))
        warp.set(ticks, line, pk.cast(end - begin, i32) + at - line * 32)  # + 0, so that the loads are needed


@pk.kernel(warps=1, grid=1)
def nothing(ticks: Ticks) -> None:
    """A launch, and nothing else."""
    with pk.when(ticks.cols < 0):
        warp.set(ticks, 0, 0)
