"""For all tests: a cache of their own, tests marked `gpu` only where there is a GPU, and what each kind of test
takes."""

import gc
import os
import sys

# One thread a process: the matrices are small, there is a process a core, and threads that wait for one another spin.
# Before anything loads NumPy or torch; processes that tests or pytest start inherit it.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

os.environ.setdefault("PYKITTENS_TRACEBACK", "full")  # what goes wrong here is ours to find
# Many tests start processes, which load what this one has compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What tests trace and torch compiles stays: millions of objects, which Python would go through again whenever there are
# a quarter more of them.
gc.set_threshold(5000, 20, 30)

from collections import Counter  # noqa: E402
from collections.abc import Generator, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from pykittens.gpu import driver  # noqa: E402
from tests import thin  # noqa: E402
from tests.all import BUDGET, kind_of  # noqa: E402

MOST = 20  # tests that are listed with what they took
BEGAN = pytest.StashKey[float]()
SECONDS: Counter[str] = Counter()  # of a processor, by kind of test
OF_TEST: Counter[str] = Counter()  # the same, by test, without its parameters
COUNTS: Counter[tuple[str, str]] = (
    Counter()
)  # how many tests of a kind passed or failed; how many kernels they compiled
FAILING: dict[str, set[str]] = {}  # which failed, by kind


def worked() -> float:
    """Seconds of a processor that this process and its children have taken: on a busy machine no more than on an idle
    one."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="what is exhaustive is run whole, not thin")
    parser.addoption("--record", action="store_true", help="with --whole: what ran is filed in benchmarks/results")
    parser.addoption(
        "--budget", action="store_true", help="fail if a kind of test takes longer than tests/all.py allows"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[BEGAN] = worked()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport]:
    """The report of a test's end carries what all of the test took, from a worker of xdist too."""
    report = yield
    if call.when == "teardown":
        report.user_properties.append(("worked", worked() - item.stash[BEGAN]))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    kind, facts = kind_of(report.nodeid), dict(report.user_properties)
    if report.when == "call" or report.failed:
        COUNTS[kind, report.outcome] += 1
    if report.failed:
        FAILING.setdefault(kind, set()).add(report.nodeid)
    if report.when == "teardown":
        SECONDS[kind] += float(facts["worked"])
        OF_TEST[report.nodeid.partition("[")[0]] += float(facts["worked"])
        COUNTS[kind, "kernels"] += facts.get("kernels", 0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `--budget` a kind of test that takes too long fails the run; with `--record` what ran is filed."""
    gc.freeze()  # pytest looks for garbage five times when it ends
    if session.config.getoption("budget") and any(SECONDS[kind] > BUDGET[kind] for kind in BUDGET):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    controls = "PYTEST_XDIST_WORKER" not in os.environ and ended
    if controls and session.config.getoption("record") and session.config.getoption("whole"):
        from benchmarks.record import record

        rows = [
            {"kind": kind, "passed": COUNTS[kind, "passed"], "failing": sorted(FAILING.get(kind, ()))}
            | ({"kernels": COUNTS[kind, "kernels"]} if COUNTS[kind, "kernels"] else {})
            | {"processor_seconds": round(SECONDS[kind])}
            for kind in SECONDS
        ]
        record("whole", rows, ("kind",))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("budget"):
        terminalreporter.section("seconds of a processor by kind of test, and how many it may take")
        for kind, most in BUDGET.items():
            over = "  TOO LONG" if SECONDS[kind] > most else ""
            terminalreporter.line(f"{kind:32} {SECONDS[kind]:6.0f} {most:6}{over}")
        terminalreporter.section("the tests that took most, in all their cases")
        for test, seconds in OF_TEST.most_common(MOST):
            terminalreporter.line(f"{seconds:6.1f} {test}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("whole"):
        kept = thin.chosen(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    if not driver.available():
        on_gpu = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kernels compiled by one test serve the next; none comes from, or goes to, the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path_factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"  # workers share one
        patch.setenv("PYKITTENS_CACHE", str(folder))
        patch.delenv("PYKITTENS_AOT", raising=False)
        yield folder


@pytest.fixture(autouse=True)
def orders(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels run in one order of blocks and warps where a test is of something else (`thin.in_one_order`); in all that
    a result may depend on with `--whole`."""
    test = request.node
    if thin.in_one_order(test) and not request.config.getoption("whole"):
        with thin.one_order():
            yield
    else:
        yield
