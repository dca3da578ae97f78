"""Softmax on the simulated GPU, against float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pykittens.errors import ArgumentError
from pykittens.functions.softmax import SOFTMAX, SOFTMAX_BACKWARD, softmax
from pykittens.kernels import rows
from pykittens.kernels.softmax import reference, reference_backward

BF16 = np.dtype(ml_dtypes.bfloat16)
EPS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}


def random(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 3).astype(dtype)


def close(y: np.ndarray, expected: np.ndarray) -> None:
    tiny = 2.0**-25 if y.dtype == np.float16 else 1e-12  # float16 is subnormal below 6e-5
    assert (np.abs(y.astype(np.float64) - expected) <= (EPS[y.dtype.name] + 2e-6) * expected + tiny).all()


@pytest.mark.thin
@pytest.mark.parametrize(
    "n", (1, 2, 3, 7, 8, 15, 64, 100, 256, 1000, 1023, 1024, 1025, 3000, 8192, 20000, 32768, 65535, 65536)
)
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32], ids=str)
def test_every_width(n: int, dtype: Any) -> None:
    x = random((2, 3, n) if n < 5000 else (2, n), dtype)
    y = softmax(x)
    assert y.dtype == dtype and y.shape == x.shape
    close(y, reference(x))


@pytest.mark.thin
@pytest.mark.parametrize("n", (1, 2, 7, 64, 1000, 1025, 8192, 20000, 65535))
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_gradient_of_every_width(n: int, dtype: Any) -> None:
    x, dy = random((2, 3, n) if n < 5000 else (2, n), np.float32), random((6, n), dtype).reshape(2, 3, n)
    y = softmax(x).astype(dtype)
    dy = dy if n < 5000 else dy[:, 0]
    dx, expected = SOFTMAX_BACKWARD((y, dy)), reference_backward(dy, y)
    assert dx.dtype == dtype and dx.shape == y.shape
    largest = np.abs(y * dy.astype(np.float64)).max()
    assert (np.abs(dx - expected) <= EPS[dx.dtype.name] * np.abs(expected) + 2e-6 * largest + 1e-12).all()


def test_gradient_is_that_of_the_forward() -> None:
    """Against differences of the forward's own formula, in float64."""
    rng = np.random.default_rng(1)
    x, dy, step = rng.standard_normal((2, 9)), rng.standard_normal((2, 9)), 1e-6
    slope = np.zeros_like(x)
    for i in range(9):
        move = np.eye(9)[i] * step
        slope[:, i] = (dy * (reference(x + move) - reference(x - move))).sum(-1) / (2 * step)
    np.testing.assert_allclose(reference_backward(dy, reference(x)), slope, atol=1e-8)


@pytest.mark.thin
@pytest.mark.parametrize("settings", [{"held": 32}, {"most": 4}, {"clusters": False}, {"warps": 2}], ids=str)
@pytest.mark.parametrize("n", [200, 6000, 40000])
def test_every_division_gives_the_same(n: int, settings: dict[str, Any]) -> None:
    x = random((5, n), np.float32)
    close(SOFTMAX.run((x,), config=rows.plan(n, 4, 16, **settings))[0], reference(x))


@pytest.mark.thin
@pytest.mark.parametrize("settings", [{"cluster": 1}, {"cluster": 2, "stages": 1}, {"cluster": 4, "teams": 3}], ids=str)
@pytest.mark.parametrize("n", [2048, 3000, 20000])
def test_rows_that_stream(n: int, settings: dict[str, Any]) -> None:
    x = random((11, n), BF16)
    close(SOFTMAX.run((x,), config=rows.stream(n, 2, 2, 0, processors=2, team=4, **settings))[0], reference(x))


def test_large_numbers_do_not_overflow() -> None:
    x = random((4, 1000), np.float32) * 1e4
    close(softmax(x), reference(x))
    assert (softmax(np.full((2, 5), 3e38, np.float32)) == np.float32(0.2)).all()


@pytest.mark.parametrize("n", [10, 3000])
def test_nan_and_infinity(n: int) -> None:
    x = random((5, n), np.float32)
    x[0, 3], x[1, 3], x[2, 3], x[3] = np.nan, np.inf, -np.inf, -np.inf
    y, expected = softmax(x), reference(x)
    assert np.isnan(y[[0, 1, 3]]).all()
    assert y[2, 3] == 0
    close(y[[2, 4]], expected[[2, 4]])


def test_shapes_and_strides() -> None:
    x = random((4, 2, 600), BF16)
    for part in (x[0, 0], x[:, 0], x[::2, 1, 8:520], x[..., 1:300], x.reshape(2, 2, 2, 1, 600)):
        y = softmax(part)
        assert y.shape == part.shape
        close(y, reference(part))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 65537), np.float32), "65536"),
        (np.zeros((), np.float32), "shape"),
        (np.zeros((2, 8), np.int32), "i32"),
        (np.zeros((8, 2), np.float32).T, "contiguous"),
        ("x", "no array"),
    ],
)
def test_bad_arguments(x: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        softmax(x)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 77, dtype=torch.bfloat16)
    y = softmax(x)
    assert isinstance(y, torch.Tensor) and y.dtype == x.dtype
    assert (y.double() - torch.softmax(x.double(), -1)).abs().max() < 2**-8
