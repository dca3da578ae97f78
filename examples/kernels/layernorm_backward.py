"""LayerNorm's backward pass: dx, and the weight's gradient added up over all rows with atomics."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

D = 64
Rows = Annotated[Tensor, f32, "N", D]
Weight = Annotated[Tensor, f32, D]


@pk.kernel(warps=1, grid=lambda x: pk.cdiv(x.rows, 16))
def layernorm_backward(x: Rows, weight: Weight, dy: Rows, dx: Rows, dweight: Weight) -> None:
    """dx = (g - mean(g) - n mean(g n)) / std, with n the normalised row and g = dy * weight; dweight += sum(dy n)."""
    me = pk.block_index.x
    tile, grad = warp.load(x, (me, 0), rows=16), warp.load(dy, (me, 0), rows=16)
    centred = tile - tile.row_sum() * (1 / D)
    scale = pk.rsqrt(centred.row_dot(centred) * (1 / D) + 1e-5)
    normal, weighted = centred * scale, grad * warp.load_row(weight, 0)
    mean, along = weighted.row_sum() * (1 / D), weighted.row_dot(normal) * (1 / D)
    warp.store(dx, (weighted - mean - normal * along) * scale, (me, 0))
    warp.add(dweight, (grad * normal).col_sum(), 0)  # rows past the end are zero in dy


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((50, D), dtype=np.float32) for _ in range(2))
    weight = rng.standard_normal(D, dtype=np.float32)
    dx, dweight = np.empty_like(x), np.zeros(D, np.float32)
    layernorm_backward(x, weight, dy, dx, dweight)
    n = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    g = dy * weight
    std = np.sqrt(x.var(1, keepdims=True) + 1e-5)
    expected = (g - g.mean(1, keepdims=True) - n * (g * n).mean(1, keepdims=True)) / std
    assert np.abs(dx - expected).max() < 1e-4 and np.abs(dweight - (dy * n).sum(0)).max() < 1e-3
