"""Gradients of linear attention on the simulated GPU, against its recurrence differentiated by torch in float64."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.kernels.linear_attention_backward import reference
from tests.kernels.sequences import BF16, distance, random

torch = pytest.importorskip("torch")
DECAYS = [None, np.array([-0.01, -0.5], np.float32), np.array([0.0, -20.0], np.float32)]


def operands(n: int, d: int = 64, e: int = 64, dtype: Any = BF16) -> list[np.ndarray]:
    """do, q, k, v."""
    return [random(i, 1, 2, n, cols, dtype=dtype) for i, cols in enumerate((e, d, d, e))]


def states(d: int, e: int) -> tuple[np.ndarray, np.ndarray]:
    """The state before, and the gradient of the state after."""
    return random(8, 1, 2, e, d, dtype=np.float32), random(9, 1, 2, e, d, dtype=np.float32)


def recurrence(q: Any, k: Any, v: Any, decay: Any, state: Any, scale: float) -> tuple[Any, Any]:
    """What the function computes, row by row, in torch."""
    rows = []
    for i in range(q.shape[2]):
        state = state * decay.exp()[:, None, None] + v[:, :, i, :, None] * k[:, :, i, None, :]
        rows.append((state @ q[:, :, i, :, None])[..., 0] * scale)
    return torch.stack(rows, 2), state


@pytest.mark.parametrize("decay", DECAYS, ids=["plain", "decay", "extremes"])
def test_reference_is_what_torch_differentiates(decay: Any) -> None:
    do, q, k, v = operands(33, 16, 8, np.float64)
    state, dafter = (x.astype(np.float64) for x in states(16, 8))
    g = np.zeros(2) if decay is None else decay.astype(np.float64)
    given = [torch.tensor(x, requires_grad=True) for x in (q, k, v, g, state)]
    results = recurrence(*given, 0.3)
    expected = torch.autograd.grad(results, given, [torch.tensor(do), torch.tensor(dafter)])
    found = reference(do, q, k, v, log_decay=g, scale=0.3, state=state, dafter=dafter)
    for x, y in zip(found, expected, strict=True):
        assert np.allclose(x, y.numpy(), rtol=1e-10, atol=1e-10)


def check(found: Any, **given: Any) -> None:
    """The promised error: 1.5 times that of float32 arithmetic, rounded to the dtype."""
    expected, single = (reference(**given, dtype=dtype) for dtype in (np.float64, np.float32))
    for name, x, y, z in zip(("dq", "dk", "dv", "dlog_decay", "dstate"), found, expected, single, strict=True):
        if not np.any(y):
            assert not np.any(x), name
        elif x.size:
            limit = 1e-4 if name == "dlog_decay" else 1e-5 if name == "dstate" else 0.0
            assert distance(x, y) <= max(1.5 * distance(z.astype(x.dtype), y), limit), name


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, pytest.param(np.float16, marks=pytest.mark.whole)], ids=str)
@pytest.mark.parametrize("decay", DECAYS, ids=["plain", "decay", "extremes"])
@pytest.mark.parametrize(("n", "d", "e"), [(1, 64, 64), (65, 64, 128), (130, 128, 64)])
def test_lengths_and_dimensions(n: int, d: int, e: int, decay: Any, dtype: Any) -> None:
    do, q, k, v = operands(n, d, e, dtype)
    found = pk.linear_attention_backward(do, q, k, v, log_decay=decay)
    check(found, do=do, q=q, k=k, v=v, log_decay=decay)
    assert [x.dtype for x in found[:3]] == [dtype] * 3 and found[4].size == 0


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize("decay", DECAYS[:2], ids=["plain", "decay"])
@pytest.mark.parametrize("scale", [None, -3.0, 0.0])
def test_states(decay: Any, dtype: Any, scale: float | None) -> None:
    do, q, k, v = operands(100, 64, 128, dtype)
    state, dafter = states(64, 128)
    given = {"log_decay": decay, "scale": scale, "state": state}
    _, after = pk.linear_attention(q, k, v, return_state=True, **given)
    found = pk.linear_attention_backward(do, q, k, v, after=after, dafter=dafter, **given)
    if scale == 0.0:
        assert not found[0].any()
        found = (np.ones(1), *found[1:])
        expected = reference(do, q, k, v, dafter=dafter, **given)
        assert all(distance(x, y) < 3e-3 for x, y in zip(found[1:], expected[1:], strict=True) if x.size)
    else:
        check(found, do=do, q=q, k=k, v=v, dafter=dafter, **given)


def test_two_halves_are_the_whole() -> None:
    """The gradient of the state between them is what one hands to the other."""
    do, q, k, v = operands(150)
    state, dafter = states(64, 64)
    g = DECAYS[1]
    o, last = pk.linear_attention(q, k, v, log_decay=g, state=state, return_state=True)
    whole = pk.linear_attention_backward(do, q, k, v, log_decay=g, state=state, after=last, dafter=dafter)
    first, second = ([x[:, :, part] for x in (do, q, k, v)] for part in (slice(0, 80), slice(80, 150)))
    _, middle = pk.linear_attention(*first[1:], log_decay=g, state=state, return_state=True)
    right = pk.linear_attention_backward(*second, log_decay=g, state=middle, after=last, dafter=dafter)
    left = pk.linear_attention_backward(*first, log_decay=g, state=state, after=middle, dafter=right[4])
    for x, y, z in zip(left[:3], right[:3], whole[:3], strict=True):
        assert distance(np.concatenate([x, y], 2), z) < 3e-3
    assert distance(left[3] + right[3], whole[3]) < 1e-4 and distance(left[4], whole[4]) < 1e-5


def test_a_decay_of_minus_infinity() -> None:
    do, q, k, v = operands(100)
    g = np.array([-np.inf, -1e30], np.float32)
    *found, dg, _ = pk.linear_attention_backward(do, q, k, v, log_decay=g)
    *expected, _, _ = reference(do, q, k, v, log_decay=g)
    assert all(distance(x, y) < 3e-3 for x, y in zip(found, expected[:3], strict=True))
    assert np.isfinite(dg).all()


def test_torch_differentiates_it() -> None:
    """All operands and both results, and only some of them."""
    do, q, k, v = (torch.tensor(x.astype(np.float32)).bfloat16() for x in operands(70))
    state, dafter = (torch.tensor(x) for x in states(64, 64))
    decay = torch.tensor([-0.1, -0.02])
    given = [x.clone().requires_grad_() for x in (q, k, v, decay, state)]
    results = pk.linear_attention(*given[:3], log_decay=given[3], state=given[4], return_state=True)
    found = torch.autograd.grad(results, given, [do, dafter])
    exact = [x.detach().double().requires_grad_() for x in given]
    expected = torch.autograd.grad(recurrence(*exact, 0.125), exact, [do.double(), dafter.double()])
    for x, y in zip(found, expected, strict=True):
        assert distance(x.float().numpy(), y.numpy()) < 3e-3
    state.requires_grad_()
    _, after = pk.linear_attention(q, k, v, log_decay=decay, state=state, return_state=True)
    (found,) = torch.autograd.grad(after, state, dafter)
    assert distance(found.numpy(), (dafter * (70 * decay).exp()[:, None, None]).numpy()) < 1e-5


def test_nothing() -> None:
    do, q, k, v = operands(0)
    state, dafter = states(64, 64)
    found = pk.linear_attention_backward(do, q, k, v, state=state, dafter=dafter)
    assert [x.shape for x in found[:3]] == [q.shape, k.shape, v.shape] and (found[4] == dafter).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do": random(1, 1, 2, 41, 64)}, "do is bf16"),
        ({"do": random(1, 1, 2, 40, 64, dtype=np.float16)}, "do is f16"),
        ({"dafter": np.zeros((1, 2, 64, 65), np.float32)}, "dafter"),
        ({"dafter": np.zeros((1, 2, 64, 64), np.float32), "log_decay": np.zeros(2, np.float32)}, "pass after"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    do, q, k, v = operands(40)
    with pytest.raises(ArgumentError) as error:
        pk.linear_attention_backward(**{"do": do, "q": q, "k": k, "v": v, **change})
    assert words in str(error.value)
