"""Based on the simulated GPU, against its recurrence in float64."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from pykittens.errors import ArgumentError
from pykittens.functions.sequences import BASED, based
from pykittens.kernels.based import FEATURES, Config, features, reference
from tests.kernels.sequences import BF16, check, distance, random


def operands(n: int, e: int = 64, dtype: Any = BF16, heads: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        random(1, 1, heads, n, 16, dtype=dtype),
        random(2, 1, heads, n, 16, dtype=dtype),
        random(3, 1, heads, n, e, dtype=dtype),
    )


def test_reference_is_the_formula() -> None:
    q, k, v = operands(90, dtype=np.float64)
    s = q @ k.swapaxes(2, 3) / 4
    assert distance(reference(q, k, v)[0], np.tril(1 + s + s * s / 2) @ v) < 1e-12


def test_features() -> None:
    x = np.arange(1.0, 17.0)
    f = features(x)
    assert f.shape == (FEATURES,)
    products = {tuple(sorted((a, b))) for a in range(16) for b in range(16)}
    assert sorted(f[:136]) == sorted(x[a] * x[b] for a, b in products)  # each product once
    assert (f[136:144] == [1, 0, 0, 0, 0, 0, 0, 0]).all() and (f[144:] == x).all()


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize(("n", "e"), [(1, 64), (17, 64), (64, 128), (65, 64), (200, 64)])
def test_lengths(n: int, e: int, dtype: Any) -> None:
    q, k, v = operands(n, e, dtype)
    o, state = based(q, k, v, return_state=True)
    check(o, state, partial(reference, q, k, v))
    assert distance(based(q, k, v), reference(q, k, v)[0]) < 2.5e-3  # without the state its features are rounded


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize("cut", [1, 64, 100])
def test_a_state_continues(cut: int, dtype: Any) -> None:
    q, k, v = operands(170, 64, dtype)
    first, state = based(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], return_state=True)
    second, last = based(q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], state=state, return_state=True)
    check(np.concatenate([first, second], 2), last, partial(reference, q, k, v))


@pytest.mark.parametrize("config", [Config(1, 1), Config(2, 2), Config(4, 1)], ids=str)
def test_every_config(config: Config) -> None:
    q, k, v = operands(300)
    assert (BASED.run((q, k, v, None), config=config)[0] == based(q, k, v)).all()


def test_f16_states_beyond_its_range() -> None:
    q, k, v = operands(200, dtype=np.float16)
    state = random(4, 1, 2, 64, FEATURES, dtype=np.float32) * 1e6
    small = (q * 1e-2).astype(np.float16)
    o, after = based(small, k, (v * 100).astype(np.float16), state=state * 1e-2, return_state=True)
    expected, last = reference(small, k, (v * 100).astype(np.float16), state=state * 1e-2)
    assert distance(o, expected) < 1e-3 and distance(after, last) < 1e-5


@pytest.mark.parametrize("size", [30, 100])
def test_f16_weights_beyond_its_range(size: float) -> None:
    """(q . k)^2 passes 65,504, though the result is small."""
    q, k, v = operands(150, dtype=np.float16)
    q, k, v = ((x * s).astype(np.float16) for x, s in ((q, size), (k, 30), (v, 2e-5)))
    assert distance(based(q, k, v), reference(q, k, v)[0]) < 1e-3


def test_strides_in_place() -> None:
    q, k, v = operands(130)
    swapped = [
        np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)
    ]  # (batch, n, heads, d) in memory
    assert (based(*swapped) == based(q, k, v)).all()
    wide = np.zeros((1, 2, 130, 19), BF16)  # rows at odd multiples of 2 bytes
    wide[..., :16] = q
    assert (based(wide[..., :16], k, v) == based(q, k, v)).all()


def test_a_nan_reaches_what_follows() -> None:
    q, k, v = operands(200)
    k[0, 0, 130, 3] = np.nan
    o = based(q, k, v).astype(np.float32)
    assert np.isnan(o[0, 0, 130:]).all() and np.isfinite(o[0, 0, :130]).all() and np.isfinite(o[0, 1]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": random(1, 1, 2, 40, 32), "k": random(1, 1, 2, 40, 32)}, "feature dimensions 16"),
        ({"v": random(1, 1, 2, 40, 96)}, "value dimensions 64, 128"),
        ({"v": random(1, 1, 2, 41, 64)}, "rows"),
        ({"q": random(1, 1, 2, 40, 16, dtype=np.float32)}, "bf16"),
        ({"q": random(1, 2, 40, 16)}, "four dimensions"),
        ({"q": "no array"}, "NumPy, torch"),
        ({"state": np.zeros((1, 2, 64, 16), np.float32)}, "160"),
        ({"state": np.zeros((1, 2, 64, 160), np.float64)}, "float32"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    q, k, v = operands(40)
    with pytest.raises(ArgumentError) as error:
        based(**{"q": q, "k": k, "v": v, **change})
    assert words in str(error.value)


def test_bad_config() -> None:
    with pytest.raises(ArgumentError):
        Config(stages=0)
