"""fla's recurrences with a state: linear attention with and without gates, delta rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...functions.delta_rule import (
    GATED_DELTA_RULE,
    GATED_DELTA_RULE_STEP,
    KIMI_DELTA_ATTENTION,
    KIMI_DELTA_ATTENTION_STEP,
)
from ...functions.gated import GATED_LINEAR_ATTENTION
from ...functions.sequences import LINEAR_ATTENTION
from .plan import (
    Operand,
    PlannedCall,
    computed,
    converted,
    given,
    heads_first,
    offsets,
    refuse,
    replaces,
    sequence_results,
    state,
)

F32 = torch.float32


def _strength(beta: Tensor, logits: bool, doubled: bool) -> Operand:
    """beta, of which fla's kernels may be given the logits; `doubled` for eigenvalues down to -1."""
    refuse(doubled and not logits, "allow_neg_eigval without use_beta_sigmoid_in_kernel")
    beta = heads_first(beta)
    if not logits:
        return computed(beta, F32, lambda: beta.float())
    return computed(beta, F32, lambda: beta.float().sigmoid() * (2.0 if doubled else 1.0))


def _gate(g: Tensor, raw: bool, A_log: Tensor | None, dt_bias: Tensor | None) -> Operand:
    """The logarithm of a head's decay: g, or -exp(A_log) softplus(g + dt_bias) of the raw one (Mamba-2's gate)."""
    if not raw:
        return computed(heads_first(g), F32, lambda: heads_first(g).float())
    refuse(A_log is None, "a raw gate without A_log")

    def make() -> Tensor:
        x = g.float() if dt_bias is None else g.float() + dt_bias
        return heads_first(-A_log.float().exp() * softplus(x))  # type: ignore[union-attr]

    return computed(heads_first(g), F32, make)


def _channel_gate(
    g: Tensor, raw: bool, A_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None
) -> Operand:
    """The logarithm of each channel's decay; a raw one goes through fla's own gate, which is one kernel there."""
    if not raw:
        return computed(heads_first(g), F32, lambda: heads_first(g).float())
    refuse(A_log is None and lower_bound is None, "a raw gate without A_log")

    def make() -> Tensor:
        from fla.ops.kda import gate

        if g.is_cuda:
            return heads_first(gate.fused_kda_gate(g, A_log, dt_bias, lower_bound))
        if lower_bound is None:
            return heads_first(gate.naive_kda_gate(g, A_log, dt_bias))
        return heads_first(gate.naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound))

    return computed(heads_first(g), F32, make)


@replaces(
    "fla.ops.gated_delta_rule.chunk", "chunk_gated_delta_rule", registry="gated_delta_rule", ours="gated_delta_rule"
)
@replaces("fla.ops.delta_rule.chunk", "chunk_delta_rule", ours="gated_delta_rule")
def _delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> PlannedCall:
    operands = (
        *(given(heads_first(x)) for x in (q, k, v)),
        _strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        None if g is None else _gate(g, use_gate_in_kernel, A_log, dt_bias),
        state(initial_state, state_v_first),
        offsets(cu_seqlens),
    )
    settings = (scale, bool(use_qk_l2norm_in_kernel))
    also = bool(output_final_state)
    return PlannedCall(GATED_DELTA_RULE, operands, settings, lambda x: sequence_results(x, also, state_v_first), also)


@replaces("fla.ops.kda.chunk", "chunk_kda", registry="function", ours="kimi_delta_attention")
def _kimi_delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,  # a promise that g is at least -5, which ours does not need
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> PlannedCall:
    refuse(safe_gate and use_gate_in_kernel and lower_bound is None, "safe_gate without lower_bound")
    operands = (
        *(given(heads_first(x)) for x in (q, k, v)),
        _strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        _channel_gate(g, use_gate_in_kernel, A_log, dt_bias, lower_bound),
        state(initial_state, state_v_first),
        offsets(cu_seqlens),
    )
    settings = (scale, bool(use_qk_l2norm_in_kernel))
    also = bool(output_final_state)
    return PlannedCall(
        KIMI_DELTA_ATTENTION, operands, settings, lambda x: sequence_results(x, also, state_v_first), also
    )


@replaces("fla.ops.simple_gla.chunk", "chunk_simple_gla", ours="gated_linear_attention")
@replaces(
    "fla.ops.simple_gla.fused_chunk", "fused_chunk_simple_gla", registry="function", ours="gated_linear_attention"
)
@replaces("fla.ops.gla.chunk", "chunk_gla", ours="gated_linear_attention")
def _gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> PlannedCall:
    refuse(g is not None and g_gamma is not None, "g and g_gamma together")
    refuse(g_gamma is not None and g_gamma.requires_grad, "a gradient of g_gamma, which fla's function does not give")
    refuse(g_gamma is not None and g_gamma.shape != q.shape[2:3], "a g_gamma that is not one for each head")
    operands = [given(heads_first(x)) for x in (q, k, v)]
    also = bool(output_final_state)

    def finish(made: Any) -> tuple[Any, Any]:
        return sequence_results(made, also, state_v_first)

    if g is None and cu_seqlens is None and q.shape[1] != 1:  # no decay, or one that does not change with time
        operands += [converted(g_gamma, F32), state(initial_state, state_v_first)]
        return PlannedCall(LINEAR_ATTENTION, tuple(operands), (scale,), finish, also)
    if g is not None:
        decay = computed(heads_first(g), F32, lambda: heads_first(g).float())
    else:
        decay = computed(heads_first(q[..., 0]), F32, lambda: _each_row(g_gamma, q))
    operands += [decay, state(initial_state, state_v_first), offsets(cu_seqlens)]
    return PlannedCall(GATED_LINEAR_ATTENTION, tuple(operands), (scale, False), finish, also)


def _each_row(g_gamma: Tensor | None, q: Tensor) -> Tensor:
    """A head's decay at each row of each sequence, or none: float32 (batch, heads, time)."""
    decay = q.new_zeros(q.shape[2], dtype=F32) if g_gamma is None else g_gamma.float()
    return decay[None, :, None].repeat(q.shape[0], 1, q.shape[1])


# One row of each sequence: fla's functions for decoding take any number of rows, one after another. ---------------


def _row(*tensors: Tensor | None) -> list[Any]:
    """The only row of each sequence."""
    refuse(tensors[0].shape[1] != 1, "several rows, one after another")  # type: ignore[union-attr]
    return [None if x is None else x[:, 0] for x in tensors]


def _before(q: Tensor, v: Tensor, initial_state: Tensor | None, values_first: bool) -> Operand:
    """The state before a row: zeros where none is given."""
    if initial_state is not None:
        return state(initial_state, values_first)  # type: ignore[return-value]
    shape = (q.shape[0], v.shape[1], v.shape[2], q.shape[2])
    info = given(v).info._replace(shape=shape, dtype="f32")  # type: ignore[union-attr]
    return Operand(info, lambda: v.new_zeros(shape, dtype=F32))


def _step_results(made: Any, wanted: bool, values_first: bool) -> tuple[Any, Any]:
    o, after = made
    return o[:, None], None if not wanted else after if values_first else after.transpose(-1, -2)


@replaces("fla.ops.gated_delta_rule.fused_recurrent", "fused_recurrent_gated_delta_rule", ours="gated_delta_rule_step")
@replaces("fla.ops.delta_rule.fused_recurrent", "fused_recurrent_delta_rule", ours="gated_delta_rule_step")
def _delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
) -> PlannedCall:
    refuse(beta is None, "no beta")
    rows = _row(q, k, v)
    strength = _strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    gate = None if g is None else _gate(g, use_gate_in_kernel, A_log, dt_bias)
    operands = (
        *map(given, rows),
        _last(strength),
        gate and _last(gate),
        _before(rows[0], rows[2], initial_state, state_v_first),
    )
    settings = (scale, bool(use_qk_l2norm_in_kernel))
    return PlannedCall(
        GATED_DELTA_RULE_STEP, operands, settings, lambda x: _step_results(x, output_final_state, state_v_first)
    )


@replaces(
    "fla.ops.simple_gla.fused_recurrent",
    "fused_recurrent_simple_gla",
    registry="function",
    ours="gated_linear_attention_step",
)
@replaces("fla.ops.gla.fused_recurrent", "fused_recurrent_gla", ours="gated_linear_attention_step")
def _gated_linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
) -> PlannedCall:
    refuse(q.shape[1] != 1 or (g is not None and gk is not None), "several rows, one after another, or two gates")
    g = gk if g is None else g
    return _gated_linear_attention(q, k, v, g, g_gamma, scale, initial_state, output_final_state, state_v_first)


@replaces("fla.ops.kda.fused_recurrent", "fused_recurrent_kda", ours="kimi_delta_attention_step")
def _kimi_delta_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
) -> PlannedCall:
    rows = _row(q, k, v)
    operands = (
        *map(given, rows),
        _last(_strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)),
        _last(_channel_gate(g, use_gate_in_kernel, A_log, dt_bias, lower_bound)),
        _before(rows[0], rows[2], initial_state, state_v_first),
    )
    settings = (scale, bool(use_qk_l2norm_in_kernel))
    return PlannedCall(
        KIMI_DELTA_ATTENTION_STEP, operands, settings, lambda x: _step_results(x, output_final_state, state_v_first)
    )


def _last(x: Operand) -> Operand:
    """An operand (batch, heads, 1, ...) without its axis of time."""
    shape, strides = x.info.shape, x.info.strides
    info = x.info._replace(shape=shape[:2] + shape[3:], strides=strides[:2] + strides[3:])
    return Operand(info, lambda: x.make().select(2, 0))
