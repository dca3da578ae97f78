"""Small kernels of several warps, roles or blocks, with what NumPy makes of their operands.

They are for operations that a sample, one operation of one scope, cannot show: barriers, waits and exchanges have no
numbers of their own, but where one of them did not do its work, those of the kernel around it would be others. Every
operation without samples is recorded by one of these (`tests/test_exercises.py`); `python -m benchmarks.operations`
runs them on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np

import pykittens as pk
from pykittens import bf16, f32, i32, i64, warp, warpgroup
from pykittens.call.kernel import Kernel
from pykittens.program import Program

SIDE, BLOCKS = 16, 8


class Exercise(NamedTuple):
    """A kernel, its operands (`make`, the output last and full of NaN), and what the output is (`expected`, of the
    operands before it) after `times` launches. `features`: what an architecture needs to run it.
    """

    kernel: Kernel
    make: Callable[[np.random.Generator], list[np.ndarray]]
    expected: Callable[..., np.ndarray]
    features: tuple[str, ...] = ()
    times: int = 1

    def program(self) -> Program:
        return self.kernel.program(*self.make(np.random.default_rng(0)))

    def runs_on(self, features: Any) -> bool:
        return all(feature in features for feature in self.features)

    def operations(self) -> set[str]:
        """The names of the operations that it records."""
        return {type(op).__name__ for op in self.program().walk()}

    def differs(self, given: list[np.ndarray], out: np.ndarray) -> str:
        """In words, where the output is not what it should be, bit for bit; else empty."""
        want = self.expected(*given)
        bad = np.argwhere(~((out == want) | (np.isnan(want) & np.isnan(out))))
        if not len(bad):
            return ""
        at = tuple(bad[0])
        return f"{self.kernel.name}: {len(bad)} of {out.size}, the first at {at}: {out[at]}, not {want[at]}"


EXERCISES: list[Exercise] = []


def exercise(make: Any, expected: Any, *features: str, times: int = 1, **options: Any) -> Callable[[Any], Any]:
    """Puts a kernel function into the list."""

    def decorate(function: Any) -> Any:
        EXERCISES.append(Exercise(pk.kernel(**options)(function), make, expected, features, times))
        return function

    return decorate


def whole(*shapes: tuple[int, ...], out: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Small whole numbers, whose sums are exact in any order, and an output that nothing has written."""

    def make(rng: np.random.Generator) -> list[np.ndarray]:
        return [
            *(rng.integers(-8, 9, shape).astype(dtype) for shape in shapes),
            np.full(out, np.nan if dtype == np.float32 else -1, dtype),
        ]

    return make


Rows = Annotated[pk.Tensor, f32, "M", SIDE]
Block = Annotated[pk.Tensor, f32, SIDE, SIDE]
Lines = Annotated[pk.Tensor, f32, "M", "N"]
Wide = Annotated[pk.Tensor, f32, "M", 64]
Halves = Annotated[pk.Tensor, bf16, "K", 64]


def _halves(*shapes: tuple[int, ...], out: tuple[int, ...]) -> Any:
    make = whole(*shapes, out=out)
    return lambda rng: [x.astype(bf16.numpy) if i < len(shapes) else x for i, x in enumerate(make(rng))]


# One block ---------------------------------------------------------------------------------------------------


@exercise(
    whole((40, 64), out=(40, 64)),
    lambda x: np.roll(np.pad(x, ((0, 24), (0, 0))), 16, 0)[:40] + 40,
)
def exercise_copies(x: Wide, y: Wide) -> None:
    """Each warp brings 16 rows by cp.async, and stores those that the warp before it brought."""
    tile = pk.shared(pk.st(f32, 64, 64))
    warp.load_async(tile.part(warp.index * 16, 0, 16, 64), x, (warp.index, 0))
    warp.commit()
    warp.wait_loads()
    pk.block.sync()
    rows = warp.load(tile.part((warp.index + 3) % 4 * 16, 0, 16, 64))
    warp.store(y, rows + pk.cast(x.rows, f32), (warp.index, 0))


@exercise(whole((2, 512), out=(2, 512)), lambda x: x - x.sum(1, keepdims=True) + x.max(1, keepdims=True))
def exercise_rows_of_several_warps(x: Lines, y: Lines) -> None:
    tile = pk.block.load(x, (0, 0), rows=2, cols=512, layout=pk.coalesced(128, 4))
    pk.block.store(y, tile - tile.row_sum() + tile.row_max(), (0, 0))


@exercise(whole((64, 32), out=(64, 32)), lambda x: x * x.sum(0) + x.min(0))
def exercise_columns_of_several_warps(x: Lines, y: Lines) -> None:
    tile = pk.block.load(x, (0, 0), rows=64, cols=32)
    pk.block.store(y, tile * tile.col_sum(partial=True).total() + tile.col_min(), (0, 0))


def _int64(rng: np.random.Generator) -> list[np.ndarray]:
    x = rng.integers(-(2**63), 2**63 - 1, (2, 384), np.int64, endpoint=True)
    x[0, 7] = x[0, 300] = 2**63 - 1
    return [x, np.full((6, 2), -1, np.int64)]


def _largest_and_smallest(x: np.ndarray) -> np.ndarray:
    order = np.argsort(-1 - x, axis=1, kind="stable")[:, :2]  # -1 - x, which does not overflow
    best = np.take_along_axis(x, order, 1)
    places = [order[:, 0], order[:, 1], x.argmax(1), x.argmin(1)]
    return np.stack([best[:, 0], best[:, 1], *places])


@exercise(_int64, _largest_and_smallest)
def exercise_order_of_int64(x: Annotated[pk.Tensor, i64, 2, 384], y: Annotated[pk.Tensor, i64, 6, 2]) -> None:
    """The first of the largest, and the smallest, of rows that lie in four warps."""
    tile = pk.block.load(x, (0, 0), rows=2, cols=384, layout=pk.coalesced(128, 1))
    (best, first), (next, second) = tile.row_topk(2)
    places = (first, second, tile.row_argmax(), tile.row_argmin())
    for i, found in enumerate((best, next, *(place.to(i64) for place in places))):
        pk.block.store(y, found, (i, 0))


@exercise(whole((2, 1024), out=(2, 2)), lambda x: np.stack([x.sum(1), (x * x).sum(1)]) + 3.0 ** np.arange(2)[:, None])
def exercise_sums_over_a_loop(x: Lines, y: Annotated[pk.Tensor, f32, 2, 2]) -> None:
    """Partial sums of rows in four warps, which meet once, and powers of scalars."""
    layout = pk.coalesced(128, 2)
    total = pk.block.zeros_col(f32, 2, layout=layout, partial=True)
    squares = pk.block.zeros_col(f32, 2, layout=layout, partial=True)
    for i in pk.range(x.cols // 256):
        tile = pk.block.load(x, (0, i), rows=2, cols=256, layout=layout)
        total += tile.row_sum(partial=True)
        squares += tile.row_dot(tile, partial=True)
    for i, sums in enumerate((total.total(), squares.total())):
        pk.block.store(y, sums + pk.cast((x.rows + 1) ** i, f32), (i, 0))


@exercise(whole((64, 16), out=(64, 16)), lambda x: np.cumsum(x.reshape(4, 16, 16), 0).reshape(64, 16))
def exercise_named_barriers(x: Rows, y: Rows) -> None:
    """Each warp adds its rows to what the warp before it has left, and tells the next one."""
    tile, there = pk.shared(pk.st(f32, SIDE, SIDE)), pk.named_barrier(2, count=3)
    for i in range(4):
        with pk.when(warp.index == i):
            rows = warp.load(x, (i, 0), rows=SIDE)
            if i:
                warp.sync_at(there, i - 1)
                rows += warp.load(tile)
            warp.store(y, rows, (i, 0))
            warp.store(tile, rows)
            if i < 3:
                warp.arrive_at(there, i)


@exercise(whole((32,), out=(32,)), lambda x: 2 * x[::-1] + 1, warps=1)
def exercise_text(x: Annotated[pk.Tensor, f32, 32], y: Annotated[pk.Tensor, f32, 32]) -> None:
    """Elements of shared memory, CUDA C of the author's, a line printed."""
    row = pk.shared(pk.sv(f32, 32))
    warp.store(row, warp.load_vec(x, (0,), length=32))
    for i in range(32):
        value = pk.var(f32, row[31 - i])
        pk.cuda("{v} = 2.0f * {v} + 1.0f;", writes={"v": value}, reads={}, numpy=lambda v: 2 * v + 1)
        warp.set(y, (i,), value)
    pk.assert_(x.cols == 32, "32 numbers")
    with pk.when(row[0] > 1e9):
        pk.print("never", row[0])


# Hopper's copies and products ----------------------------------------------------------------------------------


@exercise(whole((128, 64), out=(128, 64)), lambda x: x.reshape(8, 16, 64)[::-1].reshape(128, 64), "tma", warps=1)
def exercise_tma(x: Wide, y: Wide) -> None:
    """Tiles of 16 rows come and go by the copy engine, in the opposite order, the next one asked for beforehand."""
    tile, ready = pk.shared(pk.st(f32, SIDE, 64)), pk.barrier()
    for i in range(8):
        if i < 7:
            pk.tma.prefetch(x, (6 - i, 0), tile)
        pk.tma.expect(ready, tile)
        pk.tma.load(tile, x, (7 - i, 0), ready)
        pk.wait(ready, i % 2)
        pk.tma.store(y, tile, (i, 0))
        pk.tma.commit()
        pk.tma.wait()


@exercise(
    _halves((64, 64), (64, 64), out=(64, 64)),
    lambda a, b: a.astype(np.float32) @ b.astype(np.float32),
    "wgmma",
    warps=8,
)
def exercise_wgmma(a: Annotated[pk.Tensor, bf16, 64, 64], b: Halves, c: Wide) -> None:
    """A product whose operands come through a ring, 16 columns of a at a time."""
    ring = pk.ring(2, left=pk.st(bf16, 64, 16), right=pk.st(bf16, 16, 64))
    with pk.role("load", warps=4):
        for k in pk.range(pk.cdiv(a.cols, 16)):
            with ring.fill() as slot:
                pk.tma.load(slot.left, a, (0, k))
                pk.tma.load(slot.right, b, (k, 0))
    with pk.role("multiply", warpgroups=1):
        total = warpgroup.zeros(f32, 64, 64)
        for _ in pk.range(pk.cdiv(a.cols, 16)):
            slot = ring.read()
            warpgroup.mma_AB(total, slot.left, slot.right)
            warpgroup.wait(total)
            ring.release()
        warpgroup.store(c, total, (0, 0))


# Several blocks, several kernels -------------------------------------------------------------------------------


def _parts(rng: np.random.Generator) -> list[np.ndarray]:
    x = rng.integers(-8, 9, (BLOCKS * SIDE, SIDE)).astype(np.float32)
    return [x, np.zeros(1, np.int32), np.full_like(x, np.nan), np.full((SIDE, SIDE), np.nan, np.float32)]


@exercise(_parts, lambda x, *_: 2 * x.reshape(BLOCKS, SIDE, SIDE).sum(0), grid=BLOCKS, warps=1)
def exercise_the_last_block(x: Rows, counter: Annotated[pk.Tensor, i32, 1], part: Rows, y: Block) -> None:
    """Each block leaves its part behind a fence, and whoever comes last adds all of them up."""
    me = pk.block_index.x
    warp.store(part, warp.load(x, (me, 0), rows=SIDE) * 2.0, (me, 0))
    pk.fence()
    ticket = pk.atomic_add(counter, 0, 1, by=warp)
    pk.fence()
    with pk.when(ticket == BLOCKS - 1):
        total = warp.zeros(f32, SIDE, SIDE)
        for i in pk.range(BLOCKS):
            total += warp.load(part, (i, 0), rows=SIDE)
        warp.store(y, total, (0, 0))


@exercise(whole(out=(SIDE, SIDE)), lambda: np.full((SIDE, SIDE), 4.0), "dependent launch", times=4, pdl=True, warps=1)
def exercise_dependent_launches(y: Rows) -> None:
    """Adds one to what the kernel before has left, and lets the next one begin at once. The first finds NaN."""
    pk.wait_for_previous()
    pk.launch_next()
    x = warp.load(y, (0, 0), rows=SIDE)
    warp.store(y, pk.where(x == x, x + 1.0, 1.0), (0, 0))


def _of_the_peer(x: np.ndarray) -> np.ndarray:
    """Rows of 16 in the places of their neighbour in a pair."""
    return x.reshape(-1, 2, SIDE, x.shape[1])[:, ::-1].reshape(x.shape)


@exercise(
    whole((4 * SIDE, SIDE), out=(4 * SIDE, SIDE)),
    lambda x: 10 * x + 3 * _of_the_peer(x),
    "clusters",
    grid=4,
    cluster=2,
    warps=1,
)
def exercise_memory_of_a_peer(x: Rows, y: Rows) -> None:
    """Two blocks write one another's tile, and read another of one another's."""
    given, own = pk.shared(pk.st(f32, SIDE, SIDE)), pk.shared(pk.st(f32, SIDE, SIDE))
    told, peer, me = pk.barrier(), 1 - pk.cluster.rank, pk.block_index.x
    rows = warp.load(x, (me, 0), rows=SIDE)
    warp.store(own, rows)
    pk.cluster.sync()  # both have begun, and both tiles are there
    warp.store(given, rows, rank=peer)
    warp.sync()
    pk.arrive(told, rank=peer)
    pk.wait(told, 0)
    warp.store(y, rows * 10.0 + warp.load(given) + pk.cluster.load(own, peer, scope=warp) * 2.0, (me, 0))
    pk.cluster.sync()  # nobody ends while the other reads


@exercise(
    whole((64, SIDE), out=(64, SIDE)), lambda x: _of_the_peer(x) + 1, "mbarrier bytes", grid=2, cluster=2, warps=2
)
def exercise_exchange(x: Rows, y: Rows) -> None:
    """Two blocks exchange tiles by the copy engine, twice."""
    ring, own = pk.ring(2, pk.st(f32, SIDE, SIDE)), pk.shared(pk.st(f32, SIDE, SIDE), count=2)
    peer_first = pk.cluster.rank
    with pk.role("send", warps=1):
        for i in range(2):
            warp.store(own[i], warp.load(x, (2 * i + peer_first, 0), rows=SIDE) + 1.0)
            warp.sync()
            with ring.fill() as slot:
                pk.tma.exchange(slot, own[i])
    with pk.role("receive", warps=1):
        for i in range(2):
            with ring.reading() as slot:
                warp.store(y, warp.load(slot), (2 * i + peer_first, 0))
    pk.cluster.sync()


@exercise(
    whole((2, 1024), out=(2, 1024)), lambda x: x - x.sum(1, keepdims=True), "clusters", grid=2, cluster=2, warps=4
)
def exercise_rows_of_a_cluster(x: Lines, y: Lines) -> None:
    """Rows that lie in two blocks, whose terms the threads of a role send one another."""
    layout, half = pk.coalesced(128, 4), pk.cluster.rank
    with pk.role("rows", warps=4):
        tile = pk.group(4).load(x, (0, half), rows=2, cols=512, layout=layout)
        pk.group(4).store(y, tile - tile.row_sum(cluster=True), (0, half))
    pk.cluster.sync()
