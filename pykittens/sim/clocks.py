"""Happens-before: what each agent knows of every other, as vector clocks.

Agents are the warps of a cluster's blocks and the engines that work for them: queues of cp.async, wgmma and bulk
stores, and the loads that complete on each mbarrier. Agent `a` stamps its accesses with a number that grows with its
time; another agent knows them when its clock for `a` is larger. An agent's time moves on whenever it tells others.

Four views are kept side by side, and travel together through every synchronisation:

    SEEN    whose accesses come before mine (of a warp: those of its first lane)
    FENCED  whose generic writes a proxy fence has made visible to the async proxy
    CAUSED  whose steps led to this one, also through an engine that passes on no memory of its issuer
    MET     whose accesses come before those of every lane, also where other lanes than the one that told of it made
    them
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from ..errors import Frame

SEEN, FENCED, CAUSED, MET = 0, 1, 2, 3
TICK = 1 << 20  # a stamp is a time in ticks plus the number of the operation; a clock that knows nothing shows 1


class Clocks:
    """The clocks of cluster number `cluster`: `of[view, agent]` is a vector over its agents.

    `warp_of`: by agent, the warp whose lanes do what it does (the warp, its copies), or -1 for an engine. `label`: an
    agent in words.
    """

    def __init__(self, warp_of: np.ndarray, cluster: int, label: Callable[[int], str] = str):
        agents, self.warp_of = len(warp_of), warp_of
        self.number, self.label = cluster, label
        self.of = np.ones((4, agents, agents), np.int64)
        own = np.arange(agents)
        self.of[SEEN, own, own] = self.of[CAUSED, own, own] = TICK
        self.heard: dict[
            int, list[tuple[int, dict[int, np.ndarray]]]
        ] = {}  # by agent: (time, what it then knew of other clusters)
        self.loose = np.zeros(agents, bool)  # warps whose lanes have done something apart since they last met
        self.alone: dict[
            int, tuple[Frame, ...]
        ] = {}  # by warp: where one of its lanes last told for a warp that had not met

    def stamp(self, agents: np.ndarray, operation: int) -> np.ndarray:
        """What accesses of these warps are stamped with now."""
        return self.of[SEEN, agents, agents] + (operation - TICK)

    def advance(self, agents: np.ndarray) -> None:
        """What these warps do from now on is not known to those that they told before."""
        self.of[SEEN, agents, agents] += TICK
        self.of[CAUSED, agents, agents] += TICK

    def _met(self, warps: np.ndarray, seen: np.ndarray, met: np.ndarray) -> np.ndarray:
        """What all lanes know after `warps` (rows of groups) have told each other what they have `seen` and `met`."""
        own = (self.warp_of[None, :, None] == warps[:, None, :]).any(axis=2)
        return np.where(own | (self.warp_of < 0), seen, met)

    def release(self, agents: np.ndarray) -> np.ndarray:
        """What these warps know together, told by all their lanes, to be acquired by others; shape (views, agents)."""
        known: np.ndarray = self.of[:, agents].max(axis=1)
        known[MET] = self._met(agents[None], known[SEEN], known[MET])[0]
        self.advance(agents)
        return known

    def release_alone(self, agent: int, location: tuple[Frame, ...]) -> np.ndarray:
        """What one lane of a warp tells for it: of what its lanes did apart since they last met, all lanes know
        nothing.
        """
        known: np.ndarray = self.of[:, agent].copy()
        met = known[MET].copy()
        known[MET] = self._met(np.array([[agent]]), known[SEEN], met)[0]
        if self.loose[agent]:
            self.alone[agent] = location
            own = self.warp_of == agent
            known[MET, own] = met[own]
        self.advance(np.array([agent]))
        return known

    def acquire(self, agents: np.ndarray, known: np.ndarray) -> None:
        """All lanes of these warps learn what a release told."""
        self.of[:, agents] = np.maximum(self.of[:, agents], known[:, None])

    def meet(self, groups: np.ndarray) -> None:
        """Barriers: `groups` has a row of warps for each; they tell each other all they know."""
        known = self.of[:, groups].max(axis=2)
        known[MET] = self._met(groups, known[SEEN], known[MET])
        self.of[:, groups] = known[:, :, None]
        warps = groups.ravel()
        self.loose[warps] = False
        self.advance(warps)

    def fence(self, agents: np.ndarray) -> None:
        """Generic writes that these warps know of become visible to the async proxy."""
        self.of[FENCED, agents] = np.maximum(self.of[FENCED, agents], self.of[SEEN, agents])
        self.advance(agents)

    def blank(self) -> np.ndarray:
        """The knowledge of one who knows nothing; shape (views, agents)."""
        return np.ones((4, self.of.shape[1]), np.int64)

    def time(self, ticks: int) -> int:
        """The clock value that covers an engine's first `ticks` groups or phases."""
        return ticks * TICK

    # Other clusters ------------------------------------------------------------------------------------

    def tell(self, agent: int) -> dict[int, np.ndarray]:
        """All that a warp knows, of every cluster, to be acquired by others; by cluster, of shape (views, agents)."""
        known = {**self._abroad(agent), self.number: self.of[:, agent].copy()}
        self.advance(np.array([agent]))
        return known

    def hear(self, agent: int, known: dict[int, np.ndarray]) -> None:
        """A warp acquires what a warp of any cluster told.

        What it learns of other clusters is an event of its own: whoever comes to know of the event, knows what was
        learned.
        """
        own = known.get(self.number)
        if own is not None:
            self.of[:, agent] = np.maximum(self.of[:, agent], own)
        if len(known) == (own is not None):
            return
        events = self.heard.setdefault(agent, [])
        learned = dict(events[-1][1]) if events else {}
        for cluster, clocks in known.items():
            if cluster != self.number:
                before = learned.get(cluster)
                learned[cluster] = clocks if before is None else np.maximum(before, clocks)
        time = int(self.of[SEEN, agent, agent]) - TICK + 1  # of this tick: known to those who are told at its end
        if events and events[-1][0] == time:
            events.pop()
        events.append((time, learned))

    def foreign(self, view: int, agent: int, cluster: int) -> np.ndarray | None:
        """What a warp knows of another cluster's agents, in a view; None for nothing."""
        known = self._abroad(agent).get(cluster)
        return None if known is None else known[view]

    def _abroad(self, agent: int) -> dict[int, np.ndarray]:
        """What a warp knows of other clusters: what those learned whose events it knows of."""
        found: dict[int, np.ndarray] = {}
        for other, events in self.heard.items():
            for view in (SEEN, FENCED):
                at = bisect_left(events, int(self.of[view, agent, other]), key=lambda event: event[0])
                for cluster, clocks in events[at - 1][1].items() if at else ():
                    if view == FENCED:  # a fence after the acquire: what was seen is fenced
                        clocks = clocks.copy()
                        clocks[FENCED] = np.maximum(clocks[FENCED], clocks[SEEN])
                    before = found.get(cluster)
                    found[cluster] = clocks if before is None else np.maximum(before, clocks)
        return found
