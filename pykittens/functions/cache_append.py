"""Rows at the end of caches of keys and values."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..kernels import cache_append as kernels
from .declaration import Function, Result

NAMES = ("k", "v", "k_cache", "v_cache", "lengths", "page_table", "cos", "sin", "q", "k_scale", "v_scale")


def _results(*given: Any) -> tuple[Result, ...]:
    kernels.check(dict(zip(NAMES, given, strict=False)))
    q = given[8]
    return (Result((0,), given[0].dtype) if q is None else Result(q.shape, q.dtype, order="q"),)


def _forward(
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    lengths: Any,
    table: Any,
    cos: Any,
    sin: Any,
    q: Any,
    k_scale: Any,
    v_scale: Any,
    turned: Any,
    interleaved: bool,
) -> Any:
    caches, scales = (k_cache, v_cache), (k_scale, v_scale)
    return kernels.call(k, v, caches, lengths, table, (cos, sin), q, scales, turned, interleaved)


CACHE_APPEND = Function(
    "cache_append",
    "Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lengths, Tensor? page_table=None, "
    "Tensor? cos=None, Tensor? sin=None, Tensor? q=None, Tensor? k_scale=None, Tensor? v_scale=None",
    "bool interleaved=False",
    outputs=(),
    also="turned",
    results=_results,
    forward=_forward,
)


def cache_append(
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    lengths: Any,
    page_table: Any = None,
    *,
    cos: Any = None,
    sin: Any = None,
    q: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    interleaved: bool = False,
) -> Any:
    """Writes the new keys and values of each sequence into its cache; with `q`, returns the queries, turned.

    k, v: (batch, key heads, n, d), bf16 or f16, d a multiple of 8 (that of v may be another). k_cache, v_cache and
    page_table are those of `attention_cached`, which are written; so is `lengths`, (batch,) 32-bit integers: how many
    keys each sequence has with the new ones, which go to lengths - n and on. With cos and sin, (positions, r / 2), the
    first r features of keys turn by the angles of their positions, as `rotary` does it (`interleaved`), and so do those
    of q, (batch, heads, n, d), which are returned. Nothing waits for a GPU. Caches of 8-bit floats get the turned keys,
    and the values, over `k_scale` and `v_scale`, those of `attention_cached`; the largest where that is too large.

    Raises `ArgumentError` for operands that the kernel does not take. A row without a place in the cache is an error on
    the simulated GPU and in debug builds, and is not written on a GPU; past the tables, angles are 0.
    """
    if interleaved and cos is None:
        raise ArgumentError("cache_append: interleaved=True, and no angles", fix="pass cos and sin, or leave it out")
    operands = (k, v, k_cache, v_cache, lengths, page_table, cos, sin, q, k_scale, v_scale)
    return CACHE_APPEND(operands, (interleaved,), q is not None)
