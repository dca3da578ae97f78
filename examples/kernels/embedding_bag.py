"""Sums of rows of a table by index, multiplied by a matrix: indices as torch has them, int64."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, i32, i64, warp


@pk.kernel(warps=1, grid=lambda index: pk.cdiv(index.rows, 16))
def embedding_bag(
    table: Annotated[Tensor, bf16, "V", 64],
    index: Annotated[Tensor, i64, "B", "L"],
    weight: Annotated[Tensor, bf16, 64, 64],
    y: Annotated[Tensor, f32, "B", 64],
) -> None:
    """A warp takes 16 bags: index[bags, k] is a column vector, by which `warp.load` gathers rows."""
    me = pk.block_index.x
    shared, out = pk.shared(pk.st(bf16, 64, 64)), warp.zeros(f32, 16, 64)
    warp.load_into(shared, weight, (0, 0))
    total, bags = warp.zeros(f32, 16, 64), warp.iota_col(16) + me * 16
    for k in pk.range(index.cols):
        total += warp.load(table, (index[bags, k].to(i32), 0), rows=16).to(f32)
    warp.sync()
    warp.mma_ABt(out, total.to(bf16), shared)
    warp.store(y, out, (me, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    table, weight = (rng.standard_normal((n, 64)).astype(bf16.numpy) for n in (50, 64))
    index, y = rng.integers(0, 50, (19, 5)), np.zeros((19, 64), np.float32)
    embedding_bag(table, index, weight, y)
    expected = table.astype(float)[index].sum(1) @ weight.astype(float).T
    assert np.allclose(y, expected, rtol=0.03, atol=0.3)
