"""What of an exhaustive test runs in CI; the rest runs with `--whole`. By names and places alone: every run takes the
same.

* `@pytest.mark.thin`: of a test's cases, as few as have every value of every parameter. `configurations` does it for
  shipped kernels: each row of the registry, and every value of every option of the rows that run one kernel.
* `@pytest.mark.thin(3)`: the first case and one in three of the others, by a hash of their names: for cases that all go
  the same way. Each test takes other ones.
* `@pytest.mark.whole`: none.
* `@pytest.mark.one_order`, and every test of functions and of single kernels: in one order of blocks and warps. Each
  kernel of the registry runs once in all orders that its result may depend on.
"""

import contextlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import pytest

from pykittens.call.kernel import Kernel
from pykittens.kernels.catalog import Instance, Shipped
from pykittens.kernels.registry import KERNELS
from pykittens.sim import run
from pykittens.sim.orders import run_orders

Configuration = tuple[Shipped, dict[str, Any], Instance]  # a row, the values of its options, the kernel in them
OF_FUNCTIONS = ("tests/functions", "tests/integrations", "tests/examples", "tests/kernels")


def in_one_order(test: pytest.Item) -> bool:
    """Whether a test's kernels run in one order of blocks and warps in CI."""
    return test.nodeid.startswith(OF_FUNCTIONS) or test.get_closest_marker("one_order") is not None


@contextlib.contextmanager
def one_order() -> Iterator[None]:
    """Kernels run in the first of their orders only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_orders", lambda *given: run_orders(*given)[:1])
        yield


def of_one_kernel() -> list[list[Shipped]]:
    """The rows of the registry, those together that run one kernel."""
    found: dict[Kernel, list[Shipped]] = {}
    for row in KERNELS.values():
        found.setdefault(next(iter(row.configurations()))[1].kernel, []).append(row)
    return [*found.values()]


def configurations(
    rows: Iterable[Shipped], keep: Callable[[Shipped, dict[str, Any]], bool] = lambda row, choice: True
) -> list[Configuration]:
    """Few configurations of rows, of those to `keep`, with each row and every value of every option."""
    every = [(row, choice, found) for row in rows for choice, found in row.configurations() if keep(row, choice)]
    return [every[i] for i in covering([{("row", row.name), *choice.items()} for row, choice, _ in every])]


def covering(sets: Sequence[Collection[Any]]) -> list[int]:
    """Places of few of the sets, with all that is in any: next always the one that has most of what is missing, of
    equals the first."""
    left, chosen = {x for each in sets for x in each}, []
    while left:
        chosen.append(max(range(len(sets)), key=lambda i: len(left.intersection(sets[i]))))
        left -= {*sets[chosen[-1]]}
    return chosen


def runs(name: str, one_in: int) -> bool:
    """Whether a case of this name is the one in `one_in` that runs in CI."""
    return zlib.crc32(name.encode()) % one_in == 0


def chosen(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Those that run in CI."""
    candidates = [item for item in items if not item.get_closest_marker("whole")]
    taken = {item for item in candidates if not item.get_closest_marker("thin")}
    of_one: dict[str, list[Any]] = {}
    for item in candidates:
        if item not in taken:
            of_one.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in of_one.values():
        if one_in := cases[0].get_closest_marker("thin").args:
            taken |= {item for i, item in enumerate(cases) if i == 0 or runs(item.nodeid, *one_in)}
        else:
            taken |= {cases[i] for i in covering([{*enumerate(item.callspec._idlist)} for item in cases])}
    return taken
