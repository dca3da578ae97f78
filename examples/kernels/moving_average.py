"""An exponential moving average with a decay for each channel: h = d h + (1 - d) x, over time."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

Series = Annotated[Tensor, f32, "B", "T", 64]


@pk.kernel(warps=1, grid=lambda x: x.shape[0])
def moving_average(x: Series, decay: Annotated[Tensor, f32, 64], y: Series) -> None:
    """A warp follows a series in steps of 32: within one, a scan of (decay, what is added); from one to the next, h."""
    b, d = pk.block_index.x, warp.load_row(decay, 0, length=64)
    h = warp.zeros_row(f32, 64)
    for t in pk.range(pk.cdiv(x.rows, 32)):
        new = warp.load(x, (b, t, 0), rows=32) * (1.0 - d)
        after = lambda a, c: (a[0] * c[0], pk.fma(a[1], c[0], c[1]))  # noqa: E731
        faded, added = pk.associative_scan(after, (pk.zeros_like(new) + d, new), along="col")
        out = pk.fma(faded, h, added)
        warp.store(y, out, (b, t, 0))
        h[:] = pk.where(pk.row_index(out) == 31, out, 0.0).col_sum()


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, decay = rng.standard_normal((2, 70, 64), dtype=np.float32), rng.uniform(0.5, 0.99, 64).astype(np.float32)
    y, h = np.zeros_like(x), np.zeros((2, 64))
    moving_average(x, decay, y)
    for t in range(70):
        h = decay * h + (1 - decay) * x[:, t]
        assert np.allclose(y[:, t], h, atol=1e-5)
