"""The transpose of a matrix: y = x.T."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

SIDE = 32


@pk.kernel(warps=1, grid=lambda x: (pk.cdiv(x.cols, SIDE), pk.cdiv(x.rows, SIDE)))
def transpose(x: Annotated[Tensor, f32, "M", "N"], y: Annotated[Tensor, f32, "N", "M"]) -> None:
    """A warp turns a tile of 32 x 32 in its registers."""
    row, col = pk.block_index.y, pk.block_index.x
    tile = warp.load(x, (row, col), rows=SIDE, cols=SIDE, layout=pk.coalesced(8, 4))
    warp.store(y, tile.transpose(), (col, row))


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((67, 45), dtype=np.float32)
    y = np.empty((45, 67), np.float32)
    transpose(x, y)
    assert np.array_equal(y, x.T)
