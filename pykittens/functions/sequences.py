"""Causal attention with a state instead of a softmax: linear attention, and Based."""

from __future__ import annotations

from typing import Any

from ..kernels import based as taylor
from ..kernels import linear_attention as linear
from ..kernels.sequences import check, check_state
from .declaration import Function, Result


def _linear(q: Any, k: Any, v: Any, log_decay: Any, state: Any, scale: float | None) -> tuple[Result, ...]:
    name = "linear_attention"
    check(name, q, k, v, linear.DIMS, linear.DIMS)
    batch, heads, n, d = q.shape
    shape = (batch, heads, v.shape[3], d)
    check_state(name, "state", state, shape)
    check_state(name, "log_decay", log_decay, (heads,))
    return Result((batch, heads, n, v.shape[3]), q.dtype), Result(shape, "f32", nothing="state")


def _linear_numbers(q: Any, k: Any, v: Any, log_decay: Any, state: Any, scale: float | None) -> tuple[float]:
    return (q.shape[-1] ** -0.5 if scale is None else float(scale),)


def _linear_forward(
    q: Any, k: Any, v: Any, log_decay: Any, state: Any, o: Any, after: Any, scale: float | None, **config: Any
) -> Any:
    return linear.call(q, k, v, log_decay, state, o, after, *_linear_numbers(q, k, v, None, None, scale), **config)


LINEAR_ATTENTION = Function(
    "linear_attention",
    "Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, Tensor? state=None",
    "float? scale=None",
    also="state",
    results=_linear,
    forward=_linear_forward,
    key=lambda scale: None,
    numbers=_linear_numbers,
    autocast="low",
    cast=("q", "k", "v"),
)


def _based(q: Any, k: Any, v: Any, state: Any) -> tuple[Result, ...]:
    check("based", q, k, v, (taylor.D,), (64, 128))
    batch, heads, n, _ = q.shape
    shape = (batch, heads, v.shape[3], taylor.FEATURES)
    check_state("based", "state", state, shape)
    return Result((batch, heads, n, v.shape[3]), q.dtype), Result(shape, "f32", nothing="state")


BASED = Function(
    "based",
    "Tensor q, Tensor k, Tensor v, Tensor? state=None",
    also="state",
    results=_based,
    forward=taylor.call,
    autocast="low",
    cast=("q", "k", "v"),
)


def linear_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    log_decay: Any = None,
    scale: float | None = None,
    state: Any = None,
    return_state: bool = False,
) -> Any:
    """o_i = scale * sum_{j <= i} exp(g (i - j)) (q_i . k_j) v_j for each batch and head, on arrays of any framework.

    q, k: (batch, heads, n, d), v: (batch, heads, n, e), bf16 or f16, d and e 64 or 128, any n, any strides. `log_decay`
    is
    g, float32 (heads,), zero or less; without it there is no decay. `scale` is 1 / sqrt(d) unless given. `state`: what
    an
    earlier call returned, for rows that continue it, float32 (batch, heads, e, d). Returns o, or (o, state) with
    `return_state`. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return LINEAR_ATTENTION((q, k, v, log_decay, state), (scale,), return_state)


def based(q: Any, k: Any, v: Any, *, state: Any = None, return_state: bool = False) -> Any:
    """o_i = sum_{j <= i} (1 + s_ij + s_ij^2 / 2) v_j, s_ij = q_i . k_j / 4, for each batch and head, on arrays of any
    framework.

    q, k: (batch, heads, n, 16), v: (batch, heads, n, e), bf16 or f16, e 64 or 128, any n, any strides. `state`: what an
    earlier call returned, for rows that continue it, float32 (batch, heads, e, 160). Returns o, or (o, state) with
    `return_state`. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return BASED((q, k, v, state), (), return_state)
