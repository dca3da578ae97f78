"""Engines that finish late: the operations they were given, and the queues in which groups of them finish in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import Frame
from .barriers import MBarrier

# How a group queue is kept: one for each warp, one for the whole unit of the scope, or one for its elected thread.
PER_WARP, PER_UNIT, ELECTED = "warp", "unit", "elected"
QUEUES = {"cp.async": PER_WARP, "wgmma": PER_UNIT, "bulk": ELECTED, "bulk.read": ELECTED}
OUTLIVES_BLOCK = ("bulk",)  # what only writes global memory may end after the block does


@dataclass(eq=False)
class Flight:
    """An asynchronous operation on its way: `finish` does what it means, then its barriers are paid, and told what
    it passes on (`known`).
    """

    label: str
    location: tuple[Frame, ...]
    finish: Callable[[], None]
    known: np.ndarray
    payments: list[tuple[MBarrier, int, int]] = field(default_factory=list)  # (barrier, bytes, phase at issue)
    queues: list[Queue] = field(default_factory=list)
    done: bool = False

    def complete(self) -> None:
        """Finishes it, once; an in-order queue first finishes what was issued before."""
        if self.done:
            return
        for queue in self.queues:
            for _, earlier in queue.flights:
                if earlier is self:
                    break
                earlier.complete()
        if self.done:
            return
        self.done = True
        self.finish()
        for barrier, bytes, phase in self.payments:
            barrier.loads.remove(self)
            barrier.pay(bytes, phase, self.known, self.location)


@dataclass(eq=False)
class Queue:
    """Groups of asynchronous operations that finish in order. `agent` stamps their accesses."""

    name: str
    agent: int
    group: int = 0  # the open group
    flights: list[tuple[int, Flight]] = field(default_factory=list)  # (group, operation) that no join has covered
    caused: dict[int, np.ndarray] = field(default_factory=dict)  # what led to a group, by group

    def join(self, pending: int) -> tuple[int, Any]:
        """Finishes all but the last `pending` closed groups; how many are finished, and what led to them."""
        finished = max(0, self.group - pending)
        for group, flight in list(self.flights):
            if group < finished:
                flight.complete()
        self.flights = [x for x in self.flights if x[0] >= finished]
        causes = [c for group, c in self.caused.items() if group < finished]
        self.caused = {group: c for group, c in self.caused.items() if group >= finished}
        return finished, causes
