"""In which orders blocks and warps come: one for most programs, several for those whose results depend on it.

What nothing orders is found in any order. But who gets which ticket, whose compare-and-swap succeeds and who comes last
is decided by chance on a GPU, and other statements run; so such a program runs in every order of a list. The list is
the same with and without a seed, which only says which one comes first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
RESIDENT = 8  # clusters that run at once, unless all must, or all do little
# How often lots are drawn: the oftener, the less there is to run (statements of all clusters; WORK are little).
FEWEST, MOST, WORK = 2, 48, 4096
LONG = 16384  # operations of a run within which blocks and warps meet in many ways
MANY = 32  # who comes after so many others is one of many


@dataclass(frozen=True)
class RunOrder:
    """resident: how many clusters run at once; others begin, in the order of their indices, when one has ended.

    interleave: gangs let others go before each strong access to global memory. first: how many gangs are passed over
    before the first in each turn; descending: the last come first; shuffle: a seed, by which lots are drawn for who
    goes next, among those who went least often before (`tried`, of all runs).
    """

    label: str
    resident: int
    interleave: bool = True
    first: int = 0
    descending: bool = False
    shuffle: int | None = None
    tried: Tried = field(default_factory=lambda: Tried(), compare=False)

    def turns(self) -> TurnOrder:
        return TurnOrder(self)


class Tried:
    """What runs by lot have tried: whether all orders of a small program have been, and what was rare until now.

    A choice is made at a point of a run: by a hash of who went until then, and by where all stand. `closed`: choices
    after which nothing is left to try.
    """

    def __init__(self) -> None:
        self.count: Counter[Hashable] = Counter()
        self.closed: set[Hashable] = set()
        self.everything = False

    def close(self, trail: list[tuple[int, list[Hashable], Hashable]]) -> None:
        """A run has ended. `trail`: its points, who could have gone on there, and who did."""
        for point, places, went in reversed(trail):
            self.closed.add((point, went))
            if any((point, place) not in self.closed for place in places):
                return
        self.everything = True


class TurnOrder:
    """The order of each turn of a run."""

    def __init__(self, order: RunOrder):
        self.order = order
        self.random = random.Random(order.shuffle) if order.shuffle is not None else None
        self.path = 0
        self.passed: Counter[Hashable] = Counter()  # how many have gone on from an operation
        self.trail: list[tuple[int, list[Hashable], Hashable]] = []

    def lot(self, places: dict[T, tuple[Hashable, ...]]) -> T:
        """Who goes next, of those who can (`places`: where each stands, the operation last): by lot, among those after
        whom something is left to try, and who went least often after what has happened until now, then as the first,
        second or n-th from that operation (who draws which ticket), then from where all stand.
        """
        assert self.random is not None
        tried, point, stand = self.order.tried, self.path, hash(tuple(places.values()))
        items = list(places)
        self.random.shuffle(items)

        def worn(item: T) -> tuple[bool, int, int, int]:
            place = places[item]
            nth = tried.count["nth", self._nth(place), place]
            return (point, place) in tried.closed, tried.count[point, place], nth, tried.count[stand, place]

        chosen = min(items, key=worn)
        place = places[chosen]
        for key in ((point, place), (stand, place), ("nth", self._nth(place), place)):
            tried.count[key] += 1
        self.passed[place[-1]] += 1
        self.trail.append((point, list(places.values()), places[chosen]))
        self.path = hash((point, places[chosen]))
        return chosen

    def _nth(self, place: tuple[Hashable, ...]) -> int:
        return min(self.passed[place[-1]], MANY)  # whoever goes round for ever is always the next

    def end(self) -> None:
        """The run has ended."""
        if self.random is not None:
            self.order.tried.close(self.trail)

    def __call__(self, items: Sequence[T]) -> list[T]:
        found = list(items)
        if self.order.descending:
            found.reverse()
        first = self.order.first % max(1, len(found))
        return found[first:] + found[:first]


def run_orders(clusters: int, statements: int, chance: bool, cooperative: bool, seed: int | None) -> list[RunOrder]:
    """The orders to run, the first of which makes the results. `chance`: results depend on it."""
    together = clusters if cooperative or clusters * statements <= WORK else min(clusters, RESIDENT)
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
    tried = Tried()
    orders += [RunOrder(f"by lot {i}", together, shuffle=i, tried=tried) for i in range(draws)]
    start = 0 if seed is None else seed % len(orders)
    return orders[start:] + orders[:start]


def left_to_run(orders: list[RunOrder], operations: int) -> list[RunOrder]:
    """The orders after the first, which had so many operations: of a long run two by lot, and those backwards."""
    if operations <= LONG:
        return orders[1:]
    drawn = [x for x in orders[1:] if x.shuffle is not None][:FEWEST]
    return [x for x in orders[1:] if x.descending] + drawn
