"""Conway's game of life: a cell lives with three neighbours, or with two if it lived."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, u8, warp

Board = Annotated[Tensor, u8, "H", "W"]


@pk.kernel(warps=1, grid=lambda x: (pk.cdiv(x.cols, 32), pk.cdiv(x.rows, 16)))
def game_of_life(x: Board, y: Board) -> None:
    """A warp takes 16 x 32 cells; elements of x that lie outside are read as zero."""
    i, j = pk.block_index.y, pk.block_index.x
    here = warp.load(x, (i, j), rows=16, cols=32)
    row, col = pk.row_index(here) + i * 16, pk.col_index(here) + j * 32
    around = sum(x[row + a, col + b] for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b)
    warp.store(y, pk.where((around == 3) | ((around == 2) & (here == 1)), 1, 0), (i, j))


if __name__ == "__main__":
    x = np.random.default_rng(0).integers(0, 2, (45, 71)).astype(np.uint8)
    y = np.empty_like(x)
    game_of_life(x, y)
    padded = np.pad(x, 1)
    around = sum(padded[a : a + 45, b : b + 71] for a in range(3) for b in range(3)) - x
    assert np.array_equal(y, (around == 3) | ((around == 2) & (x == 1)))
