"""Flash attention 2, forward, with mma.sync: the RTX 4090 kernel of the ThunderKittens post.

    out = softmax(q @ k.T * scale) @ v        for each batch and head; scale = 1 / sqrt(head dimension)

q, o: (batch, heads, n, d), k, v: (batch, heads, m, d), bf16 or f16, d 64 or 128, any strides with contiguous rows. The
warps of a block (16, or 8 at d 128) own 16 query rows each; together they copy as many keys and values into shared
memory, and each warp multiplies its rows with all of them, 16 keys at a time. The running maximum and sum are those of
Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). Shared memory: 64 KiB.
"""

from __future__ import annotations

from typing import Annotated

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, warp

from .scale import magnitude

LOG2E = 1.4426950408889634
LOWEST = -3e38  # the peak of a row that has seen no key: finite, so that no difference is NaN


@pk.kernel(
    warps=lambda q, **_: 16 if q.cols <= 64 else 8,
    grid=lambda q, **_: (pk.cdiv(q.rows, 256 if q.cols <= 64 else 128), q.depth, q.batch),
)
def attend(
    q: Annotated[Tensor, (bf16, f16), "B", "H", "N", pk.static("D")],
    k: Annotated[Tensor, (bf16, f16), "B", "H", "M", pk.static("D")],
    v: Annotated[Tensor, (bf16, f16), "B", "H", "M", pk.static("D")],
    o: Annotated[Tensor, (bf16, f16), "B", "H", "N", pk.static("D")],
    scale: Annotated[Scalar, f32],
    *,
    causal: bool = False,
) -> None:
    """o = softmax(q @ k.T * scale) @ v; causal: row i sees the keys up to i + m - n."""
    block, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    rows = 16 * pk.warp.count  # of this block's queries, and keys at a time
    keys, values = (
        pk.shared(pk.st(q.dtype, rows, q.cols), name="keys"),
        pk.shared(pk.st(q.dtype, rows, q.cols), name="values"),
    )
    me = block * pk.warp.count + warp.index
    query, c = warp.load(q, (batch, head, me, 0), rows=16), magnitude(scale) * LOG2E
    query *= pk.where(scale > 0.0, 1.0, pk.where(scale < 0.0, -1.0, 0.0))  # the largest product has the largest score
    peak, total, out = warp.full_col(f32, 16, LOWEST), warp.zeros_col(f32, 16), warp.zeros(f32, 16, q.cols)
    diagonal = k.rows - q.rows  # query i stands at key i + diagonal
    seen = pk.minimum((block + 1) * rows + diagonal, k.rows) if causal else k.rows
    for chunk in pk.range(pk.cdiv(seen, rows)):
        pk.block.sync()  # nobody reads the chunk before any more
        pk.block.load_into(keys, k, (batch, head, chunk, 0))
        pk.block.load_into(values, v, (batch, head, chunk, 0))
        pk.block.sync()
        for i in pk.range(rows // 16):
            first = chunk * rows + i * 16
            score = warp.zeros(f32, 16, 16)
            warp.mma_ABt(score, query, keys.part(i * 16, 0, 16, q.cols))
            column = pk.col_index(score) + first
            score[:] = pk.where(column < k.rows, score, -pk.inf)
            if causal:
                score[:] = pk.where(column <= pk.row_index(score) + (me * 16 + diagonal), score, -pk.inf)
            highest = pk.maximum(peak, score.row_max() * c)
            weight, shrink = pk.exp2(pk.fma(score, c, -highest)), pk.exp2(peak - highest)
            total[:] = pk.fma(total, shrink, weight.row_sum())
            out *= shrink
            warp.mma_AB(out, weight.to(q.dtype), values.part(i * 16, 0, 16, q.cols))
            peak[:] = highest
    # a row that sees no key is 0, even where a value is NaN
    warp.store(o, pk.where(total == 0.0, 0.0, out * (1.0 / total)).to(q.dtype), (batch, head, me, 0))
