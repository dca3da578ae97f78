"""Cross-entropy over a vocabulary of any size, such as 50257: loss = log(sum(exp(x))) - x[target], in one pass."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

WIDE = 1024  # columns at a time
LAYOUT = pk.coalesced(32, 4)


@pk.kernel(warps=1, grid=lambda x: x.rows)
def cross_entropy(
    x: Annotated[Tensor, f32, "N", "V"], target: Annotated[Tensor, i32, "N"], loss: Annotated[Tensor, f32, "N"]
) -> None:
    """A warp has one row: its maximum and sum are carried, and corrected where a larger logit comes."""
    row = pk.block_index.x
    peak = warp.full_col(f32, 1, -1e30, layout=LAYOUT)
    total = warp.zeros_col(f32, 1, layout=LAYOUT)
    for j in pk.range(pk.cdiv(x.cols, WIDE)):
        part = warp.load(x, (row, j), rows=1, cols=WIDE, layout=LAYOUT)
        part[:] = pk.right_fill(part, x.cols - j * WIDE, -pk.inf)
        highest = pk.maximum(peak, part.row_max())
        total[:] = total * pk.exp(peak - highest) + pk.exp(part - highest).row_sum()
        peak[:] = highest
    warp.store(loss, peak + pk.log(total) - x[row, target[row]], row)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, 50257), dtype=np.float32), np.array([3, 50256], np.int32)
    loss = np.empty(2, np.float32)
    cross_entropy(x, target, loss)
    exact = np.log(np.exp(x.astype(np.float64)).sum(1)) - x[np.arange(2), target]
    assert np.abs(loss - exact).max() < 1e-4
