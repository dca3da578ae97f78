"""The blocks of a cluster that run together: their shared memory, barriers, queues, and who the agents are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InFlightError, RaceError
from ..program import Value
from ..types import BarrierType
from .barriers import MBarrier, Meeting, NamedBarrierState
from .clocks import SEEN, TICK, Clocks
from .engines import OUTLIVES_BLOCK, Flight, Queue
from .grid_state import Dim3, GridState
from .memory import Address, SharedMemory
from .shadow import Shadow


class ClusterState:
    """One cluster while it runs."""

    def __init__(self, grid_state: GridState, number: int):
        self.grid_state, self.report, self.tensors, self.grid = (
            grid_state,
            grid_state.report,
            grid_state.tensors,
            grid_state.grid,
        )
        self.clocks = Clocks(grid_state.warp_of, number, grid_state.agent_label)
        self.number = number
        self.blocks = [
            BlockState(self, rank, grid_state.block_index(number, rank)) for rank in range(grid_state.blocks)
        ]
        self.flights: list[Flight] = []  # in the order they were issued
        self.meeting = Meeting("the cluster's barrier", grid_state.blocks * grid_state.program.warps, self.clocks)

    def agent_label(self, agent: int) -> str:
        """An agent in words."""
        return self.grid_state.agent_label(agent)

    def queue_of(self, agent: int) -> str:
        """The name of the queue an agent works for, "mbarrier" for one of loads, or nothing for a warp."""
        count = self.grid_state.blocks * self.grid_state.program.warps
        if agent < count:
            return ""
        agent -= count
        return self.grid_state.queues[agent // count] if agent < len(self.grid_state.queues) * count else "mbarrier"

    def is_open(self, agent: int, group: int) -> bool:
        """Whether a group of a queue has not been closed."""
        return any(q.agent == agent and q.group == group for block in self.blocks for q in block.queues.values())


class BlockState:
    """One block while it runs."""

    def __init__(self, cluster: ClusterState, rank: int, index: Dim3):
        grid_state = cluster.grid_state
        self.cluster, self.rank, self.index, self.warps = cluster, rank, index, grid_state.program.warps
        self.first_agent = rank * self.warps
        self.memory = SharedMemory(grid_state.program.shared_bytes)
        self.shadow = Shadow(len(grid_state.map), grid_state.agents, grid_state.warp_of)
        engines = grid_state.blocks * self.warps * (1 + len(grid_state.queues)) + rank * len(grid_state.barriers)
        self.barrier_list: list[MBarrier] = []
        self.barriers: dict[int, MBarrier] = {}
        for i, (buffer, item) in enumerate(grid_state.barriers):
            assert isinstance(buffer.item, BarrierType)
            name = (
                buffer.value.label
                + (f"[{item}]" if buffer.count > 1 else "")
                + (f" of block {rank} of the cluster" if grid_state.blocks > 1 else "")
            )
            barrier = MBarrier(name, buffer.item.count, engines + i, cluster.clocks, self.label)
            self.barrier_list.append(barrier)
            self.barriers[buffer.offset + item * buffer.item_bytes] = barrier
        self.named: dict[tuple[Value, int], NamedBarrierState] = {}
        self.meetings: dict[tuple[int, int], Meeting] = {}
        self.queues: dict[tuple[str, int], Queue] = {}

    def values(self) -> dict[Value, Any]:
        """What every warp begins with: scalar parameters and the addresses of buffers."""
        found = dict(self.cluster.grid_state.scalars)
        found.update({b.value: Address(b.offset) for b in self.cluster.grid_state.program.buffers})
        return found

    def queue(self, name: str, warp: int) -> Queue:
        """A group queue of a warp, or of the unit that begins with it."""
        key = (name, warp)
        if key not in self.queues:
            grid_state = self.cluster.grid_state
            count = grid_state.blocks * self.warps
            self.queues[key] = Queue(name, count * (1 + grid_state.queues.index(name)) + self.first_agent + warp)
        return self.queues[key]

    def named_barrier(self, value: Value, index: int) -> NamedBarrierState:
        key = (value, index)
        if key not in self.named:
            count = getattr(value, "count", 1)
            name = value.label + (f"[{index}]" if count > 1 else "")
            self.named[key] = NamedBarrierState(name, value.type.warps, self.cluster.clocks)  # type: ignore[union-attr]
        return self.named[key]

    def meeting(self, first: int, warps: int, scope: str) -> Meeting:
        key = (first, warps)
        if key not in self.meetings:
            self.meetings[key] = Meeting(
                f"the barrier of {scope} (warps {first} to {first + warps - 1})", warps, self.cluster.clocks
            )
        return self.meetings[key]

    def warp_label(self, warp: int) -> str:
        """A warp in words: its role, and its block where several run together."""
        return self.cluster.grid_state.agent_label(self.first_agent + warp)

    # The end ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """All warps have ended: nothing may still be on its way to this block, or arrive after it."""
        for (name, warp), queue in self.queues.items():
            for _, flight in queue.flights if name not in OUTLIVES_BLOCK else ():
                raise InFlightError(
                    f"block {self.label} ends while {flight.label} of {self.warp_label(warp)} may still be under way",
                    fix="wait for it before the kernel ends"
                    + (" (at least until its source has been read)" if name == "bulk.read" else ""),
                    location=flight.location,
                )
        for barrier in self.barrier_list:
            for _, flight in barrier.landed:
                raise InFlightError(
                    f"block {self.label} ends while {flight.label} may still be writing its shared memory: nobody "
                    f"waits for {barrier.name}",
                    fix="wait for every load, or do not issue it",
                    location=flight.location,
                )
        if len(self.cluster.blocks) > 1:
            self._check_visitors()

    def _check_visitors(self) -> None:
        """Another block must not touch this one's memory after it may have ended."""
        clocks, own = self.cluster.clocks, np.arange(self.first_agent, self.first_agent + self.warps)
        known = clocks.of[SEEN, own].max(axis=0)
        late = self.shadow.stamp >= known[self.shadow.agent]
        cell = int(late.argmax()) if late.any() else -1
        if cell >= 0:
            agent, step = int(self.shadow.agent[cell]), int(self.shadow.stamp[cell] % TICK)
            self._too_late(
                f"{self.cluster.agent_label(agent)} writes {self.cluster.grid_state.map.describe(cell)} of it",
                self.cluster.grid_state.plan.op(step).location,
            )
        for agent in np.flatnonzero(self.shadow.reads.latest >= known).tolist():
            reads = self.shadow.reads.stamps[agent]
            cell = int(reads.argmax())
            if reads[cell] >= known[agent]:
                step = int(reads[cell] % TICK)
                self._too_late(
                    f"{self.cluster.agent_label(agent)} reads {self.cluster.grid_state.map.describe(cell)} of it",
                    self.cluster.grid_state.plan.op(step).location,
                )
        for barrier in self.barrier_list:
            for agent, time, where in barrier.visitors:
                if known[agent] < time:
                    self._too_late(f"{self.cluster.agent_label(agent)} arrives at {barrier.name}", where)

    def _too_late(self, what: str, where: Any) -> None:
        raise RaceError(
            f"block {self.label} may have ended when {what}",
            fix="let the blocks of the cluster meet before they end: pk.cluster.sync()",
            location=where,
        )

    @property
    def label(self) -> str:
        return ",".join(map(str, self.index))
