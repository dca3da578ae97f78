"""Hugging Face transformers: `attn_implementation="pykittens"`.

    from pykittens.integrations.transformers import register

    register()
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, attn_implementation="pykittens")

transformers asks two tables: `AttentionInterface` for the function, and `AttentionMaskInterface` for what makes its
mask. Without an entry in the second it makes no mask at all, and batches would attend to their padding. The mask here
is that of "sdpa": None where "causal" or "every key" says it all, else one boolean for each row and key. While
torch.compile traces a whole model, transformers cannot look at positions and masks, and always makes one.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import ArgumentError
from ..functions.attention import attention

NAME = "pykittens"


def register(name: str = NAME) -> None:
    """Makes `attn_implementation=name` known to transformers, for models that exist already, too
    (`model.set_attn_implementation(name)`).
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (batch, heads, n, d), key and value (batch, key heads, m, d); the
    result is (batch, n, heads, d).

    Without a mask the rows see all keys where there is one row or the layer is not causal, else row i the first i + 1:
    further keys are places of a static cache that nobody has written. What no kernel computes (a mask for each row,
    dropout, a bias, dtypes and head dimensions without a kernel) goes to transformers' own "sdpa", with one warning for
    each reason; where that has no softcap or no sinks (`s_aux`), which the kernels have, it raises `ValueError`.
    """
    softcap, sinks = others.get("softcap"), others.get("s_aux")
    if reason := _reason(query, key, value, attention_mask, dropout, others):
        if softcap is not None or sinks is not None:
            what = "softcap" if sinks is None else "sinks (s_aux)"
            raise ValueError(f"{reason}, and sdpa has no {what}: use attn_implementation='eager'")
        _warn(reason)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **others
        )
    rows = query.shape[2]
    causal = rows > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if causal and key.shape[2] > rows:
        key, value = key[:, :, :rows], value[:, :, :rows]
    out = attention(query, key, value, causal=causal, scale=scaling, softcap=softcap, sinks=sinks)
    return out.transpose(1, 2).contiguous(), None


def _reason(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, others: dict[str, Any]
) -> str:
    """Why "sdpa" has to do it; "" where it need not."""
    if mask is not None:
        return "this batch needs a mask for each row (padding, packed sequences, a static cache)"
    if dropout:
        return "PyKittens has no attention dropout"
    if others.get("position_bias") is not None:
        return "this layer has a position_bias"
    if key.shape != value.shape:
        return "keys and values differ in shape"
    dtypes = [x.dtype for x in (query, key, value)]
    if torch.is_autocast_enabled(query.device.type):
        dtypes = [torch.get_autocast_dtype(query.device.type)] * 3
    return _refusal(query.device, *dtypes, query.shape[1], key.shape[1], query.shape[3])


def _refusal(*about: Any) -> str:
    """What PyKittens says to such operands; "" where there is a kernel."""
    return _asked(*about)


@cache
def _asked(
    device: torch.device, q: torch.dtype, k: torch.dtype, v: torch.dtype, heads: int, key_heads: int, dim: int
) -> str:
    """Asks with operands that have no rows."""
    shapes = ((1, n, 0, dim) for n in (heads, key_heads, key_heads))
    operands = [torch.empty(s, dtype=t, device=device) for s, t in zip(shapes, (q, k, v), strict=True)]
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            attention(*operands)
    except ArgumentError as error:
        return str(error).splitlines()[0]
    return ""


def _warn(reason: str) -> None:
    """Once for each reason."""
    if reason not in _WARNED:
        _WARNED.add(reason)
        warnings.warn(f"attention falls back to sdpa: {reason}", stacklevel=3)


_WARNED: set[str] = set()
# What torch.compiler.assume_constant_result does: torch.compile runs them, and does not look inside.
_functions: tuple[Any, ...] = (_refusal, _warn)
for _function in _functions:
    _function._dynamo_marked_constant = True
