"""# 13. From torch, with a gradient

A kernel of your own as an operator of torch, and those of the library.
"""

from typing import Annotated, Any

import numpy as np
import torch

import pykittens as pk
from pykittens import Tensor, f32, warp

# Tensors of torch go into a kernel as NumPy arrays do: CUDA tensors run on their GPU, on torch's current stream; CPU
# tensors on the simulated GPU, as here.

Rows = Annotated[Tensor, f32, "N", 64]


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 64))
def square_relu(x: Rows, y: Rows) -> None:
    """y = relu(x)^2 (So et al. 2021, "Primer")."""
    me = pk.block_index.x * 4 + warp.index
    tile = pk.relu(warp.load(x, (me, 0), rows=16))
    warp.store(y, tile * tile, (me, 0))


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 64))
def square_relu_backward(x: Rows, dy: Rows, dx: Rows) -> None:
    """dx = 2 relu(x) dy"""
    me = pk.block_index.x * 4 + warp.index
    tile = pk.relu(warp.load(x, (me, 0), rows=16))
    warp.store(dx, 2.0 * tile * warp.load(dy, (me, 0), rows=16), (me, 0))


# A kernel knows nothing of gradients, so it refuses a tensor that wants one: a gradient is never lost in silence.

x = torch.randn(100, 64, requires_grad=True)
try:
    square_relu(x, torch.empty_like(x))
except pk.ArgumentError as error:
    print(error)
else:
    raise AssertionError("a gradient was lost")

# `torch.autograd.Function` says what the gradient is:


class SquareReLU(torch.autograd.Function):
    """relu(x)^2 by two kernels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        square_relu(x.detach(), y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        square_relu_backward(x.detach(), dy.contiguous(), dx)
        return dx


y = SquareReLU.apply(x)
y.sum().backward()
reference = x.detach().clone().requires_grad_()
(torch.relu(reference) ** 2).sum().backward()
assert torch.equal(x.grad, reference.grad)

# The library's functions are operators already, with gradients, for `torch.compile` and autocast:

logits = torch.randn(8, 100, requires_grad=True)
targets = torch.randint(0, 100, (8,))
loss = pk.cross_entropy(logits, targets)
loss.backward()
expected = torch.nn.functional.cross_entropy(logits.detach(), targets)
assert torch.allclose(loss.detach(), expected, atol=1e-5)
assert torch.isfinite(logits.grad).all()

# JAX and CuPy arrays go in the same way (DLPack and the CUDA array interface); JAX arrays cannot be written, so
# functions that return their result (`pk.softmax(x)`) are for them.

assert np.allclose(pk.softmax(np.zeros((2, 64), np.float32)), 1 / 64)
