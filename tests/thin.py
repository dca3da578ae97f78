"""What of an exhaustive test runs in CI; the rest runs with `--whole`. By names and places alone: every run takes the
same.

* `@pytest.mark.thin`: of a test's cases, as few as have every value of every parameter. `values` does it for the
  configurations of a shipped kernel.
* `@pytest.mark.thin(3)`: the first case and one in three of the others, by a hash of their names: for cases that all go
  the same way. Each test takes other ones.
* `@pytest.mark.whole`: none.
"""

import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

from pykittens.kernels.catalog import Instance

Configuration = tuple[dict[str, Any], Instance]  # the values of the options, the kernel in them


def values(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Few of a kernel's configurations, with every value of every option in one of them; one if it has none."""
    found = list(configurations)
    return [found[i] for i in covering([set(choice.items()) for choice, _ in found])] or found[:1]


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
