"""Attention forward with a window, a cap of scores, a score function, and head dimensions that fill no tile or are not
those of values: FlashAttention-4's, and FlexAttention's scores, beside ours.

Operations: those of the scores inside the mask, twice the head dimensions of keys and values each. All are causal.
"plain" is our own kernel without a score function, which computes something else at the same cost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .attention import _CHECKED
from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Attention forward with windows, caps, scores and other head dimensions, bf16, causal"
KEY = ("what", "batch", "heads", "n", "dim")
WINDOW, CAP, HEADS = 1024, 30.0, 16
CELLS = (
    *(("window 1024", 4, n, d) for d in (64, 128) for n in (8192, 16384)),
    ("softcap", 4, 8192, 128),
    *(("alibi", 4, 8192, d) for d in (64, 128)),
    ("relative bias", 4, 8192, 128),
    ("causal", 4, 4096, 96),
    ("keys of 192", 4, 4096, 128),
)
ERROR = 1e-2


def cells() -> list[Cell]:
    """Every cell."""
    return [
        Cell(
            {"what": what, "batch": b, "heads": HEADS, "n": n, "dim": d},
            2.0 * b * HEADS * (_of_keys(what, d) + d) * (n * WINDOW if what.startswith("window") else n * n / 2),
        )
        for what, b, n, d in CELLS
    ]


def _of_keys(what: str, dim: int) -> int:
    """The head dimension of queries and keys, where values have `dim`."""
    return 192 if what == "keys of 192" else dim


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return f"{facts['what']}, head dimension {facts['dim']}", str(facts["n"])


def alibi(s: Any, batch: Any, head: Any, row: Any, col: Any, slopes: Any) -> Any:
    """A penalty for distance, for each head its own (Press et al. 2022)."""
    return pk.fma((col - row).to(pk.f32), slopes[head], s)


def relative(s: Any, batch: Any, head: Any, row: Any, col: Any, bias: Any) -> Any:
    """A learned bias for each head and distance (Shaw et al. 2018)."""
    return s + bias[head, row - col]


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens, its own plain kernel for scores; with `everybody` also FlexAttention, and FA4 if installed."""
    import torch

    what, b, h, n, d = (cell.facts[name] for name in KEY)
    q, k, v = (normal(b, h, n, x) for x in (_of_keys(what, d), _of_keys(what, d), d))
    table = normal(h, dtype=torch.float32).abs() / 64 if what == "alibi" else normal(h, n, dtype=torch.float32)
    runs: dict[str, Callable[[], Any]] = {}
    given: dict[str, dict[str, Any]] = {
        "window 1024": {"window": (WINDOW - 1, 0)},
        "softcap": {"softcap": CAP},
        "alibi": {"score": alibi, "score_operands": [table]},
        "relative bias": {"score": relative, "score_operands": [table]},
    }
    ours = given.get(what, {})
    runs[OURS] = lambda: pk.attention(q, k, v, causal=True, **ours)
    scores = "score" in ours
    if scores:
        runs["plain"] = lambda: pk.attention(q, k, v, causal=True)
    if everybody:
        runs["FlexAttention"] = flex(what, q, k, v, table)
        fa4 = None if scores else peers.function("flash_attn.cute", "flash_attn_func")
        if fa4:
            swapped = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
            known: dict[str, dict[str, Any]] = {
                "softcap": {"softcap": CAP},
                "window 1024": {"window_size": (WINDOW - 1, 0)},
            }
            theirs = known.get(what, {})
            runs["FA4"] = lambda: peers.first(fa4(*swapped, causal=True, **theirs)).transpose(1, 2)
    places = sorted({(i * (b * h - 1)) // (_CHECKED - 1) for i in range(_CHECKED)})
    chosen = [(i // h, i % h) for i in places]
    exact = cache(lambda: [float64(what, q[at], k[at], v[at], table[at[1]]) for at in chosen])

    def error(out: Any) -> float:
        if not torch.isfinite(out).all():
            return float("inf")
        return max(row_error(out[at], expected) for at, expected in zip(chosen, exact(), strict=True))

    return Trial(runs, error, lambda errors: ERROR, frozenset({"plain"}))


def flex(what: str, q: Any, k: Any, v: Any, table: Any) -> Callable[[], Any]:
    """torch's compiled FlexAttention of a cell; the block mask is made once.

    Compiled anew for each cell and its sizes: torch otherwise makes a slower kernel for any size of a second cell, and
    after eight of them none at all.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i >= j) & (i - j < WINDOW) if what.startswith("window") else i >= j

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if what == "softcap":
            return CAP * torch.tanh(s / CAP)
        return s - table[h] * (i - j) if what == "alibi" else s + table[h, (i - j).abs()]

    torch.compiler.reset()
    compiled, mask = (
        torch.compile(flex_attention, dynamic=False),
        cache(lambda: create_block_mask(seen, None, None, q.shape[2], k.shape[2])),
    )
    change = score if what in ("softcap", "alibi", "relative bias") else None
    return lambda: compiled(q, k, v, score_mod=change, block_mask=mask())


def float64(what: str, q: Any, k: Any, v: Any, table: Any, rows: int = 1024) -> Any:
    """The attention of one head in float64, some rows at a time; `table`: its slope, or its bias for each distance."""
    import torch

    n, parts = q.shape[0], []
    for first in range(0, n, rows):
        s = q[first : first + rows].double() @ k.double().T * q.shape[1] ** -0.5
        distance = torch.arange(first, first + s.shape[0], device=q.device)[:, None] - torch.arange(n, device=q.device)
        if what == "softcap":
            s = CAP * torch.tanh(s / CAP)
        elif what == "alibi":
            s = s - table.double() * distance
        elif what == "relative bias":
            s = s + table.double()[distance.clamp(min=0)]
        hidden = distance < 0 if not what.startswith("window") else (distance < 0) | (distance >= WINDOW)
        parts.append(torch.softmax(s.masked_fill(hidden, -torch.inf), -1) @ v.double())
    return torch.cat(parts)
