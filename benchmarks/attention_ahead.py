"""An experiment, to be measured and then folded into `attention_hopper` or dropped: two tiles of scores.

The next block's scores and the last block's value product run while softmax works on this block's scores, which
are complete: softmax waits for no product at all. The number of key blocks is rounded up to an even one.
"""

# ruff: noqa: B023 (helpers in a loop are called in the same pass, while the kernel is traced)

from __future__ import annotations

import pykittens as pk
from pykittens import bf16, f16, f32, warpgroup

LOG2E = 1.4426950408889634
D = pk.static("D")
HALF = (bf16, f16)


@pk.kernel(warps=lambda consumers, **_: 4 * consumers + 4, cluster=lambda share, **_: share,
           grid=lambda q, consumers, share, sms, **_: min(sms // share, pk.cdiv(q.rows, 64 * consumers * share) * q.depth * q.batch) * share)  # fmt: skip
def attend(q: pk.gl(HALF, "B", "H", "N", D), k: pk.gl(HALF, "B", "G", "M", D), v: pk.gl(HALF, "B", "G", "M", D), o: pk.gl(HALF, "B", "H", "N", D),
           lse: pk.gl(f32, "LB", "LH", "LN"), scale: f32, *, causal=False, with_lse=False,
           keys=128, stages=2, queries=2, consumers=2, pingpong=True, share=1, sms=132, beside=64):  # fmt: skip
    """o = softmax(q @ k.T * scale) @ v; causal: row i sees the keys up to i + m - n."""
    rows, turns, c = 64 * consumers, pk.turns(consumers if pingpong else 1), scale * LOG2E
    q_ring = pk.ring(queries, pk.st(q.dtype, rows, q.cols), name="q")
    k_ring, v_ring = pk.ring(stages, pk.st(q.dtype, keys, q.cols), name="k"), pk.ring(stages, pk.st(q.dtype, keys, q.cols), name="v")
    diagonal = k.rows - q.rows  # query i stands at key i + diagonal

    def each_tile():
        """This block's tiles: (row block, head, batch, key blocks, how many of them need no mask)."""
        for tile, head, real in (pk.triangle if causal else pk.rectangle)(pk.cdiv(q.rows, rows * share), q.depth * q.batch):
            block = tile * share + (pk.cluster.rank if share > 1 else 0)  # the blocks of a cluster own neighbouring rows
            visible = pk.minimum(block * rows + diagonal + 1, k.rows) if causal else k.rows  # keys that the first row sees
            most = pk.minimum((tile + 1) * share * rows + diagonal, k.rows) if causal else k.rows  # that the cluster's last row sees
            yield block, head % q.depth, head // q.depth, pk.maximum(pk.cdiv(most, 2 * keys) * real, 1) * 2, pk.maximum(visible, 0) // keys

    with pk.role("load", warps=4, registers=32 if consumers == 3 else 40 if q.cols == 64 else 24):
        for block, head, batch, blocks, _ in each_tile():
            with q_ring.fill() as slot:
                pk.tma.load(slot, q, (batch, head, block, 0))
            for j in pk.range(blocks - 1, -1, -1):  # the last block first: it needs the mask
                at = (batch, head // (q.depth // k.depth), j, 0)
                with k_ring.fill() as slot:
                    pk.tma.share(slot, k, at)
                with v_ring.fill() as slot:
                    pk.tma.share(slot, v, at)
    with pk.role("attend", warpgroups=consumers, registers=160 if consumers == 3 else 232 if q.cols == 64 else 240) as me:
        even, odd = warpgroup.zeros(f32, 64, keys), warpgroup.zeros(f32, 64, keys)
        weight, out = warpgroup.zeros(q.dtype, 64, keys), warpgroup.zeros(f32, 64, q.cols)
        peak, shrink, total = warpgroup.zeros_col(f32, 64), warpgroup.zeros_col(f32, 64), warpgroup.zeros_col(f32, 64, partial=True)
        turns.start(me)
        for block, head, batch, blocks, clear in each_tile():

            def ask(score):
                warpgroup.mm_ABt(score, mine, k_ring.read())

            def step(j, score, following, masked, first=False):
                """Scores of key block j become weights, while the last block's value product and the next block's scores run."""
                turns.wait(me)
                if following is not None:
                    ask(following)
                if not first:
                    warpgroup.mma_AB(out, weight, v_ring.read())
                turns.give(me)
                if masked:
                    last = pk.minimum(pk.row_index(score) + ((block * consumers + me) * 64 + diagonal), k.rows - 1) if causal else k.rows - 1
                    score[:] = pk.where(pk.col_index(score) + j * keys <= last, score, -pk.inf)
                highest = pk.maximum(peak, score.row_max())
                shift = pk.where(highest > -pk.inf, highest * c, 0.0)  # 0 for a row that has seen no key yet
                shrink[:] = pk.exp2(peak * c - shift)
                peak[:], total[:], made = highest, total * shrink, []
                for part in (score[:, :beside], score[:, beside:]) if 0 < beside < keys else (score,):
                    made.append(pk.exp2(part * c - shift))
                    total[:] = total + made[-1].row_sum(partial=True)
                    if len(made) == 1:
                        warpgroup.wait(*[x for x in (following, None if first else out) if x is not None], after=total)
                        if following is not None:
                            k_ring.release()
                        if not first:
                            v_ring.release()
                            out[:] = out * shrink
                weight[:] = pk.join(*made).to(q.dtype)

            peak[:], total[:], out[:] = -pk.inf, 0.0, 0.0
            mine = q_ring.read().part(me * 64, 0, 64, q.cols)
            ask(even)
            warpgroup.wait(even)
            k_ring.release()
            step(blocks - 1, even, odd, True, first=True)
            lowest = (blocks - 2 - clear + 2) // 2  # pairs with a mask
            for i in pk.range(pk.minimum(pk.maximum(lowest, 0), blocks // 2 - 1)):
                step(blocks - 2 - 2 * i, odd, even, True)
                step(blocks - 3 - 2 * i, even, odd, True)
            for i in pk.range(pk.minimum(pk.maximum(lowest, 0), blocks // 2 - 1), blocks // 2 - 1):
                step(blocks - 2 - 2 * i, odd, even, False)
                step(blocks - 3 - 2 * i, even, odd, False)
            step(0, odd, None, True)
            warpgroup.mma_AB(out, weight, v_ring.read())
            warpgroup.wait(out)
            v_ring.release()
            sums = total.total()
            warpgroup.store(mine, (out * pk.where(sums == 0.0, 0.0, 1.0 / sums)).to(q.dtype))  # a row that sees no key is 0
            warpgroup.sync()
            warpgroup.tma.store(o, mine, (batch, head, block * consumers + me, 0))
            warpgroup.tma.commit()
            if with_lse:
                warpgroup.store(lse, (peak * c + pk.log2(sums)) * (1 / LOG2E), (batch, head, block * consumers + me))
            warpgroup.tma.wait(read=True)
            q_ring.release()
        turns.finish(me)
        warpgroup.tma.wait()
    if share > 1:
        pk.cluster.sync()  # neighbours still arrive at this block's barriers
