"""Packed causal attention: 32,768 rows in sequences of one length, and of any; beside our own dense kernel where the
lengths are equal, and beside FlashAttention-4's varlen.

Operations: 2 * n * n * head dimension for each sequence of n rows and each head; 2.5 times as many backward. `dense` is
given the same numbers as a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .attention_backward import float64 as gradients_float64
from .attention_backward import gradients
from .attention_random import float64
from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Packed attention, bf16, causal"
KEY = ("sequences", "heads", "dim", "pass")
ROWS, HEADS, DIM = 32768, 16, 128
ANY = 24  # sequences of any lengths, drawn once
EQUAL = {f"{ROWS // n} of {n}": [n] * (ROWS // n) for n in (1024, 4096, 16384)}


def ragged() -> list[int]:
    """Lengths that add up to all rows."""
    draw = random.Random(2026)
    ends = sorted(draw.sample(range(1, ROWS), ANY - 1))
    return [b - a for a, b in zip([0, *ends], [*ends, ROWS], strict=True)]


LENGTHS = {**EQUAL, f"{ANY} of any length": ragged()}


def cells() -> list[Cell]:
    """Every cell, the forward pass before the backward one."""
    return [
        Cell(
            {"sequences": name, "heads": HEADS, "dim": DIM, "pass": which},
            (2.0 if which == "forward" else 5.0) * HEADS * DIM * sum(n * n for n in lengths),
        )
        for which in ("forward", "backward")
        for name, lengths in LENGTHS.items()
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return facts["pass"], facts["sequences"]


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens, its own dense kernel at equal lengths; with `everybody` also FA4 where it is installed."""
    import torch

    name, back = cell.facts["sequences"], cell.facts["pass"] == "backward"
    lengths, (heads, d) = LENGTHS[name], (cell.facts["heads"], cell.facts["dim"])
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    q, k, v, do = (normal(starts[-1], heads, d) for _ in range(4))
    cu = torch.tensor(starts, dtype=torch.int32, device=q.device)

    def whole(forward: Callable[..., Any], operands: Any = (q, k, v), up: Any = do) -> Callable[[], Any]:
        return gradients(forward, operands, up) if back else lambda: forward(*operands)

    runs = {OURS: whole(lambda *x: pk.attention_varlen(*x, cu, causal=True))}
    only_timed: set[str] = set()
    if name in EQUAL:
        shape = (len(lengths), lengths[0], heads, d)
        dense = [x.view(shape).transpose(1, 2).contiguous() for x in (q, k, v, do)]
        runs["dense"] = whole(lambda *x: pk.attention(*x, causal=True), dense[:3], dense[3])
        only_timed = {"dense"}
    if everybody and (fa4 := peers.function("flash_attn.cute", "flash_attn_varlen_func")):
        longest = max(lengths)
        told = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
        runs["FA4"] = whole(lambda *x: peers.first(fa4(*x, causal=True, **told)))
    places = [(i, h) for i, h in ((0, 0), (len(lengths) - 1, heads - 1), (len(lengths) // 2, 1))]

    def part(x: Any, i: int, h: int) -> Any:
        return x[starts[i] : starts[i + 1], h]

    @cache
    def exact() -> list[Any]:
        given = [[part(x, i, h) for x in (q, k, v, do)] for i, h in places]
        if not back:
            return [float64(x[0], x[1], x[2], True) for x in given]
        wide = [[y[None, None] for y in x] for x in given]
        return [gradients_float64(x[0], x[1], x[2], x[3], (0, 0), True) for x in wide]

    def error(found: Any) -> float:
        if not back:
            return max(row_error(part(found, *at), y) for at, y in zip(places, exact(), strict=True))
        worst = 0.0
        for at, wanted in zip(places, exact(), strict=True):
            for x, y in zip(found, (wanted[0][0], *wanted[1:]), strict=True):
                relative = float((part(x, *at).double() - y).norm() / y.norm())
                worst = max(worst, relative if relative == relative else float("inf"))
        return worst

    def limit(errors: dict[str, float]) -> float:
        return 1.5 * errors["FA4"] if "FA4" in errors else 1e-2

    return Trial(runs, error, limit, frozenset(only_timed))
