"""A step of AdamW in place: parameters and gradients of 16 bits, moments and a copy of the parameters in float32."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, warp

Low, Wide, Number = Annotated[Tensor, bf16, "N"], Annotated[Tensor, f32, "N"], Annotated[Scalar, f32]
EACH, BETA1, BETA2 = 256, 0.9, 0.999


@pk.kernel(warps=4, grid=lambda p: pk.cdiv(p.cols, 4 * EACH))
def adamw(
    p: Low, g: Low, copy: Wide, m: Wide, v: Wide, lr: Number, decay: Number, bias1: Number, bias2: Number
) -> None:
    """A warp takes 256 parameters. Arrays of 16 and 32 bits come in different runs, which meet by themselves."""
    me = pk.block_index.x * warp.count + warp.index
    grad = warp.load_vec(g, me, length=EACH, dtype=f32)
    mean = warp.load_vec(m, me, length=EACH) * BETA1 + grad * (1 - BETA1)
    square = warp.load_vec(v, me, length=EACH) * BETA2 + grad * grad * (1 - BETA2)
    old = warp.load_vec(copy, me, length=EACH)
    new = old * (1.0 - lr * decay) - lr * (mean / bias1) / (pk.sqrt(square / bias2) + 1e-8)
    for memory, value in ((m, mean), (v, square), (copy, new), (p, new)):
        warp.store(memory, value, me)


if __name__ == "__main__":
    random, n, lr, decay = np.random.default_rng(0), 777, 1e-2, 0.1
    g, (copy, m, v) = random.standard_normal(n).astype(bf16.numpy), random.random((3, n), dtype=np.float32)
    wide, mean, square = g.astype(float), *(x.astype(float) for x in (m, v))
    mean, square = mean * BETA1 + wide * (1 - BETA1), square * BETA2 + wide**2 * (1 - BETA2)
    step = lr * mean / (1 - BETA1**7) / (np.sqrt(square / (1 - BETA2**7)) + 1e-8)
    expected, p = copy * (1 - lr * decay) - step, np.empty(n, bf16.numpy)
    adamw(p, g, copy, m, v, lr, decay, 1 - BETA1**7, 1 - BETA2**7)
    assert np.abs(copy - expected).max() < 1e-5 and np.array_equal(p, copy.astype(bf16.numpy))
