"""Shadow of shared memory: for each cell the last write, and the reads and atomic changes since. It finds what no clock
orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .access_classes import AccessClass
from .clocks import FENCED, MET, SEEN, TICK, Clocks
from .footprint import Footprint
from .lane_patterns import PATTERNS, SEVERAL, TOGETHER

Found = tuple[int, int, int, str]  # which item of an access, whose earlier one it meets, when, and how ("", "apart")


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


class Marks:
    """Accesses that do not exclude one another, such as reads: when each agent last made one to each cell.

    A row for each agent (whose pages exist once it has made one). `latest` bounds the stamps in it, so that whoever
    must come after them looks only at agents that may not have been waited for.
    """

    def __init__(self, cells: int, agents: int):
        self.latest = np.zeros(agents, np.int64)
        self.stamps = np.zeros((agents, cells), np.int64)
        self.lanes = np.zeros((agents, cells), np.int32)
        self.watched = np.zeros(cells, bool)  # cells that have marks

    def note(
        self, clocks: Clocks, rows: np.ndarray, agents: np.ndarray, touched: Footprint, stamps: np.ndarray
    ) -> None:
        """Marks cells; of an agent's marks since its lanes have met, the lanes come together."""
        cells, lanes = touched.cell, touched.lanes
        self.latest[agents] = stamps | (TICK - 1)
        self.watched[cells] = True
        before = self.stamps[agents, cells]
        again = (before >= clocks.of[MET][rows, agents]).nonzero()[0]
        if len(again):  # other lanes may still be at it, too
            kept = self.lanes[agents[again], cells[again]]
            mixed = np.where(kept == lanes[again], kept, SEVERAL)
            mixed[kept == TOGETHER] = lanes[again][kept == TOGETHER]
            lanes = lanes.copy()
            lanes[again] = np.where(lanes[again] == TOGETHER, kept, mixed)
        self.stamps[agents, cells] = stamps
        self.lanes[agents, cells] = lanes

    def clash(
        self, clocks: Clocks, rows: np.ndarray, touched: Footprint, warp_of: np.ndarray, fenced: bool = False
    ) -> Found | None:
        """A mark that the warps `rows` do not know to be done; `fenced`: nor, through a fence, seen by the async
        proxy ("proxy").
        """
        cells = touched.cell
        live = self.watched[cells].nonzero()[0]
        if not len(live):
            return None
        # Of the agents, those that a warp of the gang may not know to be done.
        known = clocks.of[FENCED] if fenced else clocks.of[MET]
        suspects = np.flatnonzero(self.latest >= known[rows.min() : rows.max() + 1].min(axis=0))
        if not len(suspects):
            return None
        warps = rows[live]
        marks = self.stamps[suspects[:, None], cells[live]]
        near = marks >= known[warps[:, None], suspects].T
        item, which = np.nonzero(near.T)
        if not len(item):
            return None
        agent, found = suspects[which], marks[which, item]
        bad, how = found >= clocks.of[SEEN][warps[item], agent], ""
        if not bad.any():
            old = self.lanes[agent, cells[live[item]]]
            bad, how = apart(warp_of[agent], warps[item], old, touched.lanes[live[item]]), "apart"
            bad &= found >= clocks.of[MET][warps[item], agent]
        if not bad.any() and fenced:
            bad, how = found >= clocks.of[FENCED][warps[item], agent], "proxy"
        if not bad.any():
            return None
        first = int(bad.argmax())
        return int(live[item[first]]), int(agent[first]), int(found[first]), how

    def clear(self, cells: np.ndarray) -> None:
        """Forgets the marks of cells, which somebody has come after."""
        live = cells[self.watched[cells]]
        if len(live):
            self.stamps[np.flatnonzero(self.latest)[:, None], live] = 0
            self.watched[live] = False


class Shadow:
    """`cells` cells, `agents` agents. A cell must be written before it is read. `warp_of`: whose lanes do what an
    agent does.

    Atomic changes of one kind commute, as reads do, and so do those whose results are used (kind ""), which the
    machine tries in several orders; of two other kinds they do not.
    """

    def __init__(self, cells: int, agents: int, warp_of: np.ndarray):
        self.warp_of = warp_of
        self.stamp = np.zeros(cells, np.int64)
        self.agent = np.zeros(cells, np.int32)
        self.lanes = np.zeros(cells, np.int32)
        self.generic = np.zeros(cells, bool)  # how it was written
        self.reads = Marks(cells, agents)
        self.changes: dict[str, Marks] = {}  # atomic ones, by their kind

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
        clash = self._after_write(clocks, rows, touched, proxy) or self._after_changes(clocks, rows, touched, proxy)
        clash = clash or self._unwritten(touched.cell)
        if clash is not None:
            return clash
        if proxy == "async":  # by an engine: no lanes
            self.reads.latest[agents] = stamps | (TICK - 1)
            self.reads.watched[touched.cell] = True
            self.reads.stamps[agents, touched.cell] = stamps
            return None
        if together:
            touched = touched._replace(lanes=np.full(len(touched.cell), TOGETHER, np.int32))
        self.reads.note(clocks, rows, agents, touched, stamps)
        return None

    def change(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        agents: np.ndarray,
        touched: Footprint,
        stamps: np.ndarray,
        kind: str,
    ) -> Clash | None:
        """Notes an atomic change, of a `kind` ("" where its result is used); the clash it makes, if any."""
        clash = self._after_write(clocks, rows, touched, "generic") or self._unwritten(touched.cell)
        clash = clash or self._after(self.reads, "read", clocks, rows, touched)
        clash = clash or self._after_changes(clocks, rows, touched, "generic", kind)
        if clash is not None:
            return clash
        if kind not in self.changes:
            self.changes[kind] = Marks(len(self.stamp), len(self.reads.latest))
        self.changes[kind].note(clocks, rows, agents, touched, stamps)
        return None

    def write(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        agents: np.ndarray,
        touched: Footprint,
        stamps: np.ndarray,
        proxy: str,
    ) -> Clash | None:
        """Notes a write; the clash it makes, if any."""
        cells = touched.cell
        clash = self._before_write(clocks, rows, touched, proxy)
        if clash is not None:
            return clash
        self.stamp[cells], self.agent[cells], self.lanes[cells] = stamps, agents, touched.lanes
        self.generic[cells] = proxy == "generic"
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
        clash = self._before_write(clocks, rows, touched, "generic")
        if clash is not None:
            return clash
        warps = np.unique(agents)
        mine = warps[touched.cell % len(warps)] == agents
        cells = touched.cell[mine]
        self.stamp[cells], self.agent[cells], self.lanes[cells] = stamps[mine], agents[mine], touched.lanes[mine]
        self.generic[cells] = True
        self.reads.latest[agents] = stamps | (TICK - 1)
        self.reads.stamps[agents, touched.cell], self.reads.lanes[agents, touched.cell] = stamps, SEVERAL
        self.reads.watched[touched.cell] = True
        return None

    def _before_write(self, clocks: Clocks, rows: np.ndarray, touched: Footprint, proxy: str) -> Clash | None:
        clash = self._after_write(clocks, rows, touched, proxy) or self._after_changes(clocks, rows, touched, proxy)
        clash = clash or self._after(self.reads, "read", clocks, rows, touched)
        if clash is None:
            for marks in (self.reads, *self.changes.values()):
                marks.clear(touched.cell)
        return clash

    def _unwritten(self, cells: np.ndarray) -> Clash | None:
        written = self.stamp[cells]
        if written.all():
            return None
        at = int((written == 0).argmax())
        return Clash("unwritten", int(cells[at]), at)

    def _after_write(self, clocks: Clocks, rows: np.ndarray, touched: Footprint, proxy: str) -> Clash | None:
        cells = touched.cell
        agent, stamp = self.agent[cells], self.stamp[cells]
        near = stamp >= clocks.of[MET][rows, agent]
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

    def _after_changes(
        self, clocks: Clocks, rows: np.ndarray, touched: Footprint, proxy: str, kind: str | None = None
    ) -> Clash | None:
        """Atomic changes, of those kinds that do not commute with one of `kind`."""
        for other, marks in self.changes.items():
            if kind is None or (kind and other and kind != other):
                clash = self._after(marks, "write", clocks, rows, touched, proxy == "async")
                if clash is not None:
                    return clash
        return None

    def _after(
        self, marks: Marks, mode: str, clocks: Clocks, rows: np.ndarray, touched: Footprint, fenced: bool = False
    ) -> Clash | None:
        found = marks.clash(clocks, rows, touched, self.warp_of, fenced)
        if found is None:
            return None
        by, agent, stamp, how = found
        apart_ = "read apart" if mode == "read" else "written apart"
        return self._clash({"": mode, "apart": apart_, "proxy": "proxy"}[how], int(touched.cell[by]), by, agent, stamp)

    @staticmethod
    def _clash(kind: str, cell: int, by: int, agent: int, stamp: int) -> Clash:
        return Clash(kind, cell, by, agent, stamp % TICK, time=stamp // TICK)
