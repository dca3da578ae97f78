"""Softmax of scores under a scale of any sign: a kernel that looks for the largest product turns its queries first.

    softmax(q @ k.T * scale) = softmax((q * sign) @ k.T * magnitude)

The largest score is that of the largest product only where the scale is positive. A negative scale negates the queries,
once a tile; a scale of 0 makes them 0. Both are exact, and a kernel under a positive scale does no more than a branch.
"""

from __future__ import annotations

from typing import Any

import pykittens as pk


def magnitude(scale: Any) -> Any:
    """What the products with turned queries are multiplied by: above 0 (NaN under a scale of NaN)."""
    return pk.where(scale == 0.0, 1.0, pk.maximum(scale, -scale))


def turn(scope: Any, queries: Any, scale: Any) -> None:
    """Queries in shared memory times the sign of the scale, by the threads of `scope`, who must meet afterwards."""
    turned = scope.load(queries) * pk.where(scale < 0.0, -1.0, 0.0)
    scope.store(queries, turned)
