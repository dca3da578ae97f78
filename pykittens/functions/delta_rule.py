"""The gated delta rule, with a decay for each head or (Kimi delta attention) for each channel: a state whose rows are
overwritten by key.
"""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..kernels import delta_step
from ..kernels import gated_delta_rule as heads
from ..kernels import gated_delta_rule_backward as heads_backward
from ..kernels import kimi_delta_attention as channels
from ..kernels import kimi_delta_attention_backward as channels_backward
from ..kernels.arguments import KernelCall
from ..kernels.gated_delta_rule import DIMS, VALUES
from ..kernels.sequences import check, check_decays, check_gradient, check_offsets, check_state
from .declaration import Backward, Function, Result
from .row_forms import PackedRows, check_dimensions

_SETTINGS = "float? scale=None, bool normalize=False"
_SAVED = ("q", "k", "v", "beta", "log_decay", "state", "cu_seqlens")


def _check(name: str, wide: bool, q: Any, k: Any, v: Any, beta: Any, log_decay: Any) -> None:
    """One `ArgumentError` for operands that do not go together: all have four dimensions, beta three, and log_decay
    three or, of channels (`wide`), four.
    """
    heads, groups = (x.shape[1] if len(x.shape) == 4 else 0 for x in (v, q))
    if groups and heads % groups:
        fix = "the heads of v are as many as those of q and k, or a multiple of them"
        raise ArgumentError(f"{name}: v has {heads} heads, q {groups}", fix=fix)
    grouped = v._replace(shape=(v.shape[0], groups, *v.shape[2:])) if groups and len(v.shape) == 4 else v
    check(name, q, k, grouped, DIMS, VALUES)
    gates = (*v.shape[:3], q.shape[3]) if wide else v.shape[:3]
    for what, x, shape in (("beta", beta, v.shape[:3]), ("log_decay", log_decay, gates)):
        check_state(name, what, x, shape)


def _scale(q: Any, scale: float | None) -> float:
    return float((q.shape[-1] or 1) ** -0.5 if scale is None else scale)


def _declare(name: str, forward: Any, backward: Any, wide: bool) -> tuple[Function, Function, Function]:
    """The function, its gradients and its step, by the modules of kernels that do the first two."""
    operands = f"Tensor q, Tensor k, Tensor v, Tensor beta, Tensor{'' if wide else '?'} log_decay"
    packed = f"{operands}{'' if wide else '=None'}, Tensor? state=None, Tensor? cu_seqlens=None"

    def settings(q: Any, scale: float | None, normalize: bool) -> dict[str, Any]:
        return {"scale": _scale(q, scale), "norm": normalize}

    def results(
        q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, cu_seqlens: Any, *settings: Any
    ) -> tuple[Result, ...]:
        _check(name, wide, q, k, v, beta, log_decay)
        batch, heads, _, e = v.shape
        shape = (check_offsets(name, cu_seqlens, batch), heads, e, q.shape[3])
        check_state(name, "state", state, shape)
        return Result(v.shape, v.dtype, order="v"), Result(shape, "f32", nothing="state")

    def run(q: Any, *given: Any) -> KernelCall:
        *operands, scale, normalize, exact_state = given
        call: KernelCall = forward.call(q, *operands, **settings(q, scale, normalize), exact=exact_state)
        return call

    def gradient_results(do: Any, *given: Any) -> tuple[Result, ...]:
        *operands, dafter, scale, normalize = given
        q, k, v, beta, log_decay, state, cu_seqlens = operands
        _, after = results(*operands, scale, normalize)
        check_gradient(f"{name}_backward", do, v)
        check_state(f"{name}_backward", "dafter", dafter, after.shape)
        heads, own = (*v.shape[:3], q.shape[3]), v.shape[1] == q.shape[1]
        return (
            *(Result(heads, x.dtype, order=name if own else "") for name, x in (("q", q), ("k", k))),
            Result(v.shape, v.dtype, order="v"),
            Result(beta.shape, "f32"),
            Result((0,) if log_decay is None else log_decay.shape, "f32", order="log_decay" if wide else ""),
            Result((0,) if state is None else after.shape, "f32", nothing="dafter"),
        )

    def run_gradients(do: Any, q: Any, *given: Any) -> KernelCall:
        call: KernelCall = backward.call(do, q, *given[:-2], **settings(q, *given[-2:]))
        return call

    of_gradients = Function(
        f"{name}_backward",
        f"Tensor do, {packed}, Tensor? dafter=None",
        _SETTINGS,
        outputs=("dq", "dk", "dv", "dbeta", "dlog_decay", "dstate"),
        results=gradient_results,
        forward=run_gradients,
        autocast="low",
        cast=("do", "q", "k", "v"),
    )

    def gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
        do = saved.v.new_zeros(saved.v.shape) if grads.out is None else grads.out
        operands = (do, *(getattr(saved, name) for name in _SAVED), grads.after)
        *made, dstate = of_gradients(operands, (settings.scale, settings.normalize))
        found = {**dict(zip(_SAVED, made, strict=False)), "state": dstate}
        if (heads := saved.v.shape[1]) != (groups := saved.q.shape[1]):  # several heads have the same queries and keys
            for name in ("q", "k"):
                found[name] = found[name].unflatten(1, (groups, heads // groups)).sum(2)
        return found

    of_rows = Function(
        name,
        packed,
        f"{_SETTINGS}, bool exact_state=False",
        also="after",
        results=results,
        forward=run,
        key=lambda scale, *rest: rest,
        numbers=lambda q, *rest: (_scale(q, rest[-3]),),
        autocast="low",
        cast=("q", "k", "v"),
        backward=Backward(_SAVED, gradients),
    )

    def step_results(
        q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, *settings: Any
    ) -> tuple[Result, ...]:
        rows = [x and x._replace(shape=(*x.shape[:2], 1, *x.shape[2:])) for x in (q, k, v, beta, log_decay)]
        _check(f"{name}_step", wide, *rows)
        shape = (*v.shape, q.shape[2])
        check_state(f"{name}_step", "state", state, shape)
        return Result(v.shape, v.dtype), Result(shape, "f32")

    def run_step(q: Any, *given: Any) -> KernelCall:
        check_decays(f"{name}_step", "log_decay", given[3])
        return delta_step.call_step(q, *given[:-2], **settings(q, *given[-2:]))

    of_one = Function(
        f"{name}_step",
        f"{operands}{'' if wide else '=None'}, Tensor? state=None",
        _SETTINGS,
        outputs=("out", "after"),
        results=step_results,
        forward=run_step,
        key=lambda scale, normalize: normalize,
        numbers=lambda q, *rest: (_scale(q, rest[-2]),),
        autocast="low",
        cast=("q", "k", "v"),
    )
    return of_rows, of_gradients, of_one


GATED_DELTA_RULE, GATED_DELTA_RULE_BACKWARD, GATED_DELTA_RULE_STEP = _declare(
    "gated_delta_rule", heads, heads_backward, False
)
KIMI_DELTA_ATTENTION, KIMI_DELTA_ATTENTION_BACKWARD, KIMI_DELTA_ATTENTION_STEP = _declare(
    "kimi_delta_attention", channels, channels_backward, True
)


def _check_row(name: str, q: Any, k: Any, v: Any, beta: Any, log_decay: Any, decays: str) -> None:
    """`ArgumentError` for operands of a step that have other dimensions."""
    row, wide, head = "batch, groups, d", "batch, heads, e", "batch, heads"
    check_dimensions(name, q=(q, row), k=(k, row), v=(v, wide), beta=(beta, head), log_decay=(log_decay, decays))


def gated_delta_rule(
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    log_decay: Any = None,
    *,
    scale: float | None = None,
    normalize: bool = False,
    exact_state: bool = False,
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

    `state`: what an earlier call returned, for rows that continue it, float32 (batch, heads, e, d); its changes are of
    16-bit products, but with `exact_state` of float32, row by row, which takes several times as long. Returns o, or (o,
    state) with `return_state`. `cu_seqlens`: packed sequences: where each begins and the last ends, int32 (sequences +
    1,). Their rows have a batch of 1, or none and come first, as in `attention_varlen`: (total, heads, d), beta (total,
    heads); states are of sequences. For Hopper and the simulated GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    rows = PackedRows(2, q, 4, cu_seqlens)
    operands = (*rows.batched(q, k, v, beta, log_decay), state, cu_seqlens)
    return rows.result(GATED_DELTA_RULE(operands, (scale, normalize, exact_state), return_state))


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
    heads, e), beta and log_decay (batch, heads), and the state before it, None where there is none.

    `scale`, `normalize` and all else as `gated_delta_rule` has it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    _check_row("gated_delta_rule_step", q, k, v, beta, log_decay, "batch, heads")
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
    exact_state: bool = False,
    state: Any = None,
    return_state: bool = False,
    cu_seqlens: Any = None,
) -> Any:
    """`gated_delta_rule` with a decay for each channel of the keys (Kimi Linear): o_i = scale * S_i q_i, S_i =
    S_(i - 1) diag(exp(g_i)) + u_i k_i, u_i = beta_i (v_i - S_(i - 1) diag(exp(g_i)) k_i).

    log_decay: g, float32 (batch, heads, n, d), zero or less, also -inf. All else is as `gated_delta_rule` has it: q, k,
    v, beta, scale, normalize, exact_state, state, return_state, cu_seqlens.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    rows = PackedRows(2, q, 4, cu_seqlens)
    operands = (*rows.batched(q, k, v, beta, log_decay), state, cu_seqlens)
    return rows.result(KIMI_DELTA_ATTENTION(operands, (scale, normalize, exact_state), return_state))


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
    heads, e), beta (batch, heads), log_decay (batch, heads, d), and the state before it, None where there is none.

    `scale`, `normalize` and all else as `kimi_delta_attention` has it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    _check_row("kimi_delta_attention_step", q, k, v, beta, log_decay, "batch, heads, d")
    return KIMI_DELTA_ATTENTION_STEP((q, k, v, beta, log_decay, state), (scale, normalize))
