"""A Llama-style model from one of several kits of parts with the same parameters: PyKittens', and torch's; with Gated
DeltaNet in place of attention, PyKittens' and flash-linear-attention's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import pykittens as pk
from pykittens import nn


class Shape(NamedTuple):
    """How large a model is. Heads are of `head_dim` features; `key_heads` of them for keys and values."""

    vocabulary: int
    size: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    hidden: int
    length: int  # tokens of a sequence, at most


class PyKittens:
    """Norms with the residual stream, rotary embedding, attention, gate and loss by PyKittens' kernels."""

    RMSNorm, Attention, GatedMLP = nn.RMSNorm, nn.Attention, nn.GatedMLP

    @staticmethod
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return pk.linear_cross_entropy(hidden, weight, targets)


class PyKittensDelta(PyKittens):
    """Gated DeltaNet in place of attention."""

    class Attention(nn.GatedDeltaNet):
        def __init__(self, size: int, heads: int, key_heads: int, head_dim: int) -> None:
            super().__init__(size, heads, key_heads, head_dim)

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)


class FlaDelta(PyKittens):
    """The same, with flash-linear-attention's layer; all else is PyKittens'."""

    @staticmethod
    def Attention(size: int, heads: int, key_heads: int, head_dim: int) -> torch.nn.Module:
        from fla.layers import GatedDeltaNet

        class Layer(GatedDeltaNet):
            def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
                return super().forward(x)[0]

        sizes = {"hidden_size": size, "head_dim": head_dim, "num_heads": key_heads, "num_v_heads": heads}
        return Layer(**sizes, expand_v=1)


class Torch:
    """The same with torch's functions, as transformers calls them."""

    class RMSNorm(nn.RMSNorm):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
            stream = x if residual is None else x + residual
            y = F.rms_norm(stream, self.weight.shape, self.weight, self.eps)
            return y if residual is None else (y, stream)

    class Attention(nn.Attention):
        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
            def turn(x: Tensor) -> Tensor:
                first, second = x.chunk(2, -1)
                return x * c + torch.cat((-second, first), -1) * s

            c, s = (torch.cat((t, t), -1)[: x.shape[1]].to(x.dtype) for t in (cos, sin))
            q, k, v = (
                proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                for proj in (self.q_proj, self.k_proj, self.v_proj)
            )
            o = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
            return self.o_proj(o.transpose(1, 2).flatten(2))

    class GatedMLP(nn.GatedMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    @staticmethod
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets)


class Layer(torch.nn.Module):
    """Attention and MLP, each behind a norm. What goes from layer to layer is the last MLP's result and the residual
    stream without it, so that the next norm adds them.
    """

    def __init__(self, shape: Shape, kit: Any) -> None:
        super().__init__()
        self.input_layernorm = kit.RMSNorm(shape.size)
        self.self_attn = kit.Attention(shape.size, shape.heads, shape.key_heads, shape.head_dim)
        self.post_attention_layernorm = kit.RMSNorm(shape.size)
        self.mlp = kit.GatedMLP(shape.size, shape.hidden)

    def forward(self, x: Tensor, stream: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if stream is None:
            x, stream = self.input_layernorm(x), x
        else:
            x, stream = self.input_layernorm(x, stream)
        x, stream = self.post_attention_layernorm(self.self_attn(x, cos, sin), stream)
        return self.mlp(x), stream


class Llama(torch.nn.Module):
    """The mean cross-entropy of tokens (batch, n) and targets (batch, n)."""

    def __init__(self, shape: Shape, kit: Any) -> None:
        super().__init__()
        self.kit = kit
        self.embed_tokens = torch.nn.Embedding(shape.vocabulary, shape.size)
        self.layers = torch.nn.ModuleList([Layer(shape, kit) for _ in range(shape.layers)])
        self.norm = kit.RMSNorm(shape.size)
        self.lm_head = torch.nn.Linear(shape.size, shape.vocabulary, bias=False)
        cos, sin = nn.rotary_tables(shape.length, shape.head_dim)
        self.cos, self.sin = torch.nn.Buffer(cos, persistent=False), torch.nn.Buffer(sin, persistent=False)
        for name, w in self.named_parameters():
            if w.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                torch.nn.init.normal_(w, std=0.02 / (2 * shape.layers) ** 0.5 if last else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x, stream = self.embed_tokens(tokens), None
        for layer in self.layers:
            x, stream = layer(x, stream, self.cos, self.sin)
        x, _ = self.norm(x, stream)
        return self.kit.loss(x.flatten(0, 1), self.lm_head.weight, targets.flatten())
