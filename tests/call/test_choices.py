"""Public functions choose their kernels by the features of the GPU: on each, what needs no wgmma runs, and the rest
says so."""

from collections.abc import Callable
from typing import Any

import pytest

import pykittens as pk
from pykittens.architectures import ARCHITECTURES, best_for
from pykittens.call.kernel import _kernels
from pykittens.gpu import cache, compiler
from pykittens.interop import frameworks
from pykittens.kernels import matmul
from tests.gpu.fake_driver import ATTRIBUTES, CONTEXT, FakeDriver

torch = pytest.importorskip("torch")


def bf16(*shape: int) -> Any:
    return torch.zeros(*shape, dtype=torch.bfloat16)


EVERYWHERE: dict[str, Callable[[], Any]] = {
    "softmax": lambda: pk.softmax(bf16(64, 256)),
    "softmax of long rows": lambda: pk.softmax(bf16(8, 32768)),
    "rmsnorm": lambda: pk.rmsnorm(bf16(64, 256), bf16(256)),
    "rmsnorm of long rows": lambda: pk.rmsnorm(bf16(8, 32768), bf16(32768)),
    "swiglu": lambda: pk.swiglu(bf16(64, 256), bf16(64, 256)),
    "attention": lambda: pk.attention(*[bf16(1, 2, 128, 64)] * 3),
    "matmul": lambda: pk.matmul(bf16(64, 64), bf16(64, 64)),
}
BY_WGMMA: dict[str, Callable[[], Any]] = {
    "linear attention": lambda: pk.linear_attention(*[bf16(1, 2, 128, 64)] * 3),
    "based": lambda: pk.based(*[bf16(1, 2, 128, 16)] * 2, bf16(1, 2, 128, 64)),
    "attention of": lambda: pk.attention(*[bf16(1, 1, 64, 256)] * 3),
}


@pytest.mark.parametrize("capability", sorted({row.capability for row in ARCHITECTURES.values()}))
def test_choices(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    arch = best_for(capability)
    assert arch is not None
    for attribute, value in {75: capability[0], 76: capability[1], 97: arch.shared_bytes}.items():
        monkeypatch.setitem(ATTRIBUTES, attribute, value)
    describe, maker = frameworks.Torch.describe, frameworks.Torch.maker
    monkeypatch.setattr(frameworks.Torch, "describe", lambda self, x: describe(self, x)._replace(device=0))
    monkeypatch.setattr(frameworks.Torch, "maker", lambda self, shape, dtype, device: maker(self, shape, dtype, None))
    monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: 0x77)
    cubin = compiler.Cubin(b"", "k", arch.name, "", 32, 0, 0, 0, 0, (), "none", 0.0)
    written: list[str] = []
    monkeypatch.setattr(cache, "load_or_compile", lambda text, name, options: written.append(name) or cubin)
    fake.current.context = CONTEXT
    forget()
    try:
        for call in EVERYWHERE.values():
            call()
        for name, call in BY_WGMMA.items():
            if "wgmma" in arch.features:
                call()
                continue
            with pytest.raises(pk.ArgumentError, match=rf"^{name} ") as caught:
                call()
            assert str(arch) in str(caught.value)
        assert set(written) == {arch.name}
    finally:
        forget()


def forget() -> None:
    """A process has one kind of GPU; this one has had several."""
    from pykittens.functions import plans

    plans.known.clear()
    matmul.choose_kernel.cache_clear()
    for kernel in [*_kernels]:
        kernel.forget()
