"""What blocks and warps hand to each other through global memory: accepted where a release and an acquire carry it,
else found."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, warp
from pykittens.gpu import sass
from pykittens.ops.control import When
from pykittens.ops.tma import ProxyFence
from pykittens.sim import gang

SEEDS = (None, 5)
COUNTERS = np.zeros(4, np.int32)


def accepts(kernel: pk.Kernel, *arrays: np.ndarray) -> None:
    """It is clean in every order, and computes the same: the last array is all ones."""
    for seed in SEEDS:
        given = [x.copy() for x in arrays]
        kernel.simulate(*given, seed=seed)
        assert (given[-1] == 1).all()


def finds(kernel: pk.Kernel, error: type[pk.Diagnosis], words: str, *arrays: np.ndarray) -> pk.Diagnosis:
    """It is diagnosed in every order."""
    for seed in SEEDS:
        with pytest.raises(error, match=words) as caught:
            kernel.simulate(*(x.copy() for x in arrays), seed=seed)
    return caught.value


# How block 0 tells that it has written y, and how block 1 comes to know: by name, with the scope that PTX gives it.
TELLS: dict[str, Callable[[Any], None]] = {
    "signal": lambda f: pk.signal(f, 0),
    "release": lambda f: warp.set(f, 0, 1, order="release"),
    "atomic": lambda f: pk.atomic_add(f, 0, 1, order="release"),
    "exchange": lambda f: pk.atomic_exch(f, 0, 1, order="acq_rel"),
    "fence, atomic": lambda f: (pk.fence(), pk.atomic_or(f, 0, 1)),
    "fence, relaxed": lambda f: (pk.fence("gpu"), warp.set(f, 0, 1, order="relaxed")),
}
TELLS_NOT: dict[str, Callable[[Any], None]] = {
    "relaxed": lambda f: warp.set(f, 0, 1, order="relaxed"),
    "relaxed atomic": lambda f: pk.atomic_add(f, 0, 1),
    "atomic, fence": lambda f: (pk.atomic_add(f, 0, 1), pk.fence()),
    "acquire": lambda f: pk.atomic_add(f, 0, 1, order="acquire"),
    "fence of the block": lambda f: (pk.fence("cta"), pk.atomic_add(f, 0, 1)),
}
LEARNS: dict[str, Callable[[Any], None]] = {
    "wait_for": lambda f: pk.wait_for(f, 0),
    "acquire": lambda f: spin(lambda: f.load(0) != 0),
    "atomic": lambda f: spin(lambda: pk.atomic_add(f, 0, 0, order="acquire") != 0),
    "compare and swap": lambda f: spin(lambda: pk.atomic_cas(f, 0, 1, 2, order="acquire") == 1),
    "relaxed, fence": lambda f: (spin(lambda: f.load(0, order="relaxed") != 0), pk.fence()),
    "atomic, fence": lambda f: (spin(lambda: pk.atomic_max(f, 0, 0) != 0), pk.fence("gpu")),
}
LEARNS_NOT: dict[str, Callable[[Any], None]] = {
    "relaxed": lambda f: spin(lambda: f.load(0, order="relaxed") != 0),
    "fence, relaxed": lambda f: (pk.fence(), spin(lambda: f.load(0, order="relaxed") != 0)),
    "relaxed, fence of the block": lambda f: (spin(lambda: f.load(0, order="relaxed") != 0), pk.fence("cta")),
    "release": lambda f: spin(lambda: pk.atomic_add(f, 0, 0, order="release") != 0),
}


def spin(ends: Callable[[], Any]) -> None:
    for _ in pk.loop():
        pk.break_if(ends())


def hand_over(tell: Callable[[Any], None], learn: Callable[[Any], None], blocks: bool = True) -> pk.Kernel:
    """One writes y and tells it, another learns it and copies y to z: two blocks, or two roles of one."""

    @pk.kernel(warps=1, grid=(2, 1, 1))
    def of_blocks(f: pk.gl(i32, 4), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
        with pk.when(pk.block_index.x == 0):
            warp.store(y, warp.ones(f32, 16, 16), (0, 0))
            tell(f)
        with pk.otherwise():
            learn(f)
            warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))

    @pk.kernel(warps=2)
    def of_roles(f: pk.gl(i32, 4), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
        with pk.role("learn", warps=1):
            learn(f)
            warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))
        with pk.role("tell", warps=1):
            warp.store(y, warp.ones(f32, 16, 16), (0, 0))
            tell(f)

    return of_blocks if blocks else of_roles


def arrays() -> tuple[np.ndarray, ...]:
    return COUNTERS.copy(), np.zeros((16, 16), np.float32), np.zeros((16, 16), np.float32)


@pytest.mark.parametrize("tell", TELLS)
def test_a_release_and_an_acquire_hand_over(tell: str) -> None:
    for learn in LEARNS.values():
        given = arrays()
        hand_over(TELLS[tell], learn).simulate(*given)
        assert (given[-1] == 1).all()
    accepts(hand_over(TELLS[tell], LEARNS["wait_for"], blocks=False), *arrays())


@pytest.mark.parametrize("tell", TELLS_NOT)
def test_what_does_not_release_is_found(tell: str) -> None:
    for learn in ("wait_for", "relaxed, fence"):
        error = finds(
            hand_over(TELLS_NOT[tell], LEARNS[learn]), pk.RaceError, r"y\[0, 0, 0, 0\].*nothing orders", *arrays()
        )
        assert "block 0,0,0" in str(error) and "block 1,0,0" in str(error) and error.also
        assert "pk.signal after the one, pk.wait_for before the other" in error.fix  # which TELLS and LEARNS apply


@pytest.mark.parametrize("learn", LEARNS_NOT)
def test_what_does_not_acquire_is_found(learn: str) -> None:
    for tell in ("signal", "fence, atomic"):
        finds(hand_over(TELLS[tell], LEARNS_NOT[learn]), pk.RaceError, r"y\[0, 0, 0, 0\].*nothing orders", *arrays())


def test_the_scopes_must_hold_both() -> None:
    tell, learn = (lambda f: pk.signal(f, 0, scope="cta")), (lambda f: pk.wait_for(f, 0, scope="cta"))
    accepts(hand_over(tell, learn, blocks=False), *arrays())
    error = finds(hand_over(tell, learn), pk.RaceError, r"f\[0, 0, 0, 0\]", *arrays())
    assert 'scope="gpu"' in error.fix
    finds(hand_over(lambda f: pk.signal(f, 0), learn), pk.RaceError, r"f\[0, 0, 0, 0\]", *arrays())
    finds(hand_over(tell, lambda f: pk.wait_for(f, 0)), pk.RaceError, r"f\[0, 0, 0, 0\]", *arrays())


def test_the_scope_of_a_cluster() -> None:
    def kernel(cluster: int, scope: str) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1), cluster=(cluster, 1, 1))
        def pair(f: pk.gl(i32, 4), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
            with pk.when(pk.block_index.x == 1):
                warp.store(y, warp.ones(f32, 16, 16), (0, 0))
                pk.signal(f, 0, scope=scope)
            with pk.otherwise():
                pk.wait_for(f, 0, scope=scope)
                warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))

        return pair

    accepts(kernel(2, "cluster"), *arrays())
    accepts(kernel(2, "gpu"), *arrays())
    finds(kernel(2, "cta"), pk.RaceError, r"f\[0, 0, 0, 0\]", *arrays())
    finds(kernel(1, "gpu"), pk.DeadlockError, "waits for f.* to be 1", *arrays())  # for a higher block


def test_plain_flags_are_races() -> None:
    for tell, learn in (
        (lambda f: warp.set(f, 0, 1), LEARNS["wait_for"]),
        (TELLS["signal"], lambda f: spin(lambda: f[0] != 0)),
    ):
        for blocks in (True, False):
            finds(hand_over(tell, learn, blocks), pk.RaceError, r"f\[0, 0, 0, 0\]", *arrays())


def test_knowledge_is_handed_on_through_a_third() -> None:
    def kernel(scope: str, order: str) -> pk.Kernel:
        @pk.kernel(warps=2, grid=(3, 1, 1))
        def chain(f: pk.gl(i32, 4), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
            with pk.when(pk.block_index.x == 0):
                with pk.when(warp.index == 0):
                    warp.store(y, warp.ones(f32, 16, 16), (0, 0))
                pk.signal(f, 0)  # by both warps, of which the other one wrote nothing
            with pk.when(pk.block_index.x == 1):
                with pk.when(warp.index == 0):
                    pk.wait_for(f, 0)
                pk.block.sync()
                with pk.when(warp.index == 1):
                    pk.atomic_add(f, 1, 1, order=order, by=warp)
            with pk.when(pk.block_index.x == 2):
                pk.wait_for(f, 1, scope=scope)
                with pk.when(warp.index == 0):
                    warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))

        return chain

    accepts(kernel("gpu", "release"), *arrays())
    finds(kernel("gpu", "relaxed"), pk.RaceError, r"y\[0, 0, 0, 0\]", *arrays())


def last_block(ticket_order: str, fences: tuple[bool, bool] = (False, False)) -> pk.Kernel:
    """Each block writes its part; the last one to come adds them all."""

    @pk.kernel(warps=4, grid=(4, 1, 1))
    def total(counter: pk.gl(i32, 1), part: pk.gl(f32, 64, 16), out: pk.gl(f32, 16, 16)) -> None:
        mine = pk.shared(pk.sv(i32, 4))
        with pk.when(warp.index == 1):
            warp.store(part, warp.full(f32, 16, 16, 0.25), (pk.block_index.x, 0))
        pk.block.sync()
        with pk.when(warp.index == 0):
            if fences[0]:
                pk.fence()
            ticket = pk.atomic_add(counter, 0, 1, order=ticket_order, by=warp)
            if fences[1]:
                pk.fence()
            warp.set(mine, 0, ticket)
        pk.block.sync()
        with pk.when(mine[0] == 3), pk.when(warp.index == 2):
            sum = warp.zeros(f32, 16, 16)
            for i in pk.range(4):
                sum += warp.load(part, (i, 0), rows=16)
            warp.store(out, sum, (0, 0))
            warp.set(counter, 0, 0)

    return total


def test_the_last_block_sees_what_all_have_done() -> None:
    given = np.zeros(1, np.int32), np.zeros((64, 16), np.float32), np.zeros((16, 16), np.float32)
    accepts(last_block("acq_rel"), *given)
    accepts(last_block("relaxed", (True, True)), *given)
    accepts(last_block("release", (False, True)), *given)
    accepts(last_block("acquire", (True, False)), *given)
    for order, fences in (("relaxed", (False, False)), ("release", (False, False)), ("acquire", (False, False))):
        finds(last_block(order, fences), pk.RaceError, r"(part|counter)\[", *given)
    finds(last_block("relaxed", (True, False)), pk.RaceError, r"(part|counter)\[", *given)
    finds(last_block("relaxed", (False, True)), pk.RaceError, r"(part|counter)\[", *given)


def test_a_lock() -> None:
    def kernel(take: str, give: str) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(5, 1, 1))
        def locked(lock: pk.gl(i32, 1), x: pk.gl(f32, 1), y: pk.gl(f32, 1)) -> None:
            spin(lambda: pk.atomic_cas(lock, 0, 0, 1, order=take) == 0)
            warp.set(x, 0, x[0] + 0.2)
            warp.set(y, 0, pk.cast(x[0] > 0, f32))
            pk.atomic_exch(lock, 0, 0, order=give)

        return locked

    given = np.zeros(1, np.int32), np.zeros(1, np.float32), np.zeros(1, np.float32)
    accepts(kernel("acquire", "release"), *given)
    accepts(kernel("acq_rel", "acq_rel"), *given)
    finds(kernel("relaxed", "release"), pk.RaceError, r"x\[0, 0, 0, 0\]", *given)
    finds(kernel("acquire", "relaxed"), pk.RaceError, r"x\[0, 0, 0, 0\]", *given)
    finds(kernel("acquire", "acquire"), pk.RaceError, r"x\[0, 0, 0, 0\]", *given)


def test_waiting_for_a_higher_block_hangs_unless_the_launch_is_cooperative() -> None:
    def kernel(towards: int, cooperative: bool = False) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(4, 1, 1), cooperative=cooperative)
        def chain(f: pk.gl(i32, 4), y: pk.gl(i32, 4)) -> None:
            me = pk.block_index.x
            other = me + towards
            with pk.when((other >= 0) & (other < 4)):
                pk.wait_for(f, other)
            warp.set(y, me, 1)
            pk.signal(f, me)

        return chain

    given = COUNTERS, np.zeros(4, np.int32)
    accepts(kernel(-1), *given)
    error = finds(kernel(1), pk.DeadlockError, r"blocks from 1,0,0 on may begin only when", *given)
    assert "f[0, 0, 0, 1], which is 0, to be 1" in str(error) and "cooperative=True" in error.fix
    accepts(kernel(1, cooperative=True), *given)


def test_a_barrier_of_the_grid() -> None:
    def kernel(cooperative: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(4, 1, 1), cooperative=cooperative)
        def meet(f: pk.gl(i32, 1), x: pk.gl(i32, 4), y: pk.gl(i32, 4)) -> None:
            me = pk.block_index.x
            warp.set(x, me, 1)
            pk.signal(f, 0)
            pk.wait_for(f, 0, 4)
            warp.set(y, me, x[(me + 1) % 4])

        return meet

    given = np.zeros(1, np.int32), np.zeros(4, np.int32), np.zeros(4, np.int32)
    accepts(kernel(True), *given)
    finds(kernel(False), pk.DeadlockError, "cooperative|may begin only", *given)


def test_tickets_are_handed_out_in_several_orders() -> None:
    @pk.kernel(warps=2, grid=(4, 1, 1))
    def one_row(counter: pk.gl(i32, 1), y: pk.gl(i32, 1)) -> None:
        work = pk.dynamic(counter, 8)
        with pk.role("take", warps=1):
            for _ in work.take():
                pass
        with pk.role("use", warps=1):
            for _ in work:
                warp.set(y, 0, 1)

    finds(one_row, pk.RaceError, r"y\[0, 0, 0, 0\]", np.zeros(1, np.int32), np.zeros(1, np.int32))

    @pk.kernel(warps=1, grid=(3, 1, 1))
    def third_ticket(counter: pk.gl(i32, 1), y: pk.gl(i32, 1)) -> None:
        ticket = pk.atomic_add(counter, 0, 1)
        with pk.when((ticket == 2) & (pk.block_index.x == 0)):  # only where block 0 comes last
            pk.assert_(ticket == 0, "block 0 came last")

    finds(third_ticket, pk.KernelAssertionError, "block 0 came last", np.zeros(1, np.int32), np.zeros(1, np.int32))


def test_the_last_block_may_draw_the_first_ticket() -> None:
    """Of many small blocks all run at once."""

    @pk.kernel(warps=1, grid=32)
    def k(counter: pk.gl(i32, 4), x: pk.gl(i32, 32), y: pk.gl(i32, 1)) -> None:
        me = pk.block_index.x
        warp.set(x, me, 1)
        ticket = pk.atomic_add(counter, 0, 1, order="acq_rel")
        with pk.when((ticket == 0) & (me == 31)):
            warp.set(y, 0, x[0])

    finds(k, pk.RaceError, "nothing orders the two", COUNTERS, np.zeros(32, np.int32), np.zeros(1, np.int32))


def test_what_is_written_is_of_the_first_order_and_arrays_that_overlap_stay_so() -> None:
    @pk.kernel(warps=1, grid=(4, 1, 1))
    def slots(counter: pk.gl(i32, 1), y: pk.gl(i32, 4)) -> None:
        warp.set(y, pk.atomic_add(counter, 0, 1), pk.block_index.x)

    memory = np.zeros(5, np.int32)
    slots.simulate(memory[:1], memory[1:])
    assert memory.tolist() == [4, 0, 1, 2, 3]
    memory[:] = 0
    slots.simulate(memory[:1], memory[1:], seed=1)
    assert memory[0] == 4 and sorted(memory[1:].tolist()) == [0, 1, 2, 3]


def test_what_the_async_proxy_reads_or_writes_is_handed_over() -> None:
    def written_by_threads(fenced: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1))
        def loads(f: pk.gl(i32, 4), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
            t, b = pk.shared(pk.st(f32, 16, 16)), pk.barrier()
            with pk.when(pk.block_index.x == 0):
                warp.store(y, warp.ones(f32, 16, 16), (0, 0))
                pk.signal(f, 0)  # before which the compiler fences
            with pk.otherwise():
                pk.wait_for(f, 0)
                pk.tma.expect(b, t)
                pk.tma.load(t, y, (0, 0), b)
                pk.wait(b, 0)
                warp.store(z, warp.load(t), (0, 0))

        if not fenced:
            program = loads.program(*arrays())
            for block in (op.then for op in program.walk() if isinstance(op, When)):
                block.ops = [op for op in block.ops if not isinstance(op, ProxyFence)]
        return loads

    def written_by_tma(read: bool) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1))
        def stores(f: pk.gl(i32, 4), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
            t = pk.shared(pk.st(f32, 16, 16))
            with pk.when(pk.block_index.x == 0):
                warp.store(t, warp.ones(f32, 16, 16))
                warp.sync()
                pk.tma.store(y, t, (0, 0))
                pk.tma.commit()
                pk.tma.wait(read=read)  # read: t may be written again, y need not be there
                pk.signal(f, 0)
                pk.tma.wait()
            with pk.otherwise():
                pk.wait_for(f, 0)
                warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))

        return stores

    accepts(written_by_threads(True), *arrays())
    finds(written_by_threads(False), pk.RaceError, "missing proxy fence", *arrays())
    accepts(written_by_tma(False), *arrays())
    finds(written_by_tma(True), pk.RaceError, r"y\[0, 0, 0, 0\].*a bulk store", *arrays())


# Hangs ------------------------------------------------------------------------------------------------------


def test_a_loop_that_nothing_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang, "PASSES", 1024)

    def never(body: Callable[[Any], None]) -> pk.Kernel:
        @pk.kernel(warps=1)
        def spins(x: pk.gl(i32, 4)) -> None:
            body(x)

        return spins

    bodies: dict[str, Callable[[Any], None]] = {
        r"looks again and again at x\[0, 0, 0, 0\], which is 0": lambda x: spin(lambda: x[0] != 0),
        r"looks again and again at x\[0, 0, 0, 1\], which is 0": lambda x: spin(lambda: x.load(1) != 0),
        r"x\[0, 0, 0, 0\], which is 0 and x\[0, 0, 0, 2\], which is 0": lambda x: spin(
            lambda: x.load(0) + x.load(2) == 7
        ),
        r"looks again and again at x\[0, 0, 0, 3\]": lambda x: spin(lambda: pk.atomic_cas(x, 3, 1, 2) == 1),
        r"waits for x\[0, 0, 0, 0\], which is 0, to be 1": lambda x: pk.wait_for(x, 0),
        "goes round a loop that nothing ends": lambda x: spin(lambda: pk.block_index.x == 1),
        "for the 512th time": lambda x: spin(lambda: pk.atomic_add(x, 0, 1) < 0),
    }
    for words, body in bodies.items():
        finds(never(body), pk.DeadlockError, words, np.zeros(4, np.int32))


def test_those_that_spin_for_each_other_are_all_named() -> None:
    @pk.kernel(warps=3)
    def circle(f: pk.gl(i32, 4)) -> None:
        b = pk.barrier()
        with pk.role("one", warps=1):
            pk.wait_for(f, 1)
            pk.signal(f, 0)
        with pk.role("two", warps=1):
            spin(lambda: f.load(0) != 0)
            pk.signal(f, 1)
        with pk.role("three", warps=1):
            pk.wait(b, 0)

    error = finds(circle, pk.DeadlockError, r"warp 0 \(one\).*waits for f\[0, 0, 0, 1\]", COUNTERS)
    assert "warp 1 (two)" in str(error) and "looks again and again at f[0, 0, 0, 0], which is 0" in str(error)
    assert "warp 2 (three)" in str(error)


def test_a_ring_in_global_memory_whose_flags_are_set_back() -> None:
    def kernel(order: str) -> pk.Kernel:
        @pk.kernel(warps=1, grid=(2, 1, 1), cooperative=True)
        def ring(f: pk.gl(i32, 2), y: pk.gl(f32, 16, 16), z: pk.gl(f32, 16, 16)) -> None:
            with pk.when(pk.block_index.x == 0):
                for i in pk.range(3):
                    pk.wait_for(f, 1, i)  # what was there has been read
                    warp.store(y, warp.ones(f32, 16, 16), (0, 0))
                    warp.set(f, 0, 1, order=order)
            with pk.otherwise():
                for _ in pk.range(3):
                    pk.wait_for(f, 0)
                    warp.store(z, warp.load(y, (0, 0), rows=16), (0, 0))
                    warp.set(f, 0, 0, order="relaxed")
                    pk.signal(f, 1)

        return ring

    given = np.zeros(2, np.int32), np.zeros((16, 16), np.float32), np.zeros((16, 16), np.float32)
    accepts(kernel("release"), *given)
    finds(kernel("relaxed"), pk.RaceError, r"y\[0, 0, 0, 0\]", *given)


def test_places_of_traced_coordinates() -> None:
    @pk.kernel(warps=1, grid=(4, 1, 1))
    def scan(c: pk.gl(i32, 1), f: pk.gl(i32, 4), x: pk.gl(i32, 4), y: pk.gl(i32, 4)) -> None:
        ticket = pk.atomic_add(c, 0, 1)
        total = pk.var(i32, x[ticket])
        with pk.when(ticket > 0):
            pk.wait_for(f, ticket - 1)
            total.set(total + y[ticket - 1])
        warp.set(y, ticket, total)
        pk.signal(f, ticket)

    accepts(scan, np.zeros(1, np.int32), COUNTERS, np.array([1, 0, 0, 0], np.int32), COUNTERS)


def test_a_loop_that_counts_its_passes_goes_on() -> None:
    @pk.kernel(warps=2)
    def patient(f: pk.gl(i32, 4), y: pk.gl(i32, 1)) -> None:
        with pk.role("look", warps=1):
            tries = pk.var(i32, 0)
            for _ in pk.loop():
                tries.set(tries + 1)
                pk.break_if((f.load(0) != 0) | (tries > 1000))
            warp.set(y, 0, 1)
        with pk.role("work", warps=1):
            for i in pk.range(50):
                pk.atomic_add(f, 1, i)
            pk.signal(f, 0)

    accepts(patient, COUNTERS, np.zeros(1, np.int32))


# Words ------------------------------------------------------------------------------------------------------


def test_the_c_text_is_ptx() -> None:
    @pk.kernel(warps=4)
    def words(f: pk.gl(i32, 4), x: pk.gl(f32, 4), y: pk.gl(i32, 4)) -> None:
        pk.signal(f, 0)
        pk.wait_for(f, 0)
        pk.fence("cta")
        warp.set(y, 0, f.load(1, order="acquire", scope="cta"), order="release")
        with pk.when(warp.index == 0):
            warp.set(y, 1, pk.atomic_cas(f, 2, 0, 1, order="acq_rel", by=warp))
            warp.set(x, 1, pk.atomic_exch(x, 0, 1.5, by=warp))

    text = words.cuda(COUNTERS, np.zeros(4, np.float32), COUNTERS)
    for instruction in (
        "red.release.gpu.global.add.s32",
        "ld.acquire.gpu.global.b32",
        "fence.acq_rel.cta;",
        "ld.acquire.cta.global.b32",
        "st.release.gpu.global.b32",
        "atom.acq_rel.gpu.global.cas.b32 %0, [%1], %2, %3;",
        "atom.relaxed.gpu.global.exch.b32",
    ):
        assert instruction in text, instruction
    for arch in ("sm_80", "sm_90a"):
        assert words.compile(COUNTERS, np.zeros(4, np.float32), COUNTERS, arch=arch).registers


def test_a_plain_load_in_a_loop_is_made_in_every_pass() -> None:
    @pk.kernel(warps=2)
    def spins(flag: pk.gl(i32, 1), z: pk.gl(i32, 1)) -> None:
        for _ in pk.loop():
            pk.break_if(flag[0] != 0)
        warp.set(z, 0, 1)

    assert "*(volatile const int*)" in spins.cuda(np.zeros(1, np.int32), np.zeros(1, np.int32))

    def waits(look: Callable[[Any], Any]) -> None:
        @pk.kernel(warps=1)
        def looks(x: pk.gl(f32, 16, 16), z: pk.gl(i32, 1)) -> None:
            seen, tries = pk.var(f32, 0.0), pk.var(i32, 0)
            for _ in pk.loop():
                seen.set(look(x))
                tries.set(tries + 1)
                pk.break_if(seen > 0)
            warp.set(z, 0, tries)

        cubin = looks.compile(np.zeros((16, 16), np.float32), np.zeros(1, np.int32))
        inside = [i.base for loop in sass.loops(sass.disassemble(cubin)) for i in loop.instructions]
        assert "LDG" in inside

    for look in (
        lambda x: x[0, 0],
        lambda x: warp.load_vec(x, (0, 0), length=16).max(),
        lambda x: warp.load(x, (0, 0), rows=16).row_max().max(),
    ):
        waits(look)


def test_refusals() -> None:
    def refused(words: str, body: Callable[[Any, Any], object], warps: int = 1) -> None:
        @pk.kernel(warps=warps)
        def kernel(x: pk.gl(i32, 4), h: pk.gl(pk.bf16, 4)) -> None:
            body(x, h)

        with pytest.raises(pk.KernelError, match=words) as caught:
            kernel.cuda(np.zeros(4, np.int32), pk.spec(pk.bf16, (4,)))
        assert caught.value.fix

    refused("with order='acquire'", lambda x, h: warp.set(x, 0, 1, order="acquire"))
    refused("with order='release'", lambda x, h: x.load(0, order="release"))
    refused("with order='weak'", lambda x, h: pk.atomic_add(x, 0, 1, order="weak"))
    refused("with scope='system'", lambda x, h: pk.fence("system"))
    refused("of h: bf16", lambda x, h: h.load(0))
    refused("pk.signal of h", lambda x, h: pk.signal(h, 0))
    refused("pk.wait_for of a count of f32", lambda x, h: pk.wait_for(x, 0, 1.5))
    refused("pk.atomic_xor to h", lambda x, h: pk.atomic_xor(h, 0, 1))

    def in_a_role(x: Any, h: Any) -> None:
        with pk.role("several", warps=4):
            pk.block.sync()
            pk.atomic_cas(x, 0, 0, 1)

    refused("pk.atomic_cas by 4 warps", in_a_role, warps=4)
    refused("in shared memory with order", lambda x, h: warp.set(pk.shared(pk.sv(i32, 4)), 0, 1, order="release"))


def test_a_block_gets_what_its_first_warp_finds() -> None:
    """Without `by` all warps have the result, and the last block knows what all warps of the others stored."""

    @pk.kernel(warps=2, grid=2)
    def kernel(x: pk.gl(f32, 4, 16), c: pk.gl(i32, 1), y: pk.gl(f32, 2, 16)) -> None:
        warp.store(x, warp.full_vec(f32, 16, 3.0), (pk.block_index.x * 2 + warp.index, 0))
        ticket = pk.atomic_add(c, 0, 1, order="acq_rel")
        with pk.when(ticket == 1):
            found = sum(warp.load_vec(x, (i, 0), length=16) for i in range(4))
            warp.store(y, found, (warp.index, 0))

    y = np.zeros((2, 16), np.float32)
    kernel(np.zeros((4, 16), np.float32), np.zeros(1, np.int32), y)
    assert (y == 12).all()


@pytest.mark.parametrize("blocks", (True, False), ids=("blocks", "roles"))
def test_a_spin_that_counts_its_passes_lets_others_go(blocks: bool) -> None:
    """Each pass changes memory, so that it is no spin that waits for a change; it must not starve who ends it."""

    def poll(f: Any, polls: Any) -> None:
        for _ in pk.loop():
            warp.set(polls, 0, polls[0] + 1)
            pk.break_if(f.load(0) != 0)

    @pk.kernel(warps=1, grid=(2, 1, 1), cooperative=True)
    def of_blocks(f: pk.gl(i32, 4), polls: pk.gl(i32, 1), z: pk.gl(f32, 16, 16)) -> None:
        with pk.when(pk.block_index.x == 0):
            poll(f, polls)
            warp.store(z, warp.ones(f32, 16, 16), (0, 0))
        with pk.otherwise():
            pk.signal(f, 0)

    @pk.kernel(warps=2)
    def of_roles(f: pk.gl(i32, 4), polls: pk.gl(i32, 1), z: pk.gl(f32, 16, 16)) -> None:
        with pk.role("polls", warps=1):
            poll(f, polls)
            warp.store(z, warp.ones(f32, 16, 16), (0, 0))
        with pk.role("signals", warps=1):
            pk.signal(f, 0)

    accepts(of_blocks if blocks else of_roles, COUNTERS, np.zeros(1, np.int32), np.zeros((16, 16), np.float32))


def exchanging(then: str) -> pk.Kernel:
    """Two blocks send each other a tile; each has received its own when it overwrites what it sent."""

    @pk.kernel(warps=1, grid=2, cluster=2)
    def exchange(y: pk.gl(f32, 32, 64)) -> None:
        ring, mine = pk.ring(1, pk.st(f32, 16, 64), name="ring"), pk.shared(pk.st(f32, 16, 64), name="mine")
        warp.store(mine, warp.ones(f32, 16, 64))
        warp.sync()
        with ring.fill() as slot:
            pk.tma.exchange(slot, mine)
        received = warp.load(ring.read())
        if then == "meet":
            pk.cluster.sync()
        if then != "end":
            warp.sync()
            warp.store(mine, warp.zeros(f32, 16, 64))
        warp.store(y, received, (pk.cluster.rank, 0))
        ring.release()
        pk.cluster.sync()

    return exchange


def test_what_is_sent_to_another_block_is_read_until_that_block_has_it() -> None:
    y = np.zeros((32, 64), np.float32)
    finds(exchanging("overwrite"), pk.RaceError, "may still read it", y)
    accepts(exchanging("meet"), y)
    accepts(exchanging("end"), y)
