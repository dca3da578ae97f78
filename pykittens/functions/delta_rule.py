"""The gated delta rule, with a decay for each head or (Kimi delta attention) for each channel: a state whose rows are
overwritten by key.
"""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..kernels import gated_delta_rule as kernels
from ..kernels import gated_delta_rule_backward
from ..kernels import kimi_delta_attention as channels
from ..kernels.arguments import KernelCall
from ..kernels.sequences import check, check_gradient, check_offsets, check_state
from .declaration import Backward, Function, Result

_NAME, _KIMI = "gated_delta_rule", "kimi_delta_attention"
_OPERANDS = "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay=None"
_SETTINGS = "float? scale=None, bool normalize=False"


def _check(name: str, q: Any, k: Any, v: Any, beta: Any, log_decay: Any) -> None:
    """One `ArgumentError` for operands that do not go together: all have four dimensions, or beta and log_decay
    three.
    """
    heads, groups = (x.shape[1] if len(x.shape) == 4 else 0 for x in (v, q))
    if groups and heads % groups:
        fix = "the heads of v are as many as those of q and k, or a multiple of them"
        raise ArgumentError(f"{name}: v has {heads} heads, q {groups}", fix=fix)
    grouped = v._replace(shape=(v.shape[0], groups, *v.shape[2:])) if groups else v
    check(name, q, k, grouped, kernels.DIMS, kernels.VALUES)
    gates = (*v.shape[:3], q.shape[3]) if name.startswith(_KIMI) else v.shape[:3]
    for what, x, shape in (("beta", beta, v.shape[:3]), ("log_decay", log_decay, gates)):
        check_state(name, what, x, shape)


def _results(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, cu_seqlens: Any, *settings: Any
) -> tuple[Result, ...]:
    _check(_NAME, q, k, v, beta, log_decay)
    batch, heads, _, e = v.shape
    shape = (check_offsets(_NAME, cu_seqlens, batch), heads, e, q.shape[3])
    check_state(_NAME, "state", state, shape)
    return Result(v.shape, v.dtype, order="v"), Result(shape, "f32", nothing="state")


def _numbers(q: Any, *rest: Any) -> tuple[float]:
    scale = rest[-2]
    return (q.shape[-1] ** -0.5 if scale is None else float(scale),)


def _forward(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, cu_seqlens: Any, o: Any, after: Any, *settings: Any
) -> KernelCall:
    (scale,) = _numbers(q, *settings)
    given = (q, k, v, beta, log_decay, state, cu_seqlens, o, after)
    return kernels.call(*given, scale=scale, norm=settings[1])


def _gradient_results(do: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, dafter, scale, normalize = rest
    q, k, v, beta, log_decay, state, cu_seqlens = operands
    _, after = _results(*operands, scale, normalize)
    check_gradient(f"{_NAME}_backward", do, v)
    check_state(f"{_NAME}_backward", "dafter", dafter, after.shape)
    heads = (*v.shape[:3], q.shape[3])
    return (
        *(Result(heads, x.dtype, order=name) for name, x in (("q", q), ("k", k))),
        Result(v.shape, v.dtype, order="v"),
        Result(beta.shape, "f32"),
        Result((0,) if log_decay is None else beta.shape, "f32"),
        Result((0,) if state is None else after.shape, "f32", nothing="dafter"),
    )


def _backward(do: Any, *rest: Any) -> KernelCall:
    (q, k, v, beta, log_decay, state, cu_seqlens, dafter), made, settings = rest[:8], rest[8:-2], rest[-2:]
    (scale,) = _numbers(q, *settings)
    given = (do, dafter, q, k, v, beta, log_decay, state, cu_seqlens)
    return gated_delta_rule_backward.call(*given, *made, scale=scale, norm=settings[1])


GATED_DELTA_RULE_BACKWARD = Function(
    f"{_NAME}_backward",
    f"Tensor do, {_OPERANDS}, Tensor? state=None, Tensor? cu_seqlens=None, Tensor? dafter=None",
    _SETTINGS,
    outputs=("dq", "dk", "dv", "dbeta", "dlog_decay", "dstate"),
    results=_gradient_results,
    forward=_backward,
    autocast="low",
    cast=("do", "q", "k", "v"),
)
_SAVED = ("q", "k", "v", "beta", "log_decay", "state", "cu_seqlens")


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.v.new_zeros(saved.v.shape) if grads.out is None else grads.out
    operands = (do, *(getattr(saved, name) for name in _SAVED), grads.after)
    *made, dstate = GATED_DELTA_RULE_BACKWARD(operands, (settings.scale, settings.normalize))
    found = {**dict(zip(_SAVED, made, strict=False)), "state": dstate}
    if (heads := saved.v.shape[1]) != (groups := saved.q.shape[1]):  # several heads have the same queries and keys
        for name in ("q", "k"):
            found[name] = found[name].unflatten(1, (groups, heads // groups)).sum(2)
    return found


GATED_DELTA_RULE = Function(
    _NAME,
    f"{_OPERANDS}, Tensor? state=None, Tensor? cu_seqlens=None",
    _SETTINGS,
    also="after",
    results=_results,
    forward=_forward,
    key=lambda scale, normalize: normalize,
    numbers=_numbers,
    autocast="low",
    cast=("q", "k", "v"),
    backward=Backward(_SAVED, _gradients),
)


def _step_results(q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, *settings: Any) -> tuple[Result, ...]:
    name = f"{_NAME}_step"
    wide = [x._replace(shape=(*x.shape[:2], 1, *x.shape[2:])) for x in (q, k, v)]
    rows = [x and x._replace(shape=(*x.shape, 1)) for x in (beta, log_decay)]
    _check(name, *wide, *rows)
    shape = (*v.shape, q.shape[2])
    check_state(name, "state", state, shape)
    return Result(v.shape, v.dtype), Result(shape, "f32")


def _step(q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, o: Any, after: Any, *settings: Any) -> Any:
    (scale,) = _numbers(q, *settings)
    return kernels.call_step(q, k, v, beta, log_decay, state, o, after, scale=scale, norm=settings[1])


GATED_DELTA_RULE_STEP = Function(
    f"{_NAME}_step",
    _OPERANDS.replace("? log_decay=None", "? log_decay") + ", Tensor state",
    _SETTINGS,
    outputs=("out", "after"),
    results=_step_results,
    forward=_step,
    key=lambda scale, normalize: normalize,
    numbers=_numbers,
    autocast="low",
    cast=("q", "k", "v"),
)


def _kimi_results(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, cu_seqlens: Any, *settings: Any
) -> tuple[Result, ...]:
    _check(_KIMI, q, k, v, beta, log_decay)
    shape = (check_offsets(_KIMI, cu_seqlens, v.shape[0]), v.shape[1], v.shape[3], q.shape[3])
    check_state(_KIMI, "state", state, shape)
    return Result(v.shape, v.dtype, order="v"), Result(shape, "f32", nothing="state")


def _kimi(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, cu_seqlens: Any, o: Any, after: Any, *settings: Any
) -> KernelCall:
    (scale,) = _numbers(q, *settings)
    given = (q, k, v, beta, log_decay, state, cu_seqlens, o, after)
    return channels.call(*given, scale=scale, norm=settings[1])


KIMI_DELTA_ATTENTION = Function(
    _KIMI,
    "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor log_decay, Tensor? state=None, Tensor? cu_seqlens=None",
    _SETTINGS,
    also="after",
    results=_kimi_results,
    forward=_kimi,
    key=lambda scale, normalize: normalize,
    numbers=_numbers,
    autocast="low",
    cast=("q", "k", "v"),
)


def _kimi_step_results(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, *settings: Any
) -> tuple[Result, ...]:
    name = f"{_KIMI}_step"
    rows = [x._replace(shape=(*x.shape[:2], 1, *x.shape[2:])) for x in (q, k, v, beta, log_decay)]
    _check(name, *rows)
    shape = (*v.shape, q.shape[2])
    check_state(name, "state", state, shape)
    return Result(v.shape, v.dtype), Result(shape, "f32")


def _kimi_step(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, o: Any, after: Any, *settings: Any
) -> KernelCall:
    (scale,) = _numbers(q, *settings)
    return channels.call_step(q, k, v, beta, log_decay, state, o, after, scale=scale, norm=settings[1])


KIMI_DELTA_ATTENTION_STEP = Function(
    f"{_KIMI}_step",
    "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor log_decay, Tensor state",
    _SETTINGS,
    outputs=("out", "after"),
    results=_kimi_step_results,
    forward=_kimi_step,
    key=lambda scale, normalize: normalize,
    numbers=_numbers,
    autocast="low",
    cast=("q", "k", "v"),
)


def gated_delta_rule(
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    log_decay: Any = None,
    *,
    scale: float | None = None,
    normalize: bool = False,
    state: Any = None,
    return_state: bool = False,
    cu_seqlens: Any = None,
) -> Any:
    """o_i = scale * S_i q_i, S_i = exp(g_i) S_(i - 1) + u_i k_i, u_i = beta_i (v_i - exp(g_i) S_(i - 1) k_i), for each
    batch and head, on arrays of any framework: Gated DeltaNet, and DeltaNet where `log_decay` is None.

    q, k: (batch, groups, n, d), v: (batch, heads, n, e), bf16 or f16, heads a multiple of groups, d 64 or 128, e 64,
    128 or 256, any n, any strides. beta: float32 (batch, heads, n); `log_decay` is g, the same, zero or less, also
    -inf. `scale` is 1 / sqrt(d) unless given. `normalize`: q and k count as divided by their lengths, x / sqrt(x.x +
    1e-6). Rows that are not so long that the recurrence itself grows are the caller's business: beta |k|^2 at most 2.

    `state`: what an earlier call returned, for rows that continue it, float32 (batch, heads, e, d). Returns o, or (o,
    state) with `return_state`. `cu_seqlens`: packed sequences, of batch 1: where each begins and the last ends, int32
    (sequences + 1,); states are then of sequences. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return GATED_DELTA_RULE((q, k, v, beta, log_decay, state, cu_seqlens), (scale, normalize), return_state)


def gated_delta_rule_step(
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    log_decay: Any = None,
    *,
    state: Any,
    scale: float | None = None,
    normalize: bool = False,
) -> tuple[Any, Any]:
    """One row of `gated_delta_rule` for each sequence, in float32: (o, state) of q, k (batch, groups, d), v (batch,
    heads, e), beta and log_decay (batch, heads), and the state before it.

    `scale`, `normalize` and all else as `gated_delta_rule` has it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return GATED_DELTA_RULE_STEP((q, k, v, beta, log_decay, state), (scale, normalize))


def kimi_delta_attention(
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    log_decay: Any,
    *,
    scale: float | None = None,
    normalize: bool = False,
    state: Any = None,
    return_state: bool = False,
    cu_seqlens: Any = None,
) -> Any:
    """`gated_delta_rule` with a decay for each channel of the keys (Kimi Linear): o_i = scale * S_i q_i, S_i =
    S_(i - 1) diag(exp(g_i)) + u_i k_i, u_i = beta_i (v_i - S_(i - 1) diag(exp(g_i)) k_i).

    log_decay: g, float32 (batch, heads, n, d), zero or less, also -inf. All else is as `gated_delta_rule` has it: q, k,
    v, beta, scale, normalize, state, return_state, cu_seqlens; but there is no gradient yet, and asking for one is an
    error.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return KIMI_DELTA_ATTENTION((q, k, v, beta, log_decay, state, cu_seqlens), (scale, normalize), return_state)


def kimi_delta_attention_step(
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    log_decay: Any,
    *,
    state: Any,
    scale: float | None = None,
    normalize: bool = False,
) -> tuple[Any, Any]:
    """One row of `kimi_delta_attention` for each sequence, in float32: (o, state) of q, k (batch, groups, d), v (batch,
    heads, e), beta (batch, heads), log_decay (batch, heads, d), and the state before it.

    `scale`, `normalize` and all else as `kimi_delta_attention` has it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return KIMI_DELTA_ATTENTION_STEP((q, k, v, beta, log_decay, state), (scale, normalize))
