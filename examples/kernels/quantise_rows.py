"""Rows in eight bits: q = round(x / step), step = the largest magnitude of the row / 127."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i8, warp

LAYOUT = pk.coalesced(8, 4)


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 16))
def quantise_rows(
    x: Annotated[Tensor, f32, "N", "D"], q: Annotated[Tensor, i8, "N", "D"], steps: Annotated[Tensor, f32, "N"]
) -> None:
    """A warp takes four rows of at most 128; registers hold no eight bits, so the store converts."""
    me = pk.block_index.x * 4 + warp.index
    tile = warp.load(x, (me, 0), rows=4, cols=128, layout=LAYOUT)
    step = pk.maximum(abs(tile).row_max() / 127, 1e-30)
    warp.store(q, pk.round(tile / step), (me, 0))
    warp.store(steps, step, me)


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((37, 100), dtype=np.float32)
    x[3] = 0
    q, steps = np.empty((37, 100), np.int8), np.empty(37, np.float32)
    quantise_rows(x, q, steps)
    assert np.abs(q).max() == 127
    assert (np.abs(q * steps[:, None] - x) <= 0.5001 * steps[:, None]).all()
