"""Nucleus sampling's mask: of each row the likeliest tokens whose chances, without the last, add up to less than p."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

MOST = 16  # tokens that are kept

Logits = Annotated[Tensor, f32, "N", "V"]


@pk.kernel(warps=1, grid=lambda x: x.rows)
def top_p(x: Logits, y: Logits, p: pk.f32, *, cols: int = 1024) -> None:
    """A warp takes a row of up to `cols` logits; those that are not kept become -inf."""
    i = pk.block_index.x
    logits = warp.load(x, (i, 0), rows=1, cols=cols, layout=pk.coalesced(32, 4))
    logits = pk.right_fill(logits, x.cols, -pk.inf)
    chance = pk.exp(logits - logits.row_max())
    chance = chance / chance.row_sum()
    total = pk.zeros_like(chance.row_sum())
    least = pk.full_like(total, 2.0)
    for best, _ in chance.row_topk(MOST):
        least = pk.where(total < p, best, least)
        total = total + best
    warp.store(y, pk.where(chance >= least, logits, -pk.inf), (i, 0))


if __name__ == "__main__":
    x = 4 * np.random.default_rng(0).standard_normal((3, 1000), dtype=np.float32)
    y = np.zeros_like(x)
    top_p(x, y, 0.5)
    for row, kept in zip(x.astype(float), y, strict=True):
        chance = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = np.argsort(-chance)
        count = int((np.cumsum(chance[order]) - chance[order] < 0.5).sum())
        assert count <= MOST and np.array_equal(np.sort(np.flatnonzero(np.isfinite(kept))), np.sort(order[:count]))
