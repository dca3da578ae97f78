"""Softmax of scores under a scale of any sign: a kernel that looks for the largest product turns its queries first.

    softmax(q @ k.T * scale) = softmax((q * sign) @ k.T * magnitude)

The largest score is that of the largest product only where the scale is positive. A negative scale negates the queries,
once a tile; a scale of 0 makes them 0. Both are exact, and a kernel under a positive scale does no more than a branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pykittens as pk

LOG2E = 1.4426950408889634


def magnitude(scale: Any) -> Any:
    """What the products with turned queries are multiplied by: above 0 (NaN under a scale of NaN)."""
    return pk.where(scale == 0.0, 1.0, pk.maximum(scale, -scale))


def turn(scope: Any, queries: Any, scale: Any) -> None:
    """Queries in shared memory times the sign of the scale, by the threads of `scope`, who must meet afterwards."""
    turned = scope.load(queries) * pk.where(scale < 0.0, -1.0, 0.0)
    scope.store(queries, turned)


def squashed(score: Any, scale: Any) -> Any:
    """tanh(score * scale), as 1 - 2 / (1 + exp(2 score scale)): near 0 its absolute error is a float32 ulp of 1, which
    is what counts where it is a part of an exponent.
    """
    return pk.fma(pk.rcp(1.0 + pk.exp2(score * (scale * (2 * LOG2E)))), -2.0, 1.0)


def normalised(peak: Any, c: Any, sums: Any, sink: Any = None) -> tuple[Any, Callable[[], Any]]:
    """What a row's output is multiplied by, and what makes its log-sum-exp; sums: of exp2(c * (score - peak)).

    sink: one more logit, without a value. Rows that see nothing have a factor of 0, and -inf or `sink`.
    """
    if sink is None:
        return pk.where(sums == 0.0, 0.0, 1.0 / sums), lambda: pk.fma(peak, c, pk.log2(sums)) * (1 / LOG2E)
    sink = sink * LOG2E
    top = pk.maximum(peak * c, sink)
    top = pk.where(top > -pk.inf, top, 0.0)
    kept = pk.exp2(pk.fma(peak, c, -top))
    sums = pk.fma(sums, kept, pk.exp2(sink - top))
    return pk.where(sums == 0.0, 0.0, kept / sums), lambda: (top + pk.log2(sums)) * (1 / LOG2E)
