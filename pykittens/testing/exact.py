"""Attention on numbers that leave nothing to rounding: any error at all is a fault of the kernel, or of the compiler.

A query is a unit vector, so that its scores are one column of k: 0, -1 or -2. With a scale of ln 2 weights are powers
of two, 1, 1/2 and 1/4. Every column has as many of each as make their sum a power of two, in an order of its own; v
holds small integers. So all products and sums are exact in float32, and the result is rounded once, to the output's
dtype.
"""

from __future__ import annotations

import numpy as np

SCALE = float(np.float32(np.log(2)))  # times log2(e) in float32 it is 1 exactly


def attention_operands(n: int, m: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(q (n, d), k (m, d), v (m, d), softmax(q @ k.T * SCALE) @ v (n, d)) in float64; m a multiple of 8."""
    if m % 8:
        raise ValueError(f"{m} keys: weights sum to a power of two for multiples of 8")
    rng = np.random.default_rng(seed)
    counts = m // 8, m * 5 // 8, m // 4  # of the weights 1, 1/2, 1/4: they sum to m / 2
    column = np.repeat([0.0, -1.0, -2.0], counts)
    q = np.eye(d)[rng.integers(0, d, n)]
    k = np.stack([rng.permutation(column) for _ in range(d)], axis=1)
    v = rng.integers(-8, 9, (m, d)).astype(np.float64)
    weight = np.exp2(q @ k.T)
    return q, k, v, weight @ v / (m / 2)
