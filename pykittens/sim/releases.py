"""What releases tell acquires, through an element of global memory (PTX ISA, memory consistency model, "release and
acquire patterns").

Knowledge is what an agent knows of every cluster it has heard of: by cluster, clocks of shape (views, agents). An
element keeps what was released by the write that it shows: a store begins anew, an atomic adds to it (a release
sequence). It is kept by who may acquire it: all threads of the GPU, of a cluster, or of a block, as the release's scope
says.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .machine import Machine

Knowledge = dict[int, np.ndarray]  # by cluster
Message = dict[Hashable, Knowledge]  # by who may acquire it
SCOPES = ("cta", "cluster", "gpu")


def merged(a: Knowledge, b: Knowledge) -> Knowledge:
    """What two know together. Arrays are never changed, and shared where they can be."""
    if not a or not b:
        return a or b
    out = dict(a)
    for cluster, known in b.items():
        own = out.get(cluster)
        out[cluster] = known if own is None else own if own is known else np.maximum(own, known)
    return out


def _common(a: Message, b: Message) -> Message:
    """What two messages both tell."""
    if a is b:
        return a
    return {
        audience: {c: np.minimum(known, b[audience][c]) for c, known in told.items() if c in b[audience]}
        for audience, told in a.items()
        if audience in b
    }


def _audiences(scope: str, cluster: int, rank: int) -> list[Hashable]:
    """Who may acquire what a block releases at a scope; or whose releases it may acquire."""
    audiences: list[Hashable] = [("cta", cluster, rank), ("cluster", cluster), ("gpu",)]
    return audiences[: SCOPES.index(scope) + 1]


class Releases:
    """What each element tells, by its address, and what agents will release or acquire at their fences."""

    def __init__(self) -> None:
        self.told: dict[int, Message] = {}
        self.history: dict[
            int, list[tuple[int, Message]]
        ] = {}  # of elements that are waited for: each value, what it told
        self.fenced: dict[tuple[int, int], dict[str, Knowledge]] = {}  # by agent: what its last fence of a scope knew
        self.heard: dict[tuple[int, int], dict[int, tuple[Message, str]]] = {}  # by agent, of relaxed reads: by address

    def read(self, m: Machine, agent: int, address: int, order: str, scope: str, at_least: int | None = None) -> None:
        """The agent has read the element; where it has waited, it may have seen any value since the element was
        enough.
        """
        message, clocks = self.told.get(address, {}), m.block.cluster.clocks
        if at_least is not None:
            message = self._whatever_was_seen(address, at_least)
        if order in ("acquire", "acq_rel"):
            self._acquire(m, agent, message, scope)
            clocks.meet(np.array([[agent]]))  # one lane reads, then the warp's lanes meet
        elif message:
            self.heard.setdefault((clocks.number, agent), {})[address] = message, scope

    def write(self, m: Machine, agent: int, address: int, order: str, scope: str, fresh: bool) -> None:
        """The agent has written the element: `fresh`, by a store; else by an atomic."""
        clocks, block = m.block.cluster.clocks, m.block
        message: Message = {} if fresh else dict(self.told.get(address, {}))
        told = dict(self.fenced.get((clocks.number, agent), {}))
        if order in ("release", "acq_rel"):
            clocks.meet(np.array([[agent]]))  # and before one lane writes
            told[scope] = clocks.tell(agent)
        for fence, known in told.items():
            narrower = min(fence, scope, key=SCOPES.index)
            for audience in _audiences(narrower, clocks.number, block.rank):
                message[audience] = merged(message.get(audience, {}), known)
        if message or address in self.told:
            self.told[address] = message

    def reached(self, address: int, value: int) -> None:
        """The element, which some wait looks at, now has this value."""
        self.history.setdefault(address, []).append((value, self.told.get(address, {})))

    def _whatever_was_seen(self, address: int, at_least: int) -> Message:
        """What all values have told since the element was last less."""
        common: Message | None = None
        for value, told in reversed(self.history.get(address, ())):
            if value < at_least:
                break
            common = told if common is None else _common(common, told)
        return common or {}

    def fence(self, m: Machine, agent: int, scope: str) -> None:
        """A fence: it acquires what relaxed reads have heard, and strong writes from now on release what is known."""
        clocks = m.block.cluster.clocks
        key = clocks.number, agent
        for message, heard in self.heard.get(key, {}).values():
            self._acquire(m, agent, message, min(heard, scope, key=SCOPES.index))
        clocks.meet(np.array([[agent]]))
        self.fenced.setdefault(key, {})[scope] = clocks.tell(agent)

    def _acquire(self, m: Machine, agent: int, message: Message, scope: str) -> None:
        clocks = m.block.cluster.clocks
        for audience in _audiences(scope, clocks.number, m.block.rank):
            if audience in message:
                clocks.hear(agent, message[audience])
