"""# 8. Attention for an RTX 4090

FlashAttention's idea in forty lines: the scores never leave the registers.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, warp

# Attention is softmax(q @ k.T * scale) @ v. The scores are n x n: at 16,384 tokens that is half a gigabyte a head in
# bfloat16, far more than q, k, v and the result. So they must never be written. A row's softmax wants its maximum and
# its sum, which are known only after all keys; but both can be *carried*, and corrected when a larger score comes
# (Milakov and Gimelshein 2018; Dao et al. 2022):
#
#     m' = max(m, largest new score)        the running maximum
#     l' = l * exp(m - m') + sum(exp(s - m'))   the running sum
#     o' = o * exp(m - m') + exp(s - m') @ v    the running result
#
# and at the end the result is o / l.

D = pk.static("D")
Heads = Annotated[Tensor, bf16, "B", "H", "N", D]
Keys = Annotated[Tensor, bf16, "B", "H", "M", D]
KEYS = 64  # in shared memory at a time


@pk.kernel(warps=4, grid=lambda q: (pk.cdiv(q.rows, 64), q.depth, q.batch))
def attend(q: Heads, k: Keys, v: Keys, o: Heads, scale: Annotated[Scalar, f32]) -> None:
    """o = softmax(q @ k.T * scale) @ v; a warp has 16 queries, a block 64."""
    head, batch = pk.block_index.y, pk.block_index.z
    me = pk.block_index.x * warp.count + warp.index
    keys, values = pk.shared(pk.st(bf16, KEYS, q.cols)), pk.shared(pk.st(bf16, KEYS, q.cols))
    query = warp.load(q, (batch, head, me, 0), rows=16)
    peak, total, out = warp.full_col(f32, 16, -1e30), warp.zeros_col(f32, 16), warp.zeros(f32, 16, q.cols)
    for chunk in pk.range(pk.cdiv(k.rows, KEYS)):
        pk.block.sync()  # nobody reads the chunk before any more
        pk.block.load_into(keys, k, (batch, head, chunk, 0))
        pk.block.load_into(values, v, (batch, head, chunk, 0))
        pk.block.sync()
        score = warp.zeros(f32, 16, KEYS)
        warp.mma_ABt(score, query, keys)
        score *= scale * 1.4426950408889634  # log2(e): exp2 is the instruction that the GPU has
        score[:] = pk.right_fill(score, k.rows - chunk * KEYS, -pk.inf)  # keys past the end
        highest = pk.maximum(peak, score.row_max())
        weight, shrink = pk.exp2(score - highest), pk.exp2(peak - highest)
        total[:] = total * shrink + weight.row_sum()
        out *= shrink
        warp.mma_AB(out, weight.to(bf16), values)
        peak[:] = highest
    warp.store(o, (out / total).to(bf16), (batch, head, me, 0))


# Look at `weight.to(bf16)`: the scores come out of one product as float32 accumulators, and go into the next as a left
# operand of 16 bits. Both layouts are the same fragments (tutorial 2), so that nothing moves: the conversion packs two
# registers into one. This is what ThunderKittens' layouts are for.

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 2, n, 64)).astype(bf16.numpy) for n in (80, 100, 100))
o = np.empty_like(q)
attend(q, k, v, o, 64**-0.5)

exact = [x.astype(np.float64) for x in (q, k, v)]
s = exact[0] @ exact[1].swapaxes(2, 3) / 8
p = np.exp(s - s.max(3, keepdims=True))
expected = p / p.sum(3, keepdims=True) @ exact[2]
assert np.abs(o.astype(np.float64) - expected).max() < 2e-2

# `pykittens/kernels/attention_ada.py` is this kernel grown up: causal masks, scales of any sign, rows that see no key.
# It fits into the 99 KiB of shared memory that a block of a 4090 has, and needs no instruction newer than Ampere's:

for arch in ("sm_80", "sm_89"):
    cubin = attend.compile(q, k, v, o, 0.125, arch=arch)
    assert cubin.spill_store_bytes == 0
