"""Calls go to a driver without a GPU and to a cache of their own, as the tests of `gpu/` do; some to no compiler."""

import pytest

from pykittens.gpu import cache
from pykittens.gpu.compiler import Cubin
from tests.gpu.conftest import fake, own_cache

__all__ = ["fake", "own_cache", "uncompiled"]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler makes is nobody's subject: a cubin is the text that it is made of, which takes no time."""

    def compile(text: str, arch: str, options: tuple[str, ...] = ()) -> Cubin:
        return Cubin(text.encode(), "kernel", arch, "", 32, 0, 0, 0, 0, (), "NVRTC 13.5", 0.1)

    monkeypatch.setattr(cache, "compile", compile)
