"""A product with weights of 8 bits and a scale for each output: y = (x W^T) * scale."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, block, f32, i8


@pk.kernel(warps=4, grid=lambda x, w: (pk.cdiv(x.rows, 64), pk.cdiv(w.rows, 64)))
def int8_weights(
    x: Annotated[Tensor, bf16, "M", "K"],
    w: Annotated[Tensor, i8, "N", "K"],
    scale: Annotated[Tensor, f32, "N"],
    y: Annotated[Tensor, bf16, "M", "N"],
) -> None:
    """Weights become bf16, which holds all of them, on their way to shared memory."""
    m, n = pk.block_index.x, pk.block_index.y
    left, right = pk.shared(pk.st(bf16, 64, 64)), pk.shared(pk.st(bf16, 64, 64))
    out = block.zeros(f32, 64, 64)
    for k in pk.range(pk.cdiv(x.cols, 64)):
        block.load_into(left, x, (m, k))
        block.store(right, block.load(w, (n, k), rows=64, cols=64, dtype=bf16))
        block.sync()
        block.mma_ABt(out, block.load(left), right)
        block.sync()
    block.store(y, out * block.load_row(scale, n, length=64), (m, n))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((70, 200)).astype(bf16.numpy), rng.integers(-127, 128, (90, 200)).astype(np.int8)
    scale, y = rng.uniform(0.01, 0.1, 90).astype(np.float32), np.zeros((70, 90), bf16.numpy)
    int8_weights(x, w, scale, y)
    assert np.allclose(y.astype(float), x.astype(float) @ w.T.astype(float) * scale, rtol=0.02, atol=0.1)
