"""How often each number comes, counts[x[i]] += 1: a block counts in its shared memory, then adds its counts to all."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, block, i32, warp


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.cols, 4 * 4 * 128))
def histogram(x: Annotated[Tensor, i32, "N"], counts: Annotated[Tensor, i32, pk.static("B")]) -> None:
    """A warp takes 4 x 128 numbers. What lies past the end of x counts nowhere, since there is no element -1."""
    mine = pk.shared(pk.sv(i32, counts.cols))
    block.store(mine, block.full_vec(i32, counts.cols, 0))
    block.sync()  # all counters are 0
    for i in pk.range(4):
        part = (pk.block_index.x * 4 + i) * 4 + warp.index
        value = warp.load_vec(x, part, length=128)
        value = pk.where(pk.iota(value) + part * 128 < x.cols, value, -1)
        warp.add(mine, pk.ones_like(value), value)
    block.sync()  # all numbers are counted
    block.add(counts, block.load_vec(mine), 0)


if __name__ == "__main__":
    x = np.random.default_rng(0).integers(0, 50, 4001).astype(np.int32)
    counts = np.zeros(50, np.int32)
    histogram(x, counts)
    assert np.array_equal(counts, np.bincount(x, minlength=50))
