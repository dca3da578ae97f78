"""A cache of their own for the tests, so that none reads or fills the user's; a driver without a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pykittens.gpu import driver, libcuda
from tests.gpu.fake_driver import FakeDriver


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYKITTENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYKITTENS_AOT", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Stands in for the machine's driver while a test runs."""
    fake = FakeDriver()
    monkeypatch.setattr(libcuda, "_open", lambda: fake.library)
    forget()
    yield fake
    forget()


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without an NVIDIA driver."""

    def missing() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(libcuda, "_open", missing)
    forget()
    yield
    forget()


def forget() -> None:
    """Drops what was remembered about the driver before."""
    for remembered in (libcuda.library, *vars(driver).values()):
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()
    driver._granted.clear()
