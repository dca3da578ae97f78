"""Atomics, flags, ordered accesses, fences, cooperative launches: what the simulator accepts is right on a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, u32, warp
from pykittens.gpu import driver
from pykittens.testing.block_programs import outcomes, program_kernel, random_programs, verdict

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not driver.available(), reason="no GPU")]
BLOCKS, ROUNDS = 96, 20  # fewer than there are multiprocessors; launches of each kernel
SIDE = 16


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_random_programs_end_as_an_interleaving_does(torch: Any) -> None:
    fine = [p for p in random_programs(7, 120) if verdict(p) == "fine"][:40]
    kinds = {statement[0] for program in fine for own in program for statement in own}
    assert {"lock", "unlock", "ticket", "swap", "exchange", "fence", "max", "or", "release", "wait"} <= kinds
    for program in fine:
        kernel, right = program_kernel(program), outcomes(program)
        for _ in range(ROUNDS):
            flags, data, out = (torch.zeros(n, dtype=torch.int32, device="cuda") for n in (2, 2, 8))
            kernel(flags, data, out)
            found = (*flags.tolist(), *data.tolist(), *out.tolist()[: len(program)])
            assert found in right, (program, found)


ATOMICS: dict[str, tuple[Callable[..., Any], Any]] = {
    "add": (pk.atomic_add, lambda values: values.sum()),
    "min": (pk.atomic_min, lambda values: values.min()),
    "max": (pk.atomic_max, lambda values: values.max()),
    "and": (pk.atomic_and, lambda values: np.bitwise_and.reduce(values)),
    "or": (pk.atomic_or, lambda values: np.bitwise_or.reduce(values)),
    "xor": (pk.atomic_xor, lambda values: np.bitwise_xor.reduce(values)),
}


@pytest.mark.parametrize("dtype", (i32, u32), ids=str)
@pytest.mark.parametrize("kind", ATOMICS)
def test_an_atomic_of_many_blocks(torch: Any, kind: str, dtype: Any) -> None:
    word, formula = ATOMICS[kind]

    @pk.kernel(warps=2, grid=(BLOCKS, 1, 1))
    def reduce(given: pk.gl(dtype, 2 * BLOCKS), total: pk.gl(dtype, 1)) -> None:
        at = pk.block_index.x * 2 + warp.index
        word(total, 0, given[at], by=warp)

    numbers = np.random.default_rng(5).integers(-(2**31), 2**31, 2 * BLOCKS).astype(np.int64)
    numbers = numbers.astype(np.int32 if dtype is i32 else np.uint32)
    first = numbers[:1].copy()
    want = np.asarray(formula(np.concatenate([first, numbers]).astype(numbers.dtype))).astype(numbers.dtype)
    given = torch.from_numpy(numbers.view(np.int32)).cuda()
    total = torch.from_numpy(first.view(np.int32)).cuda()
    if dtype is u32:
        given, total = given.view(torch.uint32), total.view(torch.uint32)
    reduce(given, total)
    assert total.view(torch.int32).cpu().numpy().view(numbers.dtype)[0] == want


def test_locks_and_tickets_let_one_in(torch: Any) -> None:
    """A sum that is read, changed and written by one block at a time loses nothing."""
    times = 8

    @pk.kernel(warps=1, grid=(BLOCKS, 1, 1))
    def locked(lock: pk.gl(i32, 1), x: pk.gl(f32, SIDE, SIDE)) -> None:
        for _ in pk.range(times):
            for _ in pk.loop():
                pk.break_if(pk.atomic_cas(lock, 0, 0, 1, order="acquire") == 0)
            warp.store(x, warp.load(x, (0, 0), rows=SIDE) + 1.0, (0, 0))
            pk.atomic_exch(lock, 0, 0, order="release")

    @pk.kernel(warps=1, grid=(BLOCKS, 1, 1))
    def in_turn(tickets: pk.gl(i32, 2), x: pk.gl(f32, SIDE, SIDE)) -> None:
        for _ in pk.range(times):
            pk.wait_for(tickets, 1, pk.atomic_add(tickets, 0, 1))
            warp.store(x, warp.load(x, (0, 0), rows=SIDE) + 1.0, (0, 0))
            pk.signal(tickets, 1)

    for kernel, count in ((locked, 1), (in_turn, 2)):
        x = torch.zeros(SIDE, SIDE, device="cuda")
        kernel(torch.zeros(count, dtype=torch.int32, device="cuda"), x)
        assert (x == BLOCKS * times).all()


@pytest.mark.parametrize("fenced", (False, True), ids=("acq_rel", "fences"))
def test_the_last_block_sees_what_all_have_written(torch: Any, fenced: bool) -> None:
    @pk.kernel(warps=4, grid=(BLOCKS, 1, 1))
    def last(counter: pk.gl(i32, 1), part: pk.gl(f32, BLOCKS * SIDE, SIDE), out: pk.gl(f32, SIDE, SIDE)) -> None:
        mine = pk.shared(pk.sv(i32, 4))
        with pk.when(warp.index == 3):
            warp.store(part, warp.full(f32, SIDE, SIDE, 1.0) + pk.cast(pk.block_index.x, f32), (pk.block_index.x, 0))
        pk.block.sync()
        with pk.when(warp.index == 0):
            if fenced:
                pk.fence()
            ticket = pk.atomic_add(counter, 0, 1, order="relaxed" if fenced else "acq_rel", by=warp)
            if fenced:
                pk.fence()
            warp.set(mine, 0, ticket)
        pk.block.sync()
        with pk.when(mine[0] == BLOCKS - 1), pk.when(warp.index == 2):
            total = warp.zeros(f32, SIDE, SIDE)
            for i in pk.range(BLOCKS):
                total += warp.load(part, (i, 0), rows=SIDE)
            warp.store(out, total, (0, 0))

    for _ in range(ROUNDS):
        counter = torch.zeros(1, dtype=torch.int32, device="cuda")
        part = torch.full((BLOCKS * SIDE, SIDE), float("nan"), device="cuda")
        out = torch.full((SIDE, SIDE), float("nan"), device="cuda")
        last(counter, part, out)
        assert (out == BLOCKS * (BLOCKS + 1) / 2).all()


def test_a_scan_looks_back(torch: Any) -> None:
    """Each block waits for the one before it: far more blocks than run at once."""
    blocks = 2000

    @pk.kernel(warps=1, grid=(blocks, 1, 1))
    def scan(flags: pk.gl(i32, blocks), sums: pk.gl(f32, blocks * SIDE, SIDE)) -> None:
        me = pk.block_index.x
        total = warp.ones(f32, SIDE, SIDE)
        with pk.when(me > 0):
            pk.wait_for(flags, me - 1)
            total += warp.load(sums, (me - 1, 0), rows=SIDE)
        warp.store(sums, total, (me, 0))
        pk.signal(flags, me)

    sums = torch.full((blocks * SIDE, SIDE), float("nan"), device="cuda")
    scan(torch.zeros(blocks, dtype=torch.int32, device="cuda"), sums)
    want = torch.arange(1, blocks + 1, device="cuda", dtype=torch.float32).repeat_interleave(SIDE)
    assert torch.equal(sums, want[:, None].expand(-1, SIDE))


def test_all_blocks_meet_in_a_cooperative_launch(torch: Any) -> None:
    rounds = 12

    @pk.kernel(warps=2, grid=(BLOCKS, 1, 1), cooperative=True)
    def rotate(counter: pk.gl(i32, 1), x: pk.gl(f32, BLOCKS * SIDE, SIDE)) -> None:
        me = pk.block_index.x
        mine = pk.shared(pk.st(f32, SIDE, SIDE))
        for i in pk.range(rounds):
            with pk.when(warp.index == 0):
                warp.store(mine, warp.load(x, ((me + 1) % BLOCKS, 0), rows=SIDE))
            pk.signal(counter, 0)
            pk.wait_for(counter, 0, (2 * i + 1) * BLOCKS)
            pk.block.sync()
            with pk.when(warp.index == 1):
                warp.store(x, warp.load(mine), (me, 0))
            pk.signal(counter, 0)
            pk.wait_for(counter, 0, (2 * i + 2) * BLOCKS)
            pk.block.sync()

    first = torch.arange(BLOCKS, device="cuda", dtype=torch.float32).repeat_interleave(SIDE)[:, None].expand(-1, SIDE)
    x = first.contiguous()
    rotate(torch.zeros(1, dtype=torch.int32, device="cuda"), x)
    assert torch.equal(x, first.roll(-rounds * SIDE, 0))


def test_flags_within_clusters_and_between_them(torch: Any) -> None:
    @pk.kernel(warps=2, grid=(BLOCKS, 1, 1), cluster=(2, 1, 1))
    def chain(flags: pk.gl(i32, BLOCKS), x: pk.gl(i32, 1)) -> None:
        me = pk.block_index.x
        with pk.when(warp.index == 0):
            with pk.when(pk.cluster.rank == 1):
                pk.wait_for(flags, me - 1, scope="cluster")
            with pk.otherwise(), pk.when(me > 0):
                pk.wait_for(flags, me - 1)
        pk.block.sync()
        with pk.when(warp.index == 1):
            warp.set(x, 0, x[0] + 1)
        with pk.when(pk.cluster.rank == 0):
            pk.signal(flags, me, scope="cluster")
        with pk.otherwise():
            pk.signal(flags, me)

    for _ in range(ROUNDS):
        x = torch.zeros(1, dtype=torch.int32, device="cuda")
        chain(torch.zeros(BLOCKS, dtype=torch.int32, device="cuda"), x)
        assert x.item() == BLOCKS


# How a block tells that it has written, and how the next comes to know (the pairs that the simulator accepts).
TELLS: dict[str, Callable[[Any, Any], None]] = {
    "signal": lambda f, at: pk.signal(f, at),
    "release": lambda f, at: warp.set(f, at, 1, order="release"),
    "atomic": lambda f, at: pk.atomic_or(f, at, 1, order="release"),
    "fence, relaxed": lambda f, at: (pk.fence(), warp.set(f, at, 1, order="relaxed")),
}
LEARNS: dict[str, Callable[[Any, Any], None]] = {
    "wait_for": lambda f, at: pk.wait_for(f, at),
    "acquire": lambda f, at: _spin(lambda: f.load(at) != 0),
    "atomic": lambda f, at: _spin(lambda: pk.atomic_max(f, at, 0, order="acquire") != 0),
    "relaxed, fence": lambda f, at: (_spin(lambda: f.load(at, order="relaxed") != 0), pk.fence()),
}


def _spin(ends: Callable[[], Any]) -> None:
    for _ in pk.loop():
        pk.break_if(ends())


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("tells", TELLS)
def test_a_message_is_passed_on(torch: Any, tells: str, learns: str) -> None:
    @pk.kernel(warps=1, grid=(BLOCKS, 1, 1))
    def chain(flags: pk.gl(i32, BLOCKS), x: pk.gl(f32, SIDE, SIDE)) -> None:
        me = pk.block_index.x
        with pk.when(me > 0):
            LEARNS[learns](flags, me - 1)
        warp.store(x, warp.load(x, (0, 0), rows=SIDE) * 0.5 + 1.0, (0, 0))
        TELLS[tells](flags, me)

    want = 0.0
    for _ in range(BLOCKS):
        want = float(np.float32(want * 0.5 + 1.0))
    for _ in range(ROUNDS):
        x = torch.zeros(SIDE, SIDE, device="cuda")
        chain(torch.zeros(BLOCKS, dtype=torch.int32, device="cuda"), x)
        assert (x == want).all()
