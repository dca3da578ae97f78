"""What fla's Mamba-2 layer takes from mamba_ssm, whether or not that is installed.

Without mamba_ssm the names are None in fla, and the layer computes in plain torch. Then `fast_path` takes the place of
the layer's fast path, and leaves to torch whatever ours does not do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...errors import ArgumentError
from ...functions.convolution import causal_conv1d
from ...functions.mamba2 import mamba2, mamba2_step
from ...gpu.driver import architecture
from ...kernels.ssd import STATES
from ...kernels.ssd_backward import STAGES
from ...kernels.ssd_passes import COLUMNS
from .plan import refuse

ENDLESS = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = ENDLESS,
    return_final_states: bool = False,
    seq_idx: Tensor | None = None,
) -> Any:
    """mamba_ssm's function of this name: y, or (y, states)."""
    refuse(tuple(dt_limit) != ENDLESS or seq_idx is not None, "dt_limit or seq_idx")
    _check(x, B, D, (x, dt, A, B, C, D, z, dt_bias, initial_states))
    options: dict[str, Any] = {
        "D": _f32(D),
        "z": z,
        "dt_bias": dt_bias,
        "dt_softplus": dt_softplus,
        "state": _f32(initial_states),
    }
    return mamba2(x, dt, A.float(), B, C, **options, return_state=return_final_states)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = ENDLESS,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Any:
    """mamba_ssm's function of this name: convolution, recurrence, gated norm and last projection of a whole layer."""
    refuse(seq_idx is not None or return_final_states, "seq_idx or return_final_states")
    refuse(headdim is None or D.ndim != 1 or activation not in ("silu", "swish"), "a D for each column, or no silu")
    heads, channels = A.shape[0], conv1d_weight.shape[0]
    inner = heads * headdim
    states = (channels - inner) // (2 * ngroups)
    refuse(zxbcdt.shape[-1] != inner + channels + heads, "an MLP within the projection")
    z, xbc, dt = zxbcdt.split([inner, channels, heads], -1)
    x, b, c = (
        part.unflatten(-1, (-1, size))
        for part, size in zip(
            causal_conv1d(xbc, conv1d_weight, conv1d_bias, activation="silu").split(
                [inner, ngroups * states, ngroups * states], -1
            ),
            (headdim, states, states),
            strict=True,
        )
    )
    gate = None if rmsnorm_weight is not None else z.unflatten(-1, (heads, -1))
    y = mamba_chunk_scan_combined(
        x, dt, A, b, c, chunk_size, D, gate, dt_bias, initial_states, dt_softplus=True, dt_limit=dt_limit
    ).flatten(2)
    if rmsnorm_weight is not None:
        from fla.modules.layernorm_gated import rmsnorm_fn

        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    return y if outproj_weight is None else linear(y, outproj_weight.to(y.dtype), outproj_bias)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """mamba_ssm's function of this name for Mamba-2's operands: y of one row, and the state overwritten."""
    _check(x, B, None, (state, x, dt, A, B, C, D, z, dt_bias))
    a, (each, offset, skip) = _same(A, 2), (None if t is None else _same(t, 1) for t in (dt, dt_bias, D))
    y, after = mamba2_step(
        x, each, a.float(), B, C, state=state.float(), D=_f32(skip), z=z, dt_bias=offset, dt_softplus=dt_softplus
    )
    state.copy_(after)
    return y


def _same(x: Tensor, axes: int) -> Tensor:
    """What was expanded over the last axes, before it was: mamba_ssm's layout of what a head has one of."""
    refuse(any(x.stride(-1 - i) for i in range(axes)), "a parameter that differs within a head")
    return x[(..., *(0,) * axes)]


def _f32(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _check(x: Tensor, b: Tensor, skip: Tensor | None, tensors: tuple[Tensor | None, ...]) -> None:
    refuse(x.dtype not in (torch.bfloat16, torch.float16), f"x in {x.dtype}")
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    sizes = STAGES if wanted else STATES
    refuse(x.shape[-1] not in COLUMNS or b.shape[-1] not in sizes, f"heads of {x.shape[-1]}, states of {b.shape[-1]}")
    refuse(skip is not None and skip.ndim != 1, "a D for each column")
    refuse(x.is_cuda and "wgmma" not in architecture(x.device.index).features, "this GPU")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "mamba_split_conv1d_scan_combined": mamba_split_conv1d_scan_combined,
    "selective_state_update": selective_state_update,
}


def fast_path(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Mamba2.cuda_kernels_forward` where mamba_ssm is not installed: plain torch for layers that ours does not do, and
    for padding in training, which fla's fast path would not look at.
    """

    def cuda_kernels_forward(
        self: Any,
        hidden_states: Tensor,
        last_state: Any = None,
        use_cache: bool = False,
        attention_mask: Tensor | None = None,
    ) -> Any:
        arguments = (hidden_states, last_state, use_cache, attention_mask)
        padded = attention_mask is not None and attention_mask.shape == hidden_states.shape[:2]
        if padded and last_state is None and not use_cache or not _fits(self, hidden_states):
            if padded and last_state is None:
                hidden_states = (hidden_states * attention_mask[:, :, None]).to(hidden_states.dtype)  # type: ignore[index]
            return self.torch_forward(hidden_states, *arguments[1:])
        return original(self, *arguments)

    return cuda_kernels_forward


def _fits(layer: Any, x: Tensor) -> bool:
    """Whether each call of the layer is one that ours takes."""
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else layer.in_proj.weight.dtype
    example = x.new_empty((0, layer.head_dim), dtype=dtype, requires_grad=torch.is_grad_enabled())
    try:
        _check(example, x.new_empty((0, layer.ssm_state_size)), layer.D if layer.D_has_hdim else None, (example,))
        refuse(tuple(layer.dt_limit) != ENDLESS or layer.D_has_hdim, "dt_limit or a D for each column")
        refuse(layer.activation not in ("silu", "swish") or layer.conv_kernel_size not in (2, 3, 4), "the convolution")
    except ArgumentError:
        return False
    return True
