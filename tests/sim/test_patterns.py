"""Well-known patterns between blocks, warps and clusters, each as it is right and as it often goes wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, warp, warpgroup

SIDE = 16
Body = Callable[..., None]
# Each pattern: options of its kernel, how many rows x has, and its body by whether it is right.
PATTERNS: dict[str, tuple[dict[str, Any], int, Body, Body]] = {}


def pattern(name: str, rows: int = 1, **options: Any) -> Callable[[Body], Body]:
    """Notes a body that takes the flags f (zeros), x and y (tiles of ones and zeros), and `right`."""

    def note(body: Body) -> Body:
        def variant(right: bool) -> Body:
            def made(f: pk.gl(i32, 4), x: pk.gl(f32, "N", SIDE), y: pk.gl(f32, "M", SIDE)) -> None:  # type: ignore[valid-type]
                body(f, x, y, right)

            return made

        PATTERNS[name] = ({"warps": 1, **options}, rows, variant(True), variant(False))
        return body

    return note


def ones() -> Any:
    return warp.ones(f32, SIDE, SIDE)


def tile(x: Any, at: Any = 0) -> Any:
    return warp.load(x, (at, 0), rows=SIDE)


def grow(y: Any) -> None:
    """What only one at a time may do."""
    warp.store(y, tile(y) + 1.0, (0, 0))


@pattern("lock, released relaxed", grid=(3, 1, 1))
def lock(f: Any, x: Any, y: Any, right: bool) -> None:
    for _ in pk.loop():
        pk.break_if(pk.atomic_cas(f, 0, 0, 1, order="acquire") == 0)
    grow(y)
    pk.atomic_exch(f, 0, 0, order="release" if right else "relaxed")


@pattern("lock, never released", grid=(2, 1, 1))
def held(f: Any, x: Any, y: Any, right: bool) -> None:
    for _ in pk.loop():
        pk.break_if(pk.atomic_cas(f, 0, 0, 1, order="acquire") == 0)
    grow(y)
    if right:
        pk.atomic_exch(f, 0, 0, order="release")


@pattern("ticket lock, given on before the store", grid=(3, 1, 1))
def tickets(f: Any, x: Any, y: Any, right: bool) -> None:
    pk.wait_for(f, 1, pk.atomic_add(f, 0, 1))
    value = tile(y) + 1.0
    if right:
        warp.store(y, value, (0, 0))
    pk.signal(f, 1)
    if not right:
        warp.store(y, value, (0, 0))


@pattern("made once, checked without acquiring", rows=3, grid=(3, 1, 1))
def once(f: Any, x: Any, y: Any, right: bool) -> None:
    order: Any = ("acquire", "release") if right else ("relaxed", "relaxed")
    with pk.when(f.load(0, order=order[0]) == 0):
        for _ in pk.loop():
            pk.break_if(pk.atomic_cas(f, 1, 0, 1, order="acquire") == 0)
        with pk.when(f.load(0, order=order[0]) == 0):
            warp.store(y, ones(), (0, 0))
            warp.set(f, 0, 1, order=order[1])
        pk.atomic_exch(f, 1, 0, order="release")
    warp.store(x, tile(y), (pk.block_index.x, 0))


@pattern("the last block reads all, one too early", rows=3, grid=(3, 1, 1))
def last(f: Any, x: Any, y: Any, right: bool) -> None:
    warp.store(x, ones(), (pk.block_index.x, 0))
    with pk.when(pk.atomic_add(f, 0, 1, order="acq_rel") == (2 if right else 1)):
        warp.store(y, tile(x, 0) + tile(x, 1) + tile(x, 2), (0, 0))


@pattern("all blocks meet twice, with one count", rows=3, grid=(3, 1, 1), cooperative=True)
def grid_barrier(f: Any, x: Any, y: Any, right: bool) -> None:
    me = pk.block_index.x
    for i in range(2):
        warp.store(x, ones(), (me, 0))
        pk.signal(f, 0)
        pk.wait_for(f, 0, 6 * i + 3 if right else 3)
        tile(x, (me + 1) % 3)
        if right:
            pk.signal(f, 0)
            pk.wait_for(f, 0, 6 * i + 6)


@pattern("a scan looks back, or ahead", rows=4, grid=(4, 1, 1))
def scan(f: Any, x: Any, y: Any, right: bool) -> None:
    me = pk.block_index.x
    other = me - 1 if right else me + 1
    with pk.when((other >= 0) & (other < 4)):
        pk.wait_for(f, other)
        warp.store(x, tile(x, other) + tile(x, me), (me, 0))
    pk.signal(f, me)


@pattern("readers before a writer, who are not released", rows=4, grid=(4, 1, 1))
def readers(f: Any, x: Any, y: Any, right: bool) -> None:
    with pk.when(pk.block_index.x < 3):
        warp.store(x, tile(y), (pk.block_index.x, 0))
        if right:
            pk.signal(f, 0)
        else:
            pk.atomic_add(f, 0, 1)
    with pk.otherwise():
        pk.wait_for(f, 0, 3)
        warp.store(y, ones(), (0, 0))


@pattern("a bulk store is told when it has read, not written", grid=(2, 1, 1))
def bulk(f: Any, x: Any, y: Any, right: bool) -> None:
    with pk.when(pk.block_index.x == 0):
        t = pk.shared(pk.st(f32, SIDE, SIDE))
        warp.store(t, ones())
        warp.sync()
        pk.tma.store(y, t, (0, 0))
        pk.tma.commit()
        pk.tma.wait(read=not right)
        pk.signal(f, 0)
    with pk.otherwise():
        pk.wait_for(f, 0)
        warp.store(x, tile(y), (0, 0))


@pattern("the winner of a swap writes, and so do losers", grid=(2, 1, 1))
def winner(f: Any, x: Any, y: Any, right: bool) -> None:
    with pk.when(pk.atomic_cas(f, 0, 0, 1) == 0):
        warp.store(y, ones(), (0, 0))
    if not right:
        with pk.otherwise():
            warp.store(y, ones(), (0, 0))


@pattern("neighbours in a cluster, told to another", rows=4, grid=(4, 1, 1), cluster=(4, 1, 1))
def neighbours(f: Any, x: Any, y: Any, right: bool) -> None:
    t, b, me = pk.shared(pk.st(f32, SIDE, SIDE)), pk.barrier(1), pk.cluster.rank
    warp.store(t, ones(), rank=(me + 1) % 4)
    warp.sync()
    pk.arrive(b, rank=(me + (1 if right else 2)) % 4)
    pk.wait(b, 0)
    warp.store(x, warp.load(t), (me, 0))
    pk.cluster.sync()


@pattern("a multicast that one block has not expected", rows=2, grid=(2, 1, 1), cluster=(2, 1, 1))
def multicast(f: Any, x: Any, y: Any, right: bool) -> None:
    t, b = pk.shared(pk.st(f32, SIDE, SIDE)), pk.barrier(1)
    if right:
        pk.tma.expect(b, t)
    with pk.when(pk.cluster.rank == 0):
        if not right:
            pk.tma.expect(b, t)
        pk.tma.load(t, y, (0, 0), b, multicast=3)
    with pk.when((pk.cluster.rank == 0) | right):
        pk.wait(b, 0)
    pk.cluster.sync()
    warp.store(x, warp.load(t), (pk.cluster.rank, 0))


@pattern("memory of a peer that overwrites it", rows=2, grid=(1, 2, 1), cluster=(1, 2, 1))
def exchange(f: Any, x: Any, y: Any, right: bool) -> None:
    t, me = pk.shared(pk.st(f32, SIDE, SIDE)), pk.cluster.rank
    for _ in pk.range(2):
        warp.store(t, ones())
        pk.cluster.sync()
        warp.store(x, pk.cluster.load(t, 1 - me, scope=warp), (me, 0))
        if right:
            pk.cluster.sync()
    pk.cluster.sync()


@pattern("turns around a tile that is read outside of them", rows=8, warps=8)
def turns(f: Any, x: Any, y: Any, right: bool) -> None:
    t = pk.shared(pk.st(f32, 64, SIDE))
    with pk.role("work", warpgroups=2) as me:
        order = pk.turns(2)
        order.start(me)
        for _ in pk.range(2):
            order.wait(me)
            warpgroup.store(t, warpgroup.load(x, (me, 0), rows=64))
            value = warpgroup.load(t)
            if right:
                warpgroup.sync()
            order.give(me)
            if not right:
                value = warpgroup.load(t)
            warpgroup.store(x, value, (me, 0))
        order.finish(me)


@pattern("warps of a gang hand on in a chain, or in a ring", rows=4, warps=4)
def chain(f: Any, x: Any, y: Any, right: bool) -> None:
    t, b = pk.shared(pk.st(f32, 4 * SIDE, SIDE)), pk.barrier(1, 4)
    pk.block.load_into(t, x, (0, 0))
    pk.block.sync()
    if right:
        with pk.when(warp.index > 0):
            pk.wait(b[warp.index - 1], 0, scope=warp)
    else:
        pk.wait(b[(warp.index + 3) % 4], 0, scope=warp)
    warp.store(x, warp.load(t.part(warp.index * SIDE, 0, SIDE, SIDE)), (warp.index, 0))
    pk.arrive(b[warp.index], scope=warp)


@pattern("arrivals that differ by warp, counted one too many", warps=4)
def uneven(f: Any, x: Any, y: Any, right: bool) -> None:
    b = pk.barrier(6 if right else 7)
    for _ in pk.range(warp.index):
        pk.arrive(b, scope=warp)
    pk.wait(b, 0, scope=warp)


@pattern("an in-place stencil", rows=4, grid=(4, 1, 1))
def stencil(f: Any, x: Any, y: Any, right: bool) -> None:
    me = pk.block_index.x
    value = tile(x, me)
    with pk.when(me < (0 if right else 3)):
        value += tile(x, me + 1)
    warp.store(x, value, (me, 0))


@pattern("neighbouring rows, or overlapping ones", rows=3, grid=(3, 1, 1))
def overlap(f: Any, x: Any, y: Any, right: bool) -> None:
    warp.store(x, ones(), pk.at(pk.block_index.x * (SIDE if right else SIDE - 1), 0))


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern(name: str) -> None:
    options, rows, right, wrong = PATTERNS[name]
    for body, seed in ((right, None), (right, 1), (wrong, None), (wrong, 1)):
        arrays = np.zeros(4, np.int32), np.ones((rows * SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
        if body is right:
            pk.kernel(**options)(body).simulate(*arrays, seed=seed)
        else:
            with pytest.raises(pk.Diagnosis):
                pk.kernel(**options)(body).simulate(*arrays, seed=seed)
