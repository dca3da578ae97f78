"""Flash attention, forward, for Hopper: TMA, asynchronous tensor cores and warp roles.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

q, o: (batch, heads, n, d), k, v: (batch, kv heads, m, d), bf16 or f16, d 64, 128 or 256, any strides with contiguous
rows; heads a multiple of kv heads. One warp loads with TMA; two warpgroups own 64 query rows each. While one warpgroup
does softmax, its value product and the other's products run: the pipeline of FlashAttention-3 (Shah et al. 2024, section 3).
"""

from __future__ import annotations

import pykittens as pk
from pykittens import bf16, f16, f32, warpgroup

LOG2E = 1.4426950408889634
D = pk.static("D")


@pk.kernel(warps=12, grid=lambda q, **_: (pk.cdiv(q.rows, 128), q.depth, q.batch))
def attend(q: pk.gl((bf16, f16), "B", "H", "N", D), k: pk.gl((bf16, f16), "B", "G", "M", D), v: pk.gl((bf16, f16), "B", "G", "M", D),
           o: pk.gl((bf16, f16), "B", "H", "N", D), scale: f32, *, causal=False, keys=128, stages=2):  # fmt: skip
    """o = softmax(q @ k.T * scale) @ v; causal: row i sees the keys up to i + m - n."""
    block, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    if causal:
        block = pk.grid_size.x - 1 - block  # the longest rows first
    queries, ready = pk.shared(pk.st(q.dtype, 64, q.cols), count=2, name="queries"), pk.barrier()
    k_ring, v_ring = pk.ring(stages, pk.st(q.dtype, keys, q.cols), name="k"), pk.ring(stages, pk.st(q.dtype, keys, q.cols), name="v")
    turns = pk.turns(2)
    diagonal = k.rows - q.rows  # query i stands at key i + diagonal
    seen = pk.minimum((block + 1) * 128 + diagonal, k.rows) if causal else k.rows
    blocks = pk.cdiv(seen, keys)
    with pk.role("load", warps=4, registers=24):
        kv_head = head // (q.depth // k.depth)
        pk.tma.expect(ready, queries)
        for i in range(2):
            pk.tma.load(queries[i], q, (batch, head, block * 2 + i, 0), ready)
        for j in pk.range(blocks):
            at = (batch, kv_head, blocks - 1 - j, 0)  # the last block first: it needs the mask
            with k_ring.fill() as slot:
                pk.tma.load(slot, k, at)
            with v_ring.fill() as slot:
                pk.tma.load(slot, v, at)
    with pk.role("attend", warpgroups=2, registers=240) as me:
        score, weight = warpgroup.zeros(f32, 64, keys), warpgroup.zeros(q.dtype, 64, keys)
        peak, total = warpgroup.full_col(f32, 64, -pk.inf), warpgroup.zeros_col(f32, 64, partial=True)
        out, shrink, c = warpgroup.zeros(f32, 64, q.cols), warpgroup.zeros_col(f32, 64), scale * LOG2E

        def softmax(j, masked):
            """score becomes weights; peak, total and shrink follow. Key block j from the end."""
            if masked:
                column = pk.col_index(score) + (blocks - 1 - j) * keys
                last = pk.minimum(pk.row_index(score) + ((block * 2 + me) * 64 + diagonal), k.rows - 1) if causal else k.rows - 1
                score[:] = pk.where(column <= last, score, -pk.inf)
            highest = pk.maximum(peak, score.row_max())
            shift = pk.where(highest > -pk.inf, highest * c, 0.0)  # 0 for a row that has seen no key yet
            shrink[:] = pk.exp2(peak * c - shift)
            score[:] = pk.exp2(score * c - shift)
            total[:] = total * shrink + score.row_sum(partial=True)
            peak[:] = highest

        def step(j, masked):
            """This block's scores and the last block's value product run while softmax works."""
            slot = k_ring.read()
            turns.wait(me)
            warpgroup.mm_ABt(score, queries[me], slot)
            warpgroup.mma_AB(out, weight, v_ring.read())
            turns.give(me)
            warpgroup.wait(score)
            k_ring.release()
            softmax(j, masked)
            warpgroup.wait(out)
            v_ring.release()
            out[:] = out * shrink
            weight[:] = score.to(q.dtype)

        pk.wait(ready, 0)
        warpgroup.mm_ABt(score, queries[me], k_ring.read())
        warpgroup.wait(score)
        k_ring.release()
        softmax(0, True)
        weight[:] = score.to(q.dtype)
        turns.start(me)
        edge = pk.minimum(blocks, 1 + pk.cdiv(128, keys)) if causal else 1  # blocks that the diagonal may cross
        if causal:
            for j in pk.range(1, edge):
                step(j, True)
        for j in pk.range(edge, blocks):
            step(j, False)
        turns.finish(me)
        warpgroup.mma_AB(out, weight, v_ring.read())
        warpgroup.wait(out)
        warpgroup.store(queries[me], (out / total.total()).to(q.dtype))
        warpgroup.sync()
        warpgroup.tma.store(o, queries[me], (batch, head, block * 2 + me, 0))
        warpgroup.tma.commit()
        warpgroup.tma.wait()
