"""Softmax over the last axis, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..kernels import softmax as kernels
from ..kernels.arguments import check_rows, check_shape
from .declaration import Backward, Function, Result


def _results(x: Any) -> tuple[Result, ...]:
    check_rows("softmax", "x", x)
    return (Result(x.shape, x.dtype),)


def _results_backward(y: Any, dy: Any) -> tuple[Result, ...]:
    check_rows("softmax_backward", "y", y)
    check_shape("softmax_backward", "dy", dy, y.shape)
    return (Result(dy.shape, dy.dtype),)


SOFTMAX_BACKWARD = Function(
    "softmax_backward", "Tensor y, Tensor dy", outputs=("dx",), results=_results_backward, forward=kernels.call_backward
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    return {"x": SOFTMAX_BACKWARD((saved.y, grads.y.contiguous()))}


SOFTMAX = Function(
    "softmax",
    "Tensor x",
    outputs=("y",),
    results=_results,
    forward=kernels.call,
    backward=Backward(("y",), _gradients),
    autocast="f32",
)


def softmax(x: Any) -> Any:
    """exp(x - max(x)) / sum(exp(x - max(x))) over the last axis of an array of any framework.

    x: (..., n), n from 1 to 65,536, bf16, f16 or f32, rows contiguous and evenly spaced. The result is a new array of
    the same framework, shape and dtype; everything between is float32. A row with a NaN, with +inf, or of -inf only is
    NaN.

    Raises `ArgumentError` for an array that the kernel does not take.
    """
    return SOFTMAX((x,))
