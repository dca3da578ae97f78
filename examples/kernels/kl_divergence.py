"""The Kullback-Leibler divergence of two rows of logits, for each row."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, block, f32

Logits = Annotated[Tensor, f32, "N", pk.static("V")]


@pk.kernel(warps=4, grid=lambda p: p.rows)
def kl_divergence(p: Logits, q: Logits, out: Annotated[Tensor, f32, "N"]) -> None:
    """A block takes a row; past its end there is no chance at all."""
    i, cols = pk.block_index.x, pk.cdiv(p.cols, 512) * 512
    a, b = (block.load(t, (i, 0), rows=1, cols=cols, layout=pk.coalesced(128, 4)) for t in (p, q))
    a, b = (pk.right_fill(t, p.cols, -pk.inf) for t in (a, b))
    a, b = a - a.row_max(), b - b.row_max()
    chance, sums = pk.exp(a), (pk.exp(a).row_sum(), pk.exp(b).row_sum())
    terms = pk.where(pk.col_index(a) < p.cols, chance * (a - b), 0.0)
    block.store(out, terms.row_sum() / sums[0] - pk.log(sums[0]) + pk.log(sums[1]), i)


if __name__ == "__main__":
    p, q = np.random.default_rng(0).standard_normal((2, 3, 777), dtype=np.float32)
    out = np.zeros(3, np.float32)
    kl_divergence(p, q, out)
    chances = [np.exp(t.astype(float)) / np.exp(t.astype(float)).sum(1, keepdims=True) for t in (p, q)]
    assert np.allclose(out, (chances[0] * np.log(chances[0] / chances[1])).sum(1), atol=1e-5)
