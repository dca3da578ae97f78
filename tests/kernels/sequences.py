"""What the tests of kernels with a state share."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)


def random(seed: int, *shape: int, dtype: Any = BF16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def distance(x: np.ndarray, expected: np.ndarray) -> float:
    """Relative, in the 2-norm."""
    x, expected = x.astype(np.float64), expected.astype(np.float64)
    assert x.shape == expected.shape and np.isfinite(x).all()
    return float(np.linalg.norm(x - expected) / np.linalg.norm(expected))


def check(o: np.ndarray, state: np.ndarray, reference: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    """The promised error: 1.5 times that of the recurrence in float32, its result rounded; the state in float32."""
    expected, last = reference(dtype=np.float64)
    single, _ = reference(dtype=np.float32)
    assert distance(o, expected) <= 1.5 * distance(single.astype(o.dtype), expected)
    assert distance(state, last) < 1e-5
