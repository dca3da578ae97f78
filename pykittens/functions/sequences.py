"""Causal attention with a state instead of a softmax: linear attention, and Based."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..kernels import based as taylor
from ..kernels import based_backward
from ..kernels import linear_attention as linear
from ..kernels import linear_attention_backward as linear_backward
from ..kernels.sequences import check, check_gradient, check_state
from .declaration import Backward, Function, Result


def _linear(q: Any, k: Any, v: Any, log_decay: Any, state: Any, scale: float | None) -> tuple[Result, ...]:
    name = "linear_attention"
    check(name, q, k, v, linear.DIMS, linear.DIMS)
    batch, heads, n, d = q.shape
    shape = (batch, heads, v.shape[3], d)
    check_state(name, "state", state, shape)
    check_state(name, "log_decay", log_decay, (heads,))
    return Result(v.shape, q.dtype, order="v"), Result(shape, "f32", nothing="state")


def _linear_numbers(q: Any, k: Any, v: Any, log_decay: Any, state: Any, scale: float | None) -> tuple[float]:
    return ((q.shape[-1] or 1) ** -0.5 if scale is None else float(scale),)


def _linear_forward(
    q: Any, k: Any, v: Any, log_decay: Any, state: Any, o: Any, after: Any, scale: float | None, **config: Any
) -> Any:
    return linear.call(q, k, v, log_decay, state, o, after, *_linear_numbers(q, k, v, None, None, scale), **config)


def _linear_gradients(
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    after: Any,
    dafter: Any,
    scale: float | None,
    *wanted: bool,
) -> tuple[Result, ...]:
    name = "linear_attention_backward"
    _linear(q, k, v, log_decay, state, scale)
    shape = (*q.shape[:2], v.shape[3], q.shape[3])
    check_gradient(name, do, v)
    check_state(name, "after", after, shape)
    check_state(name, "dafter", dafter, shape)
    if log_decay is not None and dafter is not None and after is None:
        fix = "pass after, the state that the forward returned: the gradient of log_decay depends on it"
        raise ArgumentError(f"{name}: dafter without after", fix=fix)
    parts, (*_, for_decay) = zip(("q", "k", "v"), (q, k, v), wanted, strict=False), wanted
    return (
        *(Result(x.shape, x.dtype, order=name) if want else Result((0,), x.dtype) for name, x, want in parts),
        Result((0,) if log_decay is None or not for_decay else log_decay.shape, "f32"),
        Result((0,) if state is None else shape, "f32", nothing="dafter"),
    )


def _linear_backward(do: Any, q: Any, k: Any, v: Any, log_decay: Any, state: Any, after: Any, *rest: Any) -> Any:
    dafter, *made, scale, _, _, _, _ = rest
    (scale,) = _linear_numbers(q, k, v, None, None, scale)
    return linear_backward.call(do, dafter, q, k, v, log_decay, state, after, *made, scale=scale)


LINEAR_ATTENTION_BACKWARD = Function(
    "linear_attention_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, Tensor? state=None, Tensor? after=None, "
    "Tensor? dafter=None",
    "float? scale=None, bool for_q=True, bool for_k=True, bool for_v=True, bool for_decay=True",
    outputs=("dq", "dk", "dv", "dlog_decay", "dstate"),
    results=_linear_gradients,
    forward=_linear_backward,
    autocast="low",
    cast=("do", "q", "k", "v"),
)


def _linear_pulled_back(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.v.new_zeros(saved.v.shape) if grads.out is None else grads.out
    operands = (do, saved.q, saved.k, saved.v, saved.log_decay, saved.state, saved.after, grads.after)
    made = LINEAR_ATTENTION_BACKWARD(operands, (settings.scale, needs.q, needs.k, needs.v, needs.log_decay))
    return dict(zip(("q", "k", "v", "log_decay", "state"), made, strict=True))


LINEAR_ATTENTION = Function(
    "linear_attention",
    "Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, Tensor? state=None",
    "float? scale=None",
    also="after",
    results=_linear,
    forward=_linear_forward,
    key=lambda scale: None,
    numbers=_linear_numbers,
    autocast="low",
    cast=("q", "k", "v"),
    backward=Backward(("q", "k", "v", "log_decay", "state", "after"), _linear_pulled_back, demands=False),
)


def _based(q: Any, k: Any, v: Any, state: Any) -> tuple[Result, ...]:
    check("based", q, k, v, (taylor.D,), (64, 128))
    batch, heads, n, _ = q.shape
    shape = (batch, heads, v.shape[3], taylor.FEATURES)
    check_state("based", "state", state, shape)
    return Result(v.shape, q.dtype, order="v"), Result(shape, "f32", nothing="state")


def _based_gradients(do: Any, q: Any, k: Any, v: Any, state: Any, dafter: Any) -> tuple[Result, ...]:
    _based(q, k, v, state)
    shape = (*q.shape[:2], v.shape[3], taylor.FEATURES)
    check_gradient("based_backward", do, v)
    check_state("based_backward", "dafter", dafter, shape)
    return (
        *(Result(x.shape, x.dtype, order=name) for name, x in (("q", q), ("k", k), ("v", v))),
        Result((0,) if state is None else shape, "f32", nothing="dafter"),
    )


def _based_backward(do: Any, q: Any, k: Any, v: Any, state: Any, dafter: Any, *made: Any) -> Any:
    return based_backward.call(do, dafter, q, k, v, state, *made)


_SUMMED = {"q": -1, "k": -1}  # keys of no features are all alike
BASED_BACKWARD = Function(
    "based_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor? state=None, Tensor? dafter=None",
    outputs=("dq", "dk", "dv", "dstate"),
    results=_based_gradients,
    forward=_based_backward,
    autocast="low",
    cast=("do", "q", "k", "v"),
    summed=_SUMMED,
    zeros=lambda *_: taylor.D,
)


def _based_pulled_back(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.v.new_zeros(saved.v.shape) if grads.out is None else grads.out
    made = BASED_BACKWARD((do, saved.q, saved.k, saved.v, saved.state, grads.after))
    return dict(zip(("q", "k", "v", "state"), made, strict=True))


BASED = Function(
    "based",
    "Tensor q, Tensor k, Tensor v, Tensor? state=None",
    also="after",
    results=_based,
    forward=taylor.call,
    autocast="low",
    cast=("q", "k", "v"),
    summed=_SUMMED,
    zeros=lambda *_: taylor.D,
    backward=Backward(("q", "k", "v", "state"), _based_pulled_back),
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
    is g, float32 (heads,), zero or less; without it there is no decay. `scale` is 1 / sqrt(d) unless given. `state`:
    what an earlier call returned, for rows that continue it, float32 (batch, heads, e, d). Returns o, or (o, state)
    with `return_state`. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return LINEAR_ATTENTION((q, k, v, log_decay, state), (scale,), return_state)


def linear_attention_backward(
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    *,
    log_decay: Any = None,
    scale: float | None = None,
    state: Any = None,
    after: Any = None,
    dafter: Any = None,
) -> Any:
    """The gradients (dq, dk, dv, dlog_decay, dstate) of `linear_attention`, from that of its result, `do`, and of the
    state that it returned, `dafter`.

    q, k, v, log_decay, scale and state are those of the forward; `after` is the state that it returned, which only the
    gradient of log_decay needs, where `dafter` is given. The gradients have the shapes and dtypes of the operands, with
    float32 sums in a fixed order; those of operands that are None have no elements. torch's autograd calls this by
    itself.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return LINEAR_ATTENTION_BACKWARD((do, q, k, v, log_decay, state, after, dafter), (scale, True, True, True, True))


def based(q: Any, k: Any, v: Any, *, state: Any = None, return_state: bool = False) -> Any:
    """o_i = sum_{j <= i} (1 + s_ij + s_ij^2 / 2) v_j, s_ij = q_i . k_j / 4, for each batch and head, on arrays of any
    framework.

    q, k: (batch, heads, n, 16), v: (batch, heads, n, e), bf16 or f16, e 64 or 128, any n, any strides. `state`: what an
    earlier call returned, for rows that continue it, float32 (batch, heads, e, 160). Returns o, or (o, state) with
    `return_state`. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return BASED((q, k, v, state), (), return_state)
