"""Gated activations on the simulated GPU, against float64."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pykittens.errors import ArgumentError
from pykittens.functions.gates import GATE_BACKWARD, geglu, swiglu
from pykittens.kernels.gates import Config, reference, reference_backward

BF16 = np.dtype(ml_dtypes.bfloat16)
EPS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}
GATES: dict[str, Callable[..., Any]] = {
    "silu": swiglu,
    "gelu": geglu,
    "gelu_tanh": lambda *a, **k: geglu(*a, approximate="tanh", **k),
}


def random(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 2).astype(dtype)


def close(o: np.ndarray, expected: np.ndarray) -> None:
    assert (np.abs(o.astype(np.float64) - expected) <= EPS[o.dtype.name] * np.abs(expected) + 4e-6).all()


@pytest.mark.thin
@pytest.mark.parametrize("n", [1, 3, 16, 64, 100, 1000, 1024, 4096, 11008, 30001, 70000])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_every_width(n: int, kind: str, dtype: Any) -> None:
    x = random((3, 2 * n), dtype)
    gate, up = x[:, :n], x[:, n:]
    o = GATES[kind](gate, up)
    assert o.dtype == dtype and o.shape == gate.shape
    close(o, reference(kind, gate, up))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 40), (100, 8)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    gate, up = random(shape, np.float16), random(shape, np.float32)
    close(swiglu(gate, up), reference("silu", gate, up))


@pytest.mark.parametrize("kind", GATES)
def test_large_numbers_nan_and_infinity(kind: str) -> None:
    gate = np.array([[100.0, -100.0, 1e4, -1e4, 0.0, np.nan, np.inf, 3.0]], np.float32)
    up = np.array([[1.0, 1.0, 1.0, 1.0, np.inf, 1.0, 1.0, np.nan]], np.float32)
    o, expected = GATES[kind](gate, up), reference(kind, gate, up)
    assert np.array_equal(np.isnan(o), np.isnan(expected))
    np.testing.assert_allclose(o, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("gate", "up", "words"),
    [
        (np.zeros((2, 8), np.float32), np.zeros((2, 7), np.float32), "up has shape"),
        (np.zeros((2, 8)), np.zeros((2, 8)), "gate is f64"),
        (np.zeros((8, 2), np.float32).T, np.zeros((2, 8), np.float32), "contiguous"),
        (None, np.zeros((2, 8), np.float32), "no array"),
    ],
)
def test_bad_arguments(gate: Any, up: Any, words: str) -> None:
    for f in GATES.values():
        with pytest.raises(ArgumentError, match=words):
            f(gate, up)


def test_unknown_kinds() -> None:
    with pytest.raises(ArgumentError, match="approximate"):
        geglu(np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32), approximate="erf")
    with pytest.raises(ArgumentError, match="relu"):
        Config("relu", 8, 32, 1, 256)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("n", [1, 37, 1000])
def test_gradients(kind: str, n: int) -> None:
    """The kernel beside the formula, and the formula beside differences of the forward's."""
    gate, up, do = np.random.default_rng(n).standard_normal((3, 5, n)) * 2
    slope = (reference(kind, gate + 1e-6, up) - reference(kind, gate - 1e-6, up)) / 2e-6 * do
    dgate, dup = reference_backward(kind, gate, up, do)
    np.testing.assert_allclose(dgate, slope, atol=1e-7)
    np.testing.assert_allclose(dup, do * reference(kind, gate, np.ones_like(up)), atol=1e-12)
    single = [x.astype(np.float32) for x in (gate, up, do)]
    for found, expected in zip(GATE_BACKWARD(single, (kind,)), reference_backward(kind, *single), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
