"""Flash attention, forward, for Hopper: TMA, asynchronous tensor cores, warp roles.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

q, o: (batch, heads, n, d), k, v: (batch, kv heads, m, d), bf16 or f16, d up to 256, any strides with contiguous
rows; heads a multiple of kv heads. lse, on request: log(sum(exp(q @ k.T * scale))) for each row, float32 (batch, heads,
n). Three threads load with TMA; each of `consumers` warpgroups owns 64 query rows. While one warpgroup does softmax,
its value product and the others' products run: the pipeline of FlashAttention-3 (Shah et al. 2024, section 3). Blocks
stay (`stay`), and load the next tile's operands while they finish one, or have one tile each. Speed beside
FlashAttention-4, cuDNN and FlashAttention-2: docs/benchmarks.md, measured by `pykittens bench attention --peers`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warpgroup

from ..trace.scoring import TABLES, Scoring, Where
from ..trace.visits import QueryTiles
from .scale import STEADY, logistic, magnitude, normalised, squashed, turn
from .widths import widths

LOG2E = 1.4426950408889634
LINES = 2**24  # elements of keys and values, of 2 bytes, that take 32 MiB of L2
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)


def grid(q: Any, consumers: Any, stay: Any, sms: Any, q_offsets: Any = None, splits: Any = None, **_: Any) -> Any:
    """A block a tile, or as many as there are multiprocessors, which stay."""
    rows = 64 * consumers
    tiles = pk.cdiv(q.rows, rows) * q.batch if q_offsets is None else q.rows // rows + q_offsets.cols - 1
    tiles = tiles * q.depth if splits is None else tiles * q.depth * splits
    return min(tiles, sms) if stay else tiles


@pk.kernel(
    warps=lambda consumers, **_: 4 * consumers + 4,
    grid=grid,
    blocks_per_sm=lambda consumers, **_: 1 + (consumers == 1),
    pdl=lambda counter=None, **_: counter is not None,
)
def attend(
    q: Annotated[Tensor, HALF, "B", "H", "N", D],
    k: Annotated[Tensor, HALF, "B", "G", "M", D],
    v: Annotated[Tensor, HALF, "B", "G", "M", DV],
    o: Annotated[Tensor, (*HALF, f32), "OB", "H", "N", DV],
    lse: Annotated[Tensor, f32, "LB", "LH", "LN"],
    scale: Annotated[Scalar, f32],
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    sinks: Annotated[Tensor, (f32, *HALF), "H"] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    o0: Annotated[Tensor, TABLES, "A0", "B0", "C0", "D0"] | None = None,
    o1: Annotated[Tensor, TABLES, "A1", "B1", "C1", "D1"] | None = None,
    o2: Annotated[Tensor, TABLES, "A2", "B2", "C2", "D2"] | None = None,
    o3: Annotated[Tensor, TABLES, "A3", "B3", "C3", "D3"] | None = None,
    splits: Annotated[Scalar, i32] | None = None,
    lists: Annotated[Tensor, i32, "TB", "TH", "TT", "TL"] | None = None,
    order: Annotated[Tensor, i32, 2, "O"] | None = None,
    counter: Annotated[Tensor, i32, 1] | None = None,
    head_rows: Annotated[Scalar, i32] | None = None,
    *,
    scoring: Scoring | None = None,
    causal: bool = False,
    with_lse: bool = False,
    keys: int = 128,
    stages: int = 2,
    queries: int = 2,
    consumers: int = 2,
    pingpong: bool = True,
    stay: bool = True,
    sms: int = 132,
    positive: bool = False,
    steady: bool = False,
) -> None:
    """o = softmax(q @ k.T * scale) @ v; causal: row i sees the keys up to i + m - n; positive: the scale is above 0.

    Row i sees the keys from i + m - n - left to i + m - n + right; scores become softcap * tanh(score / softcap);
    exp(sink) of a head is one more term of its rows' sums. scoring: functions of scores with the operands o0 to o3.
    lists: which tiles its mask lets be seen (`tile_lists`), of as many rows and keys as this kernel's.

    splits: the keys of a tile are divided into so many parts. Part p of batch b is written at p * B + b of o, which is
    float32, and of lse, where it is -inf for parts without keys; `attention_divided` makes the output of them.
    order, counter: see `attention_packed` and `attention_dynamic`.
    head_rows: a head of q has the rows of several heads, one after another, so many of each.
    steady: the cap is so low (`scale.steady`) that one peak serves all rows, and nothing is ever rescaled.
    """
    cols, wide = widths(q.cols, v.cols)
    early = wide > 128  # so much output is rescaled beside the scores' product, not after its own
    rows, turns = 64 * consumers, pk.turns(consumers if pingpong else 1)
    scored, tables = scoring is not None and scoring.score is not None, (o0, o1, o2, o3)
    unit = (scale if positive or scored else magnitude(scale)) if softcap is None else softcap  # of what is compared
    more = softcap if softcap is not None and not scored else None  # than the scores: (1 + tanh) / 2 is compared
    unit = unit if more is None else unit * 2.0
    of_unit = unit * LOG2E
    q_ring = pk.ring(queries, pk.st(q.dtype, rows, cols), name="q")
    k_ring = pk.ring(stages, pk.st(q.dtype, keys, cols), name="k")
    v_ring = pk.ring(stages, pk.st(q.dtype, keys, wide), name="v")
    side: Any = 0 if causal else right
    bounded = left is not None or side is not None
    singly = left is not None and lists is None and wide <= 64  # sides are looked at one by one; wide ones lost 1 %
    how: Any = {"left": left, "right": side, "stay": stay, "splits": splits, "lists": lists, "order": order}
    how |= {"q_offsets": q_offsets, "k_offsets": k_offsets, "counter": counter, "room": LINES // (cols + wide)}
    how["head_rows"] = head_rows
    each_tile = QueryTiles(q, k, rows, keys, **how)
    if counter is not None:  # blocks begin while it is still set to 0
        pk.wait_for_previous()

    with pk.role("load", warps=4, registers=40 if consumers == 2 else 32):
        for name, ring, source in (
            ("keys", k_ring, k),
            ("values", v_ring, v),
        ):  # scores are wanted a block before their values; who loads first takes tiles, when it comes to load them
            with pk.role(name, warps=1):
                for tile in each_tile:
                    head = tile.head // (q.depth // k.depth)
                    for j in tile.every_tile():
                        with ring.fill() as slot:
                            pk.tma.load(slot, source, **tile.keys.tile(tile.batch, head, j, keys))
        with pk.role("queries", warps=1):
            for tile in each_tile:
                with q_ring.fill() as room:
                    pk.tma.load(room, q, **tile.queries.tile(tile.batch, tile.head, tile.block, rows))
    with pk.role("attend", warpgroups=consumers, registers={1: 216, 2: 232, 3: 160}[consumers]) as me:
        score, weight = warpgroup.zeros(f32, 64, keys), warpgroup.zeros(q.dtype, 64, keys)
        out, total = warpgroup.zeros(f32, 64, wide), warpgroup.zeros_col(f32, 64, partial=True)
        top: Any = pk.minimum(of_unit, STEADY) if steady else 0.0
        known: Any = (top / of_unit, None) if steady else [warpgroup.zeros_col(f32, 64) for _ in range(2)]
        peak, shrink = known
        turns.start(me)
        for work in each_tile:
            block, head, batch, sequence, part, q_rows, _, band, _, real, _ = work
            c = of_unit  # exponents are score * c

            def values() -> None:
                """The weights' product with their values begins."""
                slot = v_ring.read()
                if early and not steady:
                    out[:] = out * shrink
                warpgroup.mma_AB(out, weight, slot)

            def step(j: Any, masked: str, product: bool = True) -> None:
                """Scores of a tile of keys become weights. Its scores and the last one's value product run while
                softmax works."""
                nonlocal c
                slot = k_ring.read()
                if product:
                    turns.wait(me)
                warpgroup.mm_ABt(score, mine, slot)
                if product:
                    values()
                    turns.give(me)
                warpgroup.wait(score)
                if more is not None:
                    hides = masked or (scoring is not None and lists is None)
                    score[:] = logistic(score, scale * 2.0 / more, together=not hides)
                elif softcap is not None:
                    score[:] = squashed(score, scale / softcap)
                if scoring is not None:
                    where = Where(sequence, head, (block * consumers + me) * 64, j * keys)
                    known = positive or softcap is not None
                    score[:], kept = scoring.apply_in(score, unit, where, tables, bool(masked) or lists is None, known)
                    c = of_unit if kept else LOG2E
                if masked:
                    at, side = ((block * consumers + me) * 64, j * keys), masked if singly else "any"
                    score[:] = pk.where(band.sees(score, *at, side), score, -pk.inf)
                    if side == "after":  # of the first tile: a branch that nothing is moved across
                        with pk.when(j < work.span.clear):
                            score[:] = pk.where(band.sees(score, *at, "before"), score, -pk.inf)
                if steady:  # the wait below stays behind half of the exponentials, or all where K has slots to spare
                    made = pk.exp2(pk.fma(score, c, -top))
                    half = made[:, : keys // 32 * 16].row_sum(partial=True, onto=total)
                    both = made[:, keys // 32 * 16 :].row_sum(partial=True, onto=half)
                    total[:] = both
                    k_ring.release(after=half if stages <= consumers else both)
                else:
                    highest = pk.maximum(peak, score.row_max())
                    shift = (
                        pk.where(highest > -pk.inf, highest * c, 0.0) if masked or scoring is not None else highest * c
                    )  # 0 for a row that has seen no key yet
                    shrink[:] = pk.exp2(pk.fma(peak, c, -shift))
                    peak[:], made = highest, pk.exp2(pk.fma(score, c, -shift))
                    total[:] = made.row_sum(partial=True, onto=total, fade=shrink)
                    k_ring.release(after=shrink)  # the wait below stays behind it, and its product beside arithmetic
                if product:
                    warpgroup.wait(out)
                    v_ring.release()
                    if not early and not steady:
                        out[:] = out * shrink
                weight[:] = made.to(q.dtype)

            total[:], out[:] = 0.0, 0.0
            if not steady:
                peak[:] = -pk.inf
            mine = q_ring.read().part(me * 64, 0, 64, cols)
            if (
                not positive and softcap is None and not scored
            ):  # not known to be: one branch a tile, which short sequences feel
                with pk.when(scale <= 0.0):
                    turn(warpgroup, mine, scale)
                    warpgroup.sync()
            step(work.last_tile(), "after", product=False)
            for j, masked in work.other_tiles():
                step(j, masked)
            values()
            warpgroup.wait(out)
            v_ring.release()
            sums = total.total()
            if bounded or scoring is not None:  # rows that see no key are 0, even where a value is NaN
                with pk.when(band.diagonal < 0) if causal and left is None and scoring is None else nullcontext():
                    out[:] = pk.where(sums == 0.0, 0.0, out)
            sink = None if sinks is None else pk.cast(sinks[head], f32) + (0.0 if more is None else more)
            share, log = normalised(peak, c, sums, sink)
            row, entry = block * consumers + me, batch + part * q.batch
            if splits is not None:
                warpgroup.store(o, out * share, **q_rows.tile(entry, head, row, 64))
            else:
                staged = mine if wide == cols else mine.part(0, 0, 64, wide)
                warpgroup.store(staged, (out * share).to(q.dtype))
                warpgroup.sync()
                warpgroup.tma.store(o, staged, **q_rows.tile(entry, head, row, 64))
                warpgroup.tma.commit()
            if with_lse:
                logs = log() if more is None else log() - more
                logs = logs if splits is None else pk.where(real, logs, -pk.inf)
                warpgroup.store(lse, logs, **q_rows.run(entry, head, row, 64))
            warpgroup.tma.wait(read=True)
            q_ring.release()
        turns.finish(me)
        warpgroup.tma.wait()
