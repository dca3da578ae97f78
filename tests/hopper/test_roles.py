"""Roles that hand work to one another: turns, rings, budgets, clusters; and what cannot work, in words."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warp, warpgroup
from pykittens.testing.removal import removals

X = pk.spec(f32, (64, 64))


def refused(
    kernel: pk.Kernel, *operands: Any, words: tuple[str, ...], kind: type[pk.KernelError] = pk.KernelError
) -> None:
    with pytest.raises(kind) as caught:
        kernel.cuda(*(operands or (X,)))
    text = str(caught.value)
    assert "fix: " in text and all(word in text for word in words), text


# Turns ------------------------------------------------------------------------------------------------------


@pytest.mark.thin
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_turns(count: int, seed: int | None) -> None:
    """Warpgroups write to one tile in turn: only their turns keep them apart."""

    @pk.kernel(warps=4 * count)
    def alternate(x: pk.gl(f32, 1, 4)) -> None:
        turns, box = pk.turns(count), pk.shared(pk.sv(f32, 4), name="box")
        with pk.role("take turns", warpgroups=count) as me:
            turns.start(me)
            for i in pk.range(3):
                turns.wait(me)
                warpgroup.set(box, 0, pk.cast(i * count + me, f32))
                warpgroup.sync()
                with pk.when((me == count - 1) & (i == 2)):
                    warpgroup.set(x, (0, 0), box[0])
                turns.give(me)
            turns.finish(me)

    x = np.zeros((1, 4), np.float32)
    assert alternate.simulate(x, seed=seed).clean
    assert x[0, 0] == 3 * count - 1
    assert alternate.compile(x).registers
    assert alternate.cuda(x).count("bar.arrive") == (0 if count == 1 else 2)
    if count > 1 and seed is None:
        survivors = {removal.line for removal in removals(alternate, x) if not removal.found}
        assert survivors <= {"turns.finish(me)", "warpgroup.sync()"}, survivors


# Budgets ----------------------------------------------------------------------------------------------------


def budgets(*wanted: int, warps: int = 4) -> pk.Kernel:
    @pk.kernel(warps=warps * len(wanted))
    def roles(x: pk.gl(f32, 64, 64)) -> None:
        for i, registers in enumerate(wanted):
            with pk.role(f"role {i}", warps=warps, registers=registers):
                warp.sync()

    return roles


def test_register_budgets() -> None:
    text = budgets(24, 240, 240).cuda(X)
    assert text.count("setmaxnreg.dec") == 1 and text.count("setmaxnreg.inc") == 2
    refused(
        budgets(240, 240, 240),
        words=(
            "register budgets add up to 240 x 128 (role 0) + 240 x 128 (role 1)",
            "= 92160; a block of 384 threads starts with 168 each, 64512 in all",
        ),
    )
    refused(budgets(24, 0, 240), words=("'role 1' of 'roles' have no register budget, others do",))
    refused(budgets(24, 244), words=("244", "multiple of 8"))
    refused(budgets(16, 240), words=("16", "24 to 256"))
    refused(budgets(24, 240, warps=2), words=("warpgroup",))


# Rings ------------------------------------------------------------------------------------------------------


def test_a_load_in_a_branch_of_a_fill() -> None:
    @pk.kernel(warps=2)
    def maybe(x: pk.gl(bf16, "N", 64), n: pk.i32) -> None:
        ring = pk.ring(2, pk.st(bf16, 64, 64))
        with pk.role("load", warps=1), ring.fill() as slot, pk.when(n > 0):
            pk.tma.load(slot, x, (0, 0))

    refused(
        maybe,
        pk.spec(bf16, (64, 64)),
        1,
        words=("ring ring: a load inside a branch of its fill", "put the whole fill inside the branch"),
    )


def test_fills_that_are_none() -> None:
    def fill(body: Any) -> pk.Kernel:
        @pk.kernel(warps=1)
        def kernel(x: pk.gl(bf16, "N", 64)) -> None:
            body(x, pk.ring(2, k=pk.st(bf16, 64, 64), name="keys"))

        return kernel

    def nothing(x: Any, ring: Any) -> None:
        with ring.fill():
            pass

    def nested(x: Any, ring: Any) -> None:
        with ring.fill() as slot:
            pk.tma.load(slot.k, x, (0, 0))
            with ring.fill():
                pass

    def misnamed(x: Any, ring: Any) -> None:
        with ring.fill() as slot:
            pk.tma.load(slot.v, x, (0, 0))

    x = pk.spec(bf16, (64, 64))
    refused(fill(nothing), x, words=("ring keys: nothing is loaded in this fill",))
    refused(fill(nested), x, words=("ring keys: a fill inside a fill",))
    refused(fill(misnamed), x, words=("a slot of this ring has no tile 'v'", "it has k"))


def test_waits_that_can_never_be_met() -> None:
    @pk.kernel(warps=2)
    def starved(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64)) -> None:
        ring = pk.ring(2, pk.st(bf16, 64, 64), name="tiles")
        with pk.role("load", warps=1):
            for i in pk.range(2):
                with ring.fill() as slot:
                    pk.tma.load(slot, x, (i, 0))
        with pk.role("store", warps=1):
            for i in pk.range(3):
                warp.store(y, warp.load(ring.read()), (i, 0))
                ring.release()

    x, y = np.zeros((192, 64), bf16.numpy), np.zeros((192, 64), bf16.numpy)
    with pytest.raises(pk.DeadlockError) as caught:
        starved.simulate(x, y)
    text = str(caught.value)
    assert "warp 1 (store)" in text and "tiles_full[0], phase 1: misses 1 of 1 arrivals" in text and "fix: " in text, (
        text
    )


def test_shared_memory_lists_its_buffers() -> None:
    @pk.kernel(warps=1)
    def large(x: pk.gl(bf16, "N", 64)) -> None:
        pk.ring(8, k=pk.st(bf16, 128, 128), name="keys")
        pk.shared(pk.st(f32, 64, 64), name="sums")

    refused(
        large,
        pk.spec(bf16, (64, 64)),
        kind=pk.ResourceError,
        words=(
            "wants 278656 bytes of shared memory; a block on sm_90a has 232448",
            "keys_k: 8 x st<bf16, 128x128> = 262144 bytes",
            "sums: st<f32, 64x64> = 16384",
        ),
    )


# Clusters ---------------------------------------------------------------------------------------------------


@pk.kernel(warps=8, cluster=2, grid=(2, 1, 1))
def share(x: pk.gl(f32, 256, 32), y: pk.gl(f32, 2, 256, 32)) -> None:
    """Each block loads half of every tile to both, and stores what it got."""
    ring = pk.ring(2, pk.st(f32, 64, 32), name="tiles")
    with pk.role("load", warps=4):
        for i in pk.range(4):
            with ring.fill() as slot:
                pk.tma.share(slot, x, (i, 0))
    with pk.role("store", warpgroups=1):
        for i in pk.range(4):
            with ring.reading() as slot:
                warpgroup.store(y, warpgroup.load(slot), (0, pk.cluster.rank, i, 0))
    pk.cluster.sync()


@pk.kernel(warps=4, cluster=2, grid=(2, 1, 1))
def swap(x: pk.gl(f32, 128, 64), y: pk.gl(f32, 128, 64)) -> None:
    """Each block writes its rows into the other's shared memory and tells it so."""
    rank, inbox, arrived = pk.cluster.rank, pk.shared(pk.st(f32, 64, 64), name="inbox"), pk.barrier(1, name="arrived")
    warpgroup.store(inbox, warpgroup.load(x, (rank, 0), rows=64), rank=1 - rank)
    warpgroup.sync()
    pk.arrive(arrived, scope=warpgroup, rank=1 - rank)
    pk.wait(arrived, 0, scope=warpgroup)
    warpgroup.store(y, warpgroup.load(inbox), (rank, 0))
    pk.cluster.sync()


def test_multicast() -> None:
    x, y = np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32), np.zeros((2, 256, 32), np.float32)
    assert share.simulate(x, y).clean
    assert (y == x).all()
    assert "multicast::cluster" in share.cuda(x, y) and share.compile(x, y).registers
    assert all(removal.found for removal in removals(share, x, y))


def test_distributed_shared_memory() -> None:
    x, y = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32), np.zeros((128, 64), np.float32)
    assert swap.simulate(x, y).clean
    assert (y == np.concatenate([x[64:], x[:64]])).all()
    text = swap.cuda(x, y)
    assert "st.shared::cluster" in text and "mbarrier_arrive_remote(" in text and "pk_mbarrier_wait_cluster(" in text
    assert swap.compile(x, y).registers
    survivors = [removal.line for removal in removals(swap, x, y) if not removal.found]
    assert survivors == ["pk.cluster.sync()"], survivors  # nobody sends to a block that has what it waited for


@pytest.mark.parametrize("dtype", [bf16, f32], ids=str)
def test_reading_a_neighbours_shared_memory(dtype: pk.types.DType) -> None:
    @pk.kernel(warps=4, cluster=2, grid=(2, 1, 1))
    def look(x: pk.gl(dtype, 128, 64), y: pk.gl(dtype, 128, 64)) -> None:
        rank, tile = pk.cluster.rank, pk.shared(pk.st(dtype, 64, 64), name="tile")
        warpgroup.load_into(tile, x, (rank, 0))
        pk.cluster.sync()
        warpgroup.store(y, pk.cluster.load(tile, 1 - rank), (rank, 0))
        pk.cluster.sync()  # the neighbour has read it

    x = np.random.default_rng(0).standard_normal((128, 64)).astype(dtype.numpy)
    y = np.zeros_like(x)
    assert look.simulate(x, y).clean
    assert (y == np.concatenate([x[64:], x[:64]])).all()
    assert "ld.shared::cluster" in look.cuda(x, y) and look.compile(x, y).registers
    assert all(isinstance(removal.found, pk.RaceError) for removal in removals(look, x, y))
