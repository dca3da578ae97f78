"""In which orders blocks and warps come: one for most programs, several for those whose results depend on it.

What nothing orders is found in any order. But who gets which ticket, whose compare-and-swap succeeds and who comes last
is
decided by chance on a GPU, and other statements run; so such a program runs in every order of a list. The list is the
same
with and without a seed, which only says which one comes first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
RESIDENT = 8  # clusters that run at once, unless all must
# How often lots are drawn: the oftener, the less there is to run (statements of all clusters).
FEWEST, MOST, WORK = 2, 48, 4096


@dataclass(frozen=True)
class RunOrder:
    """resident: how many clusters run at once; others begin, in the order of their indices, when one has ended.

    interleave: gangs let others go before each strong access to global memory. first: how many gangs are passed over
    before the
    first in each turn; descending: the last come first; shuffle: a seed, by which lots are drawn for who goes next.
    """

    label: str
    resident: int
    interleave: bool = True
    first: int = 0
    descending: bool = False
    shuffle: int | None = None

    def turns(self) -> Turns:
        return Turns(self)


class Turns:
    """The order of each turn of a run."""

    def __init__(self, order: RunOrder):
        self.order = order
        self.random = random.Random(order.shuffle) if order.shuffle is not None else None

    def __call__(self, items: Sequence[T]) -> list[T]:
        found = list(items)
        if self.random is not None:
            self.random.shuffle(found)
            return found
        if self.order.descending:
            found.reverse()
        first = self.order.first % max(1, len(found))
        return found[first:] + found[:first]


def run_orders(clusters: int, statements: int, chance: bool, cooperative: bool, seed: int | None) -> list[RunOrder]:
    """The orders to run, the first of which makes the results. `chance`: results depend on it."""
    together = clusters if cooperative else min(clusters, RESIDENT)
    in_turn = RunOrder("one block after another", clusters if cooperative else 1, interleave=False)
    if not chance:
        return [in_turn]
    orders = [
        in_turn,
        RunOrder("all blocks in turn", together),
        RunOrder("all blocks in turn, the second first", together, first=1),
        RunOrder("all blocks in turn, the third first", together, first=2),
        RunOrder("the last block first", together, interleave=False, descending=True),
        RunOrder("all blocks in turn, backwards", together, descending=True),
    ]
    draws = min(MOST, max(FEWEST, WORK // (clusters * statements)))
    orders += [RunOrder(f"by lot {i}", together, shuffle=i) for i in range(draws)]
    start = 0 if seed is None else seed % len(orders)
    return orders[start:] + orders[:start]
