"""For all tests: a cache of their own, and tests marked `gpu` only where there is a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pykittens.gpu import driver


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not driver.available():
        on_gpu = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kernels compiled by one test serve the next; none comes from, or goes to, the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PYKITTENS_CACHE", str(folder))
        patch.delenv("PYKITTENS_AOT", raising=False)
        yield folder
