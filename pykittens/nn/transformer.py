"""Norms, a gated MLP, attention with rotary embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functions.attention import attention
from ..functions.gates import geglu, swiglu
from ..functions.linear import linear
from ..functions.norms import layernorm, rmsnorm
from ..functions.rotary import rotary


class RMSNorm(nn.Module):  # type: ignore[misc]
    """`torch.nn.RMSNorm` over the last axis: y = x / sqrt(mean(x^2) + eps) * weight. x: (..., size), bf16, f16 or f32.

    Called with `residual`, of x's shape, it returns the pair (y of x + residual, x + residual), in one pass.
    """

    def __init__(self, size: int, eps: float = 1e-6, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size, device=device, dtype=dtype)), eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return rmsnorm(x, self.weight, residual=residual, eps=self.eps)


class LayerNorm(nn.Module):  # type: ignore[misc]
    """`torch.nn.LayerNorm` over the last axis, called as `RMSNorm` here is. x: (..., size), bf16, f16 or f32."""

    def __init__(self, size: int, eps: float = 1e-5, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size, device=device, dtype=dtype)), eps
        self.bias = nn.Parameter(torch.zeros(size, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return layernorm(x, self.weight, self.bias, residual=residual, eps=self.eps)


class GatedMLP(nn.Module):  # type: ignore[misc]
    """down_proj(act(gate_proj(x)) * up_proj(x)), the MLP of Llama: (..., size) -> (..., size) through `hidden`.

    activation: "silu" (SwiGLU), "gelu" or "gelu_tanh" (GEGLU). On a GPU both products and the gate are one kernel
    (`pk.linear`) after `eval()`, where the operands are 16-bit floats and the projections are torch's own modules;
    elsewhere the projections are called, and the gate is a kernel: a whole step of training is faster so.
    """

    def __init__(
        self,
        size: int,
        hidden: int,
        activation: str = "silu",
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if activation not in ("silu", "gelu", "gelu_tanh"):
            raise ArgumentError(f"GatedMLP with activation={activation!r}", fix='use "silu", "gelu" or "gelu_tanh"')
        self.gate_proj = nn.Linear(size, hidden, bias, device, dtype)
        self.up_proj = nn.Linear(size, hidden, bias, device, dtype)
        self.down_proj = nn.Linear(hidden, size, bias, device, dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and one_kernel(x, self.gate_proj, self.up_proj):
            first, second = self.gate_proj, self.up_proj
            bias = None if first.bias is None else torch.cat((first.bias, second.bias))
            gate = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh"}[self.activation]
            return self.down_proj(linear(x, (first.weight, second.weight), bias, gate))
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.activation == "silu":
            return self.down_proj(swiglu(gate, up))
        return self.down_proj(geglu(gate, up, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


def one_kernel(x: Tensor, *projections: Any) -> bool:
    """Whether projections of x may be made together by a kernel of ours: nobody has replaced or hooked them."""
    half = torch.is_autocast_enabled(x.device.type) or all(
        y.dtype in (torch.bfloat16, torch.float16) and y.dtype == x.dtype for y in (x, *(p.weight for p in projections))
    )
    plain = all(type(p) is nn.Linear and not (p._forward_hooks or p._forward_pre_hooks) for p in projections)
    return x.is_cuda and half and plain


class Attention(nn.Module):  # type: ignore[misc]
    """Attention with rotary embedding: o_proj(attention(rotary(q_proj(x)), rotary(k_proj(x)), v_proj(x))).

    x: (batch, n, size), bf16 or f16 (or under torch.autocast); heads of `head_dim` features, as `pk.attention` takes
    them; `key_heads` of them for keys and values, each shared by heads / key_heads (grouped queries). `cos`,
    `sin`: (m, head_dim / 2) with m >= n, see `rotary_tables`; without them nothing is turned. There is no dropout.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        key_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = True,
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        key_heads, self.head_dim, self.causal = key_heads or heads, head_dim or size // heads, causal
        self.q_proj = nn.Linear(size, heads * self.head_dim, bias, device, dtype)
        self.k_proj = nn.Linear(size, key_heads * self.head_dim, bias, device, dtype)
        self.v_proj = nn.Linear(size, key_heads * self.head_dim, bias, device, dtype)
        self.o_proj = nn.Linear(heads * self.head_dim, size, bias, device, dtype)

    def forward(self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        if (cos is None) != (sin is None):
            raise ArgumentError("Attention with one of cos and sin", fix="pass both, or neither")
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cos is not None:
            q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        return self.o_proj(attention(q, k, v, causal=self.causal).transpose(1, 2).flatten(2))


def rotary_tables(n: int, head_dim: int, base: float = 10_000.0, device: Any = None) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2 i / head_dim), float32 (n, head_dim / 2): the angles of Su et al., "RoFormer"
    (2021), for positions 0 to n - 1.
    """
    turns = base ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / -head_dim)
    angles = torch.arange(n, device=device, dtype=torch.float64)[:, None] * turns
    return angles.cos().float(), angles.sin().float()
