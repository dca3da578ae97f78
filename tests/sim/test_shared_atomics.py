"""Atomics in shared memory, and elements at computed places: what commutes is no race, what does not is one."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, warp
from pykittens.errors import RaceError, UninitializedError

BINS = 24


def histogram(**faults: bool) -> Any:
    """Counts in shared memory, by four warps."""

    def kernel(x: pk.gl(i32, 1, 128), y: pk.gl(i32, 1, BINS)) -> None:
        counts = pk.shared(pk.sv(i32, BINS))
        if not faults.get("unwritten"):
            with pk.when(warp.index == 0):
                warp.store(counts, warp.full_vec(i32, BINS, 0))
        if not faults.get("early"):
            pk.block.sync()
        bins = warp.load_vec(x, (0, warp.index), length=32)
        warp.add(counts, pk.ones_like(bins), bins)
        if faults.get("two kinds"):
            warp.max(counts, pk.ones_like(bins), bins)
        if faults.get("writes"):
            warp.set(counts, 3, 0)
        if not faults.get("late"):
            pk.block.sync()
        with pk.when(warp.index == 0):
            warp.store(y, warp.load_vec(counts), (0, 0))

    return pk.kernel(warps=4)(kernel)


def test_a_histogram_counts_what_lies_inside() -> None:
    x = np.random.default_rng(0).integers(-3, BINS + 3, (1, 128)).astype(np.int32)
    y = np.full((1, BINS), -7, np.int32)
    histogram()(x, y)
    assert (y[0] == np.bincount(x[(x >= 0) & (x < BINS)], minlength=BINS)).all()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("early", "adds to counts, and the write by warp 0 may not have happened"),
        ("late", "reads counts, and the change by warp"),
        ("two kinds", "let all of them be of one kind"),
        ("writes", "writes counts, and the change by warp"),
        ("unwritten", "which nothing wrote"),
    ],
)
def test_what_does_not_commute_is_a_race(fault: str, says: str) -> None:
    x = np.arange(128, dtype=np.int32)[None] % BINS
    with pytest.raises((RaceError, UninitializedError), match=says):
        histogram(**{fault: True})(x, np.zeros((1, BINS), np.int32))


def test_lanes_meet_before_they_read_what_others_added() -> None:
    @pk.kernel(warps=1)
    def kernel(x: pk.gl(f32, 16, 32), y: pk.gl(f32, 16, 32)) -> None:
        tile = pk.shared(pk.st(f32, 16, 32))
        warp.store(tile, warp.zeros(f32, 16, 32))
        warp.add(tile, warp.load(x, (0, 0), rows=16, layout=pk.coalesced(8, 4)))  # other lanes than store and load
        warp.add(tile, warp.load(x, (0, 0), rows=16))
        warp.store(y, warp.load(tile), (0, 0))

    x, y = np.random.default_rng(1).standard_normal((16, 32)).astype(np.float32), np.zeros((16, 32), np.float32)
    kernel(x, y)
    assert (y == x + x).all()


def test_tickets_are_drawn_in_several_orders() -> None:
    seen = set()

    @pk.kernel(warps=2)
    def kernel(y: pk.gl(i32, 1, 2)) -> None:
        counter = pk.shared(pk.sv(i32, 1))
        with pk.when(warp.index == 0):
            warp.set(counter, 0, 0)
        pk.block.sync()
        ticket = pk.atomic_add(counter, 0, 1, by=warp)
        warp.set(y, (0, warp.index), ticket)

    for seed in range(6):
        y = np.full((1, 2), -7, np.int32)
        kernel.simulate(y, seed=seed)
        seen.add(tuple(y[0].tolist()))
    assert seen == {(0, 1), (1, 0)}


def test_elements_are_scattered_each_to_its_place() -> None:
    @pk.kernel(warps=2)
    def kernel(x: pk.gl(f32, 1, 64), at: pk.gl(i32, 1, 64), y: pk.gl(f32, 1, 64)) -> None:
        warp.store(
            y, warp.load_vec(x, (0, warp.index), length=32), pk.at(0, warp.load_vec(at, (0, warp.index), length=32))
        )

    random = np.random.default_rng(2)
    x, at, y = random.standard_normal((1, 64)).astype(np.float32), random.permutation(64)[None], np.zeros((1, 64))
    at, y = at.astype(np.int32), y.astype(np.float32)
    kernel(x, at, y)
    assert (y[0, at[0]] == x[0]).all()
    at[0, 40] = at[0, 7]
    with pytest.raises(RaceError, match=r"warp.store: warp 1 writes y.*, and warp 0 writes it"):
        kernel(x, at, y)
    at[0, 6] = at[0, 7]
    with pytest.raises(RaceError, match=f"has 2 elements for row 0, column {at[0, 7]} of y"):
        kernel(x, at, y)


def test_blocks_may_scatter_into_one_tensor_and_read_others_elements_of_it() -> None:
    """What is touched is known element by element, so that nothing is refused that only looks alike."""

    @pk.kernel(warps=1, grid=2)
    def kernel(y: pk.gl(i32, 1, 64)) -> None:
        mine = warp.iota(32) * 2 + pk.block_index.x
        warp.store(y, mine, pk.at(0, mine))
        warp.sync()
        warp.store(y, y[0, mine] + 1, pk.at(0, mine))

    y = np.zeros((1, 64), np.int32)
    kernel(y)
    assert (y[0] == np.arange(64) + 1).all()


def test_a_copy_engine_reads_what_was_added() -> None:
    """The compiler fences what was changed atomically, as it does stores; without a barrier it is a race."""

    def kernel(meet: bool) -> Any:
        @pk.kernel(warps=2)
        def k(x: pk.gl(f32, 16, 32), y: pk.gl(f32, 16, 32)) -> None:
            tile = pk.shared(pk.st(f32, 16, 32))
            with pk.when(warp.index == 0):
                warp.store(tile, warp.zeros(f32, 16, 32))
            pk.block.sync()
            warp.add(tile, warp.load(x, (0, 0), rows=16))
            if meet:
                pk.block.sync()
            pk.tma.store(y, tile, (0, 0))
            pk.tma.commit()
            pk.tma.wait()

        return k

    x, y = np.random.default_rng(3).integers(-4, 5, (16, 32)).astype(np.float32), np.zeros((16, 32), np.float32)
    kernel(True)(x, y)
    assert (y == 2 * x).all()
    with pytest.raises(RaceError):
        kernel(False)(x, y)
