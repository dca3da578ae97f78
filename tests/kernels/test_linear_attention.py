"""Chunked linear attention on the simulated GPU, against its recurrence in float64."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from pykittens.errors import ArgumentError
from pykittens.functions.sequences import LINEAR_ATTENTION, linear_attention
from pykittens.kernels.linear_attention import Config, reference
from tests.kernels.sequences import BF16, check, distance, random

DECAYS = [None, np.array([-0.01, -0.5], np.float32), np.array([0.0, -20.0], np.float32)]


def operands(n: int, d: int = 64, e: int = 64, dtype: Any = BF16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return random(1, 1, 2, n, d, dtype=dtype), random(2, 1, 2, n, d, dtype=dtype), random(3, 1, 2, n, e, dtype=dtype)


@pytest.mark.parametrize("decay", DECAYS, ids=["plain", "decay", "extremes"])
def test_reference_is_the_formula(decay: Any) -> None:
    q, k, v = operands(90, dtype=np.float64)
    i = np.arange(90)
    g = np.zeros(2) if decay is None else decay.astype(np.float64)
    weight = q @ k.swapaxes(2, 3) / 8 * np.exp(g[:, None, None] * np.maximum(i[:, None] - i, 0))
    assert distance(reference(q, k, v, log_decay=decay)[0], np.tril(weight) @ v) < 1e-12


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize("decay", DECAYS, ids=["plain", "decay", "extremes"])
@pytest.mark.parametrize(
    ("n", "d", "e"), [(1, 64, 64), (17, 64, 128), (64, 128, 64), (65, 64, 64), (200, 64, 64), (130, 128, 128)]
)
def test_lengths_and_dimensions(n: int, d: int, e: int, decay: Any, dtype: Any) -> None:
    q, k, v = operands(n, d, e, dtype)
    o, state = linear_attention(q, k, v, log_decay=decay, return_state=True)
    check(o, state, partial(reference, q, k, v, log_decay=decay))
    assert (linear_attention(q, k, v, log_decay=decay) == o).all()


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize("decay", DECAYS[:2], ids=["plain", "decay"])
@pytest.mark.parametrize("cut", [1, 64, 100])
def test_a_state_continues(cut: int, decay: Any, dtype: Any) -> None:
    q, k, v = operands(170, dtype=dtype)
    first, state = linear_attention(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], log_decay=decay, return_state=True)
    second, last = linear_attention(
        q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], log_decay=decay, state=state, return_state=True
    )
    check(np.concatenate([first, second], 2), last, partial(reference, q, k, v, log_decay=decay))


def test_scale() -> None:
    q, k, v = operands(70)
    assert distance(linear_attention(q, k, v, scale=1.0), reference(q, k, v)[0] * 8) < 2e-3


@pytest.mark.parametrize("config", [Config(1, 1), Config(2, 1), Config(2, 2, 1)], ids=str)
def test_every_config(config: Config) -> None:
    q, k, v = operands(300)
    o = LINEAR_ATTENTION.run((q, k, v, DECAYS[1], None), (None,), config=config)[0]
    assert (o == linear_attention(q, k, v, log_decay=DECAYS[1])).all()


def test_f16_states_beyond_its_range() -> None:
    q, k, v = operands(150, dtype=np.float16)
    state = random(4, 1, 2, 64, 64, dtype=np.float32) * 1e6
    q = (q * 1e-3).astype(np.float16)
    o, after = linear_attention(q, k, v, state=state, return_state=True)
    expected, last = reference(q, k, v, state=state)
    assert distance(o, expected) < 5e-4 and distance(after, last) < 1e-6


@pytest.mark.thin
@pytest.mark.parametrize("decay", DECAYS[:2], ids=["plain", "decay"])
@pytest.mark.parametrize("size", [60, 1000, 30000])
def test_f16_weights_beyond_its_range(size: float, decay: Any) -> None:
    """q . k passes 65,504, though the result is small."""
    q, k, v = (x * np.float32(s) for x, s in zip(operands(150, dtype=np.float32), (size, 60, 1e-3), strict=True))
    q, k, v = (np.clip(x, -60000, 60000).astype(np.float16) for x in (q, k, v))
    o = linear_attention(q, k, v, log_decay=decay, scale=1 / size)
    assert distance(o, reference(q, k, v, log_decay=decay, scale=1 / size)[0]) < 1e-3


@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
def test_a_decay_of_minus_infinity_forgets_everything(dtype: Any) -> None:
    q, k, v = operands(150, dtype=dtype)
    decay = np.array([-np.inf, -1e30], np.float32)
    o, state = linear_attention(q, k, v, log_decay=decay, return_state=True)
    check(o, state, partial(reference, q, k, v, log_decay=decay))
    own = (q.astype(np.float64) * k.astype(np.float64)).sum(-1, keepdims=True) / 8 * v.astype(np.float64)
    assert distance(o, own) < 3e-3


def test_tiny_and_huge_numbers() -> None:
    q, k, v = operands(150)
    for scale in (2.0**-40, 2.0**40):
        x, y = ((a.astype(np.float32) * scale).astype(BF16) for a in (k, v))
        assert distance(linear_attention(q, x, y), reference(q, x, y)[0]) < 2e-3


def test_strides_in_place() -> None:
    q, k, v = operands(130)
    swapped = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    assert (linear_attention(*swapped) == linear_attention(q, k, v)).all()


@pytest.mark.parametrize("decay", DECAYS[:2], ids=["plain", "decay"])
def test_a_nan_reaches_what_follows(decay: Any) -> None:
    q, k, v = operands(200)
    k[0, 0, 130, 3] = np.nan
    o = linear_attention(q, k, v, log_decay=decay).astype(np.float32)
    assert np.isnan(o[0, 0, 130:]).all() and np.isfinite(o[0, 0, :130]).all() and np.isfinite(o[0, 1]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": random(1, 1, 2, 40, 32), "k": random(1, 1, 2, 40, 32)}, "feature dimensions 64, 128"),
        ({"v": random(1, 1, 2, 40, 256)}, "value dimensions 64, 128"),
        ({"k": random(1, 1, 3, 40, 64)}, "one shape"),
        ({"k": random(1, 1, 2, 40, 64, dtype=np.float16)}, "bf16"),
        ({"state": np.zeros((1, 2, 64, 128), np.float32)}, "(1, 2, 64, 64)"),
        ({"log_decay": np.zeros(3, np.float32)}, "(2,)"),
        ({"log_decay": np.zeros(2, np.float64)}, "float32"),
        ({"v": None}, "NumPy, torch"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    q, k, v = operands(40)
    with pytest.raises(ArgumentError) as error:
        linear_attention(**{"q": q, "k": k, "v": v, **change})
    assert words in str(error.value)


def test_bad_config() -> None:
    with pytest.raises(ArgumentError):
        Config(blocks_per_sm=3)
