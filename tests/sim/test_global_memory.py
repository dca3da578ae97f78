"""Accesses of several blocks to one element of global memory: nothing hides an earlier one, whichever block comes
first."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

import pykittens as pk
from pykittens import f16, f32, i32, warp

READ, WRITE, ADD = "read", "write", "add"


def act(c: pk.gl(i32, 1), y: pk.gl(i32, 1, 8), kinds: tuple[str, ...], me: int) -> None:
    """Accesses to c[0]; a read keeps what it found."""
    for kind in kinds:
        if kind == READ:
            warp.set(y, (0, me), c[0])
        elif kind == WRITE:
            warp.set(c, 0, 1)
        else:
            pk.atomic_add(c, 0, 1)


def of_blocks(*programs: tuple[str, ...]) -> pk.Kernel:
    """A kernel whose block i does the accesses of program i, in order."""

    @pk.kernel(warps=1, grid=(len(programs), 1, 1))
    def accesses(c: pk.gl(i32, 1), y: pk.gl(i32, 1, 8)) -> None:
        for i, program in enumerate(programs):
            with pk.when(pk.block_index.x == i):
                act(c, y, program, i)

    return accesses


def clash(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether two blocks, which nothing orders, race: the definition of a race, without clocks or cells."""
    return any(x != y or x == WRITE for x, y in product(a, b) if not (x == y == READ))


PROGRAMS = [p for n in (1, 2) for p in product((READ, WRITE, ADD), repeat=n)]


@pytest.mark.parametrize("first", PROGRAMS, ids="-".join)
def test_two_and_three_blocks_race_where_any_two_of_their_accesses_clash(first: tuple[str, ...]) -> None:
    for second in PROGRAMS:
        for programs in ((first, second), (first, (READ,), second), (first, (ADD,), second)):
            pairs = [(a, b) for i, a in enumerate(programs) for b in programs[i + 1 :]]
            run = lambda p=programs: of_blocks(*p).simulate(np.zeros(1, np.int32), np.zeros((1, 8), np.int32))  # noqa: E731
            if any(clash(a, b) for a, b in pairs):
                with pytest.raises(pk.RaceError, match="nothing orders the two"):
                    run()
            else:
                run()


def test_reductions_of_two_kinds_do_not_commute() -> None:
    def kernel(kind: Callable[..., None]) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(3, 1, 1))
        def two_kinds(y: pk.gl(f16, 16, 16)) -> None:
            t = pk.shared(pk.st(f16, 16, 16))
            warp.store(t, warp.ones(f16, 16, 16))
            warp.sync()
            with pk.when(pk.block_index.x != 1):
                pk.tma.store_add(y, t, (0, 0))
            with pk.otherwise():
                kind(y, t, (0, 0))
            pk.tma.commit()
            pk.tma.wait()

        return two_kinds

    y = np.zeros((16, 16), np.float16)
    kernel(pk.tma.store_add).simulate(y)
    assert (y == 3).all()
    with pytest.raises(pk.RaceError, match=r"reduces \(max\) into y.*adds to it.*\n") as caught:
        kernel(pk.tma.store_max).simulate(y)
    assert "of one kind" in caught.value.fix


def test_what_the_kernel_before_may_write_is_not_read_before_it_was_waited_for() -> None:
    def kernel(early: tuple[str, ...], independent: tuple[str, ...] = ()) -> pk.Kernel:
        @pk.kernel(warps=2)
        def dependent(x: pk.gl(f32, 16, 16), w: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)) -> None:
            named = {"x": x, "w": w, "y": y}
            for name in early:
                warp.store(y, warp.load(named[name], (0, 0), rows=16), (0, 0)) if name == "y" else warp.load(
                    named[name], (0, 0), rows=16
                )
            with pk.role("wait", warps=1):
                pk.wait_for_previous(independent=tuple(named[n] for n in independent))
            pk.block.sync()
            with pk.when(warp.index == 1):  # the barrier tells it
                warp.store(y, warp.load(x, (0, 0), rows=16) + warp.load(w, (0, 0), rows=16), (0, 0))

        return dependent

    arrays = [np.ones((16, 16), np.float32) for _ in range(3)]
    kernel(()).simulate(*arrays)
    for early, independent in (("x",), ()), (("w",), ()), (("y",), ()), (("x",), ("w",)):
        with pytest.raises(pk.RaceError, match=f"{early[0]}, which the kernel before this one may still") as caught:
            kernel(early, independent).simulate(*arrays)
        assert "it is waited for at" in caught.value.also
    kernel(("w",), ("w",)).simulate(*arrays)  # the fix that the error proposes
    assert f"independent=({early[0]},)" in caught.value.fix


def test_a_grid_of_a_million_clusters_has_clocks() -> None:
    from pykittens.sim.clocks import SEEN, Clocks

    clocks = Clocks(np.arange(4), 2**20)
    clocks.meet(np.array([[0, 1]]))
    assert clocks.of[SEEN, 1, 0] > 1
