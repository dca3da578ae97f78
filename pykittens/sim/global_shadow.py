"""Shadow of global memory: the accesses to each cell that a later one, by any agent of any cluster, may still clash
with.

A cell remembers a few accesses, in slots: arrays of one item a cell. An access takes the place of those that it covers:
earlier ones ordered before it with which nothing can clash that does not clash with it. So most kernels use one slot.
More are added when the accesses of several agents, none ordered after another, must all be remembered.

Where nothing can order clusters, a cell needs no more than two clusters' accesses of a class: whoever comes next is
foreign to one of them. Where releases and acquires can, all are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .access_classes import SAME_BLOCK, ClassTable
from .clocks import FENCED, MET, SEEN, TICK, Clocks
from .footprint import Footprint
from .shadow import Clash, apart


def layers(whole: Footprint) -> list[Footprint]:
    """A footprint in parts, in each of which all cells are different: mostly one."""
    cells = whole.cell
    order = np.argsort(cells, kind="stable")
    ranked = cells[order]
    first = np.r_[True, ranked[1:] != ranked[:-1]] if len(cells) else np.zeros(0, bool)
    if first.all():
        return [whole]
    starts = np.flatnonzero(first)
    turn = np.arange(len(cells)) - np.repeat(starts, np.diff(np.r_[starts, len(cells)]))
    picks = [order[turn == i] for i in range(int(turn.max()) + 1)]
    return [Footprint(whole.warp[p], cells[p], whole.lanes[p]) for p in picks]


class GlobalShadow:
    """`cells` cells. By agent, `block_of`: the rank of its block in the cluster, `warp_of`: the warp whose lanes do
    what it does.
    """

    def __init__(self, cells: int, table: ClassTable, block_of: np.ndarray, warp_of: np.ndarray, chained: bool):
        self.table, self.block_of, self.warp_of, self.chained = table, block_of, warp_of, chained
        self.stamp = np.zeros((1, cells), np.int64)  # 0: free
        self.agent, self.cluster = np.zeros((1, cells), np.int32), np.zeros((1, cells), np.int32)
        self.kind = np.zeros((1, cells), np.int8)
        self.lanes = np.zeros((1, cells), np.int32)

    def note(
        self,
        clocks: Clocks,
        rows: np.ndarray,
        agents: np.ndarray,
        touched: Footprint,
        stamps: np.ndarray,
        kind: int,
        now: bool,
    ) -> Clash | None:
        """Notes an access of class `kind` to cells that are all different; the clash it makes, if any.

        It begins when the warps `rows` come to it, and is done by `agents` (the warps themselves where `now`).
        """
        cells = touched.cell
        old = self.stamp[:, cells]
        if not old.any():
            self._put(0, touched, stamps, agents, clocks.number, kind)
            return None
        used, classes, whose = old > 0, self.kind[:, cells], self.agent[:, cells]
        clusters = self.cluster[:, cells]
        own = clusters == clocks.number
        ordered = own & (old < clocks.of[SEEN][rows, whose])
        distance: Any = SAME_BLOCK
        if self.table.scoped or not own.all():
            distance = np.where(own, self.block_of[whose] != self.block_of[rows], 2)
        bad = used & ~ordered & self.table.races[distance, classes, kind]
        if self.chained and bad.any():
            self._order_foreign(clocks, SEEN, rows, old, whose, clusters, bad, ordered)
        if bad.any():
            return self._clash(classes, clusters, whose, old, cells, bad, clocks)
        near = used & own & ordered & (old >= clocks.of[MET][rows, whose]) & self.table.races[SAME_BLOCK, classes, kind]
        if near.any():
            slot, item = np.nonzero(near)
            owner = self.warp_of[whose[slot, item]]
            near[slot, item] = apart(owner, rows[item], self.lanes[slot, cells[item]], touched.lanes[item])
            if near.any():
                return self._clash(classes, clusters, whose, old, cells, near, clocks, " apart")
        if self.table.classes[kind - 1].proxy == "async":
            unfenced = used & self.table.generic[classes] & ~(own & (old < clocks.of[FENCED][rows, whose]))
            if self.chained and unfenced.any():
                self._order_foreign(clocks, FENCED, rows, old, whose, clusters, unfenced, ordered)
            unfenced &= own | ordered
            if unfenced.any():
                return self._clash(classes, clusters, whose, old, cells, unfenced, clocks, "proxy")
        self._replace(clocks, agents, touched, stamps, kind, now, (old, classes, whose, own, ordered), distance)
        return None

    def _order_foreign(  # type: ignore[no-untyped-def]
        self, clocks, view, rows, old, whose, clusters, doubtful, ordered
    ) -> None:
        """Clears `doubtful` and sets `ordered` where a chain of releases and acquires orders an access of another
        cluster.
        """
        slots, items = np.nonzero(doubtful & (clusters != clocks.number))
        pairs = np.stack([rows[items], clusters[slots, items]])
        for row, cluster in np.unique(pairs, axis=1).T.tolist():
            known = clocks.foreign(view, row, cluster)
            if known is None:
                continue
            here = (pairs[0] == row) & (pairs[1] == cluster)
            at = slots[here], items[here]
            told = old[at] < known[whose[at]]
            doubtful[at] = ~told
            ordered[at] |= told

    def _replace(  # type: ignore[no-untyped-def]
        self, clocks, agents, touched, stamps, kind, now, found, distance
    ) -> None:
        """Puts the access into the first slot that is free, or whose access it covers; frees the others that it
        covers.
        """
        old, classes, whose, own, ordered = found
        cells = touched.cell
        gone = self.table.covers[classes, kind]
        if now or self.table.classes[kind - 1].mode == "write":
            gone = gone & (ordered | (own & (whose == agents)))
        else:  # an engine passes on nothing of what its issuer knew
            gone = gone & own & (whose == agents)
        gone = gone | self.table.observed[distance, classes, kind]
        if not self.chained and not own.all():
            alike = (classes == kind) & ~own
            gone = gone | (alike & (np.cumsum(alike, axis=0) > 1))
        free = gone | (old == 0)
        if len(old) == 1 and free.all():
            self._put(0, touched, stamps, agents, clocks.number, kind)
            return
        if not free.any(axis=0).all():
            self._grow()
            free = np.concatenate([free, np.ones_like(free)])
        slot = free.argmax(axis=0)
        drop, item = np.nonzero(gone)
        self.stamp[drop, cells[item]] = 0
        self._put(slot, touched, stamps, agents, clocks.number, kind)

    def _put(self, slot, touched, stamps, agents, cluster, kind) -> None:  # type: ignore[no-untyped-def]
        cells = touched.cell
        self.lanes[slot, cells] = touched.lanes
        self.stamp[slot, cells], self.agent[slot, cells] = stamps, agents
        self.cluster[slot, cells], self.kind[slot, cells] = cluster, kind

    def _grow(self) -> None:
        """Doubles the slots."""
        for name in ("stamp", "agent", "cluster", "kind", "lanes"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros_like(array)]))

    def _clash(  # type: ignore[no-untyped-def]
        self, classes, clusters, whose, old, cells, bad, clocks, kind=""
    ) -> Clash:
        item = int(bad.any(axis=0).argmax())
        slot = int(bad.T[item].argmax())
        stamp, cluster = int(old[slot, item]), int(clusters[slot, item])
        mode = "read" if self.table.classes[classes[slot, item] - 1].mode == "read" else "write"
        if kind == " apart":
            kind = "read apart" if mode == "read" else "written apart"
        return Clash(
            kind or mode,
            int(cells[item]),
            item,
            int(whose[slot, item]),
            stamp % TICK,
            cluster if cluster != clocks.number else None,
            stamp // TICK,
            self.table.classes[classes[slot, item] - 1],
        )
