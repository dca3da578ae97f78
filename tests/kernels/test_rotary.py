"""Rotary embedding on the simulated GPU, against float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pykittens.errors import ArgumentError
from pykittens.functions.rotary import ROTARY_BACKWARD, rotary
from pykittens.kernels.rotary import Config, reference

BF16 = np.dtype(ml_dtypes.bfloat16)
EPS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}


def random(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def angles(m: int, half: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    a = np.arange(m)[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.cos(a).astype(dtype), np.sin(a).astype(dtype)


def close(o: np.ndarray, expected: np.ndarray) -> None:
    assert (np.abs(o.astype(np.float64) - expected) <= EPS[o.dtype.name] * np.abs(expected) + 2e-6).all()


@pytest.mark.thin
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("d", "r"),
    [(64, 64), (128, 128), (128, 64), (96, 96), (80, 32), (10, 10), (7, 6), (256, 256), (9, 2), (65, 64), (2, 2)],
)
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_every_dimension(d: int, r: int, interleaved: bool, dtype: Any) -> None:
    x, (cos, sin) = random((2, 3, 37, d), dtype), angles(40, r // 2)
    o = rotary(x, cos, sin, interleaved=interleaved)
    assert o.dtype == dtype
    close(o, reference(x, cos, sin, interleaved))


@pytest.mark.thin
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("d", "r"), [(64, 64), (80, 32), (7, 6), (2, 2)])
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_gradient(d: int, r: int, interleaved: bool, dtype: Any) -> None:
    """The rotation is linear, so its gradient is its transpose, which is its inverse; tables need not lie on the
    circle."""
    do, cos, sin = random((2, 3, 37, d), dtype), *random((2, 40, r // 2), np.float32)
    close(ROTARY_BACKWARD((do, cos, sin), (interleaved,)), reference(do, cos, -sin, interleaved))
    basis = np.eye(d)[None, :, None, :].repeat(2, 2)  # row 1 of every unit vector
    whole = reference(basis, cos, sin, interleaved)[0, :, 1]
    np.testing.assert_allclose(reference(basis, cos, -sin, interleaved)[0, :, 1], whole.T, atol=1e-12)


@pytest.mark.thin
@pytest.mark.parametrize("n", [1, 2, 31, 100, 257])
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_length_and_layout(n: int, interleaved: bool) -> None:
    """(batch, n, heads, d) seen as (batch, heads, n, d), tables of the same dtype as x and longer than n."""
    x, (cos, sin) = random((2, n, 4, 64), np.float16).transpose(0, 2, 1, 3), angles(n + 5, 32, np.float16)
    close(rotary(x, cos, sin, interleaved=interleaved), reference(x, cos, sin, interleaved))


@pytest.mark.parametrize("shape", [(50, 64), (3, 50, 64), (2, 2, 2, 50, 64)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    x, (cos, sin) = random(shape, np.float32), angles(50, 32)
    close(rotary(x, cos, sin), reference(x, cos, sin))


@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place(interleaved: bool) -> None:
    x, (cos, sin) = random((1, 2, 40, 96), BF16), angles(40, 40)
    expected = rotary(x, cos, sin, interleaved=interleaved)
    assert rotary(x, cos, sin, interleaved=interleaved, out=x) is x
    assert np.array_equal(x, expected)


def test_views_that_begin_anywhere() -> None:
    x, (cos, sin) = random((2, 3, 40, 67), BF16)[..., 1:65], angles(80, 32)
    close(rotary(x, cos[7:], sin[7:]), reference(x, cos[7:], sin[7:]))


def test_nan_stays_in_its_pair() -> None:
    x, (cos, sin) = random((1, 1, 8, 64), np.float32), angles(8, 32)
    x[0, 0, 3, 5] = np.nan
    for interleaved, pair in ((False, [5, 37]), (True, [4, 5])):
        bad = np.argwhere(np.isnan(rotary(x, cos, sin, interleaved=interleaved)))
        assert [tuple(b) for b in bad] == [(0, 0, 3, i) for i in pair]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.zeros((8, 64))}, "x is f64"),
        ({"x": np.zeros(64, np.float32)}, "heads, n, d"),
        ({"cos": np.zeros((7, 16), np.float32)}, "m at least 8"),
        ({"cos": np.zeros((8, 33), np.float32)}, "r at most 64"),
        ({"cos": np.zeros((9, 32), np.float32)}, r"sin has shape \(8, 32\)"),
        ({"sin": np.zeros((1, 8, 32), np.float32)}, "sin has shape"),
        ({"out": np.zeros((1, 8, 32), np.float32)}, "out has shape"),
        ({"x": np.zeros((2, 3, 8, 128), np.float32)[..., ::2]}, "contiguous"),
    ],
)
def test_bad_arguments(change: dict[str, Any], words: str) -> None:
    cos, sin = angles(8, 32)
    with pytest.raises(ArgumentError, match=words):
        rotary(**{"x": np.zeros((1, 8, 64), np.float32), "cos": cos, "sin": sin, **change})


def test_configurations_are_checked() -> None:
    for d, r in ((64, 63), (64, 66), (5000, 64), (64, 0)):
        with pytest.raises(ArgumentError):
            Config(d, r, False, 1, 1)
