"""Blocks with a state in place of attention: Gated DeltaNet and Mamba-2."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError
from ..functions.convolution import causal_conv1d
from ..functions.delta_rule import gated_delta_rule, gated_delta_rule_step
from ..functions.gates import swiglu
from ..functions.mamba2 import mamba2
from ..functions.norms import rmsnorm
from .transformer import RMSNorm


class RecurrentCache(NamedTuple):
    """What a block keeps of the rows so far: the convolution's last rows, and the recurrence's state in float32."""

    rows: Tensor
    state: Tensor


class Convolution(nn.Module):  # type: ignore[misc]
    """The weights of a convolution of each channel along time, shaped as torch.nn.Conv1d has them."""

    def __init__(self, channels: int, width: int, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype)) if bias else None
        nn.init.uniform_(self.weight, -(width**-0.5), width**-0.5)


def rates(heads: int, device: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Mamba-2's first A_log and dt_bias, float32 (heads,): decays exp(A_log) of 1 to 16, steps softplus(dt_bias) of
    0.001 to 0.1, both drawn (Dao and Gu, "Transformers are SSMs", 2024).
    """
    steps = torch.empty(heads, device=device).uniform_(math.log(1e-3), math.log(0.1)).exp()
    decays = torch.empty(heads, device=device).uniform_(1, 16)
    return nn.Parameter(decays.log()), nn.Parameter(steps + torch.log(-torch.expm1(-steps)))


class GatedDeltaNet(nn.Module):  # type: ignore[misc]
    """Gated DeltaNet (Yang et al., "Gated Delta Networks", 2024): x (batch, n, size), bf16 or f16, to the same.

    q, k, v of `q_proj`, `k_proj`, `v_proj` go through a short convolution with SiLU; `heads` states of `head_dim` times
    `value_dim` are decayed by -exp(A_log) softplus(a + dt_bias), a of `a_proj`, and overwritten by key as strongly as
    sigmoid of `b_proj` says; what q reads of them is normed, gated by SiLU of `g_proj`, and projected by `o_proj`.
    `key_heads` of q and k are each shared by heads / key_heads states. Dimensions as `pk.gated_delta_rule` has them.

    All projections are one product, the convolution reads its columns in place, and the recurrence the convolution's.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        key_heads: int | None = None,
        head_dim: int = 128,
        value_dim: int | None = None,
        width: int = 4,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        key_heads, value_dim = key_heads or heads, value_dim or head_dim
        if heads % key_heads:
            raise ArgumentError(f"GatedDeltaNet: {heads} heads, {key_heads} for keys", fix="use a multiple of them")
        keys, values = key_heads * head_dim, heads * value_dim
        self.heads, self.key_heads, self.sizes = heads, key_heads, (keys, keys, values)
        for name, columns in zip("qkvgab", (keys, keys, values, values, heads, heads), strict=True):
            setattr(self, f"{name}_proj", nn.Linear(size, columns, False, device, dtype))
        for name, columns in zip("qkv", self.sizes, strict=True):
            setattr(self, f"{name}_conv1d", Convolution(columns, width, False, device, dtype))
        self.A_log, self.dt_bias = rates(heads, device)
        self.o_norm = RMSNorm(value_dim, eps, device, dtype)
        self.o_proj = nn.Linear(values, size, False, device, dtype)

    def forward(self, x: Tensor, cache: RecurrentCache | None = None, return_cache: bool = False) -> Any:
        """y, or (y, cache) with `return_cache`: `cache` is what an earlier call returned, for rows that go on."""
        columns = torch.cat([getattr(self, f"{name}_proj").weight for name in "qkvgab"])
        together, g, a, b = F.linear(x, columns).split([sum(self.sizes), self.sizes[2], self.heads, self.heads], -1)
        taps = torch.cat([getattr(self, f"{name}_conv1d").weight[:, 0] for name in "qkv"])
        made = causal_conv1d(together, taps, activation="silu", state=cache and cache.rows, return_state=return_cache)
        mixed, rows = made if return_cache else (made, None)
        counts = (self.key_heads, self.key_heads, self.heads)
        q, k, v = (
            part.unflatten(-1, (count, -1)).transpose(1, 2)
            for part, count in zip(mixed.split(self.sizes, -1), counts, strict=True)
        )
        beta = b.float().sigmoid().transpose(1, 2)
        decay = (-self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())).transpose(1, 2)
        state = cache and cache.state
        if x.shape[1] == 1 and state is not None and return_cache and not torch.is_grad_enabled():
            one = (t[:, :, 0] for t in (q, k, v, beta, decay))
            o, state = gated_delta_rule_step(*one, state=state, normalize=True)
            o = o[:, :, None]
        else:
            found = gated_delta_rule(q, k, v, beta, decay, normalize=True, state=state, return_state=return_cache)
            o, state = found if return_cache else (found, None)
        normed = rmsnorm(o.transpose(1, 2), self.o_norm.weight, eps=self.o_norm.eps)
        y = self.o_proj(swiglu(g, normed.flatten(2)))
        return (y, RecurrentCache(rows, state)) if return_cache else y


class Mamba2(nn.Module):  # type: ignore[misc]
    """Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024): x (batch, n, size), bf16 or f16, to the same.

    `in_proj` makes z, x, B, C and dt; x, B and C go through a short convolution with SiLU and are `pk.mamba2`'s, with
    `heads` of `head_dim` columns and `groups` of `states`; the result is gated by SiLU of z, normed, and projected by
    `out_proj`. Dimensions as `pk.mamba2` has them.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        head_dim: int = 64,
        states: int = 128,
        groups: int = 1,
        width: int = 4,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.groups, self.sizes = heads, groups, (inner, groups * states, groups * states)
        self.in_proj = nn.Linear(size, inner + sum(self.sizes) + heads, False, device, dtype)
        self.conv1d = Convolution(sum(self.sizes), width, True, device, dtype)
        self.A_log, self.dt_bias = rates(heads, device)
        self.D = nn.Parameter(torch.ones(heads, device=device))
        self.norm = RMSNorm(inner, eps, device, dtype)
        self.out_proj = nn.Linear(inner, size, False, device, dtype)

    def forward(self, x: Tensor, cache: RecurrentCache | None = None, return_cache: bool = False) -> Any:
        """y, or (y, cache) with `return_cache`: `cache` is what an earlier call returned, for rows that go on."""
        z, together, dt = self.in_proj(x).split([self.sizes[0], sum(self.sizes), self.heads], -1)
        made = causal_conv1d(
            together,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            state=cache and cache.rows,
            return_state=return_cache,
        )
        mixed, rows = made if return_cache else (made, None)
        v, keys, queries = (
            part.unflatten(-1, (count, -1))
            for part, count in zip(mixed.split(self.sizes, -1), (self.heads, self.groups, self.groups), strict=True)
        )
        found = mamba2(
            v,
            dt,
            -self.A_log.float().exp(),
            keys,
            queries,
            D=self.D.float(),
            dt_bias=self.dt_bias.float(),
            dt_softplus=True,
            state=cache and cache.state,
            return_state=return_cache,
        )
        y, state = found if return_cache else (found, None)
        y = self.out_proj(self.norm(swiglu(z, y.flatten(2))))
        return (y, RecurrentCache(rows, state)) if return_cache else y
