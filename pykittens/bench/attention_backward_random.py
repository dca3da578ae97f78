"""Attention backward at n 512 to 2048 and at 30 random shapes: what people train, drawn once, none of them chosen.

Operations: 10 * head dimension for each pair of a query and a key that it sees. The contenders are those of
`attention_backward`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from . import attention_backward
from .attention_random import pairs
from .measure import Cell, Trial

TITLE = "Attention backward at random shapes, bf16"
KEY = attention_backward.KEY
COUNT, SEED = 30, 2026
MOST_WORK, MOST_BYTES = 4e13, 2**32
SHORT = tuple((16384 // n, 2048 // d, 2048 // d, n, d) for d in (64, 128, 256) for n in (512, 1024, 2048))
Shape = tuple[int, int, int, int, int, bool]


def shapes(seed: int) -> Iterator[Shape]:
    """Batch 1 to 32, 5 to 40 heads over as many that divide them, 128 to 16384 rows, by their logarithms."""
    draw = random.Random(seed)
    while True:
        batch, heads = round(2 ** draw.uniform(0, 5)), draw.randint(5, 40)
        shared = draw.choice([g for g in range(1, heads + 1) if heads % g == 0])
        n, dim, causal = round(2 ** draw.uniform(7, 14)), draw.choice((64, 128, 256)), draw.random() < 0.5
        size = 2 * dim * batch * n * (4 * heads + 4 * shared)
        if 10 * batch * heads * pairs(n, n, causal) * dim <= MOST_WORK and size <= MOST_BYTES:
            yield batch, heads, shared, n, dim, causal


def cells() -> list[Cell]:
    """The short lengths, then what was drawn."""
    drawn = shapes(SEED)
    short = [(*shape, causal) for shape in SHORT for causal in (False, True)]
    return [
        Cell(dict(zip(KEY, (*shape, False), strict=True)), 10.0 * b * h * pairs(n, n, causal) * d)
        for shape in (*short, *(next(drawn) for _ in range(COUNT)))
        for b, h, _, n, d, causal in (shape,)
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    shape = "x".join(str(facts[name]) for name in KEY[:4])
    return f"head dimension {facts['dim']}, {'causal' if facts['causal'] else 'full'}", shape


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and cuDNN; with `everybody` also FA4 where it is installed."""
    made = attention_backward.trial(cell, everybody)
    made.runs.pop("FA2", None)
    return made
