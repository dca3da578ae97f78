"""# 11. A linear attention of your own, with state

A recurrence becomes matrix products, and its state stays in registers.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp

# Linear attention leaves the softmax out (Katharopoulos et al. 2020):
#
#     o_i = sum over j <= i of (q_i . k_j) v_j
#
# which is a recurrence with a state S of d x d numbers, S_i = S_{i-1} + k_i v_i, o_i = q_i S_i. One step at a time a
# GPU would do nothing but wait. In chunks of 64 steps it is three products (Hua et al. 2022): what came before the
# chunk is in S, and within the chunk the scores are masked.
#
#     o = q @ S + tril(q @ k.T) @ v
#     S += k.T @ v

D = pk.static("D")
Rows = Annotated[Tensor, bf16, "H", "N", D]
CHUNK = 64


@pk.kernel(warps=lambda q: q.cols // 16, grid=lambda q, **_: (1, q.depth))
def attend(q: Rows, k: Rows, v: Rows, o: Rows, state: Annotated[Tensor, f32, "H", D, D]) -> None:
    """o, and the state after the last row; a block has one head, each warp 16 rows of the state; D 64 or 128."""
    head, d, mine = pk.block_index.y, q.cols, warp.index * 16
    query, key, value = (pk.shared(pk.st(bf16, CHUNK, d), name=name) for name in ("query", "key", "value"))
    past = pk.shared(pk.st(bf16, d, d), name="past")
    total = warp.zeros(f32, 16, d)
    for i in pk.range(pk.cdiv(q.rows, CHUNK)):
        for room, source in ((query, q), (key, k), (value, v)):
            pk.block.load_into(room, source, (head, i, 0))
        warp.store(past.part(mine, 0, 16, d), total.to(bf16))
        pk.block.sync()
        with pk.when(mine < CHUNK):  # 16 rows of the chunk, too
            score, out = warp.zeros(f32, 16, CHUNK), warp.zeros(f32, 16, d)
            rows = query.part(mine, 0, 16, d)
            warp.mma_ABt(score, rows, key)
            warp.mma_AB(out, rows, past)
            warp.mma_AB(out, pk.tril(score, mine).to(bf16), value)
            warp.store(o, out.to(bf16), pk.at(head, i * CHUNK + mine, 0))
        warp.mma_AtB(total, key.part(0, mine, CHUNK, 16), value)
        pk.block.sync()  # nobody reads the chunk any more
    warp.store(state, total, (head, warp.index, 0))


# * `total` is an accumulator of the tensor cores that lives in registers over the whole loop.
# * A product takes operands of 16 bits: the state is rounded on its way into `past`, not where it is summed.
# * `pk.tril` keeps what is on or below a diagonal: the causal mask of a chunk, seen from this warp's 16 rows.

rng = np.random.default_rng(0)
q, k, v = (rng.integers(-1, 2, (2, 150, 64)).astype(bf16.numpy) for _ in range(3))
o, state = np.empty_like(q), np.empty((2, 64, 64), np.float32)
attend(q, k, v, o, state)

fq, fk, fv = (x.astype(np.float64) for x in (q, k, v))
expected = np.tril(fq @ fk.swapaxes(1, 2)) @ fv
assert np.abs(o.astype(np.float64) - expected).max() <= 2**-7 * np.abs(expected).max()
assert np.array_equal(state, fk.swapaxes(1, 2) @ fv)

# The last chunk is only partly there. Its missing rows read as zero, so they add nothing to the state, and what they
# would give is not written.
#
# Change it: a feature map is one line (`pk.relu(...)` of the loaded tiles), a decay one factor. The library's
# `pk.linear_attention` (`pykittens/kernels/linear_attention.py`) has a decay for each head, keeps the state exact in
# two 16-bit terms, and splits the work between two warpgroups. It reads q, k and v at the speed of memory:
#
# table: summary Linear
