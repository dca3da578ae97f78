"""Rotary embedding of neighbours: columns 2i and 2i + 1 turn by the angle row / 10000 ** (2i / D)."""

import math
from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

LAYOUT = pk.coalesced(8, 4)
Rows = Annotated[Tensor, f32, "N", pk.static("D")]


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 16))
def rotary_pairs(x: Rows, y: Rows) -> None:
    """A warp takes four rows, as a tile of even and one of odd columns."""
    me = pk.block_index.x * 4 + warp.index
    a, b = warp.load(x, (me, 0), rows=4, layout=LAYOUT).split_pairs()
    speed = pk.exp2(pk.col_index(a).to(f32) * (-2 * math.log2(10000) / x.cols))
    angle = (pk.row_index(a) + me * 4).to(f32) * speed
    c, s = pk.cos(angle), pk.sin(angle)
    warp.store(y, pk.join_pairs(a * c - b * s, a * s + b * c), (me, 0))


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((37, 64), dtype=np.float32)
    y = np.empty_like(x)
    rotary_pairs(x, y)
    angle = np.arange(37)[:, None] / 10000 ** (np.arange(0, 64, 2) / 64)
    turned = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    assert np.abs(y[:, ::2] - turned.real).max() < 1e-4
    assert np.abs(y[:, 1::2] - turned.imag).max() < 1e-4
