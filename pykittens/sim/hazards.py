"""Checking an operation's accesses: who touches what, ordered after whom, and when it will be finished."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InFlightError, OutOfBoundsError, RaceError
from ..ops.cluster import DependencyWait
from ..ops.indexed import spots
from ..program import Place, Value
from ..thread_map import ANY_THREAD, ONE_THREAD, Registers, ThreadMap
from .barriers import MBarrier
from .block import BlockState
from .clocks import CAUSED, FENCED, MET, SEEN, TICK
from .diagnose import flight_label, race
from .engines import ELECTED, PER_WARP, QUEUES, Flight, Queue
from .footprint import Footprint, Spots, spots_of
from .global_shadow import layers
from .machine import Machine
from .registers import Flying
from .shadow import Shadow
from .steps import Step, Touch

CACHED = 4096  # footprints kept per access


def touch(m: Machine, step: Step, touch: Touch, flight: Flight | None) -> None:
    """Checks and notes one access of a step by all active units. An asynchronous one belongs to `flight`."""
    access = touch.access
    if touch.kind == "register":
        _take_off(m, step, touch)
        return
    cluster = m.block.cluster
    if touch.kind == "global":
        agents, stamps = _finishers(m, step, touch, m.block, flight)
        _count(m, touch, _touch_global(m, step, touch, agents, stamps))
        return
    touched = _shared_footprint(m, touch)
    local = touched.warp
    if access.at is not None:
        _count(m, touch, int(touch.value.type.dtype.size * touch.copies) * m.units)  # type: ignore[union-attr]
    else:
        _count(m, touch, int(touch.value.type.bytes * touch.copies) * m.units)  # type: ignore[union-attr]
    if touch.passes:
        m.block.cluster.grid_state.conflicts[step.number] = (
            m.block.cluster.grid_state.conflicts.get(step.number, 0) + touch.passes * m.units
        )
    _loosen(m, touch)
    for block in m.blocks_of(access):
        if block is not m.block:
            _check_started(m, step, block)
        for telling in [block] if access.told is None else m.blocks_in(access.told):
            agents, stamps = _finishers(m, step, touch, telling, flight)
            clash = _note(block.shadow, m, touch, agents, stamps, touched)
            if clash is not None:
                by = int(m.agents[local[clash.by]])
                raise race(cluster, step, access, clash, by, cluster.grid_state.map.describe(clash.cell))


def _check_started(m: Machine, step: Step, block: BlockState) -> None:
    """Another block's shared memory may be touched once that block runs: the cluster met before, at the latest to
    set up mbarriers.
    """
    clocks = m.block.cluster.clocks
    others = np.arange(block.first_agent, block.first_agent + block.warps)
    known = clocks.of[CAUSED][np.ix_(m.agents if m.mask is None else m.agents[m.mask.warps], others)]
    if not m.block.cluster.grid_state.barriers and (known.max(axis=1) == 1).any():
        raise RaceError(
            f"{step.op.spelled} touches shared memory of block {block.rank} of the cluster, which may not run yet",
            fix="let the blocks of the cluster meet first: pk.cluster.sync()",
            location=step.op.location,
        )


def _note(shadow: Shadow, m: Machine, touch: Touch, agents: Any, stamps: Any, touched: Footprint) -> Any:
    access, clocks, rows = touch.access, m.block.cluster.clocks, m.agents[touched.warp]
    agents, stamps = agents[touched.warp], stamps[touched.warp]
    if access.mode == "read":
        if touch.threads.whole_warps:  # checked lane by lane, but kept as read by all lanes at once
            return shadow.read(clocks, rows, agents, touched, stamps, access.proxy, together=True)
        return shadow.read(clocks, rows, agents, touched, stamps, access.proxy)
    if access.mode == "reduce":
        return shadow.change(clocks, rows, agents, touched, stamps, touch.combines)
    if touch.threads == ANY_THREAD and m.span > 1:
        return shadow.write_by_any(clocks, rows, agents, touched, stamps)
    return shadow.write(clocks, rows, agents, touched, stamps, access.proxy)


def _threads(m: Machine, touch: Touch) -> ThreadMap:
    return ONE_THREAD if m.alone else touch.threads


def _loosen(m: Machine, touch: Touch) -> None:
    """Notes that lanes do something apart: what one lane tells for its warp from here on does not include it."""
    if (
        touch.apart
        and not m.alone
        and (touch.kind == "shared" or touch.value in m.block.cluster.grid_state.plan.written)
    ):
        m.block.cluster.clocks.loose[m.agents if m.mask is None else m.agents[m.mask.warps]] = True


def _count(m: Machine, touch: Touch, bytes: int) -> None:
    report = m.block.cluster.report
    (report.read if touch.access.mode == "read" else report.written)[touch.kind] += bytes


def _units(m: Machine) -> Any:
    return range(m.units) if m.chosen is None else m.chosen.tolist()


def _shared_footprint(m: Machine, touch: Touch) -> Footprint:
    """(warp of the gang, cell) pairs of all active units."""
    bases, columns = m.spots(touch.value)
    grid_state = m.block.cluster.grid_state
    map_, known = grid_state.map, grid_state.footprints[touch]
    if touch.access.index is not None:
        chosen = _chosen(m, touch, (1, *touch.value.type.shape)[-2:])  # type: ignore[union-attr]
        bases, columns = (x * m.units if len(x) == 1 else x for x in (bases, columns))
        each = zip(bases, columns, chosen, strict=True)
        return _gathered(m, [map_.scattered(touch.value, b, c, at) for b, c, at in each])
    indices: list[Any]
    at = touch.access.at
    index = m.element_index(touch.value, at) if at is not None else None
    indices = index.tolist() if isinstance(index, np.ndarray) else [index]
    key = (m.warps, m.alone, m.mask.key if m.mask is not None else None, tuple(bases), tuple(columns), tuple(indices))
    found = known.get(key)
    if found is None:
        count = max(len(bases), len(indices))
        bases, columns, indices = (x * count if len(x) == 1 else x for x in (bases, columns, indices))
        try:
            parts = [
                map_.footprint(touch.value, b, c, _threads(m, touch), m.span, i)
                for b, c, i in zip(bases, columns, indices, strict=True)
            ]
        except OutOfBoundsError as error:
            raise OutOfBoundsError(error.fact, error.fix, location=m.step.op.location) from None
        found = _gathered(m, parts)
        if len(known) >= CACHED:
            known.clear()
        known[key] = found
    return found


def _chosen(m: Machine, touch: Touch, size: tuple[int, ...]) -> list[Spots]:
    """Which elements each active unit touches, of an access at computed rows and columns."""
    map, (row, col) = touch.threads, touch.access.index  # type: ignore[misc]
    assert isinstance(map, Registers)
    found = zip(*spots(m, map.type, row, col), strict=True)
    chosen = [spots_of(map, map.type.shape, m.span, r, c, size, touch.access.mode == "read") for r, c in found]
    if touch.access.mode == "write":
        for unit, at in enumerate(chosen):
            _refuse_same(m, touch, at, unit)
    return chosen


def _refuse_same(m: Machine, touch: Touch, at: Spots, unit: int) -> None:
    """No two elements of a tile go to one place: which would be there last is not defined."""
    places, counts = np.unique(np.stack([at.row, at.col]), axis=1, return_counts=True)
    if (counts > 1).any():
        index: tuple[Any, ...] = touch.access.index or ()
        made = next(x for x in reversed(index) if isinstance(x, Value))
        op, (row, col) = m.step.op, places[:, int(counts.argmax())].tolist()
        raise RaceError(
            f"{op.spelled}: {op.scope} {m.unit_label(unit)} of block {m.block.label} has {counts.max()} "
            f"elements for row {row}, column {col} of {touch.value.label}",
            fix="make the places differ (-1 for one that is not written), or add with warp.add",
            location=op.location,
            also={"the places are made at": made.location},
        )


def _gathered(m: Machine, parts: list[Footprint]) -> Footprint:
    """The footprints of units, as one over the warps of the gang."""
    units = _units(m)
    parts = parts if len(parts) > 1 else parts * m.units
    if len(parts) == 1:
        (unit,) = units
        return parts[0]._replace(warp=parts[0].warp + unit * m.span)
    return Footprint(
        np.concatenate([p.warp + u * m.span for p, u in zip(parts, units, strict=True)]),
        np.concatenate([p.cell for p in parts]),
        np.concatenate([p.lanes for p in parts]),
    )


def _touch_global(m: Machine, step: Step, touch: Touch, agents: Any, stamps: Any) -> int:
    """Checks an access to global memory; its bytes."""
    assert touch.place is not None
    place, tensor = touch.place, m.tensor(touch.value)
    corners = m.corners(place)
    total = 0
    for unit, corner in enumerate(corners):
        tensor.check(corner, step.op.location)
        if place.gathered is not None and touch.access.mode == "write":
            _refuse_twice(m, step, place.gathered, corner[2], unit)
        total += tensor.inside(corner, place.shape) * tensor.size
    total *= m.units if len(corners) == 1 else 1
    if m.block.cluster.grid_state.waits_for_previous:
        _check_previous(m, step, touch)
    shadowed = m.block.cluster.grid_state.globals.get(touch.value)
    if shadowed is None:
        return total
    (map_, shadow), known = shadowed, m.block.cluster.grid_state.footprints[touch]
    key = (m.warps, m.alone, m.mask.key if m.mask is not None else None, tuple(corners))
    found = known.get(key)
    if touch.access.index is not None:
        chosen = _chosen(m, touch, tensor.shape[2:])
        each = zip(corners * (m.units if len(corners) == 1 else 1), chosen, strict=True)
        found = layers(_gathered(m, [map_.scattered(tensor, corner, at) for corner, at in each]))
    elif found is None:
        parts = [map_.footprint(tensor, corner, place.shape, _threads(m, touch), m.span) for corner in corners]
        found = layers(_gathered(m, parts))
        if len(known) >= CACHED:
            known.clear()
        known[key] = found
    cluster, now = m.block.cluster, touch.access.done == "now"
    _loosen(m, touch)
    for part in found:
        local = part.warp
        clash = shadow.note(cluster.clocks, m.agents[local], agents[local], part, stamps[local], touch.number, now)
        if clash is not None:
            raise race(cluster, step, touch.access, clash, int(m.agents[local[clash.by]]), map_.describe(clash.cell))
    return total


def _refuse_twice(m: Machine, step: Step, vector: Value, rows: tuple[int, ...], unit: int) -> None:
    """No two rows of a tile go to one row of a tensor: which would be there last is not defined."""
    twice = next((row for i, row in enumerate(rows) if row >= 0 and row in rows[:i]), None)
    if twice is not None:
        raise RaceError(
            f"{step.op.spelled}: {step.op.scope} {m.unit_label(unit)} of block {m.block.label} has "
            f"{rows.count(twice)} rows of its tile for row {twice} of the tensor",
            fix="make the rows differ (-1 for one that is not written), or add with warp.add",
            location=step.op.location,
            also={"the rows are made at": vector.location},
        )


def _check_previous(m: Machine, step: Step, touch: Touch) -> None:
    """The kernels before this one in the stream, which may still run, must have been waited for."""
    cluster = m.block.cluster
    grid_state, active = cluster.grid_state, m.agents if m.mask is None else m.agents[m.mask.warps]
    unaware = cluster.clocks.of[SEEN, active, grid_state.previous] < TICK
    if touch.value in grid_state.independent or not unaware.any():
        return
    waits = [op for op in grid_state.program.walk() if isinstance(op, DependencyWait)]
    reads, name = touch.access.mode == "read", touch.value.label
    raise RaceError(
        f"{step.op.spelled}: {cluster.agent_label(int(active[unaware.argmax()]))} "
        f"{'reads' if reads else 'writes'} {name}, "
        f"which the kernel before this one may still {'write' if reads else 'read or write'} (block {m.block.label})",
        fix=f"do it after pk.wait_for_previous(); if that kernel does not touch {name}, say "
        f"pk.wait_for_previous(independent=({name},))",
        location=step.op.location,
        also={"it is waited for at": waits[0].location} if waits else {},
    )


def synchronise(m: Machine, step: Step) -> None:
    """After a strong access: what it releases and acquires, each active unit in turn."""
    assert step.strong
    releases = m.block.cluster.grid_state.releases
    sync = next((e for e in step.before if e.kind == "until"), None)
    until = None if sync is None else np.broadcast_to(m.unit_scalar(sync.phase), m.units).tolist()
    for access in step.strong:
        assert isinstance(access.target, Place)
        agents = m.agents.reshape(-1, m.span)[:, 0]
        agents = agents if m.chosen is None else agents[m.chosen]
        for i, (agent, address) in enumerate(zip(agents.tolist(), m.addresses(access.target), strict=True)):
            if access.mode != "write" and step.observes:  # "red" reads nothing
                releases.read(m, agent, address, access.order, access.scope, None if until is None else until[i])
            if access.mode == "write" or (access.mode == "reduce" and m.wrote[i]):
                releases.write(m, agent, address, access.order, access.scope, access.mode == "write")
                if access.target.tensor in m.block.cluster.grid_state.plan.waited_for:
                    spots, array = m.spots_of(access.target), m.tensor(access.target.tensor).array
                    releases.reached(address, int(array[spots[i if len(spots) > 1 else 0]]))


# Asynchronous accesses --------------------------------------------------------------------------------------


def _finishers(
    m: Machine, step: Step, touch: Touch, block: BlockState, flight: Flight | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which agents finish an access to `block`, and what they stamp it with, by warp of the gang. Lines an
    asynchronous one up.
    """
    done = touch.access.done
    if done == "now":
        return m.agents, m.block.cluster.clocks.stamp(m.agents, step.number)
    assert flight is not None
    agents, stamps = np.zeros(m.warps, np.int64), np.zeros(m.warps, np.int64)
    if isinstance(done, Value):
        pays = touch.value.type.bytes if touch.kind == "shared" and touch.access.mode != "read" else 0  # type: ignore[union-attr]
        for unit, barrier in zip(_units(m), mbarriers(m, done, block), strict=True):
            warps = slice(unit * m.span, (unit + 1) * m.span)
            agents[warps], stamps[warps] = barrier.agent, barrier.phase * TICK + step.number
            if pays:
                issuers = warps if touch.access.proxy == "generic" else slice(warps.start, warps.start + 1)
                barrier.take_part(m.agents[issuers], "load", step.op.location)
                flight.payments.append((barrier, pays, barrier.phase))
                barrier.loads.append(flight)
                barrier.landed.append((barrier.phase, flight))
        return agents, stamps
    kept = QUEUES.get(done, ELECTED)
    for unit in _units(m):
        for warp in range(unit * m.span, (unit + 1) * m.span):
            queue = queue_of(m, done, warp)
            agents[warp], stamps[warp] = queue.agent, queue.group * TICK + step.number
            if kept == PER_WARP or warp == unit * m.span:
                _line_up(queue, flight)
    return agents, stamps


def _line_up(queue: Queue, flight: Flight) -> None:
    if not any(f is flight for _, f in queue.flights[-1:]):
        queue.flights.append((queue.group, flight))
        flight.queues.append(queue)


def queue_of(m: Machine, name: str, warp: int) -> Queue:
    """The queue that `warp` of the gang uses for operations of the running step's scope."""
    if QUEUES.get(name, ELECTED) != PER_WARP:
        warp -= warp % m.span
    return m.block.queue(name, m.first + warp)


def mbarriers(m: Machine, value: Value, block: Any) -> list[MBarrier]:
    """The mbarrier that each active unit means, in a block of the cluster."""
    base = m.address(value)
    bases = base.tolist() if isinstance(base, np.ndarray) else [base] * m.units
    return [block.barriers[b] for b in bases]


def launch(m: Machine, step: Step) -> Flight:
    """An asynchronous operation begins: what it means is put off, with the scalars and addresses it has now."""
    captured = {v: m.env[v] for v in step.scalars if v in m.env}
    mask, cluster = m.mask, m.block.cluster

    def finish() -> None:
        live, state = m.env, (m.mask, m.step, m.span, m.units, m.chosen)
        m.env, m.mask = {**live, **captured}, mask
        m.begin(step)
        m.finish(step, step.numpy(m))
        for value in step.written:
            if value in m.env:
                live[value] = m.env[value]
        m.env, (m.mask, m.step, m.span, m.units, m.chosen) = live, state

    issuers, clocks = m.agents if mask is None else m.agents[mask.warps], cluster.clocks
    known = clocks.of[:, issuers].max(axis=1)
    paying = [t for t in step.touches if isinstance(t.access.done, Value)]
    if paying:
        clocks.advance(issuers)  # what they do from here on did not lead to the end of the phase
    if not any(
        t.access.proxy == "generic" for t in paying
    ):  # a store of these threads, released by its mbarrier, tells all
        known[[SEEN, FENCED, MET]] = 1  # an engine passes on no memory of who gave it work
    flight = Flight(flight_label(step), step.op.location, finish, known)
    cluster.flights.append(flight)
    return flight


# Registers in flight ----------------------------------------------------------------------------------------


def _take_off(m: Machine, step: Step, touch: Touch) -> None:
    """A register operand is read or written by an engine until its group is joined."""
    done = touch.access.done
    assert isinstance(done, str)
    queue = queue_of(m, done, 0 if m.chosen is None else int(m.chosen[0]) * m.span)
    before = m.flying.get(touch.value)
    mode = "write" if touch.access.mode != "read" or (before and before.mode == "write") else "read"
    m.flying[touch.value] = Flying(mode, done, queue, queue.group, step)


def check_registers(m: Machine, step: Step) -> None:
    """Raises `InFlightError` for an operation that touches registers which an engine still uses."""
    own = {t.value: t.access for t in step.touches if t.kind == "register"}
    for value in (*step.registers, *step.results):
        flying = m.flying.get(value)
        if flying is None:
            continue
        access = own.get(value)
        changes = value in step.written
        if flying.mode == "read" and not changes:
            continue
        if flying.mode == "write" and access is not None and access.mode != "read" and access.done == flying.done:
            continue  # accumulates in the same queue, which is in order
        verb = "writes" if flying.mode == "write" else "reads"
        raise InFlightError(
            f"{step.op.spelled} {'changes' if changes else 'uses'} {value.label} while "
            f"{flight_label(flying.step)} still {verb} it",
            fix=f"wait for it first: warpgroup.wait({value.name or 'x'})",
            location=step.op.location,
            also={"it was issued at": flying.step.op.location},
        )


__all__ = ["check_registers", "launch", "mbarriers", "queue_of", "synchronise", "touch"]
