"""Linear attention with decays that change with time, for each head or each channel."""

from __future__ import annotations

from typing import Any

from ..kernels import gated_linear_attention as kernels
from ..kernels.linear_attention import DIMS
from ..kernels.sequences import check, check_gradient, check_offsets, check_state
from .declaration import Backward, Function, Result
from .row_forms import PackedRows, one_row

_NAME = "gated_linear_attention"


def _results(
    q: Any, k: Any, v: Any, log_decay: Any, state: Any, cu_seqlens: Any, scale: float | None, exact_state: bool = False
) -> tuple[Result, ...]:
    check(_NAME, q, k, v, DIMS, DIMS)
    batch, heads, n, d = q.shape
    kept = (check_offsets(_NAME, cu_seqlens, batch), heads, v.shape[3], d)
    check_state(_NAME, "log_decay", log_decay, (batch, heads, n, d)[: 4 if len(log_decay.shape) == 4 else 3])
    check_state(_NAME, "state", state, kept)
    return Result(v.shape, q.dtype, order="v"), Result(kept, "f32", nothing="state")


def _scale(q: Any, scale: float | None) -> float:
    return float((q.shape[-1] or 1) ** -0.5 if scale is None else scale)


def _numbers(
    q: Any, k: Any, v: Any, log_decay: Any, state: Any, cu_seqlens: Any, scale: float | None, exact_state: bool
) -> tuple[float]:
    return (_scale(q, scale),)


def _forward(
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    cu_seqlens: Any,
    o: Any,
    after: Any,
    scale: float | None,
    exact_state: bool,
) -> Any:
    return kernels.call(q, k, v, log_decay, state, cu_seqlens, o, after, _scale(q, scale), exact_state)


def _gradient_results(
    do: Any, q: Any, k: Any, v: Any, log_decay: Any, state: Any, cu_seqlens: Any, dafter: Any, scale: float | None
) -> tuple[Result, ...]:
    name = f"{_NAME}_backward"
    _, after = _results(q, k, v, log_decay, state, cu_seqlens, scale)
    shape = after.shape
    check_gradient(name, do, v)
    check_state(name, "dafter", dafter, shape)
    return (
        *(Result(x.shape, x.dtype, order=name) for name, x in (("q", q), ("k", k), ("v", v))),
        Result(log_decay.shape, "f32"),
        Result((0,) if state is None else shape, "f32", nothing="dafter"),
    )


def _backward(do: Any, q: Any, k: Any, v: Any, log_decay: Any, state: Any, cu_seqlens: Any, *rest: Any) -> Any:
    dafter, *made, scale = rest
    scale = _scale(q, scale)
    return kernels.call_backward(do, dafter, q, k, v, log_decay, state, cu_seqlens, *made, scale=scale)


GATED_LINEAR_ATTENTION_BACKWARD = Function(
    f"{_NAME}_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? state=None, Tensor? cu_seqlens=None, "
    "Tensor? dafter=None",
    "float? scale=None",
    outputs=("dq", "dk", "dv", "dlog_decay", "dstate"),
    results=_gradient_results,
    forward=_backward,
    autocast="low",
    cast=("do", "q", "k", "v"),
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.v.new_zeros(saved.v.shape) if grads.out is None else grads.out
    operands = (do, saved.q, saved.k, saved.v, saved.log_decay, saved.state, saved.cu_seqlens, grads.after)
    made = GATED_LINEAR_ATTENTION_BACKWARD(operands, (settings.scale,))
    return dict(zip(("q", "k", "v", "log_decay", "state"), made, strict=True))


GATED_LINEAR_ATTENTION = Function(
    _NAME,
    "Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? state=None, Tensor? cu_seqlens=None",
    "float? scale=None, bool exact_state=False",
    also="after",
    results=_results,
    forward=_forward,
    key=lambda scale, exact_state: exact_state,
    numbers=_numbers,
    autocast="low",
    cast=("q", "k", "v"),
    backward=Backward(("q", "k", "v", "log_decay", "state", "cu_seqlens"), _gradients),
)


def gated_linear_attention(
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    *,
    scale: float | None = None,
    state: Any = None,
    cu_seqlens: Any = None,
    exact_state: bool = False,
    return_state: bool = False,
) -> Any:
    """o_i = scale * S_i q_i, S_i = S_(i - 1) exp(g_i) + v_i k_i, for each batch and head, on arrays of any framework.

    q, k: (batch, heads, n, d), v: (batch, heads, n, e), bf16 or f16, d and e 64 or 128, any n, any strides. `log_decay`
    is g, float32, zero or less, also -inf: (batch, heads, n), a decay for each head (simple GLA; RetNet and Lightning
    attention have a constant one), or (batch, heads, n, d), one for each channel of the keys (GLA). `scale` is 1 /
    sqrt(d) unless given. `state`: what an earlier call returned, for rows that continue it, float32 (batch, heads, e,
    d); its sums are of 16-bit products, but with `exact_state` of those of float32. Packed sequences: batch 1, or
    (total, heads, d) without it and log_decay (total, heads[, d]), with `cu_seqlens`, int32 (sequences + 1,) on q's
    device, from 0 to n, not decreasing; states are then one for each sequence. Returns o, or (o, state) with
    `return_state`. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    rows = PackedRows(2, q, 4, cu_seqlens)
    operands = (*rows.batched(q, k, v, log_decay), state, cu_seqlens)
    return rows.result(GATED_LINEAR_ATTENTION(operands, (scale, exact_state), return_state))


def gated_linear_attention_step(
    q: Any, k: Any, v: Any, log_decay: Any, *, state: Any, scale: float | None = None
) -> tuple[Any, Any]:
    """One row of `gated_linear_attention` for each sequence: (o, state) of q, k, v (batch, heads, d) and the state
    before it, None where there is none.

    log_decay: float32 (batch, heads) or (batch, heads, d); `scale` and all else as `gated_linear_attention` has it. For
    every GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    row, decays = "batch, heads, d", "batch, heads or batch, heads, d"
    name = "gated_linear_attention_step"
    rows = one_row(name, 2, q=(q, row), k=(k, row), v=(v, "batch, heads, e"), log_decay=(log_decay, decays))
    o, after = gated_linear_attention(*rows, scale=scale, state=state, return_state=True)
    return o[:, :, 0], after
