"""When two accesses to the same bytes of global memory, which nothing orders, are a mistake.

An access is *strong* at a scope (PTX, "strong operations": atomics, and loads and stores with an order) or weak. Two
strong accesses whose scopes both include the other's block do not race; a weak one races with whatever changes the
bytes (PTX ISA, memory consistency model, "conflict and data-races"). A *reduction* is an atomic whose result nobody
uses: reductions of one kind commute, those of different kinds, and a reduction and a store, leave what chance decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np

from ..program import Access

SAME_BLOCK, SAME_CLUSTER, OTHER_CLUSTER = 0, 1, 2
REACH = {"": -1, "cta": SAME_BLOCK, "cluster": SAME_CLUSTER, "gpu": OTHER_CLUSTER}


class AccessClass(NamedTuple):
    """What a cell remembers of an access beside who made it and when. `scope` is empty for a weak one; `combines`: the
    kind of a reduction ("add", ...), "store" for a strong store, empty for what returns a value (and explores orders
    instead).
    """

    mode: str
    proxy: str
    scope: str
    combines: str

    def races(self, other: AccessClass, distance: int) -> bool:
        """Whether the two are a mistake where nothing orders them, made by agents at that distance."""
        if self.mode == other.mode == "read":
            return False
        if distance > min(REACH[self.scope], REACH[other.scope]):
            return True
        return bool(self.combines and other.combines and self.combines != other.combines)

    def observed_by(self, other: AccessClass, distance: int) -> bool:
        """Whether `other` follows this one in the order of the element's values: two atomics whose results are used.

        What its thread then does to the element follows too: the last one to come may set a counter back.
        """
        strong = distance <= min(REACH[self.scope], REACH[other.scope])
        return strong and self.mode == other.mode == "reduce" and not self.combines and not other.combines


def classify(access: Access, used: bool) -> AccessClass:
    """The class of an access; `used`: some operation uses the result."""
    strong = access.order != "weak"
    combines = ""
    if strong and access.mode == "write":
        combines = "store"
    elif strong and access.mode == "reduce" and not used:
        combines = "store" if access.reduction == "exch" else access.reduction
    return AccessClass(access.mode, access.proxy, access.scope if strong else "", combines)


class ClassTable:
    """The classes of a program's accesses, by number from 1, and what two of them are to each other, as arrays.

    `races[distance, old, new]`. `covers[old, new]`: whatever races with `old` races with `new`, so that a cell needs to
    remember only the new one of two that are ordered. `observed[distance, old, new]`: they are, if these are the two.
    `generic[old]`: a write through the generic proxy.
    """

    def __init__(self, classes: Iterable[AccessClass]):
        self.classes = sorted(set(classes))
        self.number = {c: i + 1 for i, c in enumerate(self.classes)}
        count = len(self.classes) + 1
        self.races = np.zeros((3, count, count), bool)
        for distance, a, b in product((SAME_BLOCK, SAME_CLUSTER, OTHER_CLUSTER), self.classes, self.classes):
            self.races[distance, self.number[a], self.number[b]] = a.races(b, distance)
        # of old, new: (distance, old, any) implies (distance, new, any)
        self.covers = np.logical_not((self.races[:, :, None, :] & ~self.races[:, None, :, :]).any(axis=(0, 3)))
        self.observed = np.zeros_like(self.races)
        for distance, a, b in product((SAME_BLOCK, SAME_CLUSTER, OTHER_CLUSTER), self.classes, self.classes):
            i, j = self.number[a], self.number[b]
            self.observed[distance, i, j] = a.observed_by(b, distance) and self.covers[i, j]
        self.generic = np.array([False, *(c.mode != "read" and c.proxy == "generic" for c in self.classes)])
        self.scoped = any(c.scope for c in self.classes)
