"""The mean of each sequence's rows: y[b] = mean of x[b, :lengths[b]], and zeros where there are none."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

LAYOUT = pk.coalesced(8, 4)
D = pk.static("D")


@pk.kernel(warps=1, grid=lambda x: x.depth)
def mean_pooling(
    x: Annotated[Tensor, f32, "B", "T", D], lengths: Annotated[Tensor, i32, "B"], y: Annotated[Tensor, f32, "B", D]
) -> None:
    """A warp takes a sequence, 16 rows at a time, and none that lie behind its end."""
    b = pk.block_index.x
    n, total = lengths[b], warp.zeros_row(f32, x.cols, layout=LAYOUT)
    for i in pk.range(pk.cdiv(n, 16)):
        tile = warp.load(x, (b, i, 0), rows=16, layout=LAYOUT)
        total += pk.lower_fill(tile, n - i * 16, 0.0).col_sum()
    warp.store(y, total / pk.maximum(n, 1), (b, 0))


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((5, 40, 96), dtype=np.float32)
    lengths = np.array([40, 17, 0, 1, 32], np.int32)
    y = np.empty((5, 96), np.float32)
    mean_pooling(x, lengths, y)
    assert np.abs(y - [rows[:n].sum(0) / max(n, 1) for rows, n in zip(x, lengths, strict=True)]).max() < 1e-5
