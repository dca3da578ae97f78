"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..kernels import rotary as kernels
from .declaration import Backward, Function, Result, writing


def _results(x: Any, cos: Any, sin: Any, interleaved: bool) -> tuple[Result, ...]:
    kernels.check(x, cos, sin)
    return (Result(x.shape, x.dtype, order="x", nothing="x"),)  # without angles nothing turns


def _back(x: Any, cos: Any, sin: Any, o: Any, interleaved: bool) -> Any:
    return kernels.call(x, cos, sin, o, interleaved, back=True)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    do = grads.out if grads.out.dim() <= 4 and grads.out.stride(-1) == 1 else grads.out.contiguous()
    return {"x": ROTARY_BACKWARD((do, saved.cos, saved.sin), (settings.interleaved,))}


# Turned the other way: the gradient of x for that of the result.
ROTARY_BACKWARD = Function(
    "rotary_backward", "Tensor x, Tensor cos, Tensor sin", "bool interleaved", results=_results, forward=_back
)
ROTARY = Function(
    "rotary",
    "Tensor x, Tensor cos, Tensor sin",
    "bool interleaved=False",
    results=_results,
    forward=kernels.call,
    backward=Backward(("cos", "sin"), _gradients),
)
ROTARY_OUT = writing(ROTARY, "out")


def rotary(x: Any, cos: Any, sin: Any, *, interleaved: bool = False, out: Any = None) -> Any:
    """x with its first r = 2 * cos.shape[-1] features turned by each row's angles, for an array of any framework.

    half-split:   o[i] = x[i] cos[i] - x[i + h] sin[i],            o[i + h] = x[i + h] cos[i] + x[i] sin[i]
    interleaved:  o[2 i] = x[2 i] cos[i] - x[2 i + 1] sin[i],      o[2 i + 1] = x[2 i + 1] cos[i] + x[2 i] sin[i]

    for i < h = r / 2; features from r on pass unchanged. x: (..., heads, n, d) with contiguous features and otherwise
    any strides, d up to 4096; cos and sin: (m, h) with m >= n, a row for each position; bf16, f16 or f32 each. `out`
    receives the result (it may be x itself) and is returned. In torch the result has the order of x in memory: a
    transposed (batch, n, heads, d) stays one, as `pk.attention` reads it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    if out is None:
        return ROTARY((x, cos, sin), (interleaved,))
    ROTARY_OUT((x, cos, sin, out), (interleaved,))
    return out
