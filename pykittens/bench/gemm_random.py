"""Matrix products at 50 random shapes, odd ones too, beside cuBLAS and quack: drawn once, none of them chosen.

Operations: 2 * m * n * k. Operands and results are contiguous: rows of an odd length begin anywhere, and what a
contender copies for that is timed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from . import gemm
from .measure import Cell, Trial

TITLE = "Matrix products at random shapes, bf16"
KEY = gemm.KEY
COUNT, SEED = 50, 2026


def shapes(seed: int) -> Iterator[tuple[int, ...]]:
    """m, n and k of 64 to 16384, by their logarithms: multiples of 64, of 8, or any."""
    draw = random.Random(seed)
    while True:
        unit = draw.choice((64, 64, 8, 8, 1))
        yield tuple(max(1, round(2 ** draw.uniform(6, 14) / unit)) * unit for _ in range(3))


def cells() -> list[Cell]:
    drawn = shapes(SEED)
    found = [next(drawn) for _ in range(COUNT)]
    return [Cell(dict(zip(KEY, (*s, "bf16"), strict=True)), 2.0 * s[0] * s[1] * s[2]) for s in found]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    return gemm.group(cell)


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and cuBLAS; with `everybody` also quack, where it is installed."""
    return gemm.trial(cell, everybody)
