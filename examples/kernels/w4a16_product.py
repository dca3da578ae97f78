"""A product with 4-bit weights: y = x @ (w * scale), w unsigned 4-bit numbers less 8, two in a byte.

Byte j of a group of 64 columns holds column j in its low half and column j + 32 in its high half.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, u8, warp

Rows = Annotated[Tensor, bf16, "M", "K"]
Packed = Annotated[Tensor, u8, "K", "P"]


@pk.kernel(warps=1, grid=lambda x, y: (pk.cdiv(y.cols, 64), pk.cdiv(x.rows, 16)))
def w4a16(x: Rows, packed: Packed, scale: Annotated[Tensor, f32, "N"], y: Annotated[Tensor, bf16, "M", "N"]) -> None:
    """A warp makes 16 x 64, in two halves; a column's scale comes after the sum."""
    row, col = pk.block_index.y, pk.block_index.x
    left, right = warp.zeros(f32, 16, 32), warp.zeros(f32, 16, 32)
    for k in pk.range(pk.cdiv(x.cols, 16)):
        both = warp.load(packed, (k, col), rows=16, cols=32, layout="col")  # int32 in registers
        rows = warp.load(x, (row, k), rows=16, cols=16)
        warp.mma_AB(left, rows, ((both & 15) - 8).to(bf16))
        warp.mma_AB(right, rows, ((both >> 4) - 8).to(bf16))
    warp.store(y, (pk.join(left, right) * warp.load_row(scale, col, length=64)).to(bf16), (row, col))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    w = rng.integers(0, 16, (96, 128))
    halves = w.reshape(96, 2, 2, 32)  # groups of 64 columns, each in two halves
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(96, 64).astype(np.uint8)
    x = rng.integers(-2, 3, (20, 96)).astype(bf16.numpy)
    scale = np.full(128, 0.25, np.float32)
    y = np.empty((20, 128), bf16.numpy)
    w4a16(x, packed, scale, y)
    expected = x.astype(np.float64) @ (w - 8) * 0.25
    assert np.abs(y.astype(np.float64) - expected).max() <= 2**-8 * np.abs(expected).max()
