"""The nearest of K centroids to each row, and how far it is, squared: |x - c|^2 = |x|^2 - 2 x c + |c|^2."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, i32, warp


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 64))
def nearest_centroid(
    x: Annotated[Tensor, bf16, "N", 64],
    centroids: Annotated[Tensor, bf16, "K", 64],
    ids: Annotated[Tensor, i32, "N"],
    distances: Annotated[Tensor, f32, "N"],
) -> None:
    """A warp takes 16 rows; K is at most 64, and columns of centroids that there are not are infinitely far."""
    me = pk.block_index.x * 4 + warp.index
    table, norms = pk.shared(pk.st(bf16, 64, 64)), pk.shared(pk.sv(f32, 64))
    pk.block.load_into(table, centroids, (0, 0))
    rows = pk.block.load(centroids, (0, 0), rows=64, dtype=f32)
    pk.block.store(norms, rows.row_dot(rows))
    pk.block.sync()
    mine, product = warp.load(x, (me, 0), rows=16), warp.zeros(f32, 16, 64)
    warp.mma_ABt(product, mine, table)
    norm = mine.to(f32).row_dot(mine.to(f32))
    far = pk.right_fill(norm - 2 * product + warp.load_row(norms), centroids.rows, pk.inf)
    warp.store(ids, far.row_argmin(), me)
    warp.store(distances, far.row_min(), me)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, centroids = (rng.standard_normal((n, 64)).astype(bf16.numpy) for n in (101, 50))
    ids, distances = np.empty(101, np.int32), np.empty(101, np.float32)
    nearest_centroid(x, centroids, ids, distances)
    exact = ((x.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(2)
    assert np.array_equal(ids, exact.argmin(1))
    assert np.abs(distances - exact.min(1)).max() < 1e-3
