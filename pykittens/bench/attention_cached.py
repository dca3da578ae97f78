"""Attention of a few queries on a cache, head dimension 128, of bf16 or of 8-bit floats: the cache's bytes over time,
beside a device copy.

The copy reads half as many bytes as the cache has and writes as many; `read` is a kernel that reads as many and does no
more. cuDNN and FA2 are torch's own back ends, FA4 is the Python package flash-attn-4; they have one query for each
sequence here, and no pages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pykittens as pk

from . import measure as measuring
from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of, read_of

TITLE = "Attention on caches, d 128"
KEY = ("batch", "heads", "key_heads", "m", "queries", "page", "held")
DIM = 128
LARGE = ((16, 32, 8, 8192), (4, 64, 8, 16384), (64, 32, 8, 2048), (8, 64, 8, 32768))  # 0.25 GiB of cache and more
SMALL = ((1, 8, 1, 1024), (1, 8, 1, 16384), (1, 32, 8, 4096))
ERROR_LIMIT = 5e-3
_CHECKED = 4  # pairs of batch and head that are compared with float64


def cells() -> list[Cell]:
    """One query on contiguous caches, then pages of 64 keys, then several queries, then 8-bit floats."""
    found = [(*size, 1, 0, "bf16") for size in LARGE + SMALL]
    found += [(*size, 1, 64, "bf16") for size in LARGE]
    found += [(*size, n, 0, "bf16") for size in LARGE[:2] for n in (4, 8)]
    found += [(*size, 1, page, "e4m3") for page in (0, 64) for size in LARGE]
    return [Cell(facts := dict(zip(KEY, each, strict=True)), _bytes(facts), "GB/s") for each in found]


def _bytes(facts: dict[str, Any]) -> float:
    """Of keys and values."""
    rows = facts["batch"] * facts["key_heads"] * facts["m"]
    return 2.0 * rows * DIM * (1 if facts["held"] == "e4m3" else 2)


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    where = f"pages of {facts['page']}" if facts["page"] else "contiguous"
    shape = f"{facts['batch']} x {facts['heads']} over {facts['key_heads']}, {facts['m']}"
    where += "" if facts["held"] == "bf16" else ", 8 bits"
    return f"{facts['queries']} queries, {where}" if facts["queries"] > 1 else f"one query, {where}", shape


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a copy; for one query on a contiguous cache also cuDNN, and with `everybody` FA2 and FA4."""
    import torch

    b, h, g, m, n, page, held = (cell.facts[name] for name in KEY)
    q, device = normal(b, h, n, DIM), measuring.DEVICE
    lengths = torch.full((b,), m, dtype=torch.int32, device=device)
    table, dtype = None, torch.float8_e4m3fn if held == "e4m3" else torch.bfloat16
    if page:
        k, v = (normal(b * m // page, g, page, DIM, dtype=dtype) for _ in range(2))
        table = torch.randperm(b * m // page, device=device).int().view(b, -1)
    else:
        k, v = (normal(b, g, m, DIM, dtype=dtype) for _ in range(2))
    scales: dict[str, Any] = {}
    if held == "e4m3":
        scales = {name: torch.full((g,), 0.5, device=device) for name in ("k_scale", "v_scale")}
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: pk.attention_cached(q, k, v, lengths, table, **scales)}
    if n == 1 and not page and not scales:
        runs["cuDNN"] = lambda: _torch(q, k, v, "CUDNN_ATTENTION")
        if everybody:
            runs["FA2"] = lambda: _torch(q, k, v, "FLASH_ATTENTION")
            if fa4 := peers.function("flash_attn.cute", "flash_attn_func"):
                swapped = [x.transpose(1, 2) for x in (q, k, v)]
                runs["FA4"] = lambda: peers.first(fa4(*swapped)).transpose(1, 2)
    runs |= {"copy": copy_of(int(cell.work)), "read": read_of(int(cell.work))}
    places = sorted({(i * (b * h - 1)) // (_CHECKED - 1) for i in range(_CHECKED)})
    chosen = [(i // h, i % h) for i in places]

    def keys(x: Any, i: int, head: int) -> Any:
        found = x[i, head] if table is None else x[table[i].long(), head].flatten(0, 1)
        return found.double() / (2 if scales else 1)

    exact = cache(
        lambda: [_float64(q[i, j], *(keys(x, i, j * g // h) for x in (k, v))) for i, j in chosen]  # one a row of q
    )

    def error(out: Any) -> float:
        if not torch.isfinite(out).all():
            return float("inf")
        return max(row_error(out[at], expected) for at, expected in zip(chosen, exact(), strict=True))

    return Trial(runs, error, lambda errors: ERROR_LIMIT, frozenset(("copy", "read")))


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
