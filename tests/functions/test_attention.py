"""Attention's settings and further operands as torch sees them: gradients, autograd's compiler, lengths that change."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402

HALF = torch.bfloat16


def operands(n: int = 40, m: int = 70) -> list[Any]:
    made = torch.Generator().manual_seed(n)
    rows = [torch.randn(shape, generator=made).to(HALF) for shape in ((2, 2, n, 64), (2, 1, m, 64), (2, 1, m, 64))]
    return [x.requires_grad_() for x in (*rows, torch.randn(2, generator=made))]


def exact(q: Any, k: Any, v: Any, sinks: Any, left: int, right: int, softcap: float) -> Any:
    """By torch's own operations, in float64."""
    q, k, v, sinks = (x.double() for x in (q, k, v, sinks))
    score = softcap * torch.tanh(q @ k.mT / 8 / softcap)
    distance = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None] - (k.shape[2] - q.shape[2])
    score = score.masked_fill((distance < -left) | (distance > right), -torch.inf)
    score = torch.cat([score, sinks[None, :, None, None].expand(*score.shape[:3], 1)], 3)
    return torch.softmax(score, 3)[..., :-1] @ v


def test_gradients_by_torch() -> None:
    given = operands()
    out = pk.attention(*given[:3], sinks=given[3], window=(20, 5), softcap=2.0)
    expected = exact(*given, 20, 5, 2.0)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(HALF)
    found, wanted = (torch.autograd.grad((x * weight).sum(), given) for x in (out, expected))
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        assert (x - y).norm() < 2e-2 * y.norm()


def test_compiled_with_other_lengths_and_windows() -> None:
    def run(q: Any, k: Any, v: Any, sinks: Any, left: int) -> Any:
        return pk.attention(q, k, v, sinks=sinks, window=(left, 5), softcap=2.0)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, m, left in ((40, 70, 20), (20, 90, 30)):
        given = operands(n, m)
        found, expected = compiled(*given, left), run(*given, left)
        assert torch.equal(found, expected)
        found, expected = (torch.autograd.grad(x.float().square().sum(), given) for x in (found, expected))
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
