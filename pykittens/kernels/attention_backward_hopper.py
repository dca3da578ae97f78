"""Flash attention, backward, for Hopper: TMA, asynchronous tensor cores, warp roles.

    P = exp(q @ k.T * scale - lse)        dS = P * (do @ v.T - delta)        delta = rowsum(do * o) - dlse
    dv = P.T @ do                         dk = scale * dS.T @ q              dq = scale * dS @ k

q, do: (batch, heads, n, d), k, v: (batch, kv heads, m, d), bf16 or f16, d up to 256, any strides with contiguous
rows; heads a multiple of kv heads. `attention_backward.prepare` makes delta and lse, `finish` rounds dq. A block has a
tile of keys and of values and goes through the tiles of queries of all heads that share them, so that dk and dv are
complete in its registers. The scores are made transposed: P.T and dS.T then lie in registers as the left operands of dv
and dk, and only dS goes through shared memory, for dq, which one warp adds to a float32 tensor with TMA. The scheme is
FlashAttention-3's (Shah et al. 2024, section 3; FlashAttention-4's flash_bwd_sm90.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp, warpgroup

from ..trace.first_store import FirstStores
from ..trace.scoring import TABLES, Differentiated, Scoring, Where
from ..trace.visits import KeyTile, Share
from .scale import squashed
from .widths import backward_width

LOG2E = 1.4426950408889634
LINES = 2**22  # elements of queries whose 8 bytes each (q, do, the sums of dq) take 32 MiB of L2
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)


def grid(k: Any, v: Any, k_offsets: Any = None, sums: Any = None, **_: Any) -> Any:
    """A block for each tile of keys, or for each part of its work."""
    keys = keys_of(backward_width(k.cols, v.cols))
    tiles = pk.cdiv(k.rows, keys) if k_offsets is None else k.rows // keys + k_offsets.cols - 1
    return tiles * Share.count(k, sums)


def at_once(count: int, rows: int, d: int) -> int:
    """How many of `count` heads, or parts of their work, to take at a time: as many as L2 has room for (q, do, the sums
    of dq) of so many rows, and the same every time. Where tiles differ or take turns, the longest, or those that nobody
    waits for, then come first.
    """
    times = -(-count // max(LINES // max(rows * d, 1), 1))
    return -(-count // max(times, 1))


def keys_of(d: Any) -> Any:
    """Keys of a block: 64 of each warpgroup, or, where a row is too long for its registers, 64 of both."""
    return 128 if d <= 128 else 64


@pk.kernel(warps=12, grid=grid)
def differentiate(
    q: Annotated[Tensor, HALF, "B", "H", "N", D],
    k: Annotated[Tensor, HALF, "B", "G", "M", D],
    v: Annotated[Tensor, HALF, "B", "G", "M", DV],
    do: Annotated[Tensor, HALF, "B", "H", "N", DV],
    lse: Annotated[Tensor, f32, "B", "H", "P"],
    delta: Annotated[Tensor, f32, "B", "H", "P"],
    dq: Annotated[Tensor, f32, "B", "H", "T", pk.static("L")],
    dk: Annotated[Tensor, HALF, "B", "G", "M", D],
    dv: Annotated[Tensor, HALF, "B", "G", "M", DV],
    scale: Annotated[Scalar, f32],
    turns: Annotated[Tensor, i32, "B", "H", "T"] | None = None,
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    o0: Annotated[Tensor, TABLES, "A0", "B0", "C0", "D0"] | None = None,
    o1: Annotated[Tensor, TABLES, "A1", "B1", "C1", "D1"] | None = None,
    o2: Annotated[Tensor, TABLES, "A2", "B2", "C2", "D2"] | None = None,
    o3: Annotated[Tensor, TABLES, "A3", "B3", "C3", "D3"] | None = None,
    d0: Annotated[Tensor, f32, "A0", "B0", "C0", "D0"] | None = None,
    d1: Annotated[Tensor, f32, "A1", "B1", "C1", "D1"] | None = None,
    d2: Annotated[Tensor, f32, "A2", "B2", "C2", "D2"] | None = None,
    d3: Annotated[Tensor, f32, "A3", "B3", "C3", "D3"] | None = None,
    lists: Annotated[Tensor, i32, "TB", "TH", "TT", "TL"] | None = None,
    sums: Annotated[Tensor, f32, "PB", "PG", "PT", pk.static("PL")] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    together: Annotated[Scalar, i32] | None = None,
    claims: Annotated[Tensor, i32, "B", "H", "T"] | None = None,
    *,
    scoring: Scoring | None = None,
    causal: bool = False,
    rows: int = 64,
    stages: int = 2,
    early: bool = True,
    direct: bool = False,
) -> None:
    """dk, dv, and dq / scale added to float32 `dq`; causal: row i sees the keys up to i + m - n.

    `left`, `right`, `softcap` and offsets: see `attention_hopper.attend`. Of packed sequences, the rows of lse, delta
    and dq are those of `pk.packed(q_offsets).padded`; owners: whose each tile of keys is (`attention_packed`).
    together: how many heads at a time (`at_once`), and of all of them the first tile, then the second; else one.

    With `turns` (zeros), additions come in one order, by increasing keys, or decreasing if causal: a block waits for
    blocks that began before it, none for one that starts with the same queries. With `claims` (zeros, or the turns) dq
    is no zeros, but anything: see `first_store`. `sums`: `attention_backward_divided`.
    """
    d, dtype, unit = backward_width(q.cols, v.cols), q.dtype, scale if softcap is None else softcap
    scored, tables = scoring is not None and scoring.score is not None, (o0, o1, o2, o3)
    c, keys = LOG2E if scored else unit * LOG2E, keys_of(d)
    halves = d > 128  # the warpgroups share the keys, and each has half of the columns of dk, dv and dq
    side: Any = 0 if causal else right
    uneven, packed = side is not None, q_offsets is not None
    key_tiles = pk.packed(k_offsets).tiles(k.rows, keys) if packed else pk.cdiv(k.rows, keys)
    many: Any = 1 if together is None else together
    section, place = pk.block_index.x // (many * key_tiles), pk.block_index.x % (many * key_tiles)
    width = pk.minimum(many, Share.count(k, sums) - section * many)
    tile, shared_by = place // width, q.depth // k.depth
    tile = key_tiles - 1 - tile if uneven and turns is not None else tile
    q_rows, k_rows, base, exists, sequence, line = pk.stretch(q), pk.stretch(k), 0, True, None, tile
    if packed:
        sequence = pk.packed(k_offsets).owner(tile, keys, owners)
        tile = tile - pk.packed(k_offsets).first(sequence, keys)
        q_rows, k_rows = pk.packed(q_offsets)[sequence], pk.packed(k_offsets)[sequence]
        base = pk.packed(q_offsets).padded(sequence, rows)
        key_tiles = pk.cdiv(k_rows.rows, keys)
        exists = tile * keys < pk.packed(k_offsets).covering(sequence, k.rows).rows
    tiles, band = pk.cdiv(q_rows.rows, rows), pk.band(q_rows.rows, k_rows.rows, left=left, right=side)
    key, value = (pk.shared(pk.st(dtype, keys, d), name=name) for name in ("key", "value"))
    landed = pk.barrier(2, name="landed")
    q_ring, do_ring = (
        pk.ring(stages, x=pk.st(dtype, rows, d), row=pk.sv(f32, rows), name=name) for name in ("q", "do")
    )
    ds = pk.shared(pk.st(dtype, keys, rows), count=2, name="ds")
    if not direct:
        staged_dq = pk.shared(pk.sv(f32, dq.cols), count=2, name="staged_dq")  # one for each warpgroup
        there, taken = pk.named_barrier(5, count=2), pk.named_barrier(5, count=2)

    # What is this block's: worked out where it is needed, not kept in registers.
    share, added = partial(Share, section * many + place % width, k, sums), FirstStores(dq, turns, claims)
    present = partial(pk.when, exists) if packed else nullcontext  # some numbers of packed tiles are nobody's
    visits = KeyTile(band, tile, keys, rows, shared_by, share, tile < key_tiles if packed else None, lists, line)

    def await_turn(at: Any, j: Any) -> Any:
        """All that comes before is in a piece of dq; whether that is nothing."""
        return added.wait(at, lambda: band.turn(j, rows, tile, keys, key_tiles))

    def add(i: int, at: Any, j: Any) -> None:
        """A warpgroup's part of a piece of dq is added to it."""
        warp.arrive_at(taken, i)
        first = await_turn(at, j)  # while the products are being made
        warp.sync_at(there, i)
        added.add(staged_dq[i], at, first)

    with pk.role("move", warps=4, registers=24):
        for name, given, operand, ring, rowed, row in (
            ("keys and queries", key, k, q_ring, q, lse),
            ("values and gradients", value, v, do_ring, do, delta),
        ):
            with pk.role(name, warps=1), present():
                pk.tma.expect(landed, given)
                head, batch = share().owner
                pk.tma.load(given, operand, barrier=landed, **k_rows.tile(batch, head, tile, keys))
                for b, h, j in visits.every_tile():
                    with ring.fill() as slot:
                        pk.tma.load(slot.x, rowed, **q_rows.tile(b, h, j, rows))
                        pk.tma.load(slot.row, row, (b, h, base + j))
                if ring is q_ring:  # scores are made one tile ahead, in the end those of no tile
                    # A box wholly behind a packed sequence's last row might touch what lies there: one that exists.
                    behind = pk.maximum(tiles - 1, 0) if packed else tiles
                    with ring.fill() as slot:
                        pk.tma.load(slot.x, q, **q_rows.tile(batch, head * shared_by, behind, rows))
                        pk.tma.load(slot.row, lse, (batch, head * shared_by, base + tiles))
        if not direct:
            for i in range(2):
                with pk.role(f"add {i}", warps=1), present():
                    for b, h, j in visits.every_tile():
                        add(i, (b, h, 2 * (base + j) + i), j)
    with pk.role("multiply", warpgroups=2, registers=240) as me:
        wide, cols = d // 2 if halves else d, dq.cols // 64
        my_key, my_value = (x if halves else x.part(me * 64, 0, 64, d) for x in (key, value))
        score, grad = warpgroup.zeros(f32, 64, rows), warpgroup.zeros(f32, 64, rows)
        weight, slope = warpgroup.zeros(dtype, 64, rows), warpgroup.zeros(dtype, 64, rows)
        dkey, dvalue = warpgroup.zeros(f32, 64, wide), warpgroup.zeros(f32, 64, wide)
        pieces = rows // 64 * d // (2 * cols)  # of a warpgroup's part of dq, one after another
        part, turn = warpgroup.zeros(f32, 64, cols), pk.var(pk.i32, 0)

        def mine(x: Any) -> Any:
            """The columns that this warpgroup multiplies with."""
            return x.part(0, me * wide, x.rows, wide) if halves else x

        def scores() -> None:
            """The scores of the next tile of queries begin."""
            warpgroup.mm_ABt(score, my_key, q_ring.read().x)

        def products(i: Any, slopes: Any) -> None:
            """Piece i of this warpgroup's part of dq begins."""
            if rows == 128:
                warpgroup.mm_AtB(part, slopes.part(0, me * 64, keys, 64), key)
            else:
                warpgroup.mm_AtB(part, slopes, key.part(0, (me * pieces + i) * cols, keys, cols))

        def where(h: Any, j: Any) -> Where:
            """Where this warpgroup's scores of a tile of queries lie."""
            (head, batch), key = share().owner, tile * keys + (0 if halves else me * 64)
            return Where(batch if sequence is None else sequence, head * shared_by + h, j * rows, key, down=True)

        def step(h: Any, j: Any, masked: Any) -> None:
            """One tile of queries, whose scores are there."""
            query, grads, slopes = q_ring.held(), do_ring.read(), ds[me if halves else turn]
            warpgroup.mm_ABt(grad, my_value, grads.x)
            x = score if softcap is None else squashed(score, scale / softcap)
            made = Differentiated(scoring, x, unit, scoring and where(h, j), tables, (d0, d1, d2, d3))
            p = pk.exp2(pk.fma(made.result, c, -warpgroup.load_row(query.row)))
            p = made.hide(p) if masked or lists is None else p
            if masked:
                p = pk.where(band.sees(score, j * rows, tile * keys + (0 if halves else me * 64), down=True), p, 0.0)
            weight[:] = p.to(dtype)
            if softcap is not None and not scored:
                p = p * pk.fma(x, -x, 1.0)  # the derivative of tanh
            if early:
                warpgroup.mma_AB(dvalue, weight, mine(grads.x))
            warpgroup.wait(grad)
            steep = made.pull(p * (grad - warpgroup.load_row(grads.row)), me == 0 if halves else None)
            if softcap is not None and scored:
                steep = steep * pk.fma(x, -x, 1.0)
            slope[:] = steep.to(dtype)
            warpgroup.store(slopes if halves else slopes.part(me * 64, 0, 64, rows), slope)
            if not early:
                warpgroup.mma_AB(dvalue, weight, mine(grads.x))
            (warpgroup if halves else pk.block).sync()  # all of dS is there
            for i in range(pieces):
                products(i, slopes)
                if i == pieces - 1:
                    warpgroup.mma_AB(dkey, slope, mine(query.x))
                if i == 0:
                    warpgroup.wait(dvalue)
                    do_ring.release()
                warpgroup.wait(part)
                if direct:
                    (head, batch), piece = share().owner, (2 * (base + j) + me) * pieces + i
                    await_turn((batch, head * shared_by + h, piece), j)
                    warpgroup.add(dq, part.registers(), (batch, head * shared_by + h, piece, 0))
                    if turns is not None:
                        pk.signal(turns, (batch, head * shared_by + h, piece), by=warpgroup)
                else:
                    warpgroup.sync_at(taken, me)
                    warpgroup.store(staged_dq[me], part.registers())
                    warpgroup.arrive_at(there, me)
            scores()
            warpgroup.wait(dkey)
            q_ring.release()
            warpgroup.wait(score)
            if not halves:
                turn.set(1 - turn)

        with present():
            pk.wait(landed, 0)
            scores()
            warpgroup.wait(score)
            for h in pk.range(*visits.heads):
                for j, masked in visits.tiles_of(h):
                    step(h, j, masked)
            if sums is not None:
                for i, sum in enumerate((dkey, dvalue)):
                    warpgroup.store(sums, sum.registers(), share().place(i, line * 2 + me))
            else:
                pk.block.sync()  # nobody reads the keys and values any more
                head, batch = share().owner
                own = pk.packed(k_offsets).covering(sequence, k.rows) if packed else k_rows  # not kept in registers
                for out, sum, staged in ((dk, dkey * scale, key), (dv, dvalue, value)):
                    staged = mine(staged) if halves else staged.part(me * 64, 0, 64, d)
                    warpgroup.store(staged, sum.to(dtype))
                    warpgroup.sync()
                    at = (tile, keys, me, wide) if halves else (tile * 2 + me, 64)
                    warpgroup.tma.store(out, staged, **own.tile(batch, head, *at))
                warpgroup.tma.commit()
                warpgroup.tma.wait()
