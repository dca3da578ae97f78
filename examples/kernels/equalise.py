"""Histogram equalisation: from the counts of 256 greys the grey that each becomes."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp


@pk.kernel(warps=1)
def equalise(counts: Annotated[Tensor, i32, 256], table: Annotated[Tensor, f32, 256], n: pk.i32) -> None:
    """Greys in proportion to how many of the n points are no brighter, from the first that there is to 255."""
    up_to = warp.load_vec(counts, 0, length=256).cumsum()
    first = pk.where(up_to > 0, up_to, 2**30).min()
    warp.store(table, pk.round((up_to - first).to(f32) / pk.cast(n - first, f32) * 255.0), 0)


if __name__ == "__main__":
    image, table = np.random.default_rng(0).integers(10, 60, 3000), np.zeros(256, np.float32)
    counts = np.bincount(image, minlength=256).astype(np.int32)
    equalise(counts, table, 3000)
    up_to = counts.cumsum()
    first = up_to[up_to > 0].min()
    assert np.abs(table[10:60] - np.round((up_to - first) / (3000 - first) * 255)[10:60]).max() <= 1
