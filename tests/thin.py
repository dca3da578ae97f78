"""What of an exhaustive test runs in CI: the rest has the marker `whole` and runs with `--whole`.

Two rules, both of the names alone, so that every run looks at the same:

* of kernels' configurations, as few as have every value of every option (`values`), or every pair of values of two
  options (`pairs`);
* of a long list of cases, one in so many (`some`), spread by a hash of their names, and always the first.
"""

import itertools
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from pykittens.kernels.catalog import Instance, Shipped

Chosen = list[tuple[dict[str, Any], Instance]]


def values(row: Shipped) -> Chosen:
    """Configurations in which every value of every option of a kernel occurs."""
    return _covering(row, 1)


def pairs(row: Shipped) -> Chosen:
    """Configurations in which every two values occur together that do so anywhere."""
    return _covering(row, 2)


def _covering(row: Shipped, together: int) -> Chosen:
    """Greedily: next the one that has most of what has not occurred, of equals the first."""
    found = list(row.configurations())
    has = [set(itertools.combinations(choice.items(), min(together, len(choice)))) for choice, _ in found]
    left, chosen = set().union(*has), []
    while left:
        best = max(range(len(found)), key=lambda i: len(has[i] & left))
        chosen.append(found[best])
        left -= has[best]
    return chosen


def some(cases: Iterable[Any], one_in: int, names: Sequence[str] | None = None) -> list[Any]:
    """Parameters of a test: the first and one in `one_in` of the others as they are, the rest with the marker `whole`.

    A case is called by its `names` entry, else by `repr` of what it is: both must be the same in every run.
    """
    made = []
    for i, case in enumerate(cases):
        given = case if hasattr(case, "marks") else pytest.param(case)
        name = names[i] if names is not None else given.id or repr(given.values)
        runs = i == 0 or zlib.crc32(str(name).encode()) % one_in == 0
        made.append(
            given if runs else pytest.param(*given.values, id=given.id, marks=[*given.marks, pytest.mark.whole])
        )
    return made
