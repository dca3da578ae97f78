"""Shadow of shared memory: for each cell the last write, and the reads since. It finds what no clock orders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .access_classes import AccessClass
from .clocks import FENCED, MET, SEEN, TICK, Clocks
from .footprint import Footprint
from .lane_patterns import PATTERNS, SEVERAL, TOGETHER


@dataclass(frozen=True)
class Clash:
    """Two accesses that conflict: `agent` and `operation` made the first, `by` (index into the access) the second.

    kind: "write" or "read" of the first, "proxy" for a generic write that no fence separates from the async proxy,
    "written apart" and "read apart" where lanes of one warp have not met, "unwritten" when there was no first.
    `cluster`: the first's, where it is another cluster. `time`: ticks of the agent.
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


def apart(owner: np.ndarray, warps: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Which accesses lanes of `warps` make that do not know of the first one, though one lane does.

    The first was made by lanes of the same warp (`owner`): other lanes than now. By another warp: lanes that the one
    that told of it had not met. By an engine (-1): one lane has waited for it, and now others touch anything.
    """
    foreign = np.where(owner >= 0, ~PATTERNS.leads(old), ~PATTERNS.leads(new))
    return np.where(owner == warps, PATTERNS.disagree(old, new), foreign)


class Shadow:
    """`cells` cells, `agents` agents. A cell must be written before it is read. `warp_of`: whose lanes do what an
    agent does.

    Reads have a row for each agent (whose pages exist once it reads). `latest` bounds the stamps in it, so that a
    write looks only at readers that may not have been waited for.
    """

    def __init__(self, cells: int, agents: int, warp_of: np.ndarray):
        self.warp_of = warp_of
        self.stamp = np.zeros(cells, np.int64)
        self.agent = np.zeros(cells, np.int32)
        self.lanes = np.zeros(cells, np.int32)
        self.generic = np.zeros(cells, bool)  # how it was written
        self.reduced = np.zeros(cells, bool)
        self.latest = np.zeros(agents, np.int64)
        self.reads = np.zeros((agents, cells), np.int64)
        self.read_lanes = np.zeros((agents, cells), np.int32)
        self.watched = np.zeros(cells, bool)  # cells read since the last write

    def read(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        agents: np.ndarray,
        touched: Footprint,
        stamps: np.ndarray,
        proxy: str,
        together: bool = False,
    ) -> Clash | None:
        """Notes a read by `agents` that begins when the warps `rows` come to it; the clash it makes, if any.
        `together`: no lane is past it before all lanes of its warp are."""
        cells = touched.cell
        written = self.stamp[cells]
        clash = self._after_write(clocks, rows, touched, written, proxy)
        if clash is not None:
            return clash
        if not written.all():
            at = int((written == 0).argmax())
            return Clash("unwritten", int(cells[at]), at)
        self.latest[agents] = stamps | (TICK - 1)
        self.watched[cells] = True
        if proxy == "async":  # by an engine: no lanes
            self.reads[agents, cells] = stamps
            return None
        lanes = np.full(len(cells), TOGETHER, np.int32) if together else touched.lanes
        before = self.reads[agents, cells]
        again = (before >= clocks.of[MET][rows, agents]).nonzero()[0]
        if len(again):  # other lanes may still read, too
            kept = self.read_lanes[agents[again], cells[again]]
            mixed = np.where(kept == lanes[again], kept, SEVERAL)
            mixed[kept == TOGETHER] = lanes[again][kept == TOGETHER]
            lanes = lanes.copy()
            lanes[again] = np.where(lanes[again] == TOGETHER, kept, mixed)
        self.reads[agents, cells] = stamps
        self.read_lanes[agents, cells] = lanes
        return None

    def write(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        agents: np.ndarray,
        touched: Footprint,
        stamps: np.ndarray,
        proxy: str,
        reduce: bool = False,
    ) -> Clash | None:
        """Notes a write (or reduction); the clash it makes, if any."""
        cells = touched.cell
        clash = self._after_write(clocks, rows, touched, self.stamp[cells], proxy, reduce)
        clash = clash or self._after_reads(clocks, rows, touched)
        if clash is not None:
            return clash
        self.stamp[cells], self.agent[cells], self.lanes[cells] = stamps, agents, touched.lanes
        self.generic[cells], self.reduced[cells] = proxy == "generic", reduce
        if not reduce:
            twice = self.agent[cells] != agents
            if twice.any():
                at = int(twice.argmax())
                return self._clash("write", int(cells[at]), at, int(self.agent[cells[at]]), int(self.stamp[cells[at]]))
        return None

    def write_by_any(
        self, clocks: Clocks, rows: np.ndarray, agents: np.ndarray, touched: Footprint, stamps: np.ndarray
    ) -> Clash | None:
        """Notes a write of which nobody knows which of several warps does it: it must be ordered with all that they do.

        The cells are shared out as if written by each warp in turn, and all of them as if read by all, so that whoever
        touches them next must know of every warp.
        """
        clash = self._after_write(clocks, rows, touched, self.stamp[touched.cell], "generic")
        clash = clash or self._after_reads(clocks, rows, touched)
        if clash is not None:
            return clash
        warps = np.unique(agents)
        mine = warps[touched.cell % len(warps)] == agents
        cells = touched.cell[mine]
        self.stamp[cells], self.agent[cells], self.lanes[cells] = stamps[mine], agents[mine], touched.lanes[mine]
        self.generic[cells], self.reduced[cells] = True, False
        self.latest[agents] = stamps | (TICK - 1)
        self.reads[agents, touched.cell], self.read_lanes[agents, touched.cell] = stamps, SEVERAL
        self.watched[touched.cell] = True
        return None

    def _after_write(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        touched: Footprint,
        stamp: np.ndarray,
        proxy: str,
        reduce: bool = False,
    ) -> Clash | None:
        """`stamp`: of the last write to each cell."""
        cells = touched.cell
        agent = self.agent[cells]
        near = stamp >= clocks.of[MET][rows, agent]
        if reduce:
            near &= ~self.reduced[cells]
        if near.any():
            at = np.flatnonzero(near)
            whose, warps = agent[at], rows[at]
            bad = stamp[at] >= clocks.of[SEEN][warps, whose]
            kind = "write"
            if not bad.any():
                bad = apart(self.warp_of[whose], warps, self.lanes[cells[at]], touched.lanes[at])
                kind = "written apart"
            if bad.any():
                first = int(at[bad.argmax()])
                return self._clash(kind, int(cells[first]), first, int(agent[first]), int(stamp[first]))
        if proxy == "async":
            bad = self.generic[cells] & (stamp >= clocks.of[FENCED][rows, agent])
            if bad.any():
                first = int(bad.argmax())
                return self._clash("proxy", int(cells[first]), first, int(agent[first]), int(stamp[first]))
        return None

    def _after_reads(self, clocks: Clocks, rows: np.ndarray, touched: Footprint) -> Clash | None:
        cells = touched.cell
        live = self.watched[cells].nonzero()[0]
        if not len(live):
            return None
        # Of the readers, those that a warp of the gang may not know to be done.
        met = clocks.of[MET]
        suspects = np.flatnonzero(self.latest >= met[rows.min() : rows.max() + 1].min(axis=0))
        if len(suspects):
            warps = rows[live]
            reads = self.reads[suspects[:, None], cells[live]]
            near = reads >= met[warps[:, None], suspects].T
            if near.any():
                item, which = np.nonzero(near.T)
                agent, found = suspects[which], reads[which, item]
                bad = found >= clocks.of[SEEN][warps[item], agent]
                kind = "read"
                if not bad.any():
                    old = self.read_lanes[agent, cells[live[item]]]
                    bad = apart(self.warp_of[agent], warps[item], old, touched.lanes[live[item]])
                    kind = "read apart"
                if bad.any():
                    first = int(bad.argmax())
                    by = int(live[item[first]])
                    return self._clash(kind, int(cells[by]), by, int(agent[first]), int(found[first]))
        self.reads[np.flatnonzero(self.latest)[:, None], cells[live]] = 0
        self.watched[cells] = False
        return None

    @staticmethod
    def _clash(kind: str, cell: int, by: int, agent: int, stamp: int) -> Clash:
        return Clash(kind, cell, by, agent, stamp % TICK, time=stamp // TICK)
