"""Taking orders: what each synchronising effect does to clocks, barriers and queues, and what it has to wait for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BarrierError, OutOfBoundsError
from ..ops.sync import NamedBarrierType
from ..program import Place, Sync, Value
from ..types import BarrierType
from .barriers import MBarrier
from .clocks import CAUSED, MET, SEEN, TICK
from .engines import ELECTED, PER_UNIT, PER_WARP, QUEUES
from .hazards import mbarriers, queue_of
from .machine import Machine
from .steps import Step


@dataclass
class Waiting:
    """What must hold before a gang goes on, what it does then, and in words what it waits for."""

    ready: Callable[[], bool]
    proceed: Callable[[], None]
    state: Callable[[], str]


def order(m: Machine, step: Step, sync: Sync) -> Waiting | None:
    """Takes an order for the active units. Returns what must come first, if it has to wait."""
    named = sync.target is not None and isinstance(sync.target.type, NamedBarrierType)
    if sync.kind in ("arrive", "cluster", "commit") or named or (sync.kind == "barrier" and step.span > m.warps):
        m.change()
    return ORDERS[sync.kind](m, step, sync)


def _groups(m: Machine) -> np.ndarray:
    """The warps of each active unit, as agents: (units, warps)."""
    groups = m.agents.reshape(-1, m.span)
    return groups if m.chosen is None else groups[m.chosen]


def _nothing() -> None:
    pass


def _barrier(m: Machine, step: Step, sync: Sync) -> Waiting | None:
    warps = step.span
    if warps <= m.warps:
        m.block.cluster.clocks.meet(_groups(m))
        return None
    first = m.role_first + (m.first - m.role_first) // warps * warps
    if first + warps > m.block.warps:
        first = 0
    meeting = m.block.meeting(first, warps, str(step.op.scope))
    return _meet(m, meeting)


def _cluster(m: Machine, step: Step, sync: Sync) -> Waiting | None:
    if len(m.block.cluster.blocks) == 1 and m.warps == m.block.warps:
        m.block.cluster.clocks.meet(m.agents[None])
        return None
    return _meet(m, m.block.cluster.meeting)


def _meet(m: Machine, meeting: Any) -> Waiting:
    phase = meeting.phase
    meeting.come_by(m.agents)
    return Waiting(lambda: meeting.phase > phase, _nothing, meeting.state)


def _arrive(m: Machine, step: Step, sync: Sync) -> None:
    assert isinstance(sync.target, Value)
    if isinstance(sync.target.type, NamedBarrierType):
        for barrier, group in _named(m, sync):
            barrier.come_by(group, False, step.op.location)
        return
    bytes_ = np.broadcast_to(m.unit_scalar(sync.bytes), m.units)
    for block in m.blocks_of(sync):
        for barrier, group, more in zip(mbarriers(m, sync.target, block), _groups(m), bytes_, strict=True):
            agent = int(group[0])
            if block is not m.block:
                barrier.visitors.append((agent, int(m.block.cluster.clocks.of[SEEN, agent, agent]), step.op.location))
            barrier.arrive(agent, sync.count, int(more), step.op.location)


def _wait(m: Machine, step: Step, sync: Sync) -> Waiting:
    assert sync.target is not None
    if isinstance(sync.target.type, NamedBarrierType):
        pairs = [(barrier, barrier.phase) for barrier, _ in _named(m, sync)]
        for barrier, group in _named(m, sync):
            barrier.come_by(group, True, step.op.location)
        return Waiting(
            lambda: all(b.phase > phase for b, phase in pairs),
            _nothing,
            lambda: "; ".join({b.state(): 0 for b, p in pairs if b.phase == p}),
        )
    assert isinstance(sync.target, Value) and isinstance(sync.target.type, BarrierType)
    parities = np.broadcast_to(m.unit_scalar(sync.phase), m.units).astype(np.int64)
    if (wrong := parities[(parities != 0) & (parities != 1)]).size:
        fix = "pass the parity of the phase, 0 or 1: phase % 2"
        raise BarrierError(f"a wait for phase {wrong[0]} of {sync.target.label}", fix=fix, location=step.op.location)
    (block,) = m.blocks_of(sync)
    together: dict[tuple[MBarrier, int], list[np.ndarray]] = {}
    for barrier, parity, group in zip(mbarriers(m, sync.target, block), parities.tolist(), _groups(m), strict=True):
        together.setdefault((barrier, parity), []).append(group)
    waits = [(barrier, parity, np.concatenate(groups)) for (barrier, parity), groups in together.items()]
    for barrier, parity, group in waits:
        barrier.expect(group, parity, step.op.location)

    def ready() -> bool:
        for barrier, parity, _ in waits:
            while not barrier.passed(parity) and barrier.loads:  # the loads land at the latest now
                barrier.loads[0].complete()
        return all(barrier.passed(parity) for barrier, parity, _ in waits)

    def proceed() -> None:
        for barrier, _, group in waits:
            barrier.acquire(group, step.op.location)

    return Waiting(
        ready,
        proceed,
        lambda: "; ".join(f"{b.state()} (waiting for parity {p})" for b, p, _ in waits if not b.passed(p)),
    )


def _named(m: Machine, sync: Sync) -> Any:
    """(named barrier, warps) of each active unit."""
    index = np.broadcast_to(m.unit_scalar(sync.index), m.units).tolist()
    count = getattr(sync.target, "count", 1)
    wrong = [i for i in index if not 0 <= i < count]
    if wrong:
        assert isinstance(sync.target, Value)
        raise OutOfBoundsError(
            f"index {wrong[0]} of {count} named barriers {sync.target.label}: the hardware would take another barrier",
            fix=f"keep the index within 0 to {count - 1}, or make more with "
            f"pk.named_barrier(count={max(1, wrong[0] + 1)})",
            location=m.step.op.location,
        )
    return [(m.block.named_barrier(sync.target, i), group) for i, group in zip(index, _groups(m), strict=True)]  # type: ignore[arg-type]


def _queues(m: Machine, name: str) -> Any:
    """(queue, its warps as agents) of the active units: the warps that commit and join it."""
    kept = QUEUES.get(name, ELECTED)
    for group in _groups(m):
        first = int(group[0]) - m.block.first_agent - m.first
        if kept == PER_WARP:
            yield from ((queue_of(m, name, first + i), group[i : i + 1]) for i in range(m.span))
        else:
            yield queue_of(m, name, first), group[:1] if kept == ELECTED else group


def _commit(m: Machine, step: Step, sync: Sync) -> None:
    for queue, agents in _queues(m, sync.queue):
        queue.caused[queue.group] = m.block.cluster.clocks.of[CAUSED, agents].max(axis=0)
        queue.group += 1


def _join(m: Machine, step: Step, sync: Sync) -> None:
    clocks = m.block.cluster.clocks
    for queue, agents in _queues(m, sync.queue):
        finished, causes = queue.join(sync.pending)
        clocks.of[SEEN, agents, queue.agent] = np.maximum(clocks.of[SEEN, agents, queue.agent], clocks.time(finished))
        if (
            QUEUES.get(sync.queue, ELECTED) == PER_UNIT
        ):  # else each lane knows of its own copies, or one lane of its stores
            clocks.of[MET, agents, queue.agent] = np.maximum(clocks.of[MET, agents, queue.agent], clocks.time(finished))
        for caused in causes:
            clocks.of[CAUSED, agents] = np.maximum(clocks.of[CAUSED, agents], caused)
        m.flying = {v: f for v, f in m.flying.items() if f.queue is not queue or f.group >= finished}


def _fence(m: Machine, step: Step, sync: Sync) -> None:
    m.block.cluster.clocks.fence(_groups(m).ravel())


def _previous(m: Machine, step: Step, sync: Sync) -> None:
    m.block.cluster.clocks.of[SEEN, _groups(m).ravel(), m.block.cluster.grid_state.previous] = TICK


def _memory_fence(m: Machine, step: Step, sync: Sync) -> None:
    for agent in _groups(m)[:, 0].tolist():
        m.block.cluster.grid_state.releases.fence(m, agent, sync.scope)


def _until(m: Machine, step: Step, sync: Sync) -> Waiting:
    assert isinstance(sync.target, Place)
    place = sync.target
    wanted = np.broadcast_to(m.unit_scalar(sync.phase), m.units).tolist()
    spots = m.spots_of(place)
    array, name = m.tensor(place.tensor).array, place.tensor.label

    def state() -> str:
        missing = [(s, n) for s, n in zip(spots, wanted, strict=True) if array[s] < n]
        found = {f"{name}[{', '.join(map(str, s))}], which is {array[s]}, to be {n}": 0 for s, n in missing}
        return f"waits for {'; '.join(found)}"

    return Waiting(lambda: all(array[s] >= n for s, n in zip(spots, wanted, strict=True)), _nothing, state)


ORDERS: dict[str, Callable[[Machine, Step, Sync], Waiting | None]] = {
    "barrier": _barrier,
    "cluster": _cluster,
    "arrive": _arrive,
    "wait": _wait,
    "commit": _commit,
    "join": _join,
    "fence": _fence,
    "previous": _previous,
    "memory fence": _memory_fence,
    "until": _until,
}

__all__ = ["Waiting", "order"]
