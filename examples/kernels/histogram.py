"""How often each number comes: counts[x[i]] += 1."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, i32, warp


@pk.kernel(warps=4, grid=lambda x, **_: pk.cdiv(x.cols, 4 * 128))
def histogram(x: Annotated[Tensor, i32, "N"], counts: Annotated[Tensor, i32, "B"]) -> None:
    """A warp takes 128 numbers; what lies past the end of x counts nowhere, since there is no element -1."""
    me = pk.block_index.x * 4 + warp.index
    value = warp.load_vec(x, me, length=128)
    value = pk.where(pk.iota(value) + me * 128 < x.cols, value, -1)
    warp.add(counts, pk.ones_like(value), pk.at(value))


if __name__ == "__main__":
    x = np.random.default_rng(0).integers(0, 50, 1001).astype(np.int32)
    counts = np.zeros(50, np.int32)
    histogram(x, counts)
    assert np.array_equal(counts, np.bincount(x, minlength=50))
