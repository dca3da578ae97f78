"""Hugging Face transformers: `attn_implementation="pykittens"`.

    from pykittens.integrations.transformers import register

    register()
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, attn_implementation="pykittens")

transformers asks two tables: `AttentionInterface` for the function, and `AttentionMaskInterface` for what makes its
mask. Without an entry in the second it makes no mask at all, and batches would attend to their padding. Ours
(`masks.py`) says who sees which run of keys: windows, batches padded on either side, packed sequences, a static cache
whose last keys nobody has written. While torch.compile traces a whole model, nobody can look at positions and padding:
where they matter the mask is a tensor of booleans, which kernels read. Give packed sequences by `cu_seq_lens_q`.
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..errors import ArgumentError
from ..functions.attention import attention
from ..functions.attention_cached import attention_cached
from ..functions.attention_varlen import attention_varlen
from .masks import Visible, mask

NAME = "pykittens"
FEW = 16  # rows that `attention_cached` takes


def register(name: str = NAME) -> None:
    """Makes `attn_implementation=name` known to transformers, for models that exist already, too
    (`model.set_attn_implementation(name)`).
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)


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
    further keys are places of a static cache that nobody has written. Rows of padding, which see nothing, are zero.
    `softcap` and sinks (`s_aux`) are the kernels'. With `cu_seq_lens_q` (and `cu_seq_lens_k`), which transformers'
    padding-free collator makes, the rows of all entries are sequences one after another, within `sliding_window`.

    A mask of booleans (padding in the middle, chunks, one's own) is read by the kernel, element by element. What no
    kernel computes (dropout, a bias, a mask of floats, dtypes and head dimensions without a kernel) goes to
    transformers' own "sdpa", with one warning for each reason; where that has no softcap or no sinks, which the kernels
    have, it raises `ValueError`. No weights are returned, which `output_attentions` is told of.
    """
    softcap, sinks = others.get("softcap"), others.get("s_aux")
    if others.get("output_attentions"):
        _warn("no weights come of output_attentions, as the kernels never have them: use attn_implementation='eager'")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    seen = _visible(attention_mask, query, key)
    window = others.get("sliding_window") if causal else None
    lengths = None if seen else _given_lengths(query, others)
    settings: dict[str, Any] = {"scale": scaling, "softcap": softcap, "sinks": sinks}
    table = None if seen or lengths else _table(attention_mask, query, key)
    known = attention_mask is None or seen or lengths or table is not None
    if reason := _reason(query, key, value, dropout, others) or ("" if known else _UNKNOWN):
        if softcap is not None or sinks is not None:
            what = "softcap" if sinks is None else "sinks (s_aux)"
            raise ValueError(f"{reason}, and sdpa has no {what}: use attn_implementation='eager'")
        _warn(f"attention falls back to sdpa: {reason}")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **others
        )
    n, m = query.shape[2], key.shape[2]
    if lengths:
        settings["window"] = None if window is None else (window - 1, None)
        return _in_rows(query, key, value, lengths, causal=causal, **settings), None
    if seen:
        settings["window"], causal = seen.window, seen.causal
        if (keys := seen.keys(n)) is None:
            if n == 1 and sinks is None and not seen.packed:
                return _one_row(query, key, value, seen, **settings), None
            offsets = seen.offsets(n, m, query.device)
            return _in_rows(query, key, value, offsets, causal=causal, **settings), None
    elif table is not None:
        causal, keys = False, slice(0, m)
        settings |= {"mask": _is_set, "mask_operands": (table,)}
    else:
        causal = causal and n > 1
        keys = slice(0, n if causal else m)
    if keys != slice(0, m):
        key, value = key[:, :, keys], value[:, :, keys]
    if table is None and _decodes(query, key, value):
        lengths = _lengths(query.shape[0], key.shape[2], query.device)
        out = attention_cached(query, key, value, lengths, causal=causal, **settings)
    else:
        out = attention(query, key, value, causal=causal, **settings)
    return out.transpose(1, 2).contiguous(), None


def _decodes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a few rows come after a cache, and nobody wants gradients."""
    wanted = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return query.shape[2] <= min(FEW, key.shape[2] - 1) and not wanted


def _lengths(batch: int, keys: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.full((batch,), keys, dtype=torch.int32, device=device)
    return _same_lengths(batch, keys, device)


@lru_cache(16)  # each layer of a model asks
def _same_lengths(batch: int, keys: int, device: torch.device) -> Tensor:
    return torch.full((batch,), keys, dtype=torch.int32, device=device)


def _one_row(q: Tensor, k: Tensor, v: Tensor, seen: Visible, **settings: Any) -> Tensor:
    """One row a batch entry: heads that share keys are the rows of a sequence, so that a cache is read where it is."""
    batch, heads, group = q.shape[0], q.shape[1], q.shape[1] // k.shape[1]
    rows, keys, values = (x.reshape(-1, 1, x.shape[3]) for x in (q, k, v))
    offsets = seen.repeated(k.shape[1], group).offsets(group, k.shape[2], q.device)
    return attention_varlen(rows, keys, values, *offsets, **settings).view(batch, 1, heads, v.shape[3])


def _in_rows(q: Tensor, k: Tensor, v: Tensor, offsets: tuple[Tensor, Tensor], **settings: Any) -> Tensor:
    """Attention of sequences in the rows of all batch entries, one entry after another; (batch, n, heads, d)."""
    rows, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    return attention_varlen(rows, keys, values, *offsets, **settings).unflatten(0, (q.shape[0], q.shape[2]))


def _visible(mask: Tensor | None, query: Tensor, key: Tensor) -> Visible | None:
    """What our `mask` has said of these rows and keys, unless somebody has changed it since."""
    if mask is None or torch.compiler.is_compiling():
        return None
    alike = tuple(mask.shape) == (query.shape[0], 1, query.shape[2], key.shape[2])
    return getattr(mask, "visible", None) if alike else None


def _table(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask of booleans, the same for all heads, as bytes: (batch, n, m)."""
    shape = query.shape[0], 1, query.shape[2], key.shape[2]
    if mask is None or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        return None
    return mask[:, 0].contiguous().view(torch.uint8)


def _is_set(batch: Any, head: Any, row: Any, col: Any, table: Any) -> Any:
    """The kernel's mask."""
    return table[batch, row, col] != 0


def _given_lengths(query: Tensor, others: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    rows, keys = (others.get(f"cu_seq_lens_{x}") for x in "qk")
    if rows is None or query.shape[0] != 1:
        return None
    return rows.int(), (rows if keys is None else keys).int()


_UNKNOWN = "a mask that kernels do not read (of floats, or different for heads)"


def _reason(query: Tensor, key: Tensor, value: Tensor, dropout: float, others: dict[str, Any]) -> str:
    """Why "sdpa" has to do it, whatever the mask is; "" where it need not."""
    if dropout:
        return "PyKittens has no attention dropout"
    if others.get("position_bias") is not None:
        return "this layer has a position_bias"
    if key.shape[:3] != value.shape[:3]:
        return "keys and values differ in shape"
    dtypes = [x.dtype for x in (query, key, value)]
    if torch.is_autocast_enabled(query.device.type):
        dtypes = [torch.get_autocast_dtype(query.device.type)] * 3
    return _refusal(query.device, *dtypes, query.shape[1], key.shape[1], query.shape[3], value.shape[3])


def _refusal(*about: Any) -> str:
    """What PyKittens says to such operands; "" where there is a kernel."""
    return _asked(*about)


@cache
def _asked(
    device: torch.device,
    q: torch.dtype,
    k: torch.dtype,
    v: torch.dtype,
    heads: int,
    key_heads: int,
    dim: int,
    value_dim: int,
) -> str:
    """Asks with operands that have no rows."""
    shapes = ((1, heads, 0, dim), (1, key_heads, 0, dim), (1, key_heads, 0, value_dim))
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
        warnings.warn(reason, stacklevel=3)


_WARNED: set[str] = set()
# What torch.compiler.assume_constant_result does: torch.compile runs them, and does not look inside.
_functions: tuple[Any, ...] = (_refusal, _warn)
for _function in _functions:
    _function._dynamo_marked_constant = True
