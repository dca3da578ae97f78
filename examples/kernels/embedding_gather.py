"""The rows of a table that indices name: y[i] = table[index[i]]."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, i32, warp

LAYOUT = pk.coalesced(32, 8)  # a row of 256, 16 bytes a thread


@pk.kernel(warps=4, grid=lambda index: pk.cdiv(index.cols, 64))
def embedding_gather(
    table: Annotated[Tensor, bf16, "V", 256], index: Annotated[Tensor, i32, "N"], y: Annotated[Tensor, bf16, "N", 256]
) -> None:
    """A warp copies 16 rows; one that does not exist is zeros."""
    me = pk.block_index.x * 4 + warp.index
    rows = warp.load_col(index, (me,), length=16, layout=LAYOUT)
    warp.store(y, warp.load(table, (rows, 0), rows=16, layout=LAYOUT), (me, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    table, index = rng.standard_normal((50, 256)).astype(bf16.numpy), rng.integers(0, 50, 77).astype(np.int32)
    y = np.empty((77, 256), bf16.numpy)
    embedding_gather(table, index, y)
    assert np.array_equal(y, table[index])
