"""Many small products: c[i] = scale a[i] @ b[i], of at most 32 rows and columns."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, warp

A, B = Annotated[Tensor, bf16, "I", "M", "K"], Annotated[Tensor, bf16, "I", "K", "N"]


@pk.kernel(warps=1, grid=lambda a: a.depth)
def batched_product(a: A, b: B, c: Annotated[Tensor, f32, "I", "M", "N"], scale: Annotated[Scalar, f32]) -> None:
    """A warp makes one; past their ends the operands are zeros."""
    item, out = pk.block_index.x, warp.zeros(f32, 32, 32)
    left = warp.load(a, (item, 0, 0), rows=32, cols=32)
    right = warp.load(b, (item, 0, 0), rows=32, cols=32, layout="col")
    warp.mma_AB(out, left, right)
    warp.store(c, out * scale, (item, 0, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 20, 27)).astype(bf16.numpy), rng.standard_normal((5, 27, 13)).astype(bf16.numpy)
    c = np.empty((5, 20, 13), np.float32)
    batched_product(a, b, c, 0.125)
    assert np.abs(c - 0.125 * a.astype(np.float32) @ b.astype(np.float32)).max() < 1e-5
