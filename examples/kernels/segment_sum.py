"""The sums of rows with the same id: y[s] = sum of x[i] where ids[i] = s."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

LAYOUT = pk.coalesced(8, 4)


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 64))
def segment_sum(
    x: Annotated[Tensor, f32, "N", pk.static("D")],
    ids: Annotated[Tensor, i32, "N"],
    y: Annotated[Tensor, f32, "S", pk.static("D")],
) -> None:
    """A warp adds 16 rows to y, atomically; past the end of x they are zeros."""
    me = pk.block_index.x * 4 + warp.index
    tile = warp.load(x, (me, 0), rows=16, layout=LAYOUT)
    warp.add(y, tile, (warp.load_col(ids, me, length=16, layout=LAYOUT), 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((101, 96), dtype=np.float32), rng.integers(0, 7, 101).astype(np.int32)
    y, expected = np.zeros((7, 96), np.float32), np.zeros((7, 96))
    segment_sum(x, ids, y)
    np.add.at(expected, ids, x)
    assert np.abs(y - expected).max() < 1e-4
