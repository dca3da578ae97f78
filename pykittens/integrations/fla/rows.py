"""fla's short convolution, norms and cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...functions.convolution import CAUSAL_CONV1D, CAUSAL_CONV1D_BACKWARD
from ...functions.loss import CROSS_ENTROPY, CROSS_ENTROPY_LSE
from ...functions.norms import LAYERNORM, RMSNORM
from .plan import Operand, PlannedCall, given, offsets, refuse, replaces

# The convolution. fla's state is the last `width` rows (N, channels, width), of which y needs all but the first. ----


def _conv_state(state: Tensor | None, dtype: torch.dtype) -> Operand | None:
    """fla's state as ours: (N, width - 1, channels), of the dtype of x."""
    if state is None:
        return None
    view = state[:, :, 1:].transpose(1, 2)
    return Operand(given(view.to(dtype)).info, lambda: view.to(dtype))  # type: ignore[union-attr]


@replaces("fla.modules.causal_conv1d.ops", "causal_conv1d_fwd", registry="function", ours="causal_conv1d")
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> PlannedCall:
    refuse(weight is None or residual is not None, "a convolution without weight, or with a residual")
    operands = (given(x), given(weight), given(bias), _conv_state(initial_state, x.dtype), offsets(cu_seqlens))

    def finish(y: Tensor) -> tuple[Tensor, Tensor | None]:
        return y, _last_rows(x, weight.shape[1], initial_state, cu_seqlens) if output_final_state else None

    return PlannedCall(CAUSAL_CONV1D, operands, (_activation(activation),), finish)


def _last_rows(x: Tensor, width: int, before: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is not None:
        from fla.modules.causal_conv1d import causal_conv1d_update_states

        return causal_conv1d_update_states(x=x, state_len=width, initial_state=before, cu_seqlens=cu_seqlens)
    if x.shape[1] >= width:
        return x[:, -width:].transpose(1, 2).contiguous()
    rows = x.transpose(1, 2)
    before = rows.new_zeros(*rows.shape[:2], width) if before is None else before.to(x.dtype)
    return torch.cat([before[:, :, x.shape[1] :], rows], 2)


def _activation(name: str | None) -> str | None:
    return "silu" if name == "swish" else name


@replaces("fla.modules.causal_conv1d.ops", "causal_conv1d_bwd", registry="function", ours="causal_conv1d")
def _convolution_backward(
    x: Tensor,
    dy: Tensor,
    dht: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> PlannedCall:
    """fla's (dx, dweight, dbias, dresidual, dstate). Of the state's gradient `dht`, ours takes all rows but the first,
    which is that of a row of x, or of the state before where there are fewer than `width` rows.
    """
    refuse(weight is None or residual is not None, "a convolution without weight, or with a residual")
    refuse(dht is not None and cu_seqlens is not None, "the gradient of the states of packed sequences")
    before = _conv_state(initial_state, x.dtype)
    operands = (given(dy), given(x), given(weight), given(bias), before, offsets(cu_seqlens))
    n, width = x.shape[1], weight.shape[1]

    def finish(made: Any) -> tuple[Any, ...]:
        dx, dweight, dbias, dstate = made
        dbefore = None
        if initial_state is not None:
            dbefore = torch.zeros_like(initial_state)
            dbefore[:, :, 1:] = dstate.transpose(1, 2)
        if dht is not None:
            if n >= width:
                dx[:, n - width] += dht[:, :, 0]
            elif dbefore is not None:
                dbefore[:, :, n] += dht[:, :, 0]
        return dx, dweight, None if bias is None else dbias, None, dbefore

    return PlannedCall(
        CAUSAL_CONV1D_BACKWARD, (*operands, _conv_state(dht, x.dtype)), (_activation(activation),), finish
    )


# Norms: fla's functions that a user's modules call, forward and backward together. ---------------------------------


def _norm(
    function: Any, x: Tensor, weight: Any, bias: Any, residual: Any, eps: float, prenorm: bool, f32: bool
) -> PlannedCall:
    refuse(prenorm and residual is None and f32 and x.dtype != torch.float32, "a residual in float32 made of x")
    operands = (given(x), given(residual), given(weight), given(bias), None)
    pair = residual is not None

    def finish(made: Any) -> Any:
        y, s = made if pair else (made, x)
        return (y, s) if prenorm else y

    return PlannedCall(function, operands, (eps, 0.0, 0), finish, pair)


@replaces("fla.modules.norm.layernorm", "rms_norm", ours="rmsnorm")
def _rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> PlannedCall:
    return _norm(RMSNORM, x, weight, bias, residual, eps, prenorm, residual_in_fp32)


@replaces("fla.modules.norm.layernorm", "layer_norm", ours="layernorm")
def _layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> PlannedCall:
    return _norm(RMSNORM if is_rms_norm else LAYERNORM, x, weight, bias, residual, eps, prenorm, residual_in_fp32)


@replaces("fla.modules.fused_cross_entropy.ops", "cross_entropy_loss", registry="function", ours="cross_entropy")
def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
) -> PlannedCall:
    """fla's pair: the losses, z-loss included, and the z-losses alone, which have no gradient."""
    operands = (given(logits), given(target))
    settings = ("none", ignore_index, label_smoothing, lse_square_scale, logit_softcapping or 0.0)
    if not lse_square_scale:
        return PlannedCall(CROSS_ENTROPY, operands, settings, lambda loss: (loss, torch.zeros_like(loss)))

    def finish(made: Any) -> tuple[Tensor, Tensor]:
        loss, lse = made
        with torch.no_grad():
            return loss, (lse_square_scale * lse * lse).masked_fill_(target == ignore_index, 0.0)

    return PlannedCall(CROSS_ENTROPY_LSE, operands, settings, finish)
