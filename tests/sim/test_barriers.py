"""mbarriers, named barriers, engines: what is promised, counted and waited for must agree."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, i64, u32, warp, warpgroup
from pykittens.ops.sync import Barrier
from pykittens.program import Scope
from pykittens.types import Coalesced

ORDERS = [None, 1, 2, 3]
BF16 = ml_dtypes.bfloat16


def zeros(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def check(
    kernel: Callable[..., pk.Kernel],
    error: type[Exception] | tuple[type[Exception], ...],
    words: str,
    *arrays: np.ndarray,
) -> Exception:
    """`kernel(True)` is clean and `kernel(False)` raises `error` with these words, in every order of gangs and
    engines."""
    for seed in ORDERS:
        assert kernel(True).simulate(*arrays, seed=seed).clean
        with pytest.raises(error) as caught:
            kernel(False).simulate(*arrays, seed=seed)
        for word in words.split(", "):
            assert word in str(caught.value), (word, str(caught.value))
        assert "fix:" in str(caught.value) and "test_barriers.py" in str(caught.value)
    return caught.value


def test_a_load_is_read_before_it_has_landed() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def early(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 32, 16)) -> None:
            tile, full = pk.shared(pk.st(f32, 16, 16), name="tile"), pk.barrier(name="full")
            with pk.role("load", warps=1):
                pk.tma.expect(full, tile)
                pk.tma.load(tile, x, (0, 0), full)
            with pk.role("use", warps=1):
                if right:
                    pk.wait(full, 0)
                warp.store(y, warp.load(tile), (0, 0))
                pk.wait(full, 0)

        return early

    # whether the reader or the load comes first, it is found
    check(kernel, (pk.RaceError, pk.UninitializedError), "tile", zeros(16, 16), zeros(32, 16))


@pytest.mark.parametrize(
    "promised, error, words",
    [
        (2048, pk.DeadlockError, "1024 promised bytes that nothing in flight brings, warp 1 (use), full, phase 0"),
        (512, pk.BarrierError, "full was promised 512 bytes less"),
        (None, pk.DeadlockError, "misses 1 of 1 arrivals and the promise of 1024 bytes that have landed"),
    ],
)
def test_bytes(promised: int | None, error: type[Exception], words: str) -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def count(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)) -> None:
            tile, full = pk.shared(pk.st(f32, 16, 16), name="tile"), pk.barrier(name="full")
            with pk.role("load", warps=1):
                if right or promised is not None:
                    pk.tma.expect(full, bytes=1024 if right else promised)
                pk.tma.load(tile, x, (0, 0), full)
            with pk.role("use", warps=1):
                pk.wait(full, 0)
                warp.store(y, warp.load(tile), (0, 0))

        return count

    check(kernel, error, words, zeros(16, 16), zeros(16, 16))


def test_two_loads_and_the_bytes_of_one() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1)
        def pair(x: pk.gl(f32, 32, 16)) -> None:
            tiles, full = pk.shared(pk.st(f32, 16, 16), count=2), pk.barrier(name="full")
            pk.tma.expect(full, bytes=2048 if right else 1024)
            for i in range(2):
                pk.tma.load(tiles[i], x, (i, 0), full)
            pk.wait(full, 0)

        return pair

    check(kernel, pk.BarrierError, "full, bytes", zeros(32, 16))


def test_too_few_arrivals() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=3)
        def arrivals() -> None:
            empty = pk.barrier(2 if right else 3, name="empty")
            with pk.role("wait", warps=1):
                pk.wait(empty, 0)
            with pk.role("arrive", warps=2):
                pk.arrive(empty, scope=warp)

        return arrivals

    check(kernel, pk.DeadlockError, "deadlock, empty, phase 0: misses 1 of 3 arrivals, warp 0 (wait), parity 0")


def test_more_arrivals_than_the_waiter_takes() -> None:
    """Each arrival ends a phase, and the waiter may see the parity of the wrong one."""

    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=3)
        def arrivals() -> None:
            empty = pk.barrier(2 if right else 1, name="empty")
            with pk.role("wait", warps=1):
                pk.wait(empty, 0)
            with pk.role("arrive", warps=2):
                pk.arrive(empty, scope=warp)

        return arrivals

    check(kernel, (pk.BarrierError, pk.DeadlockError), "empty, phase")


def test_more_arrivals_than_a_phase_has() -> None:
    """Bytes keep the phase open, so that the second arrival is one too many."""

    @pk.kernel(warps=1)
    def twice(x: pk.gl(f32, 16, 16)) -> None:
        tile, full = pk.shared(pk.st(f32, 16, 16)), pk.barrier(name="full")
        pk.tma.expect(full, tile)
        pk.tma.load(tile, x, (0, 0), full)
        pk.tma.expect(full, tile)
        pk.wait(full, 0)

    with pytest.raises(pk.BarrierError, match="full is made for 1 arrivals a phase; phase 0 gets 2"):
        twice.simulate(zeros(16, 16))


def test_a_missed_phase() -> None:
    """Nothing keeps the arriving role from ending a phase that the other has not seen end."""

    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def ahead() -> None:
            full, empty = pk.barrier(name="full"), pk.barrier(name="empty")
            with pk.role("run", warps=1):
                for i in pk.range(4):
                    if right:
                        pk.wait(empty, (i + 1) & 1)
                    pk.arrive(full)
            with pk.role("follow", warps=1):
                for i in pk.range(4):
                    pk.wait(full, i & 1)
                    pk.arrive(empty)

        return ahead

    check(kernel, (pk.BarrierError, pk.DeadlockError), "phase, full")


def test_wrong_parity() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def wrong(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)) -> None:
            tile, full = pk.shared(pk.st(f32, 16, 16), name="tile"), pk.barrier(name="full")
            with pk.role("load", warps=1):
                pk.tma.expect(full, tile)
                pk.tma.load(tile, x, (0, 0), full)
            with pk.role("use", warps=1):
                pk.wait(full, 0 if right else 1)
                warp.store(y, warp.load(tile), (0, 0))
                pk.wait(full, 0)

        return wrong

    for seed in ORDERS:
        assert kernel(True).simulate(zeros(16, 16), zeros(16, 16), seed=seed).clean
        with pytest.raises((pk.RaceError, pk.UninitializedError, pk.DeadlockError, pk.BarrierError)):
            kernel(False).simulate(zeros(16, 16), zeros(16, 16), seed=seed)


@pytest.mark.parametrize("missing", ["release", "order"])
def test_a_slot_is_filled_while_it_is_read(missing: str) -> None:
    """The loader must know that all warps have read: one arrival of a group says nothing of its other warps."""

    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=8)
        def laps(x: pk.gl(f32, 64, 64), y: pk.gl(f32, 64, 64)) -> None:
            tile, full, empty = (
                pk.shared(pk.st(f32, 64, 16), name="tile"),
                pk.barrier(name="full"),
                pk.barrier(name="empty"),
            )
            with pk.role("load", warps=4):
                for k in pk.range(4):
                    if right or missing != "release":
                        pk.wait(empty, (k + 1) & 1)
                    pk.tma.expect(full, tile)
                    pk.tma.load(tile, x, (0, k), full)
            with pk.role("use", warpgroups=1):
                for k in pk.range(4):
                    pk.wait(full, k & 1)
                    warpgroup.store(y, warpgroup.load(tile), (0, k))
                    if right:
                        warpgroup.sync()
                    pk.arrive(empty, scope=warpgroup)

        return laps

    errors = (pk.RaceError, pk.BarrierError) if missing == "release" else pk.RaceError
    words = "full" if missing == "release" else "tile, may still read it, warp 5 (use)"
    check(kernel, errors, words, zeros(64, 64), zeros(64, 64))


def test_wgmma_reads_a_slot_that_is_overwritten() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=4)
        def product(x: pk.gl(bf16, 64, 64), y: pk.gl(f32, 64, 64)) -> None:
            tile, out = pk.shared(pk.st(bf16, 64, 64), name="tile"), warpgroup.zeros(f32, 64, 64)
            warpgroup.load_into(tile, x, (0, 0))
            warpgroup.sync()
            warpgroup.mma_ABt(out, tile, tile)
            if right:
                warpgroup.wait(out)
            warpgroup.load_into(tile, x, (0, 0))
            if not right:
                warpgroup.wait(out)
            warpgroup.store(y, out, (0, 0))

        return product

    check(
        kernel,
        pk.RaceError,
        "writes tile, a matrix product of warp 0, warpgroup.wait",
        zeros(64, 64, dtype=BF16),
        zeros(64, 64),
    )


def test_a_missing_proxy_fence() -> None:
    """The pass puts it before the next barrier; without one there is none."""

    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=4)
        def unfenced(x: pk.gl(bf16, 64, 64)) -> None:
            tile, out = pk.shared(pk.st(bf16, 64, 64), name="tile"), warpgroup.zeros(f32, 64, 64)
            warpgroup.load_into(tile, x, (0, 0))
            warpgroup.sync()
            warpgroup.mma_ABt(out, tile, tile)
            warpgroup.wait(out)

        return unfenced if right else Unfenced(unfenced)

    class Unfenced:
        def __init__(self, kernel: pk.Kernel):
            self.kernel = kernel

        def simulate(self, *args: np.ndarray, seed: int | None) -> None:
            program = self.kernel.program(*args)
            program.body.ops = [op for op in program.body.ops if op.name != "proxyfence"]
            self.kernel.simulate(*args, seed=seed)

    check(kernel, pk.RaceError, "missing proxy fence, tile, async proxy", zeros(64, 64, dtype=BF16))  # type: ignore[arg-type]


def test_registers_in_flight() -> None:
    """A pass refuses what it can see; the simulator sees the rest."""

    @pk.kernel(warps=4)
    def early(x: pk.gl(bf16, 64, 64), y: pk.gl(f32, 64, 64)) -> None:
        tile, out = pk.shared(pk.st(bf16, 64, 64), name="tile"), warpgroup.zeros(f32, 64, 64)
        warpgroup.load_into(tile, x, (0, 0))
        warpgroup.sync()
        warpgroup.mma_ABt(out, tile, tile)
        warpgroup.wait(out)
        warpgroup.store(y, out, (0, 0))

    x, y = zeros(64, 64, dtype=BF16), zeros(64, 64)
    assert early.simulate(x, y).clean
    program = early.program(x, y)
    program.body.ops = [op for op in program.body.ops if op.name != "wgmmawait"]
    with pytest.raises(pk.InFlightError) as caught:
        early.simulate(x, y)
    for word in ("warpgroup.store uses", "warpgroup.mma_ABt still writes it", "warpgroup.wait(", "it was issued at"):
        assert word in str(caught.value)


def test_a_bulk_store_still_reads_its_tile() -> None:
    def kernel(right: bool, at_end: bool = False) -> pk.Kernel:
        @pk.kernel(warps=1)
        def stores(y: pk.gl(f32, 32, 16)) -> None:
            tile = pk.shared(pk.st(f32, 16, 16), name="tile")
            for i in range(2):
                warp.store(tile, warp.zeros(f32, 16, 16))
                warp.sync()
                pk.tma.store(y, tile, (i, 0))
                pk.tma.commit()
                if right or (i == 0) == at_end:
                    pk.tma.wait(read=True)

        return stores

    check(
        lambda right: kernel(right),
        pk.RaceError,
        "writes tile, a bulk store of warp 0 may still read it",
        zeros(32, 16),
    )
    check(
        lambda right: kernel(right, True), pk.InFlightError, "ends while, until its source has been read", zeros(32, 16)
    )


def test_a_bulk_store_s_result_is_read_too_early() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1)
        def back(y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
            tile = pk.shared(pk.st(f32, 16, 16), name="tile")
            warp.store(tile, warp.ones(f32, 16, 16))
            warp.sync()
            pk.tma.store(y, tile, (0, 0))
            pk.tma.commit()
            pk.tma.wait(read=not right)
            warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))

        return back

    check(kernel, pk.RaceError, "reads y[0, 0, 0, 0], a bulk store of warp 0", zeros(16, 16), zeros(16, 16))


def test_named_barriers() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=3)
        def meet() -> None:
            barrier = pk.named_barrier(warps=3 if right else 4)
            with pk.role("arrive", warps=1):
                warp.arrive_at(barrier)
            with pk.role("wait", warps=2):
                warp.sync_at(barrier)

        return meet

    check(kernel, pk.DeadlockError, "3 of 4 warps have come, warp 1 (wait), warp 2 (wait)")


def test_named_barrier_pass_on_data() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def hand_over(y: pk.gl(f32, 16, 16)) -> None:
            tile, barrier = pk.shared(pk.st(f32, 16, 16), name="tile"), pk.named_barrier(warps=2)
            with pk.role("make", warps=1):
                if not right:
                    warp.arrive_at(barrier)
                warp.store(tile, warp.zeros(f32, 16, 16))
                if right:
                    warp.arrive_at(barrier)
            with pk.role("use", warps=1):
                warp.sync_at(barrier)
                warp.store(y, warp.load(tile), (0, 0))

        return hand_over

    check(kernel, (pk.RaceError, pk.UninitializedError), "tile", zeros(16, 16))


def test_a_named_barrier_with_too_many_warps() -> None:
    @pk.kernel(warps=3)
    def crowd() -> None:
        barrier = pk.named_barrier(warps=2)
        with pk.role("many", warps=3):
            pk.block.arrive_at(barrier)

    with pytest.raises(pk.BarrierError, match="made for 2 warps; phase 0 gets 3"):
        crowd.simulate()


def test_turns() -> None:
    """Ping-pong needs both halves: a turn that is not waited for is taken twice."""

    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=8)
        def alternate() -> None:
            turns = pk.turns(2)
            with pk.role("play", warpgroups=2) as me:
                turns.start(me)
                for _ in pk.range(3):
                    if right:
                        turns.wait(me)
                    turns.give(me)
                turns.finish(me)

        return alternate

    check(kernel, (pk.BarrierError, pk.DeadlockError), "barrier")


def test_deadlock_names_everyone() -> None:
    @pk.kernel(warps=2)
    def embrace() -> None:
        first, second = pk.barrier(name="first"), pk.barrier(name="second")
        with pk.role("a", warps=1):
            pk.wait(first, 0)
            pk.arrive(second)
        with pk.role("b", warps=1):
            pk.wait(second, 0)
            pk.arrive(first)

    with pytest.raises(pk.DeadlockError) as caught:
        embrace.simulate()
    for word in (
        "warp 0 (a)",
        "first, phase 0: misses 1 of 1 arrivals",
        "warp 1 (b)",
        "second, phase 0",
        "test_barriers.py",
    ):
        assert word in str(caught.value)


def test_a_barrier_that_some_warps_never_reach() -> None:
    @pk.kernel(warps=2)
    def half() -> None:
        done = pk.barrier(2)
        pk.arrive(done, scope=warp)
        with pk.when(warp.index == 0):
            pk.wait(done, 0, scope=warp)

    program = half.program()
    half.simulate()
    program.body.ops[-1].then.ops.append(Barrier(Scope("block", 2)))
    with pytest.raises(pk.DeadlockError, match=r"the barrier of block \(warps 0 to 1\): 1 of 2 warps have come"):
        half.simulate()


def test_a_block_ends_before_its_cluster_has_read_it() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1), cluster=(2, 1, 1))
        def knock() -> None:
            bell = pk.barrier(name="bell")
            with pk.when(pk.cluster.rank == 1):
                pk.arrive(bell, rank=0)
            if right:
                pk.cluster.sync()

        return knock

    check(kernel, pk.RaceError, "may have ended, arrives at bell, pk.cluster.sync()")


def test_another_block_s_memory_before_it_runs() -> None:
    """Terms of a row meet through the cluster's shared memory: not before every block runs, nor after one has ended."""

    @pk.kernel(warps=2, grid=(2, 1, 1), cluster=(2, 1, 1))
    def rows(x: pk.gl(f32, 2, 512), y: pk.gl(f32, 2, 512)) -> None:
        tile = pk.block.load(x, (0, pk.cluster.rank), rows=1, cols=256, layout=Coalesced(64, 4))
        pk.block.store(y, tile - tile.row_sum(cluster=True), (0, pk.cluster.rank))

    x, y = np.arange(1024, dtype=np.float32).reshape(2, 512), zeros(2, 512)
    assert rows.simulate(x, y).clean
    assert np.array_equal(y[0], x[0] - x[0].sum())
    program = rows.program(x, y)
    body = list(program.body.ops)
    meetings = [op for op in body if op.name == "clusterbarrier"]
    found = []
    for meeting in meetings:
        program.body.ops = [op for op in body if op is not meeting]
        with pytest.raises((pk.RaceError, pk.UninitializedError)) as caught:
            rows.simulate(x, y)
        found.append(str(caught.value))
    assert "which may not run yet" in found[0] and "reads terms" in found[1]


def test_warps_of_one_gang_hand_over_to_each_other() -> None:
    """A block-wide load makes all four warps one gang; what one makes for another afterwards is waited for all the
    same."""

    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 64, 16), y: pk.gl(f32, 16, 16)) -> None:
        t, s, b = pk.shared(pk.st(f32, 64, 16)), pk.shared(pk.st(f32, 16, 16)), pk.barrier()
        pk.block.load_into(t, x, (0, 0))
        pk.block.sync()
        for _ in pk.range(1):
            with pk.when(warp.index == 0):
                pk.wait(b, 0, scope=warp)
                warp.store(y, warp.load(s), (0, 0))
            with pk.when(warp.index == 1):
                warp.store(s, warp.load(t[16:32, :]))
                warp.sync()
                pk.arrive(b, scope=warp)

    x = np.arange(1024, dtype=np.float32).reshape(64, 16)
    for seed in ORDERS:
        y = np.zeros((16, 16), np.float32)
        kernel.simulate(x, y, seed=seed)
        assert np.array_equal(y, x[16:32])


def test_turns_beside_what_the_whole_role_does() -> None:
    @pk.kernel(warps=8)
    def kernel(x: pk.gl(f32, 128, 16), y: pk.gl(f32, 128, 16)) -> None:
        t = pk.shared(pk.st(f32, 128, 16))
        with pk.role("work", warpgroups=2) as me:
            pk.block.load_into(t, x, (0, 0))
            pk.block.sync()
            turns = pk.turns(2)
            turns.start(me)
            for _ in pk.range(3):
                turns.wait(me)
                warpgroup.store(y, warpgroup.load(t.part(me * 64, 0, 64, 16)), (me, 0))
                turns.give(me)
            turns.finish(me)

    x = np.arange(2048, dtype=np.float32).reshape(128, 16)
    for seed in ORDERS:
        y = np.zeros((128, 16), np.float32)
        kernel.simulate(x, y, seed=seed)
        assert np.array_equal(y, x)


def phases(right: bool, what: str) -> pk.Kernel:
    """Two readers of a slot, one of which does what could end or pass another phase."""

    @pk.kernel(warps=3)
    def kernel(x: pk.gl(f32, 48, 16), y: pk.gl(f32, 96, 16)) -> None:
        t, full, empty = pk.shared(pk.st(f32, 16, 16)), pk.barrier(name="full"), pk.barrier(2, name="empty")
        with pk.role("load", warps=1):
            for i in range(3):
                if right or what != "late" or i:
                    pk.wait(empty, (i + 1) & 1)
                pk.tma.expect(full, t)
                pk.tma.load(t, x, (i, 0), full)
                if not right and what == "late" and not i:
                    pk.wait(empty, 1)
        for reader in range(2):
            with pk.role(f"reader {reader}", warps=1):
                for i in range(3):
                    if right or what != "skipped" or reader or i != 1:
                        pk.wait(full, i & 1)
                    warp.store(y, warp.load(t), (i + 3 * reader, 0))
                    pk.arrive(empty)
                    if not right and what == "twice" and reader and i == 1:
                        pk.arrive(empty)

    return kernel


@pytest.mark.parametrize("what", ["late", "twice", "skipped"])
def test_a_phase_is_the_same_in_every_order(what: str) -> None:
    x = np.zeros((48, 16), np.float32)
    for seed in [None, *range(1, 12)]:
        assert phases(True, what).simulate(x, np.zeros((96, 16), np.float32), seed=seed).clean
        with pytest.raises(pk.Diagnosis) as found:
            phases(False, what).simulate(x, np.zeros((96, 16), np.float32), seed=seed)
        assert "fix:" in str(found.value)


@pytest.mark.parametrize(("rank", "found"), [("-1", True), ("2", True), ("1", False)])
def test_ranks_are_those_of_the_cluster(rank: str, found: bool) -> None:
    @pk.kernel(warps=4, grid=(2, 1, 1), cluster=(2, 1, 1))
    def kernel(n: i32) -> None:
        t = pk.shared(pk.st(f32, 64, 16))
        pk.cluster.sync()
        with pk.when(pk.cluster.rank == 0):
            warpgroup.store(t, warpgroup.ones(f32, 64, 16), rank=n)
        pk.cluster.sync()

    if not found:
        assert kernel.simulate(int(rank)).clean
        return
    with pytest.raises(pk.OutOfBoundsError, match=f"rank {rank}, in a cluster of 2"):
        kernel.simulate(int(rank))


@pytest.mark.parametrize("index", [-1, 2])
def test_named_barriers_are_those_that_were_made(index: int) -> None:
    @pk.kernel(warps=2)
    def kernel(n: i32) -> None:
        b = pk.named_barrier(warps=2, count=2)
        with pk.role("a", warps=1):
            warp.arrive_at(b, n)
        with pk.role("b", warps=1):
            warp.sync_at(b, n)

    assert kernel.simulate(1).clean
    with pytest.raises(pk.OutOfBoundsError, match=f"index {index} of 2 named barriers"):
        kernel.simulate(index)


@pytest.mark.parametrize(("wide", "row"), [(False, 2**32 - 16), (True, 2**32), (True, 2**31)])
def test_coordinates_fit_32_bits(wide: bool, row: int) -> None:
    @pk.kernel(warps=1)
    def of_u32(n: u32, x: pk.gl(f32, "N", 16), y: pk.gl(f32, 16, 16)) -> None:
        warp.store(y, warp.load(x, pk.at(n, 0), rows=16), (0, 0))

    @pk.kernel(warps=1)
    def of_i64(n: i64, x: pk.gl(f32, "N", 16), y: pk.gl(f32, 16, 16)) -> None:
        warp.store(y, warp.load(x, pk.at(n, 0), rows=16), (0, 0))

    kernel = of_i64 if wide else of_u32
    x, y = np.zeros((64, 16), np.float32), np.zeros((16, 16), np.float32)
    assert kernel.simulate(48, x, y).clean and kernel.simulate(2**31 - 1, x, y).clean
    with pytest.raises(pk.OutOfBoundsError, match="does not fit 32 bits"):
        kernel.simulate(row, x, y)


def test_a_block_ends_before_its_slots_are_given_back() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2, grid=(2, 1, 1), cluster=(2, 1, 1))
        def share(x: pk.gl(f32, 64, 64), y: pk.gl(f32, 128, 64)) -> None:
            ring = pk.ring(2, pk.st(f32, 32, 64))
            with pk.role("load", warps=1):
                for i in pk.range(2):
                    with ring.fill() as slot:
                        pk.tma.share(slot, x, (i, 0))
                if right:
                    ring.drain()
            with pk.role("use", warps=1):
                for i in pk.range(2):
                    with ring.reading() as slot:
                        warp.store(y, warp.load(slot), (2 * pk.cluster.rank + i, 0))

        return share

    check(kernel, pk.RaceError, "may have ended, arrives at ring", zeros(64, 64), zeros(128, 64))


def test_a_tile_that_another_block_sends_has_landed() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(3, 1, 1), cluster=(3, 1, 1))
        def gather(x: pk.gl(f32, 48, 64), y: pk.gl(f32, 16, 64)) -> None:
            own, inbox = pk.shared(pk.st(f32, 16, 64), name="own"), pk.shared(pk.st(f32, 16, 64), count=3, name="inbox")
            told = pk.barrier(name="told")
            with pk.when(pk.cluster.rank == 1):
                pk.tma.expect(told, *[inbox[r] for r in range(3)])
            warp.store(own, warp.load(x, (pk.cluster.rank, 0), rows=16))
            warp.sync()
            pk.tma.send(inbox[pk.cluster.rank], own, 1, told)
            with pk.when(pk.cluster.rank == 1):
                if right:
                    pk.wait(told, 0)
                warp.store(y, sum(warp.load(inbox[r]) for r in range(3)), (0, 0))
                pk.wait(told, 0)
            pk.cluster.sync()

        return gather

    x, y = np.arange(48 * 64, dtype=np.float32).reshape(48, 64), zeros(16, 64)
    kernel(True)(x, y)
    assert np.array_equal(y, x.reshape(3, 16, 64).sum(0))
    check(kernel, (pk.RaceError, pk.UninitializedError), "inbox", x, y)
