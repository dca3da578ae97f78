"""Attention in a window: each query sees the W keys before it and itself."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, i32, warp

Rows = Annotated[Tensor, bf16, "N", pk.static("D")]


@pk.kernel(warps=1, grid=lambda q: pk.cdiv(q.rows, 16))
def windowed_attention(
    q: Rows, k: Rows, v: Rows, o: Rows, scale: Annotated[Scalar, f32], window: Annotated[Scalar, i32]
) -> None:
    """A warp has 16 queries, and takes only the keys that some of them see, 16 at a time."""
    first = pk.block_index.x * 16
    query = warp.load(q, (pk.block_index.x, 0), rows=16)
    peak, total, out = warp.full_col(f32, 16, -1e30), warp.zeros_col(f32, 16), warp.zeros(f32, 16, q.cols)
    for j in pk.range(pk.maximum(first - window, 0) // 16, pk.block_index.x + 1):
        score = warp.zeros(f32, 16, 16)
        warp.mma_ABt(score, query, warp.load(k, (j, 0), rows=16))
        distance = (pk.row_index(score) + first) - (pk.col_index(score) + j * 16)
        score[:] = pk.where((distance >= 0) & (distance <= window), score * scale, -pk.inf)
        highest = pk.maximum(peak, score.row_max())
        weight, shrink = pk.exp(score - highest), pk.exp(peak - highest)
        total[:], out[:], peak[:] = total * shrink + weight.row_sum(), out * shrink, highest
        warp.mma_AB(out, weight.to(bf16), warp.load(v, (j, 0), rows=16, layout="col"))
    warp.store(o, (out / total).to(bf16), (pk.block_index.x, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((70, 64)).astype(bf16.numpy) for _ in range(3))
    o = np.empty_like(q)
    windowed_attention(q, k, v, o, 0.125, 20)
    fq, fk, fv = (x.astype(np.float64) for x in (q, k, v))
    distance = np.arange(70)[:, None] - np.arange(70)[None, :]
    s = np.where((distance >= 0) & (distance <= 20), fq @ fk.T * 0.125, -np.inf)
    p = np.exp(s - s.max(1, keepdims=True))
    assert np.abs(o.astype(np.float64) - p / p.sum(1, keepdims=True) @ fv).max() < 2e-2
