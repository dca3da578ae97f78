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
STEADY, HIGHEST = 92.0, 52.0  # powers of two, which weights are not below, and a cap that has them at most 2^58


def magnitude(scale: Any) -> Any:
    """What the products with turned queries are multiplied by: above 0 (NaN under a scale of NaN)."""
    return pk.where(scale == 0.0, 1.0, pk.maximum(scale, -scale))


def turn(scope: Any, queries: Any, scale: Any) -> None:
    """Queries in shared memory times the sign of the scale, by the threads of `scope`, who must meet afterwards."""
    turned = scope.load(queries) * pk.where(scale < 0.0, -1.0, 0.0)
    scope.store(queries, turned)


def logistic(x: Any, scale: Any, together: bool = False) -> Any:
    """1 / (1 + exp(-x * scale)), with an absolute error of a float32 ulp or two of 1.

    together: a NaN may spread along its row, so that four elements of a row share the reciprocal of their product: the
    special-function units are the limit. What is less than 2**-30 becomes that.
    """
    exponent = x * (scale * -LOG2E)
    if not together or x.cols % 64:
        return pk.rcp(1.0 + pk.exp2(exponent))
    each, more = x.cols // 4, 1.0 + pk.exp2(pk.minimum(exponent, 30.0))
    a, b, c, d = (more[:, i * each : (i + 1) * each] for i in range(4))
    ab, cd = a * b, c * d
    all_four = pk.rcp(ab * cd)
    of_ab, of_cd = all_four * cd, all_four * ab
    return pk.join(of_ab * b, of_ab * a, of_cd * d, of_cd * c)


def squashed(score: Any, scale: Any) -> Any:
    """tanh(score * scale), as 2 / (1 + exp(-2 score scale)) - 1: in an exponent, its absolute error is what counts."""
    return pk.fma(logistic(score, scale * 2.0), 2.0, -1.0)


def steady(cap: float | None, dtype: str) -> bool:
    """Whether exp2 of any score under this cap is a number to count with, and no largest score has to be known.

    Weights of bf16 go from 2^-92 to 1, or to 2^58 under higher caps: outputs are exact to 2^-34 beside the values' own
    errors, and none overflows whose values and number of keys have a product below 2^69.
    """
    return cap is not None and cap <= HIGHEST and dtype == "bf16"


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
