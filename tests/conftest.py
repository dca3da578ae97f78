"""For all tests: a cache of their own, tests marked `gpu` only where there is a GPU, and what each kind of test
takes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykittens.gpu import driver
from tests.all import BUDGET, kind_of

SECONDS: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="what is exhaustive is run whole, not thin")
    parser.addoption(
        "--budget", action="store_true", help="fail if a kind of test takes longer than tests/all.py allows"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    SECONDS[kind_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `--budget`: a kind of test that takes too long fails the run."""
    if session.config.getoption("budget") and any(SECONDS[kind] > BUDGET[kind] for kind in BUDGET):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("budget"):
        terminalreporter.section("seconds of work by kind of test, and how many it may take")
        for kind, most in BUDGET.items():
            over = "  TOO LONG" if SECONDS[kind] > most else ""
            terminalreporter.line(f"{kind:32} {SECONDS[kind]:6.0f} {most:6}{over}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("whole"):
        long = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("whole")]
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
