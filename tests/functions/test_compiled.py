"""Users' functions under torch.compile: each gives its own results, in later calls too, or is refused."""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
from pykittens.errors import ArgumentError  # noqa: E402
from pykittens.functions.compiled import check_constant  # noqa: E402

TIMES = 2.0


def scaled(x: Any, row: Any, col: Any) -> Any:
    return x * TIMES


def moved(x: Any, row: Any, col: Any) -> Any:
    return x + TIMES


def closed(by: float) -> Callable[..., Any]:
    return lambda x, row, col: x * by


def with_default(x: Any, row: Any, col: Any, by: float = 2.0) -> Any:
    return x * by


def product(a: Any, b: Any, epilogue: Any) -> Any:
    return pk.matmul(a, b, epilogue=epilogue)


def operands() -> list[Any]:
    return [torch.randn(shape).bfloat16() for shape in ((24, 32), (32, 40))]


def test_each_function_gives_its_own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    given, compiled = operands(), torch.compile(product, backend="aot_eager", fullgraph=True)
    for epilogue in (scaled, moved, lambda x, row, col: x * 5.0, scaled):
        assert torch.equal(compiled(*given, epilogue), product(*given, epilogue))
    monkeypatch.setitem(globals(), "TIMES", 3.0)
    assert torch.equal(compiled(*given, scaled), product(*given, scaled))


@pytest.mark.parametrize("function", [closed(2.0), with_default], ids=["closure", "default"])
def test_what_the_compiler_does_not_look_at_is_refused(function: Any) -> None:
    """It would take another function of the same code for this one."""
    torch._dynamo.reset()
    with pytest.raises(Exception, match="torch.compile does not see what the closure and the defaults of the epilogue"):
        torch.compile(product, backend="eager", fullgraph=True)(*operands(), function)
    with pytest.raises(ArgumentError, match="cannot tell whether the mask has changed"):
        check_constant(partial(function, by=1.0), "the mask")
    with pytest.raises(ArgumentError, match="the defaults of the mask hold"):
        check_constant(FunctionType(with_default.__code__, {}, "made", (1.0,)), "the mask")  # in no module


def test_a_mask_within_lengths() -> None:
    """The library's own functions hold what was traced, and users' functions."""
    torch._dynamo.reset()
    q, k, v = (torch.randn(2, 1, 20, 64).bfloat16() for _ in range(3))
    lengths = torch.tensor([20, 7], dtype=torch.int32)

    def call(q: Any, k: Any, v: Any, least: int = 0) -> Any:
        mask = (lambda batch, head, row, col: col >= least) if least else (lambda batch, head, row, col: row >= col)
        return pk.attention(q, k, v, lengths_k=lengths, mask=mask)

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), call(q, k, v))
    with pytest.raises(Exception, match="closure"):
        compiled(q, k, v, 3)
