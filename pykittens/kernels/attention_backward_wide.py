"""Flash attention, backward, for Hopper and head dimension 256: two blocks work on neighbouring keys.

The mathematics, operands and launches are those of `attention_backward_hopper`. Here a row is so long that dk and dv of
64 keys fill the registers of two warpgroups, half of the columns in each. One makes the scores and P, the other the
gradients of P and dS, each one tile of queries ahead; both hand theirs over in shared memory, as the left operands of
all products that follow. What limits such a kernel is how fast L2 adds up dq. So the blocks of a cluster give each
other their dS: each then makes half of the columns of dq, over the keys of both, and adds half as much
(flash-attention's pull request 2889 has the idea, with rows for columns).
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp, warpgroup

from ..trace.visits import Share
from .attention_backward_hopper import LOG2E

D = pk.static("D")
HALF = (bf16, f16)
KEYS = ROWS = 64  # of a block, and of a tile of queries
PAIR = 2 * KEYS  # keys of a cluster
WEIGHTS, SLOPES = 0, 1  # the warpgroups: P and dS


def grid(k: Any, sums: Any = None, **_: Any) -> Any:
    """Two blocks for each pair of tiles of keys, or for each part of its work."""
    return 2 * pk.cdiv(k.rows, PAIR) * Share.count(k, sums)


@pk.kernel(warps=12, cluster=2, grid=grid)
def differentiate(
    q: Annotated[Tensor, HALF, "B", "H", "N", D],
    k: Annotated[Tensor, HALF, "B", "G", "M", D],
    v: Annotated[Tensor, HALF, "B", "G", "M", D],
    do: Annotated[Tensor, HALF, "B", "H", "N", D],
    lse: Annotated[Tensor, f32, "E", "R", "P"],
    delta: Annotated[Tensor, f32, "E", "R", "P"],
    dq: Annotated[Tensor, f32, "E", "R", "T", pk.static("L")],
    dk: Annotated[Tensor, HALF, "B", "G", "M", D],
    dv: Annotated[Tensor, HALF, "B", "G", "M", D],
    scale: Annotated[Scalar, f32],
    turns: Annotated[Tensor, i32, "E", "R", "T"] | None = None,
    sums: Annotated[Tensor, f32, "PB", "PG", "PT", pk.static("PL")] | None = None,
    together: Annotated[Scalar, i32] | None = None,
    *,
    causal: bool = False,
) -> None:
    """dk, dv, and dq / scale added to float32 `dq`; causal: row i sees the keys up to i + m - n.

    With `turns` (zeros), the additions come in the same order every time; with `sums`, blocks divide the work on a
    pair: both, and `together`, as in `attention_backward_hopper`.
    """
    d, dtype, c, rank = q.cols, q.dtype, scale * LOG2E, pk.cluster.rank
    half, cols = d // 2, dq.cols // ROWS  # a warpgroup's columns of dk and dv; its columns of dq
    pairs, tiles = pk.cdiv(k.rows, PAIR), delta.cols // ROWS
    # `which`: batch and head of the keys.
    shared_by, diagonal, cluster = dq.depth, k.rows - q.rows, pk.block_index.x // 2
    heads = Share.count(k, sums)
    which, pair = cluster // pairs, cluster % pairs
    if together is not None:
        section = cluster // (together * pairs) * together  # its first
        width, place = pk.minimum(together, heads - section), cluster - section * pairs
        which, pair = section + place % width, place // width
    if causal and turns is not None:
        pair = pairs - 1 - pair
    number, which = which, which if sums is None else which // (Share.count(k, sums) // dq.batch)
    tile = pair * 2 + rank
    # Query i stands at key i + diagonal. The first tile that sees a key of both, and the first that sees all of ours:
    first = pk.maximum(pair * PAIR - diagonal, 0) // ROWS if causal else 0
    clear = pk.cdiv(pk.maximum(tile * KEYS + KEYS - 1 - diagonal, 0), ROWS) if causal else 0
    heads_of = Share(number, k, sums).heads_of(shared_by)
    first, end = Share(number, k, sums).queries_of(first, tiles)
    clear = pk.where(tile * KEYS + KEYS <= k.rows, pk.maximum(pk.minimum(clear, end), first), end)

    key, value = (pk.shared(pk.st(dtype, KEYS, d), name=name) for name in ("key", "value"))
    other = pk.shared(pk.st(dtype, KEYS, half), name="other")  # our columns of the other block's keys
    landed = pk.barrier(2, name="landed")
    q_ring, do_ring = (
        pk.ring(stages, x=pk.st(dtype, ROWS, d), row=pk.sv(f32, ROWS), name=name)
        for stages, name in ((2, "q"), (1, "do"))
    )
    weights, slopes = (pk.shared(pk.st(dtype, KEYS, ROWS), count=2, name=name) for name in ("weights", "slopes"))
    theirs = pk.ring(1, pk.st(dtype, KEYS, ROWS), name="theirs")  # the other block's dS
    weights_there, slopes_there, done = pk.named_barrier(8), pk.named_barrier(9), pk.named_barrier(8)
    may_add, added = (pk.named_barrier(5, count=2) for _ in range(2))  # of each warpgroup and the one that knows turns

    def owner() -> Any:
        """(head of the keys, batch) of this block: worked out where it is needed, not kept in registers."""
        return which % k.depth, which // k.depth

    def each_tile() -> Any:
        """The tiles of queries that see these keys, head after head: (head of those that share the keys, tile)."""
        for h in pk.range(*heads_of):
            for j in pk.range(first, end):
                yield h, j

    def halves(tile: Any, x: Any, at: Any, barrier: Any) -> None:
        """Loads rows of q or k, this block's columns of dq first: so products find them in the same place in both."""
        for i in range(2):
            part = tile.part(0, i * half, tile.rows, half)
            pk.tma.load(part, x, (*at, (rank + i) % 2), barrier)

    def whole(tile: Any, x: Any, at: Any, barrier: Any) -> None:
        """Loads rows of do."""
        pk.tma.load(tile, x, (*at, 0), barrier)

    def fill(ring: Any, load: Any, x: Any, row: Any) -> None:
        """Loads the tiles of queries, and one of no rows: products are made one tile ahead."""
        head, batch = owner()
        for h, j in each_tile():
            with ring.fill() as slot:
                load(slot.x, x, (batch, head * shared_by + h, j), slot.x.landing)
                pk.tma.load(slot.row, row, (which, h, j))
        with ring.fill() as slot:
            load(slot.x, x, (batch, head * shared_by, tiles), slot.x.landing)
            pk.tma.load(slot.row, row, (which, 0, tiles))

    def multiply(me: int) -> None:
        """A warpgroup's part: P or dS of each tile of queries, and its columns of dv, dk and dq."""
        made, part = warpgroup.zeros(f32, KEYS, ROWS), warpgroup.zeros(f32, ROWS, cols)
        dkey, dvalue = warpgroup.zeros(f32, KEYS, half), warpgroup.zeros(f32, KEYS, half)
        turn = pk.var(i32, 0)
        pk.wait(landed, 0)

        def mine(x: Any) -> Any:
            """This warpgroup's columns of a row of the operands."""
            return x.part(0, me * half, x.rows, half)

        def ahead() -> None:
            """The scores, or the gradients of P, of the next tile of queries begin."""
            if me == WEIGHTS:
                warpgroup.mm_ABt(made, key, q_ring.read().x)
            else:
                warpgroup.mm_ABt(made, value, do_ring.read().x)

        def step(h: Any, j: Any, masked: bool) -> None:
            """One tile of queries, of which `made` is there."""
            weight, slope = weights[turn], slopes[turn]
            if me == WEIGHTS:
                query = q_ring.held()
                p = pk.exp2(pk.fma(made, c, -warpgroup.load_row(query.row)))
                if masked:
                    position = pk.row_index(p) + tile * KEYS
                    seen = position < k.rows
                    if causal:
                        seen = seen & (position <= pk.col_index(p) + (j * ROWS + diagonal))
                    p = pk.where(seen, p, 0.0)
                warpgroup.store(weight, p.to(dtype))
                warpgroup.arrive_at(weights_there)
                warpgroup.sync()
                grads = do_ring.read()
                warpgroup.mma_AB(dvalue, weight, mine(grads.x))
                warpgroup.sync_at(slopes_there)
            else:
                query, grads = q_ring.read(), do_ring.held()
                warpgroup.sync_at(weights_there)
                warpgroup.mma_AB(dvalue, weight, mine(grads.x))
                p = warpgroup.load(weight).to(f32)
                warpgroup.store(slope, (p * (made - warpgroup.load_row(grads.row))).to(dtype))
                warpgroup.arrive_at(slopes_there)
                warpgroup.sync()
            warpgroup.mma_AB(dkey, slope, mine(query.x))
            warpgroup.wait(dvalue)
            do_ring.release()
            if me == WEIGHTS:
                ahead()
            warpgroup.mm_AtB(part, slope, key.part(0, me * cols, KEYS, cols))
            warpgroup.mma_AtB(part, theirs.read(), other.part(0, me * cols, KEYS, cols))
            warpgroup.wait(part)
            theirs.release()
            q_ring.release()
            if me == SLOPES:
                ahead()
            if turns is not None:
                warpgroup.sync_at(may_add, me)
            warpgroup.add(dq, part.registers(), (which, h, 4 * j + 2 * rank + me, 0))
            if turns is not None:
                warpgroup.arrive_at(added, me)
            if me == SLOPES:
                warpgroup.wait(made)
            turn.set(1 - turn)

        ahead()
        warpgroup.wait(made)
        for h in pk.range(*heads_of):
            if me == WEIGHTS:
                for j in pk.range(first, clear):
                    step(h, j, True)
            for j in pk.range(clear if me == WEIGHTS else first, end):
                step(h, j, False)
        if sums is not None:
            for i, (sum, col) in enumerate(((dkey, (rank + me) % 2), (dvalue, me))):
                warpgroup.store(sums, sum.registers(), Share(number, k, sums).place(i, tile * 2 + col))
            return
        warpgroup.sync_at(done)  # nobody reads the keys and values any more
        head, batch = owner()
        for out, sum, staged, col in ((dk, dkey * scale, key, (rank + me) % 2), (dv, dvalue, value, me)):
            warpgroup.store(mine(staged), sum.to(dtype))
            warpgroup.sync()
            warpgroup.tma.store(out, mine(staged), (batch, head, tile, col))
        warpgroup.tma.commit()
        warpgroup.tma.wait()

    with pk.role("move", warps=4, registers=24):
        with pk.role("keys and queries", warps=1):
            pk.tma.expect(landed, key, other)
            head, batch = owner()
            halves(key, k, (batch, head, tile), landed)
            pk.tma.load(other, k, (batch, head, pair * 2 + 1 - rank, rank), landed)
            fill(q_ring, halves, q, lse)
        with pk.role("values and gradients", warps=1):
            pk.tma.expect(landed, value)
            head, batch = owner()
            pk.tma.load(value, v, (batch, head, tile, 0), landed)
            fill(do_ring, whole, do, delta)
        with pk.role("exchange", warps=1):
            turn = pk.var(i32, 0)
            for _ in pk.range(pk.maximum(end - first, 0) * (heads_of[1] - heads_of[0])):
                warp.sync_at(slopes_there)
                with theirs.fill() as slot:
                    pk.tma.exchange(slot, slopes[turn])
                turn.set(1 - turn)
        if turns is not None:
            with pk.role("turns", warps=1):
                for h, j in each_tile():
                    at = which, h, 2 * j + rank
                    before = pk.minimum((j * ROWS + ROWS - 1 + diagonal) // PAIR, pairs - 1) - pair if causal else pair
                    pk.wait_for(turns, at, before)  # as many add to these queries before this one
                    for i in range(2):
                        warp.arrive_at(may_add, i)
                    for i in range(2):
                        warp.sync_at(added, i)
                    pk.signal(turns, at)
    with pk.role("weights", warpgroups=1, registers=240):
        multiply(WEIGHTS)
    with pk.role("slopes", warpgroups=1, registers=240):
        multiply(SLOPES)
    pk.cluster.sync()  # the other block may still release our slots
