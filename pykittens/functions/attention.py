"""softmax(q @ k.T * scale) @ v."""

from __future__ import annotations

from typing import Any

from ..kernels import attention as kernels
from .declaration import Function, Result


def _results(q: Any, k: Any, v: Any, causal: bool, scale: float | None) -> tuple[Result, ...]:
    kernels.check({"q": q, "k": k, "v": v})
    return Result(q.shape, q.dtype, order="q"), Result(q.shape[:3], "f32", nothing=float("-inf"))


def _numbers(q: Any, k: Any, v: Any, causal: bool, scale: float | None) -> tuple[float]:
    return (q.shape[-1] ** -0.5 if scale is None else float(scale),)


def _forward(q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float | None) -> Any:
    return kernels.call(q, k, v, out, lse, causal, *_numbers(q, k, v, causal, scale))


ATTENTION = Function(
    "attention",
    "Tensor q, Tensor k, Tensor v",
    "bool causal=False, float? scale=None",
    also="lse",
    results=_results,
    forward=_forward,
    key=lambda causal, scale: bool(causal),
    numbers=_numbers,
    autocast="low",
)


def attention(
    q: Any, k: Any, v: Any, *, causal: bool = False, scale: float | None = None, return_lse: bool = False
) -> Any:
    """softmax(q @ k.T * scale) @ v for each batch and head; with `return_lse`, also the log-sum-exp of each row's scores.

    q: (batch, heads, n, d), k and v: (batch, key heads, m, d), bf16 or f16, where the heads are a multiple of the key
    heads (grouped-query attention) and d is 64, 128 or, on Hopper, 256. Any strides: a transposed (batch, n, heads, d)
    is read in place. causal: row i sees the keys up to i + m - n; a row that sees none is zero. `scale` is 1 / sqrt(d)
    unless given. The result is a new array of the same framework and dtype; log-sum-exp is float32 (batch, heads, n).

    Raises `ArgumentError` for operands that no kernel takes.
    """
    return ATTENTION((q, k, v), (causal, scale), return_lse)
