"""A causal convolution along rows: y[t, c] = sum over j of w[j, c] x[t + j, c]; x begins three rows ahead, the halo."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

TAPS = 4
LAYOUT = pk.coalesced(8, 4)


@pk.kernel(warps=4, grid=lambda y: pk.cdiv(y.rows, 64))
def causal_conv1d(
    x: Annotated[Tensor, f32, "P", 32], w: Annotated[Tensor, f32, TAPS, 32], y: Annotated[Tensor, f32, "N", 32]
) -> None:
    """A warp makes 16 rows; rows that the taps share come from the cache."""
    first = (pk.block_index.x * 4 + warp.index) * 16
    total = warp.zeros(f32, 16, 32, layout=LAYOUT)
    for j in range(TAPS):
        total[:] = pk.fma(
            warp.load(x, pk.at(first + j, 0), rows=16, layout=LAYOUT), warp.load_row(w, (j, 0), layout=LAYOUT), total
        )
    warp.store(y, total, pk.at(first, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((83, 32), dtype=np.float32), rng.standard_normal((TAPS, 32), dtype=np.float32)
    x[: TAPS - 1] = 0  # what comes before the first row
    y = np.empty((80, 32), np.float32)
    causal_conv1d(x, w, y)
    expected = sum(w[j] * x[j : j + 80].astype(np.float64) for j in range(TAPS))
    assert np.abs(y - expected).max() < 1e-5
