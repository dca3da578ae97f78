"""Plans on a GPU: calls that are done again compute what a first call on dense operands computes."""

from functools import partial
from typing import Any

import pytest

import pykittens as pk
from pykittens.gpu import driver

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not driver.available(), reason="no GPU")]


def heads(*widths: int, n: int = 130) -> list[Any]:
    """Operands with two heads of so many columns, one for 0, that lie in memory row by row."""
    made = [torch.randn(1, n, 2, width or 1, device="cuda").transpose(1, 2) for width in widths]
    return [x.bfloat16() if width else -abs(x[..., 0]) for x, width in zip(made, widths, strict=True)]


def gates_of_channels() -> list[Any]:
    return [*heads(64, 64, 64, 0), -torch.rand(1, 130, 2, 64, device="cuda").transpose(1, 2)]


def ssd() -> list[Any]:
    x, b, c = (torch.randn(1, 130, m, w, device="cuda").bfloat16() for m, w in ((2, 64), (1, 128), (1, 128)))
    return [x, torch.rand(1, 2, 130, device="cuda").mT, -torch.rand(4, device="cuda")[::2], b, c]


def plain(*shapes: tuple[int, ...]) -> list[Any]:
    return [torch.randn(*shape, device="cuda").bfloat16() for shape in shapes]


FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "gated_delta_rule": (partial(pk.gated_delta_rule, normalize=True), partial(heads, 64, 64, 64, 0, 0)),
    "kimi_delta_attention": (partial(pk.kimi_delta_attention, normalize=True), gates_of_channels),
    "gated_linear_attention": (pk.gated_linear_attention, partial(heads, 64, 64, 64, 0)),
    "gla": (lambda q, k, v, _, g: pk.gated_linear_attention(q, k, v, g), gates_of_channels),
    "mamba2": (pk.mamba2, ssd),
    "linear": (pk.linear, lambda: plain((3, 40, 64), (128, 64), (128,))),
    "linear, gelu": (partial(pk.linear, activation="gelu"), lambda: plain((3, 40, 64), (128, 64))),
    "attention": (partial(pk.attention, causal=True), partial(heads, 64, 64, 64)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_again_is_as_at_first(name: str) -> None:
    """With and without gradients: three calls on fresh numbers, beside calls on dense copies of these."""
    function, make = FUNCTIONS[name]
    for graded in (False, True):
        for _ in range(3):
            given = make()
            results = []
            for operands in (given, [x.contiguous() for x in given]):
                leaves = [x.detach().requires_grad_(graded) for x in operands]
                out = function(*leaves)
                torch.manual_seed(1)
                up = torch.randn(out.shape, device="cuda", dtype=out.dtype)
                used = [x for x in leaves if graded and (name != "gla" or x is not leaves[3])]
                results.append([out.detach(), *(torch.autograd.grad(out, used, up) if graded else ())])
            for i, (one, other) in enumerate(zip(*results, strict=True)):
                assert torch.isfinite(one).all()
                difference = (one.double() - other.double()).norm() / other.double().norm()
                assert difference < 1e-2, (i, float(difference))
