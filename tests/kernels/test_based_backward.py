"""Gradients of Based on the simulated GPU, against those of its recurrence, which torch differentiates in float64."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens.functions.sequences import BASED_BACKWARD
from pykittens.kernels.based import FEATURES
from pykittens.kernels.based_backward import derivative, reference
from tests.kernels.sequences import BF16, distance, random

torch = pytest.importorskip("torch")
FACTORS = np.concatenate([np.full(16, 1 / 32), np.full(120, 1 / 16), np.ones(8), np.full(16, 1 / 4)])


def operands(n: int, e: int = 64, dtype: Any = BF16) -> list[np.ndarray]:
    """do, q, k, v."""
    return [random(i, 1, 2, n, cols, dtype=dtype) for i, cols in enumerate((e, 16, 16, e))]


def states(e: int) -> list[np.ndarray]:
    """The state before, and the gradient of the state after; some of their columns belong to no feature."""
    made = [random(i, 1, 2, e, FEATURES, dtype=np.float32) for i in (8, 9)]
    for x in made:
        x[..., 137:144] = 0
    return made


def features(x: Any) -> Any:
    rolled = [x * x.roll(-m, -1) for m in range(8)]
    last = torch.cat([(x * x.roll(-8, -1))[..., :8], torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :7])], -1)
    return torch.cat([*rolled, last, x], -1)


def recurrence(q: Any, k: Any, v: Any, state: Any) -> tuple[Any, Any]:
    """What the function computes, row by row, in torch."""
    rows = []
    for i in range(q.shape[2]):
        state = state + v[:, :, i, :, None] * features(k[:, :, i])[:, :, None, :]
        rows.append((state @ (features(q[:, :, i]) * torch.tensor(FACTORS))[..., None])[..., 0])
    return torch.stack(rows, 2), state


def test_reference_is_what_torch_differentiates() -> None:
    do, q, k, v = operands(33, 8, np.float64)
    state, dafter = (x.astype(np.float64) for x in states(8))
    given = [torch.tensor(x, requires_grad=True) for x in (q, k, v, state)]
    expected = torch.autograd.grad(recurrence(*given), given, [torch.tensor(do), torch.tensor(dafter)])
    for x, y in zip(reference(do, q, k, v, state=state, dafter=dafter), expected, strict=True):
        assert np.allclose(x, y.numpy(), rtol=1e-10, atol=1e-10)


def test_the_derivative_of_features() -> None:
    x = torch.tensor(random(1, 16, dtype=np.float64), requires_grad=True)
    slope = random(2, FEATURES, dtype=np.float64)
    (expected,) = torch.autograd.grad(features(x), x, torch.tensor(slope))
    assert np.allclose(derivative(x.detach().numpy(), slope), expected.numpy())


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize(("n", "e", "given"), [(1, 64, False), (64, 64, True), (90, 128, True)])
def test_lengths_dimensions_and_states(n: int, e: int, given: bool, dtype: Any) -> None:
    do, q, k, v = operands(n, e, dtype)
    state, dafter = states(e) if given else (None, None)
    found = BASED_BACKWARD((do, q, k, v, state, dafter))
    expected, single = (
        reference(do, q, k, v, state=state, dafter=dafter, dtype=kind) for kind in (np.float64, np.float32)
    )
    for x, y, z in zip(
        found[:3], expected, single, strict=False
    ):  # products are rounded in the state, as in the forward
        assert distance(x, y) <= 1.6 * distance(z.astype(dtype), y)
    assert distance(found[3], expected[3]) < 1e-5 if given else not found[3].size


def test_f16_states_beyond_its_range() -> None:
    do, q, k, v = operands(100, dtype=np.float16)
    state, dafter = (x * np.float32(1e6) for x in states(64))
    do, q, v = ((x * np.float32(1e-3)).astype(np.float16) for x in (do, q, v))
    found = BASED_BACKWARD((do, q, k, v, state, dafter))
    expected = reference(do, q, k, v, state=state, dafter=dafter)
    assert distance(found[0], expected[0]) < 1e-3 and distance(found[3], expected[3]) < 1e-5


def test_torch_differentiates_it() -> None:
    do, q, k, v = (torch.tensor(x.astype(np.float32)).bfloat16() for x in operands(70))
    state, dafter = map(torch.tensor, states(64))
    given = [x.clone().requires_grad_() for x in (q, k, v, state)]
    found = torch.autograd.grad(pk.based(*given[:3], state=given[3], return_state=True), given, [do, dafter])
    exact = [x.detach().double().requires_grad_() for x in given]
    expected = torch.autograd.grad(recurrence(*exact), exact, [do.double(), dafter.double()])
    for x, y in zip(found, expected, strict=True):
        assert distance(x.float().numpy(), y.numpy()) < 4e-3
