"""Blocks that take tiles from a counter, and kernels that begin before the one ahead of them has ended."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f16, f32, i8, i32, i64, u8, warp, warpgroup
from pykittens.interop.base import numpy_dtype
from pykittens.testing.removal import removals


@pk.kernel(warps=8, grid=(3, 1, 1))
def double(x: pk.gl(f32, "N", 32), y: pk.gl(f32, "N", 32), counter: pk.gl(i32, 1)) -> None:
    work = pk.dynamic(counter, pk.cdiv(x.rows, 64))
    ring, leaving = pk.ring(2, pk.st(f32, 64, 32)), pk.shared(pk.st(f32, 64, 32))
    with pk.role("load", warps=4):
        for tile in work.take():
            with ring.fill() as slot:
                pk.tma.load(slot, x, (tile, 0))
    with pk.role("double", warpgroups=1):
        for tile in work:
            with ring.reading() as slot:
                values = warpgroup.load(slot) * 2.0
            warpgroup.tma.wait(read=True)
            warpgroup.sync()
            warpgroup.store(leaving, values)
            warpgroup.sync()
            warpgroup.tma.store(y, leaving, (tile, 0))
            warpgroup.tma.commit()
        warpgroup.tma.wait(read=True)


def arrays(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32),
        np.zeros((rows, 32), np.float32),
        np.zeros(1, np.int32),
    )


@pytest.mark.thin
@pytest.mark.parametrize("rows", [1, 64, 500])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_tile_once_and_again(rows: int, seed: int | None) -> None:
    x, y, counter = arrays(rows)
    for _ in range(2):  # the counter is as it was
        y[:] = 0
        assert double.simulate(x, y, counter, seed=seed).clean
        assert (y == 2 * x).all()
        assert counter[0] == 0


def takers_of(cluster: int) -> pk.Kernel:
    """Two takers for each cluster, whose blocks get the same tiles; each works on its part of a tile's columns."""

    @pk.kernel(warps=4, grid=(4, 1, 1), cluster=cluster)
    def add_up(
        x: pk.gl(i32, "N", 128), y: pk.gl(i32, "N", 128), nexts: pk.gl(i32, 1, "N"), counter: pk.gl(i32, 1)
    ) -> None:
        work = [pk.dynamic(counter, x.rows, taker=(t, 2)) for t in range(2)]
        part = pk.cluster.rank if cluster > 1 else 0
        for t in range(2):
            with pk.role(f"take{t}", warps=1):
                for _ in work[t].take():
                    pass
            with pk.role(f"add{t}", warps=1):
                for tile in work[t]:
                    at = (0, 0, tile, part)
                    warp.store(y, warp.load_vec(x, at, length=128 // cluster) * 2, at)
                    with pk.when(part == 0):
                        warp.set(nexts, (0, tile), work[t].following)

    return add_up


@pytest.mark.thin(3)
@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("seed", [None, 0])
def test_takers_of_blocks_and_clusters(cluster: int, rows: int, seed: int | None) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (rows, 128)).astype(np.int32)
    counter, kernel = np.zeros(1, np.int32), takers_of(cluster)
    for _ in range(2):  # the counter is as it was
        y, nexts = np.zeros_like(x), np.zeros((1, rows), np.int32)
        assert kernel.simulate(x, y, nexts, counter, seed=seed).clean
        assert (y == 2 * x).all() and counter[0] == 0
        takers, found = 8 // cluster, nexts[0]
        assert sorted(found[found < rows]) == list(range(takers, rows))  # each but the first ones is next to one
        assert (found >= rows).sum() == min(takers, rows)


def test_every_synchronisation_is_needed() -> None:
    survivors = [str(removal) for removal in removals(double, *arrays(500)) if not removal.found]
    assert not survivors, survivors


def test_it_compiles() -> None:
    text = double.cuda(*arrays(500))
    assert "only single-thread operations" in text and "atom.relaxed.gpu.global.add.s32" in text
    assert "pk_given(pk_elect_one() ? " in text  # who arrives is who has read: see Ring.receive
    assert not double.compile(*arrays(500)).spills


@pytest.mark.parametrize("dtype", [f32, bf16, f16, i32, u8, i8, i64])
def test_a_scalar_of_any_type_is_handed_over(dtype: pk.DType) -> None:
    @pk.kernel(warps=8)
    def pass_on(x: pk.gl(dtype, 5), y: pk.gl(dtype, 4, 5)) -> None:
        ring = pk.ring(2, pk.sv(dtype, 32))
        with pk.role("give", warps=4):
            for i in range(5):
                ring.hand(x[i])
        with pk.role("take", warps=4):
            for i in range(5):
                warp.set(y, (warp.index, i), ring.receive())

    low, high = 200 if dtype is u8 else -3, 2**40 if dtype is i64 else 100
    x = np.array([low, high, 7, 0, 1]).astype(numpy_dtype(dtype.name))
    y = np.zeros((4, 5), x.dtype)
    assert pass_on.simulate(x, y).clean
    assert (y == x).all()
    assert not pass_on.compile(x, y).warnings


def test_slots_that_are_no_vectors_carry_no_scalar() -> None:
    @pk.kernel(warps=1)
    def wrong(x: pk.gl(f32, 1)) -> None:
        pk.ring(2, a=pk.sv(f32, 4), b=pk.sv(f32, 4)).hand(x[0])

    with pytest.raises(pk.TraceError, match="no vector"):
        wrong.program(np.zeros(1, np.float32))


def test_atomic_add_of_a_warp_of_floats() -> None:
    @pk.kernel(warps=4, grid=(2, 1, 1))
    def total(x: pk.gl(f32, 4), y: pk.gl(i32, 4, 2)) -> None:
        with pk.role("first", warps=1):
            pk.atomic_add(x, 2, 1.5)
        for i in range(3):
            with pk.role(f"other {i}", warps=1):
                warp.set(y, (i, pk.block_index.x), pk.cast(pk.atomic_add(x, 1, 2), i32))

    x, y = np.zeros(4, np.float32), np.zeros((4, 2), np.int32)
    total.simulate(x, y)
    assert x.tolist() == [0, 12, 3, 0]
    assert sorted(y[:3].ravel().tolist()) == [0, 2, 4, 6, 8, 10]
    assert total.compile(x, y, arch="sm_80").registers


def test_refusals() -> None:
    x, counter = pk.spec(f32, (64, 32)), pk.spec(i32, (1,))

    def refused(text: str, kernel: pk.Kernel, *operands: object) -> None:
        with pytest.raises(pk.KernelError) as caught:
            kernel.cuda(*operands)
        assert text in str(caught.value) and "fix: " in str(caught.value), str(caught.value)

    @pk.kernel
    def floats(x: pk.gl(f32, "N", 32)) -> None:
        pk.dynamic(x, 3)

    @pk.kernel(cluster=2)
    def clusters(counter: pk.gl(i32, 1)) -> None:
        pk.dynamic(counter, 3)

    @pk.kernel(cluster=2)
    def third(counter: pk.gl(i32, 1)) -> None:
        pk.dynamic(counter, 3, taker=(2, 2))

    @pk.kernel(warps=2)
    def twice(counter: pk.gl(i32, 1)) -> None:
        work = pk.dynamic(counter, 3)
        for i in range(2):
            with pk.role(f"taker {i}", warps=1):
                for _ in work.take():
                    pass

    @pk.kernel(warps=4)
    def crowd(counter: pk.gl(i32, 1)) -> None:
        with pk.role("several", warps=4):
            pk.atomic_add(counter, 0, 1)
            pk.block.sync()

    @pk.kernel(warps=1)
    def fraction(counter: pk.gl(i32, 1)) -> None:
        pk.atomic_add(counter, 0, 0.5)

    @pk.kernel(warps=1)
    def halves(x: pk.gl(pk.bf16, 4)) -> None:
        pk.atomic_add(x, 0, 0.5)

    refused("pk.dynamic counts in", floats, x)
    refused("these come in clusters", clusters, counter)
    refused("taker 2 of 2", third, counter)
    refused("two roles take tiles", twice, counter)
    refused("pk.atomic_add by 4 warps", crowd, counter)
    refused("of a float to counter: i32", fraction, counter)
    refused("it takes i32, u32, f32", halves, pk.spec(pk.bf16, (4,)))


def test_dependent_launch() -> None:
    @pk.kernel(warps=1, pdl=True)
    def follow(x: pk.gl(f32, 16, 16)) -> None:
        pk.wait_for_previous()
        tile = warp.load(x, (0, 0), rows=16)
        pk.launch_next()
        warp.store(x, tile + 1.0, (0, 0))

    x = np.zeros((16, 16), np.float32)
    assert follow.simulate(x).clean and (x == 1).all()
    text = follow.cuda(x)
    assert text.index("griddepcontrol.wait;") < text.index("griddepcontrol.launch_dependents;")
    assert follow.compile(x).registers
    with pytest.raises(pk.ResourceError, match="programmatic dependent launch: sm_80 has none"):
        follow.cuda(x, arch="sm_80")
