"""Two products in one kernel: y = relu(x @ a) @ b, the result of the first never in memory."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp

Rows = Annotated[Tensor, bf16, "N", 64]
Square = Annotated[Tensor, bf16, 64, 64]


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 64))
def two_matmuls(x: Rows, a: Square, b: Square, y: Rows) -> None:
    """A warp has 16 rows; the block shares a and b."""
    first, second = pk.shared(pk.st(bf16, 64, 64)), pk.shared(pk.st(bf16, 64, 64))
    pk.block.load_into(first, a, (0, 0))
    pk.block.load_into(second, b, (0, 0))
    pk.block.sync()
    me = pk.block_index.x * 4 + warp.index
    hidden, out = warp.zeros(f32, 16, 64), warp.zeros(f32, 16, 64)
    warp.mma_AB(hidden, warp.load(x, (me, 0), rows=16), first)
    warp.mma_AB(out, pk.relu(hidden).to(bf16), second)
    warp.store(y, out.to(bf16), (me, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, a, b = (rng.integers(-1, 2, (n, 64)).astype(bf16.numpy) for n in (100, 64, 64))
    y = np.empty_like(x)
    two_matmuls(x, a, b, y)
    fx, fa, fb = (v.astype(np.float64) for v in (x, a, b))
    expected = np.maximum(fx @ fa, 0) @ fb
    assert np.abs(y.astype(np.float64) - expected).max() <= 2**-8 * np.abs(expected).max()
