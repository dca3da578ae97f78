"""Sums and counts of rows with the same id, of which the means are made: ids as torch has them, int64."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, i64, warp


@pk.kernel(warps=1, grid=lambda x: pk.cdiv(x.rows, 32))
def segment_sums(
    x: Annotated[Tensor, f32, "N", 64],
    ids: Annotated[Tensor, i64, "N"],
    total: Annotated[Tensor, f32, "S", 64],
    count: Annotated[Tensor, i32, "S"],
) -> None:
    """A warp adds 32 rows, atomically; what lies past the end of x is added nowhere, since there is no row -1."""
    me = pk.block_index.x
    tile = warp.load(x, (me, 0), rows=32)
    segment = warp.load_col(ids, me, length=32).to(i32)
    segment = pk.where(pk.row_index(tile) + me * 32 < x.rows, segment, -1)
    warp.add(total, tile, (segment, 0))
    warp.add(count, pk.ones_like(segment), pk.at(segment))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((100, 64), dtype=np.float32), rng.integers(0, 7, 100)
    total, count = np.zeros((7, 64), np.float32), np.zeros(7, np.int32)
    segment_sums(x, ids, total, count)
    assert np.array_equal(count, np.bincount(ids, minlength=7))
    assert np.allclose(total / count[:, None], [x[ids == s].mean(0) for s in range(7)], atol=1e-5)
