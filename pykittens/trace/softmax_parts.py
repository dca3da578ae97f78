"""Softmax in parts: what several have of the same rows, each relative to its own highest score, becomes one.

    sum of exp2(s - top) = sum of sums * exp2(peak - top)    for the highest of all peaks, top; outputs likewise

Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from .elementwise import exp2, fma, maximum


def merged(parts: Sequence[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """The peak, sum and output of rows of which there are `parts`: each the highest scores, in units whose exponential
    is that of 2, the sums of exponentials below it, and values weighted by them.

    Column vectors with tiles, or scalars with the vector of a row. A part that has seen nothing has a finite peak below
    all others, a sum and an output of 0.
    """
    top, total, output = reduce(maximum, [peak for peak, _, _ in parts]), 0.0, 0.0
    for peak, sums, values in parts:
        share = exp2(peak - top)
        total, output = fma(sums, share, total), fma(values, share, output)
    return top, total, output
