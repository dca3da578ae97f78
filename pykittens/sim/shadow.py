"""Shadow of shared memory: for each cell the last write, and the reads since. It finds what no clock orders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .access_classes import AccessClass
from .clocks import FENCED, SEEN, TICK, Clocks


@dataclass(frozen=True)
class Clash:
    """Two accesses that conflict: `agent` and `operation` made the first, `by` (index into the access) the second.

    kind: "write" or "read" of the first, "proxy" for a generic write that no fence separates from the async proxy,
    "unwritten" when there was no first. `cluster`: the first's, where it is another cluster. `time`: ticks of the agent.
    `first`: the class of the first, in global memory.
    """

    kind: str
    cell: int
    by: int
    agent: int = -1
    operation: int = 0
    cluster: int | None = None
    time: int = 0
    first: AccessClass | None = None


class Shadow:
    """`cells` cells, `agents` agents. A cell must be written before it is read."""

    def __init__(self, cells: int, agents: int):
        self.stamp = np.zeros(cells, np.int64)
        self.agent = np.zeros(cells, np.int32)
        self.generic = np.zeros(cells, bool)  # how it was written
        self.reduced = np.zeros(cells, bool)
        self.reads = np.zeros((cells, agents), np.int64)
        self.watched = np.zeros(cells, bool)  # cells read since the last write

    def read(
        self, clocks: Clocks, rows: np.ndarray, agents: np.ndarray, cells: np.ndarray, stamps: np.ndarray, proxy: str
    ) -> Clash | None:
        """Notes a read of `cells` by `agents` that begins when the warps `rows` come to it; the clash it makes, if any."""
        clash = self._after_write(clocks, rows, cells, proxy)
        if clash is not None:
            return clash
        unwritten = self.stamp[cells] == 0
        if unwritten.any():
            at = int(unwritten.argmax())
            return Clash("unwritten", int(cells[at]), at)
        self.reads[cells, agents] = stamps
        self.watched[cells] = True
        return None

    def write(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        agents: np.ndarray,
        cells: np.ndarray,
        stamps: np.ndarray,
        proxy: str,
        reduce: bool = False,
    ) -> Clash | None:
        """Notes a write (or reduction); the clash it makes, if any."""
        clash = self._after_write(clocks, rows, cells, proxy, reduce)
        if clash is not None:
            return clash
        live = np.flatnonzero(self.watched[cells])
        if len(live):
            reads = self.reads[cells[live]]
            bad = reads >= clocks.of[SEEN][rows[live]]
            if bad.any():
                at, agent = (int(x) for x in np.unravel_index(int(bad.argmax()), bad.shape))
                return self._clash("read", int(cells[live[at]]), int(live[at]), agent, int(reads[at, agent]))
            self.reads[cells[live]] = 0
            self.watched[cells] = False
        self.stamp[cells], self.agent[cells] = stamps, agents
        self.generic[cells], self.reduced[cells] = proxy == "generic", reduce
        if not reduce:
            twice = self.agent[cells] != agents
            if twice.any():
                at = int(twice.argmax())
                return self._clash("write", int(cells[at]), at, int(self.agent[cells[at]]), int(self.stamp[cells[at]]))
        return None

    def _after_write(
        self, clocks: Clocks, rows: np.ndarray, cells: np.ndarray, proxy: str, reduce: bool = False
    ) -> Clash | None:
        stamp, agent = self.stamp[cells], self.agent[cells]
        bad = stamp >= clocks.of[SEEN][rows, agent]
        if reduce:
            bad &= ~self.reduced[cells]
        kind = "write"
        if proxy == "async" and not bad.any():
            kind = "proxy"
            bad = self.generic[cells] & (stamp >= clocks.of[FENCED][rows, agent])
        if not bad.any():
            return None
        at = int(bad.argmax())
        return self._clash(kind, int(cells[at]), at, int(agent[at]), int(stamp[at]))

    @staticmethod
    def _clash(kind: str, cell: int, by: int, agent: int, stamp: int) -> Clash:
        return Clash(kind, cell, by, agent, stamp % TICK, time=stamp // TICK)
