"""The running sum of 4096 integers: y[i] = x[0] + ... + x[i]. They lie in a tile of 64 x 64."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, i32, warp

SIDE = 64
Numbers = Annotated[Tensor, i32, SIDE, SIDE]


@pk.kernel(warps=1)
def prefix_sum(x: Numbers, y: Numbers) -> None:
    """Along each row by doubling (Hillis and Steele 1986); then each row adds the totals of the rows above it."""
    tile = warp.load(x, (0, 0), rows=SIDE)
    column = pk.col_index(tile)
    for step in (1, 2, 4, 8, 16, 32):
        (shifted,) = pk.rolls(tile, [SIDE - step])
        tile[:] = tile + pk.where(column >= step, shifted, 0)
    totals = pk.shared(pk.sv(i32, SIDE))
    warp.store(totals, pk.where(column == SIDE - 1, tile, 0).row_sum())
    warp.sync()
    above = pk.where(column < pk.row_index(tile), warp.load_row(totals), 0).row_sum()
    warp.store(y, tile + above, (0, 0))


if __name__ == "__main__":
    x = np.random.default_rng(0).integers(-100, 101, (SIDE, SIDE)).astype(np.int32)
    y = np.empty_like(x)
    prefix_sum(x, y)
    assert np.array_equal(y.ravel(), x.ravel().cumsum())
