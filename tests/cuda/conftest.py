"""A cache of their own for the tests, so that none reads or fills the user's."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYKITTENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYKITTENS_AOT", raising=False)
    return tmp_path / "cache"
