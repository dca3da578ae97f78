"""Flash attention, forward, for Hopper: TMA, asynchronous tensor cores, warp roles, a persistent grid.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

q, o: (batch, heads, n, d), k, v: (batch, kv heads, m, d), bf16 or f16, d 64, 128 or 256, any strides with contiguous
rows; heads a multiple of kv heads. lse, on request: log(sum(exp(q @ k.T * scale))) for each row, float32 (batch, heads, n).
One thread loads with TMA; each of `consumers` warpgroups owns 64 query rows. While one warpgroup does softmax, its value
product and the others' products run: the pipeline of FlashAttention-3 (Shah et al. 2024, section 3). A block works through
many tiles, the longest first when causal, and loads the next tile's operands while it finishes one.
"""

from __future__ import annotations

import pykittens as pk
from pykittens import bf16, f16, f32, warpgroup

LOG2E = 1.4426950408889634
L2 = 32 << 20  # bytes of the second-level cache that one section of heads may fill
D = pk.static("D")
HALF = (bf16, f16)


def tiles(q, rows):
    """How many tiles of `rows` queries there are."""
    return pk.cdiv(q.rows, rows) * q.depth * q.batch


@pk.kernel(warps=lambda consumers=2, **_: 4 * consumers + 4, grid=lambda q, consumers=2, sms=132, **_: min(sms, tiles(q, 64 * consumers)))
def attend(q: pk.gl(HALF, "B", "H", "N", D), k: pk.gl(HALF, "B", "G", "M", D), v: pk.gl(HALF, "B", "G", "M", D), o: pk.gl(HALF, "B", "H", "N", D),
           lse: pk.gl(f32, "LB", "LH", "LN"), scale: f32, *, causal=False, with_lse=False, keys=128, stages=2, queries=2, consumers=2, every=0, sms=132):  # fmt: skip
    """o = softmax(q @ k.T * scale) @ v; causal: row i sees the keys up to i + m - n."""
    rows, c = 64 * consumers, scale * LOG2E
    q_ring = pk.ring(queries, pk.st(q.dtype, rows, q.cols), name="q")
    k_ring, v_ring = pk.ring(stages, pk.st(q.dtype, keys, q.cols), name="k"), pk.ring(stages, pk.st(q.dtype, keys, q.cols), name="v")
    turns, first, stride, count = pk.turns(consumers), pk.block_index.x, pk.grid_size.x, tiles(q, rows)
    row_blocks, heads, diagonal = pk.cdiv(q.rows, rows), q.depth * q.batch, k.rows - q.rows  # query i stands at key i + diagonal
    section = pk.minimum(pk.maximum(L2 // (k.rows * q.cols * 4), 1), heads)  # heads whose keys and values stay in L2 together

    def each_tile():
        """This block's tiles: (more to come, row block, head, batch, key blocks, how many of them need no mask)."""
        mine = pk.cdiv(count - first, stride)
        for i in pk.range(mine):
            t, block = i * stride + first, 0
            if causal:  # within a section the longest first, and backwards every other time: equal shares for all blocks
                t = i * stride + pk.where((i % 2 == 1) & ((i + 1) * stride <= count), stride - 1 - first, first)
                start = t // (section * row_blocks) * section
                t, present = t - start * row_blocks, pk.minimum(heads - start, section)
                block, head = row_blocks - 1 - t // present, start + t % present
            else:
                block, head = t % row_blocks, t // row_blocks
            visible = block * rows + diagonal + 1  # keys that the first row sees
            blocks = pk.maximum(pk.cdiv(pk.minimum(visible + rows - 1, k.rows) if causal else k.rows, keys), 1)
            clear = (pk.maximum(pk.minimum(visible, k.rows), 0) if causal else k.rows) // keys
            yield i + 1 < mine, block, head % q.depth, head // q.depth, blocks, clear

    with pk.role("load", warps=4, registers=40 if consumers == 2 else 32):
        for _, block, head, batch, blocks, _ in each_tile():
            with q_ring.fill() as slot:
                pk.tma.load(slot, q, (batch, head, block, 0))
            for j in pk.range(blocks - 1, -1, -1):  # the last block first: it needs the mask
                at = (batch, head // (q.depth // k.depth), j, 0)
                with k_ring.fill() as slot:
                    pk.tma.load(slot, k, at)
                with v_ring.fill() as slot:
                    pk.tma.load(slot, v, at)
    with pk.role("attend", warpgroups=consumers, registers=232 if consumers == 2 else 160) as me:
        score, weight, out = warpgroup.zeros(f32, 64, keys), warpgroup.zeros(q.dtype, 64, keys), warpgroup.zeros(f32, 64, q.cols)
        peak, shrink, total = warpgroup.zeros_col(f32, 64), warpgroup.zeros_col(f32, 64), warpgroup.zeros_col(f32, 64, partial=True)

        def scores(slot):
            """The first scores of a tile."""
            warpgroup.mm_ABt(score, slot.part(me * 64, 0, 64, q.cols), k_ring.read())

        def softmax(j, block, masked):
            """Scores of key block j become weights; peak, total and shrink follow. The peak moves only when it grows by 2**8."""
            if masked:
                last = pk.minimum(pk.row_index(score) + ((block * consumers + me) * 64 + diagonal), k.rows - 1) if causal else k.rows - 1
                score[:] = pk.where(pk.col_index(score) + j * keys <= last, score, -pk.inf)
            highest = score.row_max()
            highest = pk.where((highest - peak) * c > 8.0, highest, peak)
            shift = pk.where(highest > -pk.inf, highest * c, 0.0)  # 0 for a row that has seen no key yet
            shrink[:] = pk.exp2(peak * c - shift)
            score[:] = pk.exp2_mixed(score * c - shift, every) if every else pk.exp2(score * c - shift)
            total[:] = total * shrink + score.row_sum(partial=True)
            peak[:] = highest

        def step(j, block, masked):
            """This block's scores and the last block's value product run while softmax works."""
            slot = k_ring.read()
            turns.wait(me)
            warpgroup.mm_ABt(score, mine, slot)
            warpgroup.mma_AB(out, weight, v_ring.read())
            turns.give(me)
            warpgroup.wait(score)
            k_ring.release()
            softmax(j, block, masked)
            warpgroup.wait(out)
            v_ring.release()
            out.rescale(shrink)
            weight[:] = score.to(q.dtype)

        turns.start(me)
        if queries > 1:
            scores(q_ring.read())
            warpgroup.wait(score)
            k_ring.release()
        for more, block, head, batch, blocks, clear in each_tile():
            peak[:], total[:], out[:] = -pk.inf, 0.0, 0.0
            mine = (q_ring.held() if queries > 1 else q_ring.read()).part(me * 64, 0, 64, q.cols)
            if queries == 1:
                warpgroup.mm_ABt(score, mine, k_ring.read())
                warpgroup.wait(score)
                k_ring.release()
            softmax(blocks - 1, block, True)
            weight[:] = score.to(q.dtype)
            if causal:
                for j in pk.range(blocks - 2, clear - 1, -1):
                    step(j, block, True)
            for j in pk.range(pk.minimum(blocks - 2, clear - 1), -1, -1):
                step(j, block, False)
            if queries > 1:  # the next tile's first scores run beside this tile's last value product
                with pk.when(more):
                    scores(q_ring.read())
                    warpgroup.mma_AB(out, weight, v_ring.read())
                    warpgroup.wait(score, out)
                    k_ring.release()
                with pk.otherwise():
                    warpgroup.mma_AB(out, weight, v_ring.read())
                    warpgroup.wait(out)
            else:
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
