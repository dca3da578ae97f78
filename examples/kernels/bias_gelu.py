"""Bias and GELU of a matrix, in one pass: y = gelu(x + bias)."""

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp

Rows = Annotated[Tensor, bf16, "N", pk.static("D")]
LAYOUT = pk.coalesced(8, 8)


def gelu(x: Any) -> Any:
    """In its tanh form."""
    return 0.5 * x * (1.0 + pk.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 16))
def bias_gelu(x: Rows, bias: Annotated[Tensor, f32, pk.static("D")], y: Rows) -> None:
    """A warp takes four rows."""
    me = pk.block_index.x * 4 + warp.index
    tile = warp.load(x, (me, 0), rows=4, dtype=f32, layout=LAYOUT)
    warp.store(y, gelu(tile + warp.load_row(bias, 0, layout=LAYOUT)), (me, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((21, 128)).astype(bf16.numpy), rng.standard_normal(128, dtype=np.float32)
    y = np.empty_like(x)
    bias_gelu(x, bias, y)
    z = x.astype(np.float64) + bias
    expected = 0.5 * z * (1 + np.tanh(0.7978845608028654 * (z + 0.044715 * z**3)))
    assert np.abs(y.astype(np.float64) - expected).max() < 2e-2
