"""A missing synchronisation is found, named with both lines, and gone when it is there."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, warp, warpgroup
from pykittens.ops.sync import Barrier
from pykittens.program import Scope
from pykittens.sim import simulate
from pykittens.trace.hopper import Tma

ORDERS = [None, 1, 2, 3]


def zeros(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def check(kernel: Callable[..., pk.Kernel], error: type[pk.Diagnosis], words: str, *arrays: np.ndarray) -> pk.Diagnosis:
    """`kernel(True)` is clean and `kernel(False)` raises `error` with these words, in every order of the gangs."""
    for seed in ORDERS:
        assert kernel(True).simulate(*arrays, seed=seed).clean
        with pytest.raises(error) as caught:
            kernel(False).simulate(*arrays, seed=seed)
        for word in words.split(", "):
            assert word in str(caught.value), (word, str(caught.value))
        assert "fix:" in str(caught.value) and "test_races.py" in str(caught.value)
    return caught.value


def test_read_before_the_write_of_another_warp() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=4)
        def pass_on(x: pk.gl(f32, 64, 16), y: pk.gl(f32, 64, 16)) -> None:
            tiles = pk.shared(pk.st(f32, 16, 16), count=4, name="tiles")
            warp.load_into(tiles[warp.index], x, (warp.index, 0))
            if right:
                pk.block.sync()
            warp.store(y, warp.load(tiles[(warp.index + 1) % 4]), (warp.index, 0))

        return pass_on

    found = check(
        kernel,
        pk.RaceError,
        "race, warp 0 reads tiles[1], the write by warp 1, pk.block.sync()",
        zeros(64, 16),
        zeros(64, 16),
    )
    assert "warp.load_into(tiles[warp.index]" in str(found) and "warp.store(y, warp.load(" in str(found)


def test_write_while_another_warp_still_reads() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def laps(x: pk.gl(f32, 32, 16), y: pk.gl(f32, 32, 16)) -> None:
            tile = pk.shared(pk.st(f32, 32, 16), name="tile")
            for _ in pk.range(2):
                pk.block.load_into(tile, x, (0, 0))
                pk.block.sync()
                warp.store(y, warp.load(tile.part(warp.index * 16, 0, 16, 16)), (warp.index, 0))
                if right:
                    pk.block.sync()

        return laps

    check(kernel, pk.RaceError, "writes tile, may still read it", zeros(32, 16), zeros(32, 16))


def test_two_warps_write_the_same_tile() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def both() -> None:
            tiles = pk.shared(pk.st(f32, 16, 16), count=2, name="tiles")
            warp.store(tiles[warp.index if right else 0], warp.zeros(f32, 16, 16))

        return both

    check(kernel, pk.RaceError, "tiles[0], in the same operation")


def test_warps_of_a_group_may_drift_apart() -> None:
    """Also inside a warpgroup each warp is on its own."""

    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=4)
        def turn(x: pk.gl(bf16, 64, 64), y: pk.gl(bf16, 64, 64)) -> None:
            tile = pk.shared(pk.st(bf16, 64, 64), name="tile")
            warpgroup.store(tile, warpgroup.load(x, (0, 0), rows=64))
            if right:
                warpgroup.sync()
            warp.store(y, warp.load(tile.part((3 - warp.index) * 16, 0, 16, 64)), (warp.index, 0))

        return turn

    arrays = zeros(64, 64, dtype=ml_dtypes.bfloat16), zeros(64, 64, dtype=ml_dtypes.bfloat16)
    check(kernel, pk.RaceError, "warp 0 reads tile, the write by warp 3", *arrays)


def test_own_rows_need_no_barrier() -> None:
    @pk.kernel(warps=4)
    def own(y: pk.gl(f32, 64, 16)) -> None:
        tile = pk.shared(pk.st(f32, 64, 16))
        pk.block.store(tile, pk.block.zeros(f32, 64, 16))
        warp.store(y, warp.load(tile.part(warp.index * 16, 0, 16, 16)), (warp.index, 0))

    assert own.simulate(zeros(64, 16)).clean


def test_elements_of_a_vector_are_apart() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=4)
        def share(y: pk.gl(i32, 1, 4)) -> None:
            boxes = pk.shared(pk.sv(i32, 4), name="boxes")
            warp.set(boxes, warp.index, warp.index)
            if right:
                pk.block.sync()
            warp.set(y, (0, warp.index), boxes[3 - warp.index])

        return share

    check(kernel, pk.RaceError, "reads boxes, the write by warp", zeros(1, 4, dtype=np.int32))


@pytest.mark.parametrize("missing", ["wait", "barrier"])
def test_cp_async(missing: str) -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def staged(x: pk.gl(bf16, 32, 64), y: pk.gl(bf16, 32, 64)) -> None:
            tile = pk.shared(pk.st(bf16, 32, 64), name="tile")
            pk.block.load_async(tile, x, (0, 0))
            pk.block.commit()
            if right or missing != "wait":
                pk.block.wait_loads()
            if right or missing != "barrier":
                pk.block.sync()
            pk.block.store(y, tile, (0, 0)) if missing == "wait" else pk.block.store(y, pk.block.load(tile), (0, 0))

        return staged

    words = "reads tile, a cp.async copy of warp, may not have landed, wait_loads"
    arrays = zeros(32, 64, dtype=ml_dtypes.bfloat16), zeros(32, 64, dtype=ml_dtypes.bfloat16)
    check(kernel, pk.RaceError, words, *arrays)


def test_cp_async_waits_for_too_few_groups() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1)
        def staged(x: pk.gl(f32, 64, 16), y: pk.gl(f32, 64, 16)) -> None:
            tiles = pk.shared(pk.st(f32, 16, 16), count=2, name="tiles")
            for i in range(2):
                warp.load_async(tiles[i], x, (i, 0))
                warp.commit()
            for i in range(2):
                warp.wait_loads(1 - i if right else 1)
                warp.store(y, warp.load(tiles[i]), (i, 0))
            warp.wait_loads()

        return staged

    check(kernel, pk.RaceError, "reads tiles[1], a cp.async copy of warp 0", zeros(64, 16), zeros(64, 16))


def test_cp_async_without_a_commit() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1)
        def staged(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)) -> None:
            tile = pk.shared(pk.st(f32, 16, 16), name="tile")
            warp.load_async(tile, x, (0, 0))
            if right:
                warp.commit()
            warp.wait_loads()
            warp.store(y, warp.load(tile), (0, 0))

        return staged

    check(kernel, pk.RaceError, "reads tile, close the group (commit)", zeros(16, 16), zeros(16, 16))


def test_copies_in_flight_at_the_end() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1)
        def forgotten(x: pk.gl(f32, 16, 16)) -> None:
            warp.load_async(pk.shared(pk.st(f32, 16, 16)), x, (0, 0))
            warp.commit()
            if right:
                warp.wait_loads()

        return forgotten

    check(kernel, pk.InFlightError, "ends while, may still be under way", zeros(16, 16))


def test_blocks_of_the_grid_are_not_ordered() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1))
        def shared_rows(y: pk.gl(f32, 32, 16)) -> None:
            warp.store(y, warp.zeros(f32, 16, 16), pk.at(pk.block_index.x * (16 if right else 8), 0))

        return shared_rows

    check(kernel, pk.RaceError, "y[0, 0, 8, 0], block 0,0,0 writes it, reduction", zeros(32, 16))


def test_one_block_reads_what_another_writes() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1))
        def chain(y: pk.gl(f32, 48, 16)) -> None:
            first = pk.block_index.x
            warp.store(y, warp.load(y, (first, 0), rows=16), (first + (0 if right else 1), 0))

        return chain

    check(kernel, pk.RaceError, "nothing orders the two", zeros(48, 16))


def test_reductions_do_not_race() -> None:
    def kernel(add: bool) -> pk.Kernel:
        @pk.kernel(warps=4, grid=(3, 1, 1))
        def total(y: pk.gl(f32, 16, 16)) -> None:
            tile = pk.shared(pk.st(f32, 16, 16), name="tile")
            with pk.role("one", warps=1):
                warp.store(tile, warp.ones(f32, 16, 16))
                warp.sync()  # the proxy fence comes before it
                (warp_tma.store_add if add else warp_tma.store)(y, tile, (0, 0))
                warp_tma.commit()
                warp_tma.wait(read=True)

        return total

    warp_tma = Tma(warp)
    y = zeros(16, 16)
    assert kernel(True).simulate(y).clean
    assert (y == 3).all()
    with pytest.raises(pk.RaceError, match="nothing orders the two"):
        kernel(False).simulate(y)


def test_in_place_arguments_that_overlap() -> None:
    """Two operands that are the same memory race like one."""

    @pk.kernel(warps=1, grid=(2, 1, 1))
    def shift(x: pk.gl(f32, 32, 16), y: pk.gl(f32, 32, 16)) -> None:
        warp.store(y, warp.load(x, (pk.block_index.x, 0), rows=16), (1 - pk.block_index.x, 0))

    memory = zeros(32, 16)
    assert shift.simulate(memory, zeros(32, 16)).clean
    with pytest.raises(pk.RaceError, match="nothing orders the two"):
        shift.simulate(memory, memory)


def test_uninitialised_shared_memory() -> None:
    def kernel(right: bool) -> pk.Kernel:
        @pk.kernel(warps=1)
        def early(y: pk.gl(f32, 32, 16)) -> None:
            tile = pk.shared(pk.st(f32, 32, 16), name="tile")
            warp.store(tile.part(0, 0, 16, 16), warp.zeros(f32, 16, 16))
            if right:
                warp.store(tile.part(16, 0, 16, 16), warp.zeros(f32, 16, 16))
            warp.store(y, warp.load(tile), (0, 0))

        return early

    check(kernel, pk.UninitializedError, "warp 0 reads tile, nothing wrote", zeros(32, 16))


@pytest.mark.parametrize(
    "at, words", [((2, 0, 0, 0), "batch 2"), ((0, -1, 0, 0), "depth -1"), ((0, 0, -1, 0), "row -16")]
)
def test_coordinates_outside(at: tuple[int, ...], words: str) -> None:
    @pk.kernel(warps=1)
    def outside(x: pk.gl(f32, "B", "H", "N", 16), y: pk.gl(f32, 16, 16), b: i32, h: i32, r: i32) -> None:
        warp.store(y, warp.load(x, (b, h, r, 0), rows=16), (0, 0))

    assert outside.simulate(zeros(2, 1, 20, 16), zeros(16, 16), 1, 0, 1).clean
    with pytest.raises(pk.OutOfBoundsError) as caught:
        outside.simulate(zeros(2, 1, 20, 16), zeros(16, 16), *at[:3])
    assert (
        words in str(caught.value) and "x: coordinate" in str(caught.value) and "2 x 1 x 20 x 16" in str(caught.value)
    )


def test_indices_outside() -> None:
    @pk.kernel(warps=1)
    def outside(y: pk.gl(f32, 1, 16), i: i32, j: i32) -> None:
        boxes, tiles = pk.shared(pk.sv(f32, 4), name="boxes"), pk.shared(pk.st(f32, 16, 16), count=2, name="tiles")
        warp.set(boxes, i, 1.0)
        warp.store(tiles[j], warp.zeros(f32, 16, 16))

    y = zeros(1, 16)
    assert outside.simulate(y, 3, 1).clean
    with pytest.raises(pk.OutOfBoundsError, match="boxes: element 4 of 4"):
        outside.simulate(y, 4, 1)
    with pytest.raises(pk.OutOfBoundsError, match="index 2 of tiles"):
        outside.simulate(y, 0, 2)


def test_overlapping_buffers() -> None:
    @pk.kernel(warps=1)
    def two() -> None:
        warp.store(pk.shared(pk.st(f32, 16, 16), name="a"), warp.zeros(f32, 16, 16))
        warp.store(pk.shared(pk.st(f32, 16, 16), name="b"), warp.zeros(f32, 16, 16))

    program = two.program()
    program.buffers[1].offset = 512
    with pytest.raises(pk.ResourceError, match="overlap: a has bytes 0 to 1024, b begins at 512"):
        simulate(program, {}, (1, 1, 1))


def test_a_collective_under_a_divergent_branch() -> None:
    """Tracing refuses it; an operation from elsewhere may still bring one."""

    @pk.kernel(warps=4)
    def lost(n: i32) -> None:
        with pk.when(warp.index > n):
            warp.sync()

    assert lost.simulate(1).clean
    lost.program(1).body.ops[-1].then.ops.append(Barrier(Scope("block", 4)))
    assert lost.simulate(-1).clean
    with pytest.raises(pk.Diagnosis) as caught:
        lost.simulate(1)
    assert "collective under a divergent branch" in str(caught.value) and "only 2 of the warps" in str(caught.value)
