"""The epilogues of a linear layer: bias, activation or gate, residual.

    y = activation(x @ w.T + bias) + residual
    y = activation(x @ w.T + bias) * (x @ w2.T + bias2) + residual        of a gated pair

Hendrycks, Gimpel, "Gaussian Error Linear Units" (2016); Shazeer, "GLU Variants Improve Transformer" (2020). The
products run in `gemm.py` and `gemm_ampere.py`; its backward pass is `activation_backward.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pykittens as pk
from pykittens import f32, warpgroup

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": pk.relu,
    "gelu": lambda x: x * 0.5 * (1.0 + pk.erf(x * 0.7071067811865476)),
    "gelu_tanh": lambda x: x * pk.sigmoid(1.5957691216057308 * (x + 0.044715 * (x * x * x))),  # (1 + tanh(z)) / 2
    "silu": lambda x: x * pk.sigmoid(x),
}
GATES = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


def finish(activation: Callable[[Any], Any] | None, gated: bool, bias: bool, residual: bool) -> Callable[..., Any]:
    """The epilogue, whose operands are the bias (of a pair: two), then the residual; as far as they are there."""
    whole = keeping(activation, gated, bias, residual)
    return lambda x, row, col, *operands: whole(x, row, col, *operands)[0]


def keeping(activation: Callable[[Any], Any] | None, gated: bool, bias: bool, residual: bool) -> Callable[..., Any]:
    """The epilogue that also leaves what the activation is of (of a pair: both), for the backward pass."""

    def epilogue(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        products, rest = list(x) if gated else [x], list(operands)
        if bias:
            for i, product in enumerate(products):
                products[i] = product + warpgroup.load_row(rest.pop(0), pk.at(0, col), length=product.cols, dtype=f32)
        y = products[0] if activation is None else activation(products[0])
        if gated:
            y = y * products[1]
        if residual:
            y = y + warpgroup.load(rest.pop(0), pk.at(row, col), rows=y.rows, cols=y.cols, dtype=f32)
        return y, *products

    return epilogue
