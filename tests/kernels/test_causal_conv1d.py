"""Causal convolution on the simulated GPU, and its gradients, against float64."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.functions.convolution import CAUSAL_CONV1D_BACKWARD
from pykittens.kernels.causal_conv1d import reference
from tests.kernels.sequences import BF16, distance, random

torch = pytest.importorskip("torch")
NEAR = {BF16: 2.5e-3, np.dtype(np.float16): 4e-4, np.dtype(np.float32): 3e-7}
PACKED = [[0, 2, 2, 30, 41], [0, 0, 0, 41, 41], [0, 1, 3, 4, 41]]


def operands(batch: int, n: int, channels: int, width: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """x, weight, bias."""
    shapes = (batch, n, channels), (channels, width), (channels,)
    return [random(i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def plain(x: Any, weight: Any, bias: Any, state: Any, bounds: Any, activation: Any) -> tuple[Any, Any]:
    """The formula in torch: (y, after)."""
    width, made = weight.shape[1], []
    spans = (
        [(i, 0, x.shape[1]) for i in range(x.shape[0])] if bounds is None else [(0, a, e) for a, e in pairwise(bounds)]
    )
    for i, (batch, first, end) in enumerate(spans):
        whole = torch.cat([state[i], x[batch, first:end]])
        z = bias + sum(whole[j : j + end - first] * weight[:, j] for j in range(width))
        made.append((z * torch.sigmoid(z) if activation else z, whole[end - first :]))
    rows, after = zip(*made, strict=True)
    return (torch.stack(rows) if bounds is None else torch.cat(rows)[None]), torch.stack(after)


@pytest.mark.thin
@pytest.mark.parametrize("bounds", [None, *PACKED], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_reference_and_result_are_the_formula(width: int, activation: Any, bounds: Any) -> None:
    batch, sequences = (2, 2) if bounds is None else (1, len(bounds) - 1)
    given = [*operands(batch, 41, 40, width), random(9, sequences, width - 1, 40, dtype=np.float32)]
    expected = plain(*(torch.tensor(x).double() for x in given), bounds, activation)
    x, weight, bias, state = given
    begin = None if bounds is None else np.array(bounds, np.int32)
    exact = reference(x, weight, bias, activation=activation, state=state, bounds=begin)
    found = pk.causal_conv1d(x, weight, bias, activation=activation, state=state, cu_seqlens=begin, return_state=True)
    for one, two, three in zip(found, exact, expected, strict=True):
        assert np.allclose(two, three.numpy(), atol=1e-12) and distance(one, two) < 3e-7


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16), np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize(("n", "channels"), [(1, 1), (65, 8), (3, 300), (70, 257)])
def test_lengths_and_channels(n: int, channels: int, dtype: Any) -> None:
    x, weight, bias = operands(2, n, channels, 4, dtype)
    for given in (None, bias):
        y, after = pk.causal_conv1d(x, weight, given, activation="silu", return_state=True)
        expected, last = reference(x, weight, given, activation="silu")
        assert y.dtype == dtype and distance(y, expected) < NEAR[dtype]
        assert np.array_equal(after.astype(float), last)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_state_continues_and_steps_are_rows(cut: int) -> None:
    x, weight, bias = operands(2, 43, 16, 4)
    whole, last = pk.causal_conv1d(x, weight, bias, activation="silu", return_state=True)
    first, state = pk.causal_conv1d(x[:, :cut], weight, bias, activation="silu", return_state=True)
    rest, after = pk.causal_conv1d(x[:, cut:], weight, bias, activation="silu", state=state, return_state=True)
    assert np.array_equal(np.concatenate([first, rest], 1), whole) and np.array_equal(after, last)
    y, after = pk.causal_conv1d_step(x[:, cut], weight, bias, state=state, activation="silu")
    assert np.array_equal(y, whole[:, cut]) and np.array_equal(after[:, :2], state[:, 1:])


@pytest.mark.parametrize(("width", "bounds", "dtype"), [(4, None, BF16), (2, PACKED[0], np.float32)], ids=str)
def test_gradients_of_everything(width: int, bounds: Any, dtype: Any) -> None:
    batch, sequences = (2, 2) if bounds is None else (1, len(bounds) - 1)
    given = [*operands(batch, 41, 40, width, dtype), random(9, sequences, width - 1, 40, dtype=dtype)]
    ups = [random(10, batch, 41, 40, dtype=dtype), random(11, sequences, width - 1, 40, dtype=dtype)]
    begin = None if bounds is None else np.array(bounds, np.int32)
    exact = [torch.tensor(x.astype(float), requires_grad=True) for x in given]
    results = plain(*exact, bounds, "silu")
    expected = torch.autograd.grad(results, exact, [torch.tensor(x.astype(float)) for x in ups])
    found = CAUSAL_CONV1D_BACKWARD((ups[0], *given, begin, ups[1]), ("silu",))
    for x, y in zip(found, expected, strict=True):
        assert distance(x, y.numpy()) < NEAR[np.dtype(dtype)]


def test_torch_differentiates_it() -> None:
    given = [torch.tensor(x, requires_grad=True) for x in operands(1, 30, 8, 3)]
    state = torch.tensor(random(9, 3, 2, 8, dtype=np.float32), requires_grad=True)
    bounds = torch.tensor([0, 0, 29, 30], dtype=torch.int32)
    results = pk.causal_conv1d(*given, state=state, cu_seqlens=bounds, return_state=True)
    ups = [torch.randn_like(x) for x in results]
    found = torch.autograd.grad(results, [*given, state], ups)
    exact = [x.detach().double().requires_grad_() for x in (*given, state)]
    wanted = torch.autograd.grad(plain(*exact, [0, 0, 29, 30], None), exact, [x.double() for x in ups])
    assert all(distance(x.numpy(), y.numpy()) < 3e-7 for x, y in zip(found, wanted, strict=True))


def test_strides_and_nothing() -> None:
    x, weight, bias = operands(2, 20, 24, 4, BF16)
    expected = pk.causal_conv1d(x, weight, bias)
    turned = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)  # (batch, channels, n) in memory
    wide = np.zeros((2, 20, 31), BF16)
    wide[..., :24] = x
    assert (pk.causal_conv1d(turned, weight, bias) == expected).all()
    assert (pk.causal_conv1d(wide[..., :24], weight, bias) == expected).all()
    assert (pk.causal_conv1d(x[::-1], weight, bias)[::-1] == expected).all()
    state = random(9, 2, 3, 24)
    y, after = pk.causal_conv1d(x[:, :0], weight, bias, state=state, return_state=True)
    assert y.shape == (2, 0, 24) and (after == state).all()


def test_a_nan_reaches_its_channel_and_what_follows() -> None:
    x, weight, bias = operands(1, 50, 16, 4)
    x[0, 20, 5] = np.nan
    bad = np.isnan(pk.causal_conv1d(x, weight, bias, activation="silu")[0])
    assert bad[20:24, 5].all() and bad.sum() == 4
    packed = np.isnan(pk.causal_conv1d(x, weight, bias, cu_seqlens=np.array([0, 21, 50], np.int32))[0])
    assert packed[20, 5] and packed.sum() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": random(1, 20, 16)}, "(batch, n, channels)"),
        ({"x": np.zeros((1, 20, 16), np.int32)}, "bf16, f16 or f32"),
        ({"weight": random(1, 16, 5)}, "widths 2, 3, 4"),
        ({"weight": random(1, 4, 16)}, "(16, width)"),
        ({"bias": random(1, 4)}, "(16,)"),
        ({"state": random(1, 1, 4, 16)}, "(1, 3, 16)"),
        ({"state": random(1, 1, 3, 16, dtype=np.float16)}, "bf16"),
        ({"activation": "gelu"}, "silu"),
        ({"cu_seqlens": np.array([0, 20])}, "int32"),
        *(({"cu_seqlens": np.array(x, np.int32)}, "do not decrease") for x in ([0, 9, 8, 20], [0, 21], [1, 20])),
        ({"x": random(1, 2, 20, 16), "cu_seqlens": np.array([0, 20], np.int32)}, "(1, total, channels)"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    x, weight, bias = operands(1, 20, 16, 4, BF16)
    with pytest.raises(ArgumentError) as error:
        pk.causal_conv1d(**{"x": x, "weight": weight, "bias": bias, **change})
    assert words in str(error.value)
