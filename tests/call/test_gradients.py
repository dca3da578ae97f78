"""What a kernel owes autograd: no gradient is lost without a word, and what was overwritten is known to have been."""

from collections.abc import Callable
from typing import Any

import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.errors import ArgumentError
from pykittens.gpu import libcuda
from pykittens.interop import frameworks
from tests.gpu.conftest import forget
from tests.gpu.fake_driver import CONTEXT, FakeDriver

torch = pytest.importorskip("torch")


@pytest.fixture(params=["simulated", "launched"])
def copy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A kernel that copies x to y: simulated, or launched on a GPU that is not there."""
    if request.param == "launched":
        fake = FakeDriver()
        fake.parameter_sizes = [56, 56]
        monkeypatch.setattr(libcuda, "_open", lambda: fake.library)
        describe = frameworks.Torch.describe
        monkeypatch.setattr(frameworks.Torch, "describe", lambda self, x: describe(self, x)._replace(device=0))
        monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: 0)
        forget()
        request.addfinalizer(forget)
        fake.current.context = CONTEXT

    @pk.kernel(warps=1)
    def copied(x: pk.gl(f32, 16, 64), y: pk.gl(f32, 16, 64)) -> None:
        warp.store(y, warp.load(x, (0, 0), rows=16), (0, 0))

    return copied


def tensors(graded: bool = False) -> tuple[Any, Any]:
    return torch.ones(16, 64, requires_grad=graded), torch.zeros(16, 64)


def test_an_input_that_requires_its_gradient_is_refused(copy: Callable[..., None]) -> None:
    """However often it was taken under no_grad, and others like it with gradients recorded."""
    for _ in range(3):
        copy(*tensors())
        x, y = tensors(True)
        with pytest.raises(ArgumentError, match="operand 'x' requires its gradient") as error:
            copy(x, y)
        assert "torch.no_grad()" in error.value.fix and "x.detach()" in error.value.fix
        for _ in range(3):
            with torch.no_grad():
                copy(x, y)
        copy(x.detach(), y)


def test_an_output_may_require_its_gradient(copy: Callable[..., None]) -> None:
    x, y = tensors()
    for _ in range(3):
        copy(x, y.requires_grad_())


def test_what_autograd_kept_may_not_be_overwritten(copy: Callable[..., None]) -> None:
    weight = torch.ones(16, 64, requires_grad=True)
    for _ in range(4):
        x, y = tensors()
        version = y._version
        loss = (y * weight).sum()
        copy(x, y)
        assert y._version > version and x._version == 0
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_bound_calls(copy: Callable[..., None], request: pytest.FixtureRequest) -> None:
    if "launched" not in request.node.callspec.id:
        return
    x, y = tensors(True)
    with pytest.raises(ArgumentError, match="requires its gradient"):
        copy.bind(x, y)  # type: ignore[attr-defined]
    bound = copy.bind(x.detach(), y)  # type: ignore[attr-defined]
    version = y._version
    bound()
    assert y._version > version
