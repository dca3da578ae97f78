"""Attention forward at 100 random shapes: what people bring, drawn once, none of them chosen.

Operations: 4 * head dimension for each pair of a query and a key that it sees. cuDNN is torch's back end, whose causal
mask is another one where there are more keys than queries, or fewer; FA4 is the Python package flash-attn-4.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .attention_backward import torch_attention
from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Attention forward at random shapes, bf16"
KEY = ("batch", "heads", "key_heads", "n", "m", "dim", "causal")
COUNT, SEED = 100, 2026
MOST_WORK, MOST_BYTES = 4e13, 2**33
_CHECKED = 3  # pairs of batch and head that are compared with float64
_ROWS = 1024  # of float64 scores at a time
ERROR_LIMIT = 1.5  # times the largest of the others'
Shape = tuple[int, int, int, int, int, int, bool]


def shapes(seed: int, most: float = MOST_WORK) -> Iterator[Shape]:
    """Batch 1 to 32, heads 1 to 64 over as many that divide them, 64 to 32768 queries and keys, by their logarithms."""
    draw = random.Random(seed)
    while True:
        batch, heads = (round(2 ** draw.uniform(0, top)) for top in (5, 6))
        shared = draw.choice([g for g in range(1, heads + 1) if heads % g == 0])
        n = round(2 ** draw.uniform(6, 15))
        m = n if draw.random() < 0.5 else round(2 ** draw.uniform(6, 15))
        dim, causal = draw.choice((64, 96, 128, 256)), draw.random() < 0.5
        size = 2 * dim * batch * (2 * heads * n + 2 * shared * m)
        if 4 * batch * heads * n * m * dim * (0.5 if causal else 1) <= most and size <= MOST_BYTES:
            yield batch, heads, shared, n, m, dim, causal


def pairs(n: int, m: int, causal: bool) -> int:
    """Queries and keys that they see."""
    if not causal:
        return n * m
    rows = min(n, m)  # those that see something: 1 + m - rows keys, and so on to m
    return rows * (2 * m - rows + 1) // 2


def cells() -> list[Cell]:
    drawn = shapes(SEED)
    found = [next(drawn) for _ in range(COUNT)]
    return [Cell(dict(zip(KEY, s, strict=True)), 4.0 * s[0] * s[1] * pairs(s[3], s[4], s[6]) * s[5]) for s in found]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    shape = "x".join(str(facts[name]) for name in KEY[:5])
    return f"head dimension {facts['dim']}, {'causal' if facts['causal'] else 'full'}", shape


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens, cuDNN where it has this mask, and with `everybody` FA4 where it is installed."""
    b, h, g, n, m, d, causal = (cell.facts[name] for name in KEY)
    q, k, v = normal(b, h, n, d), normal(b, g, m, d), normal(b, g, m, d)
    runs = {OURS: lambda: pk.attention(q, k, v, causal=causal)}
    if n == m or not causal:
        runs["cuDNN"] = lambda: torch_attention("CUDNN_ATTENTION", q, k, v, causal)
    if everybody and (fa4 := peers.function("flash_attn.cute", "flash_attn_func")):
        swapped = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        runs["FA4"] = lambda: peers.first(fa4(*swapped, causal=causal)).transpose(1, 2)
    places = sorted({(i * (b * h - 1)) // (_CHECKED - 1) for i in range(_CHECKED)})
    chosen = [(i // h, i % h) for i in places]
    exact = cache(lambda: [float64(q[i, j], k[i, j // (h // g)], v[i, j // (h // g)], causal) for i, j in chosen])

    def error(out: Any) -> float:
        """Rows that see nothing are not asked of others, who leave NaN there."""
        seen = slice(max(0, n - m) if causal else 0, None)
        return max(row_error(out[at][seen], wanted[seen]) for at, wanted in zip(chosen, exact(), strict=True))

    def limit(errors: dict[str, float]) -> float:
        return ERROR_LIMIT * max((x for name, x in errors.items() if name != OURS and x < 1e-1), default=7e-3)

    return Trial(runs, error, limit)


def float64(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Attention of one head in float64, some rows at a time; 0 for rows that see nothing."""
    import torch

    n, m, parts = q.shape[0], k.shape[0], []
    for first in range(0, n, _ROWS):
        score = q[first : first + _ROWS].double() @ k.double().T * q.shape[1] ** -0.5
        if causal:
            row = torch.arange(first, first + score.shape[0], device=q.device) + m - n
            score.masked_fill_(torch.arange(m, device=q.device) > row[:, None], -torch.inf)
        parts.append(torch.softmax(score, -1).nan_to_num(0.0) @ v.double())
    return torch.cat(parts)
