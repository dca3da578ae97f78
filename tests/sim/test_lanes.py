"""Lanes of one warp need not run in step: what they hand to each other is ordered by a statement, or found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp, warpgroup
from pykittens.ops.sync import Barrier
from pykittens.testing.removal import removals

ORDERS = [None, 1, 2, 3]


def verdict(kernel: pk.Kernel, *arrays: np.ndarray) -> str:
    """What every order finds: the same in all."""
    found = set()
    for seed in ORDERS:
        try:
            kernel.simulate(*(x.copy() for x in arrays), seed=seed)
            found.add("")
        except pk.RaceError as error:
            assert "warp.sync()" in error.fix, str(error)
            found.add("lanes" if "race between lanes" in error.fact else "race")
    (only,) = found
    return only


def lane_barriers(kernel: pk.Kernel, *arrays: np.ndarray) -> int:
    program = kernel.program(*arrays)
    return sum(isinstance(op, Barrier) and op.scope.warps == 1 for op in program.walk())


def copied(sync: bool, load: Callable[[Any], Any]) -> pk.Kernel:
    @pk.kernel(warps=1)
    def kernel(x: pk.gl(f32, 16, 64), y: pk.gl(f32, 16, 64)) -> None:
        t = pk.shared(pk.st(f32, 16, 64))
        warp.load_into(t, x, (0, 0))
        if sync:
            warp.sync()
        warp.store(y, load(t), (0, 0))

    return kernel


LOADS = {
    "row": lambda t: warp.load(t),
    "col": lambda t: warp.load(t, layout="col"),
    "runs of 2": lambda t: warp.load(t, layout=pk.coalesced(32, 2)),
    "runs of 4": lambda t: warp.load(t, layout=pk.coalesced(16, 4)),  # as the copy: 16 bytes a lane in turn
}


@pytest.mark.parametrize("load", LOADS)
def test_what_lanes_copied_is_read_by_the_same_lanes_or_after_a_sync(load: str) -> None:
    x = np.zeros((16, 64), np.float32)
    assert verdict(copied(True, LOADS[load]), x, x) == ""
    assert verdict(copied(False, LOADS[load]), x, x) == ("" if load == "runs of 4" else "lanes")


def test_a_warp_s_own_stores_are_ordered_by_statements() -> None:
    """Where the lanes differ, and there alone; taken out, they are missed."""

    def kernel(layout: Any) -> pk.Kernel:
        @pk.kernel(warps=1)
        def stores(x: pk.gl(f32, 16, 64), y: pk.gl(f32, 16, 64)) -> None:
            t = pk.shared(pk.st(f32, 16, 64))
            warp.store(t, warp.load(x, (0, 0), rows=16, layout=pk.coalesced(16, 4)))
            warp.store(y, warp.load(t, layout=layout), (0, 0))

        return stores

    x = np.zeros((16, 64), np.float32)
    assert lane_barriers(kernel(pk.coalesced(16, 4)), x, x) == 0
    assert lane_barriers(kernel("row"), x, x) == 1
    for layout in ("row", pk.coalesced(16, 4)):
        assert verdict(kernel(layout), x, x) == ""
    from pykittens.testing.removal import removals

    (removal,) = removals(kernel("row"), x, x)
    assert removal.what == "barrier" and "race between lanes" in str(removal.found)


def test_one_lane_arrives_for_lanes_that_wrote_apart() -> None:
    def kernel(sync: bool) -> pk.Kernel:
        @pk.kernel(warps=2)
        def hands(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)) -> None:
            t, b = pk.shared(pk.st(f32, 16, 16)), pk.barrier()
            with pk.role("a", warps=1):
                warp.load_into(t, x, (0, 0))
                if sync:
                    warp.sync()
                pk.arrive(b)
            with pk.role("b", warps=1):
                pk.wait(b, 0)
                warp.store(y, warp.load(t), (0, 0))

        return hands

    x = np.zeros((16, 16), np.float32)
    assert verdict(kernel(True), x, x) == "" and verdict(kernel(False), x, x) == "lanes"


def test_one_lane_arrives_at_another_block() -> None:
    def kernel(sync: bool) -> pk.Kernel:
        @pk.kernel(warps=4, grid=(2, 1, 1), cluster=(2, 1, 1))
        def hands(x: pk.gl(f32, 128, 16), y: pk.gl(f32, 64, 16)) -> None:
            t, b = pk.shared(pk.st(f32, 64, 16), count=2), pk.barrier(8)
            warpgroup.store(t[pk.cluster.rank], warpgroup.load(x, (pk.cluster.rank, 0), rows=64), rank=0)
            if sync:
                warp.sync()
            pk.arrive(b, scope=warp, rank=0)
            with pk.when(pk.cluster.rank == 0):
                pk.wait(b, 0)
                warpgroup.store(y, warpgroup.load(t[0]) + warpgroup.load(t[1]), (0, 0))
            pk.cluster.sync()

        return hands

    arrays = np.zeros((128, 16), np.float32), np.zeros((64, 16), np.float32)
    assert verdict(kernel(True), *arrays) == "" and verdict(kernel(False), *arrays) == "lanes"


def test_what_lanes_have_read_is_given_back_by_one_of_them() -> None:
    """A ring read with ordinary loads: the release comes after a statement in which the lanes meet."""

    @pk.kernel(warps=2)
    def kernel(x: pk.gl(f32, 128, 16), y: pk.gl(f32, 128, 16)) -> None:
        ring = pk.ring(2, pk.st(f32, 16, 16))
        with pk.role("load", warps=1):
            for i in pk.range(8):
                with ring.fill() as slot:
                    pk.tma.load(slot, x, (i, 0))
        with pk.role("use", warps=1):
            for i in pk.range(8):
                tile = warp.load(ring.read())
                ring.release()
                warp.store(y, tile, (i, 0))

    x = np.zeros((128, 16), np.float32)
    assert lane_barriers(kernel, x, x) == 1 and verdict(kernel, x, x) == ""
    from pykittens.testing.removal import removals

    assert all(removal.found for removal in removals(kernel, x, x))


def test_one_lane_waits_for_a_bulk_store_and_all_write_again() -> None:
    @pk.kernel(warps=1)
    def kernel(y: pk.gl(f32, 32, 16)) -> None:
        t = pk.shared(pk.st(f32, 16, 16))
        for i in range(2):
            warp.store(t, warp.ones(f32, 16, 16))
            warp.sync()
            pk.tma.store(y, t, (i, 0))
            pk.tma.commit()
            pk.tma.wait(read=True)

    y = np.zeros((32, 16), np.float32)
    assert lane_barriers(kernel, y) == 3 and verdict(kernel, y) == ""


def test_lanes_of_global_memory() -> None:
    """A warp's stores are ordered with its loads there, too; what several warps store together the author orders."""

    def kernel(scope: Any, warps: int) -> pk.Kernel:
        @pk.kernel(warps=warps)
        def back(y: pk.gl(f32, 64, 16), z: pk.gl(f32, 64, 16)) -> None:
            scope.store(y, scope.load(y, (0, 0), rows=64, layout="col") + 1.0, (0, 0))
            scope.store(y, scope.load(y, (0, 0), rows=64) * 2.0, (0, 0))
            scope.store(z, scope.load(y, (0, 0), rows=64, layout="col"), (0, 0))

        return back

    y, z = np.zeros((64, 16), np.float32), np.zeros((64, 16), np.float32)
    assert lane_barriers(kernel(warp, 1), y, z) == 2 and verdict(kernel(warp, 1), y, z) == ""
    assert verdict(kernel(pk.warpgroup, 4), y, z) != ""


def test_the_lane_that_loads_with_an_order_changes_what_it_has_loaded() -> None:
    """And another only after they have met: one lane loads for its warp."""

    def kernel(change: Any) -> pk.Kernel:
        @pk.kernel(warps=1)
        def counts(x: pk.gl(pk.i32, 32), y: pk.gl(pk.i32, 32)) -> None:
            pk.wait_for(x, 5, 0)
            found = x.load(5, order="relaxed")
            change(x)
            warp.set(y, 0, found + x.load(5, order="relaxed"))

        return counts

    x = np.zeros(32, np.int32)
    of_one = kernel(lambda x: pk.atomic_cas(x, 5, 0, 1, by=warp))
    of_all = kernel(lambda x: warp.store(x, warp.full_vec(pk.i32, 32, 1), 0))
    for k, barriers in ((of_one, 0), (of_all, 2)):
        assert lane_barriers(k, x, x) == barriers and verdict(k, x, x) == ""
    missed = [removal.found for removal in removals(of_all, x, x) if removal.what == "barrier"]
    assert len(missed) == 2 and all(isinstance(found, pk.RaceError) for found in missed)


def test_places_that_are_worked_out_alike_are_one() -> None:
    """In place each lane stores what it loaded, and nobody need meet; elsewhere, or if a variable changes, they do."""

    def kernel(kind: str) -> pk.Kernel:
        @pk.kernel(warps=1)
        def k(x: pk.gl(f32, "N", 16), n: pk.i32) -> None:
            i = pk.var(pk.i32, n) if kind == "variable" else n
            t = warp.load(x, ((i + 1) // 2, 0), rows=16)
            if kind == "variable":
                i[:] = 3
            warp.store(x, t, ((i + 1) // 2 if kind != "elsewhere" else i, 0))

        return k

    spec = pk.spec(f32, (64, 16))
    for kind in ("in place", "elsewhere", "variable"):
        program = kernel(kind).program(spec, 1)
        barriers = sum(isinstance(op, Barrier) for op in program.walk())
        assert barriers == (kind != "in place"), kind
