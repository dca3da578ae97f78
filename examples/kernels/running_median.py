"""The median of each five neighbours of a signal; past its ends there are zeros."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, block, f32


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.cols, 1024))
def running_median(x: Annotated[Tensor, f32, "N"], y: Annotated[Tensor, f32, "N"]) -> None:
    """Of four numbers the smallest and the largest are no median of five; that of the other two and the fifth is."""
    i = pk.block_index.x * 1024
    a, b, c, d, e = (block.load_vec(x, pk.at(i + k), length=1024, within=(0, x.cols)) for k in range(-2, 3))
    low = pk.maximum(pk.minimum(a, b), pk.minimum(c, d))
    high = pk.minimum(pk.maximum(a, b), pk.maximum(c, d))
    block.store(y, pk.maximum(pk.minimum(low, high), pk.minimum(pk.maximum(low, high), e)), pk.at(i))


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal(1501, dtype=np.float32)
    y, wide = np.zeros_like(x), np.pad(x, 2)
    running_median(x, y)
    assert np.array_equal(y, np.median([wide[k : k + len(x)] for k in range(5)], axis=0))
