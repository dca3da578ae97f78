"""Attention of a few queries on a cache of keys and values."""

from __future__ import annotations

from typing import Any

from ..kernels import attention as scoring
from ..kernels import decoding as kernels
from . import attention_rules as rules
from .declaration import Function, Result


def _scores(
    dim: Any, causal: bool, scale: float | None, left: int | None, right: int | None, softcap: float | None, split: Any
) -> scoring.Scores:
    return scoring.scores(dim, causal, scale, left, right, softcap)


def _results(q: Any, k: Any, v: Any, lengths: Any, *rest: Any) -> tuple[Result, ...]:
    table, sinks, k_scale, v_scale, *settings = rest
    kernels.check(q, k, v, lengths, table, sinks, k_scale, v_scale, settings[-1])
    _scores(64, *settings)
    return Result((*q.shape[:3], v.shape[3]), q.dtype), Result(q.shape[:3], "f32", nothing=rules.lse_of_no_keys)


def _forward(q: Any, k: Any, v: Any, lengths: Any, *rest: Any, **overrides: Any) -> kernels.KernelCall:
    table, sinks, k_scale, v_scale, out, lse, *settings = rest
    told, scales = _scores(q.shape[-1], *settings), (k_scale, v_scale)
    return kernels.call(q, k, v, lengths, table, sinks, scales, out, lse, told, settings[-1], **overrides)


ATTENTION_CACHED = Function(
    "attention_cached",
    "Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? page_table=None, Tensor? sinks=None, "
    "Tensor? k_scale=None, Tensor? v_scale=None",
    "bool causal=True, float? scale=None, int? left=None, int? right=None, float? softcap=None, int? split=None",
    also="lse",
    results=_results,
    forward=_forward,
    key=lambda *settings: (_scores(64, *settings).kind, settings[-1]),
    numbers=lambda q, *rest: _scores(q.shape[-1], *rest[7:]).numbers,
    autocast="low",
    cast=("q", "k_cache", "v_cache"),
    summed=rules.COLUMNS,
    zeros=rules.zeros,
)


def attention_cached(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    lengths: Any,
    page_table: Any = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    split: int | None = None,
) -> Any:
    """`attention` of the last queries of each sequence on a cache, of which the first `lengths` keys count.

    q: (batch, heads, n, d), n up to 16, bf16 or f16. k_cache, v_cache: (batch, key heads, m, d) of the same dtype,
    where the heads are a multiple of the key heads and d is a multiple of 8 up to 256 (that of v, and of the result,
    may be less); any strides with contiguous rows, so that a transposed (batch, m, key heads, d) is read in place. Or
    pages of keys, (pages, key heads, keys of a page, d), a multiple of 16 keys each: sequence i has those with the
    numbers page_table[i], (batch, pages of a sequence), of which only as many as its length fills are looked at.

    lengths: (batch,), how many keys each sequence has, those of its queries included: query i of n stands at key
    i + length - n, and sees none after it (`causal`; all, without). lengths and page_table are 32-bit integers and stay
    where they are: nothing waits for a GPU, and a CUDA graph may be replayed with others. What the cache holds past a
    length is nothing to the result, NaN neither. `scale`, `window`, `softcap`, `sinks` and `return_lse` are those of
    `attention`; a sequence of length 0 has rows of 0, and -inf.

    Caches may also be 8-bit floats (torch.float8_e4m3fn), d and that of v multiples of 16, of which each number stands
    for itself times `k_scale` or `v_scale`: float32, one number or one for each key head, on the device of the cache; 1
    unless given. `cache_append` writes them so. They take GPUs of compute capability 8.9 or more.

    The keys of all sequences are dealt in equal shares to the GPU's blocks, wherever that cuts them. `split`: cut each
    sequence at multiples of so many keys (rounded up to whole tiles) and nowhere else, so that its result has the same
    bits whatever else is in the batch; it costs little from 1024 on where the batch is large.

    Raises `ArgumentError` for operands that no kernel takes, and on the CPU for lengths that the cache does not hold,
    and page numbers that do not exist. On a GPU such lengths count as the nearest right ones, such pages as zeros.
    There is no gradient: call it under torch.no_grad().
    """
    settings = (causal, scale, *rules.sides(window), softcap, split)
    operands = (q, k_cache, v_cache, lengths, page_table, sinks, k_scale, v_scale)
    return ATTENTION_CACHED(operands, settings, return_lse)
