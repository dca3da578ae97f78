"""The four largest of each row, with their columns: a mixture of experts' router."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

K = 4


@pk.kernel(warps=1, grid=lambda x: pk.cdiv(x.rows, 16))
def top4(
    x: Annotated[Tensor, f32, "N", 64], values: Annotated[Tensor, f32, K, "N"], columns: Annotated[Tensor, i32, K, "N"]
) -> None:
    """Row i of the results holds each row's i-th largest."""
    for i, (value, column) in enumerate(warp.load(x, (pk.block_index.x, 0), rows=16).row_topk(K)):
        warp.store(values, value, (i, pk.block_index.x))
        warp.store(columns, column, (i, pk.block_index.x))


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
    values, columns = np.empty((K, 40), np.float32), np.empty((K, 40), np.int32)
    top4(x, values, columns)
    order = np.argsort(-x, axis=1)[:, :K]
    assert np.array_equal(columns.T, order) and np.array_equal(values.T, np.take_along_axis(x, order, 1))
