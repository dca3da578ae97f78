"""What of an exhaustive test runs in CI: the rest has the marker `whole` and runs with `--whole`.

Two rules, both of the names alone, so that every run looks at the same:

* of a kernel's configurations, as few as have every value of every option (`values`);
* of a long list of cases, one in so many (`some`), spread by a hash of their names, and always the first.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from pykittens.kernels.catalog import Instance

Configuration = tuple[dict[str, Any], Instance]  # the values of the options, the kernel in them


def values(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Few of a kernel's configurations, with every value of every option in one of them: next always the one that has
    most of what has not occurred, of equals the first."""
    found = list(configurations)
    left, chosen = {pair for choice, _ in found for pair in choice.items()}, []
    while left:
        best = max(found, key=lambda each: len(left & set(each[0].items())))
        chosen.append(best)
        left -= set(best[0].items())
    return chosen


def runs(name: str, one_in: int) -> bool:
    """Whether a case of this name is the one in `one_in` that runs in CI."""
    return zlib.crc32(name.encode()) % one_in == 0


def some(cases: Iterable[Any], one_in: int) -> list[Any]:
    """Parameters of a test: the first and one in `one_in` of the others as they are, the rest with the marker `whole`.

    A case is called by its `id`, else by `repr` of its values: they must be the same in every run.
    """
    made = []
    for i, case in enumerate(cases):
        given = case if hasattr(case, "marks") else pytest.param(case)
        marks = [] if i == 0 or runs(str(given.id or repr(given.values)), one_in) else [pytest.mark.whole]
        made.append(pytest.param(*given.values, id=given.id, marks=[*given.marks, *marks]))
    return made
