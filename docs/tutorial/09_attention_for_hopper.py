"""# 9. Attention for Hopper

The same mathematics with a loader, a ring, and tensor cores that run on their own.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, warpgroup

D = pk.static("D")
Heads = Annotated[Tensor, bf16, "B", "H", "N", D]
Keys = Annotated[Tensor, bf16, "B", "H", "M", D]
KEYS = 128

# What changes against step 8 is who does what. One warp loads, with TMA, into a ring of two pairs of key and value
# tiles. A warpgroup has 64 queries, and multiplies with wgmma straight from the ring. Two such warpgroups share the
# keys, and run independently: while one does its softmax, the tensor cores work for the other.


@pk.kernel(warps=12, grid=lambda q: (pk.cdiv(q.rows, 128), q.depth, q.batch))
def attend(q: Heads, k: Keys, v: Keys, o: Heads, scale: Annotated[Scalar, f32]) -> None:
    """o = softmax(q @ k.T * scale) @ v; a warpgroup has 64 queries, a block 128."""
    block, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    queries = pk.ring(1, pk.st(bf16, 128, q.cols), name="queries")
    ring = pk.ring(2, keys=pk.st(bf16, KEYS, q.cols), values=pk.st(bf16, KEYS, q.cols))
    chunks = pk.cdiv(k.rows, KEYS)
    with pk.role("load", warps=4, registers=24):
        with queries.fill() as slot:
            pk.tma.load(slot, q, (batch, head, block, 0))
        for j in pk.range(chunks):
            with ring.fill() as pair:
                pk.tma.load(pair.keys, k, (batch, head, j, 0))
                pk.tma.load(pair.values, v, (batch, head, j, 0))
    with pk.role("attend", warpgroups=2, registers=240) as me:
        score, out = warpgroup.zeros(f32, 64, KEYS), warpgroup.zeros(f32, 64, q.cols)
        peak, total = warpgroup.full_col(f32, 64, -1e30), warpgroup.zeros_col(f32, 64, partial=True)
        mine = queries.read().part(me * 64, 0, 64, q.cols)
        for j in pk.range(chunks):
            pair = ring.read()
            warpgroup.mm_ABt(score, mine, pair.keys)
            warpgroup.wait(score)
            scaled = pk.right_fill(score * (scale * 1.4426950408889634), k.rows - j * KEYS, -pk.inf)
            highest = pk.maximum(peak, scaled.row_max())
            weight, shrink = pk.exp2(scaled - highest), pk.exp2(peak - highest)
            total[:] = total * shrink + weight.row_sum(partial=True)
            out *= shrink
            half = weight.to(bf16)
            warpgroup.mma_AB(out, half, pair.values)
            warpgroup.wait(out)
            ring.release()
            peak[:] = highest
        warpgroup.store(mine, (out / total.total()).to(bf16))  # the queries are not needed any more
        warpgroup.sync()
        warpgroup.tma.store(o, mine, (batch, head, block * 2 + me, 0))
        warpgroup.tma.commit()
        warpgroup.tma.wait()
        queries.release()


# * A slot of the ring may be given back once both products have read it. Who fills it waits for *both* warpgroups: how
#   many arrivals that is follows from who reads.
# * `total` is partial: each thread keeps its own share of the sum, and four of them meet once, at the end.
# * The result goes into the queries' room, and leaves by TMA.

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 1, n, 64)).astype(bf16.numpy) for n in (128, 200, 200))
o = np.empty_like(q)
attend(q, k, v, o, 64**-0.5)

exact = [x.astype(np.float64) for x in (q, k, v)]
s = exact[0] @ exact[1].swapaxes(2, 3) / 8
p = np.exp(s - s.max(3, keepdims=True))
expected = p / p.sum(3, keepdims=True) @ exact[2]
assert np.abs(o.astype(np.float64) - expected).max() < 2e-2

# What `pykittens/kernels/attention_hopper.py` adds, each with what it gave in docs/performance.md: the next scores are
# started before this block's softmax, so that tensor cores and exponentials overlap within one warpgroup, too; the
# warpgroups take turns to issue (ping-pong); keys and values have slots of their own; blocks stay; masks cost only the
# blocks that they cut. Beside the best of others:
#
# table: summary Attention
