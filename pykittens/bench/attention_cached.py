"""Attention of a few queries on a cache, head dimension 128, bf16: the cache's bytes over time, beside a device copy.

The copy reads half as many bytes as the cache has and writes as many. cuDNN and FA2 are torch's own back ends, FA4 is
the Python package flash-attn-4; they have one query for each sequence here, and no pages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pykittens as pk

from . import measure as measuring
from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of

TITLE = "Attention on caches, bf16"
KEY = ("batch", "heads", "key_heads", "m", "queries", "page")
DIM = 128
LARGE = ((16, 32, 8, 8192), (4, 64, 8, 16384), (64, 32, 8, 2048), (8, 64, 8, 32768))  # 0.25 GiB of cache and more
SMALL = ((1, 8, 1, 1024), (1, 8, 1, 16384), (1, 32, 8, 4096))
ERROR_LIMIT = 5e-3
_CHECKED = 4  # pairs of batch and head that are compared with float64


def cells() -> list[Cell]:
    """One query on contiguous caches, then pages of 64 keys, then several queries."""
    found = [(*size, 1, 0) for size in LARGE + SMALL]
    found += [(*size, 1, 64) for size in LARGE]
    found += [(*size, n, 0) for size in LARGE[:2] for n in (4, 8)]
    return [
        Cell(dict(zip(KEY, facts, strict=True)), 4.0 * facts[0] * facts[2] * facts[3] * DIM, "GB/s") for facts in found
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    where = f"pages of {facts['page']}" if facts["page"] else "contiguous"
    shape = f"{facts['batch']} x {facts['heads']} over {facts['key_heads']}, {facts['m']}"
    return f"{facts['queries']} queries, {where}" if facts["queries"] > 1 else f"one query, {where}", shape


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a copy; for one query on a contiguous cache also cuDNN, and with `everybody` FA2 and FA4."""
    import torch

    b, h, g, m, n, page = (cell.facts[name] for name in KEY)
    q, device = normal(b, h, n, DIM), measuring.DEVICE
    lengths = torch.full((b,), m, dtype=torch.int32, device=device)
    table = None
    if page:
        k, v = (normal(b * m // page, g, page, DIM) for _ in range(2))
        table = torch.randperm(b * m // page, device=device).int().view(b, -1)
    else:
        k, v = (normal(b, g, m, DIM) for _ in range(2))
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: pk.attention_cached(q, k, v, lengths, table)}
    if n == 1 and not page:
        runs["cuDNN"] = lambda: _torch(q, k, v, "CUDNN_ATTENTION")
        if everybody:
            runs["FA2"] = lambda: _torch(q, k, v, "FLASH_ATTENTION")
            if fa4 := peers.function("flash_attn.cute", "flash_attn_func"):
                swapped = [x.transpose(1, 2) for x in (q, k, v)]
                runs["FA4"] = lambda: peers.first(fa4(*swapped)).transpose(1, 2)
    runs["copy"] = copy_of(int(cell.work))
    places = sorted({(i * (b * h - 1)) // (_CHECKED - 1) for i in range(_CHECKED)})
    chosen = [(i // h, i % h) for i in places]

    def keys(x: Any, i: int, head: int) -> Any:
        return (x[i] if table is None else x[table[i].long()].transpose(0, 1).flatten(1, 2))[head]

    exact = cache(
        lambda: [_float64(q[i, j], *(keys(x, i, j * g // h) for x in (k, v))) for i, j in chosen]  # one a row of q
    )

    def error(out: Any) -> float:
        if not torch.isfinite(out).all():
            return float("inf")
        return max(row_error(out[at], expected) for at, expected in zip(chosen, exact(), strict=True))

    return Trial(runs, error, lambda errors: ERROR_LIMIT, frozenset(("copy",)))


def _torch(q: Any, k: Any, v: Any, backend: str) -> Any:
    """torch's attention by one back end and no other."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _float64(q: Any, k: Any, v: Any) -> Any:
    """The last queries of one head, each of which sees the keys up to its own."""
    import torch

    n, m = len(q), len(k)
    score = q.double() @ k.double().T * DIM**-0.5
    last = torch.arange(m - n, m, device=q.device)[:, None]
    score.masked_fill_(torch.arange(m, device=q.device) > last, -torch.inf)
    return torch.softmax(score, -1) @ v.double()
