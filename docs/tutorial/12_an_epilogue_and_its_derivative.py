"""# 12. An epilogue, and its derivative

What comes after a product belongs into its kernel; and nobody has to write its derivative.
"""

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp

# A linear layer is a product, a bias and an activation. Written to memory between them, the result would be read and
# written three times. `pk.matmul` takes a function that is traced into its kernel: it gets a tile of the product, where
# in the result that tile begins, and more operands.


def gelu(x: Any) -> Any:
    """GELU in its tanh form (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + pk.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def bias_gelu(x: Any, row: Any, col: Any, bias: Any) -> Any:
    """x: a float32 tile whose first element is (row, col) of the result."""
    return gelu(x + pk.warpgroup.load_row(bias, pk.at(0, col), length=x.cols))


rng = np.random.default_rng(0)
a = rng.standard_normal((64, 64)).astype(bf16.numpy)
b = rng.standard_normal((64, 64)).astype(bf16.numpy)
bias = rng.standard_normal(64, dtype=np.float32)
c = pk.matmul(a, b, epilogue=bias_gelu, operands=[bias])

z = a.astype(np.float64) @ b.astype(np.float64) + bias
expected = 0.5 * z * (1 + np.tanh(0.7978845608028654 * (z + 0.044715 * z**3)))
assert np.abs(c.astype(np.float64) - expected).max() < 4e-2 * np.abs(expected).max()

# The function is data: what it records is walked backwards by `pk.derivative`, and every operation says what it adds.
# So the derivative of `gelu` is another function of tiles, for the backward pass of the layer, say:


@pk.kernel(warps=1)
def slope(
    x: Annotated[Tensor, f32, 16, 64], dy: Annotated[Tensor, f32, 16, 64], dx: Annotated[Tensor, f32, 16, 64]
) -> None:
    """dx = dy * gelu'(x)"""
    tile = warp.load(x, (0, 0), rows=16)
    warp.store(dx, warp.load(dy, (0, 0), rows=16) * pk.derivative(gelu)(tile), (0, 0))


x, dy = rng.standard_normal((16, 64), dtype=np.float32), rng.standard_normal((16, 64), dtype=np.float32)
dx = np.empty_like(x)
slope(x, dy, dx)


def exact(x: np.ndarray) -> np.ndarray:
    """GELU in float64."""
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


step = 1e-5
difference = (exact(x.astype(np.float64) + step) - exact(x.astype(np.float64) - step)) / (2 * step)
assert np.abs(dx - dy * difference).max() < 1e-4

# `pk.vjp(f, *inputs)` is for functions that mix elements, too: a softmax, a norm. It gives the result and its pullback.


def softmax(x: Any) -> Any:
    """Of each row."""
    e = pk.exp(x - x.row_max())
    return e / e.row_sum()


@pk.kernel(warps=1)
def softmax_backward(
    x: Annotated[Tensor, f32, 16, 64], dy: Annotated[Tensor, f32, 16, 64], dx: Annotated[Tensor, f32, 16, 64]
) -> None:
    """dx from dy."""
    _, pullback = pk.vjp(softmax, warp.load(x, (0, 0), rows=16))
    (found,) = pullback(warp.load(dy, (0, 0), rows=16))
    warp.store(dx, found, (0, 0))


softmax_backward(x, dy, dx)
e = np.exp(x.astype(np.float64))
p = e / e.sum(1, keepdims=True)
assert np.abs(dx - p * (dy - (p * dy).sum(1, keepdims=True))).max() < 1e-6
