"""A 3 x 3 convolution of an image; past its edges there are zeros."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

Image = Annotated[Tensor, f32, "H", "W"]


@pk.kernel(warps=1, grid=lambda x: (pk.cdiv(x.rows, 16), pk.cdiv(x.cols, 64)))
def conv3x3(x: Image, weight: Annotated[Tensor, f32, 3, 3], y: Image) -> None:
    """A warp makes 16 x 64 points; x[rows, cols] is a tile of elements, 0 where there are none."""
    row, col = pk.block_index.x * 16, pk.block_index.y * 64
    rows, cols = warp.iota_col(16) + row, warp.iota_row(64) + col
    out = warp.zeros(f32, 16, 64)
    for i in range(3):
        for j in range(3):
            out += x[rows + (i - 1), cols + (j - 1)] * weight[i, j]
    warp.store(y, out, pk.at(row, col))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((37, 101), dtype=np.float32), rng.standard_normal((3, 3), dtype=np.float32)
    y, wide = np.zeros_like(x), np.pad(x, 1)
    conv3x3(x, weight, y)
    assert np.allclose(y, sum(wide[i : i + 37, j : j + 101] * weight[i, j] for i, j in np.ndindex(3, 3)), atol=1e-5)
