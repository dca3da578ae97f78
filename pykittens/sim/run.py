"""Running a program: blocks of the grid one after another (those of a cluster together), gangs in turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError, DeadlockError, Diagnosis, KernelError
from ..program import Program, Value
from ..types import Global
from .block import Cluster
from .gang import Blocked, Crowd, Gang, split
from .grid_state import Dim3, GridState
from .machine import Machine
from .memory import GlobalArray
from .report import Conflicts, Report
from .steps import StepPlan


def simulate(
    program: Program,
    arguments: dict[str, Any],
    grid: Dim3,
    *,
    seed: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Runs a program on the simulated GPU: outputs are written into the arrays of `arguments` in place.

    `arguments` has an array for each global tensor and a number for each scalar parameter, by name. The grid is in
    blocks. A `seed` makes gangs take turns, and engines finish, in a random legal order. Raises a `Diagnosis` for what
    the program does wrong. `progress` is told, after each cluster, which fraction of the blocks has run.
    """
    if any(g < 1 or g % c for g, c in zip(grid, program.cluster, strict=True)):
        raise ArgumentError(
            f"a grid of {grid} blocks in clusters of {program.cluster}",
            fix="make it a multiple of the cluster",
            location=program.location,
        )
    plan = StepPlan(program)
    tensors, scalars = _operands(program, arguments, plan.written)
    report = Report(blocks=grid[0] * grid[1] * grid[2])
    grid_state = GridState(program, plan, tensors, scalars, grid, report)
    chance = random.Random(seed) if seed is not None else None
    for number in range(report.blocks // grid_state.blocks):
        Scheduler(Cluster(grid_state, number), chance).run()
        if progress:
            progress((number + 1) * grid_state.blocks / report.blocks)
    for number, passes in sorted(grid_state.conflicts.items()):
        step = plan.steps[number - 1]
        tile = ", ".join(t.value.label for t in step.touches if t.passes)
        report.conflicts.append(Conflicts(step.op.name, tile, step.op.location, passes))
    return report


def _operands(
    program: Program, arguments: dict[str, Any], written: set[Value]
) -> tuple[dict[Value, GlobalArray], dict[Value, Any]]:
    tensors: dict[Value, GlobalArray] = {}
    scalars: dict[Value, Any] = {}
    for parameter in program.parameters:
        if parameter.name not in arguments:
            raise ArgumentError(
                f"{program.name} misses {parameter.name!r}", fix="pass every parameter", location=program.location
            )
        given, type = arguments[parameter.name], parameter.value.type
        if not isinstance(type, Global):
            assert hasattr(type, "dtype")
            scalars[parameter.value] = (
                np.float32(given) if type.dtype.kind == "f" else bool(given) if type.dtype.kind == "b" else int(given)
            )
            continue
        if parameter.value in written and not given.flags.writeable:
            raise ArgumentError(
                f"{program.name} writes {parameter.name!r}, which is read-only",
                fix="pass a copy",
                location=program.location,
            )
        tensors[parameter.value] = GlobalArray(parameter.name, type, given)
    return tensors, scalars


class Scheduler:
    """Runs the gangs of a cluster in turn until all have ended."""

    def __init__(self, cluster: Cluster, chance: random.Random | None):
        self.cluster, self.crowd = cluster, Crowd(chance)
        self.blocked: dict[Gang, Blocked] = {}

    def run(self) -> None:
        grid_state = self.cluster.grid_state
        for block in self.cluster.blocks:
            split(
                Machine(block, 0, block.warps, 0, block.values()), grid_state.plan.body, 0, block.warps, 0, self.crowd
            )
        while self.crowd.gangs:
            if not self._turn():
                self._deadlock()
        for flight in self.cluster.flights:
            flight.complete()
        for block in self.cluster.blocks:
            block.finish()

    def _turn(self) -> bool:
        """Every gang that can goes on until it must wait. Whether any could."""
        gangs, chance, moved = list(self.crowd.gangs), self.crowd.chance, False
        if chance is not None:
            chance.shuffle(gangs)
        for gang in gangs:
            if chance is not None:
                self._finish_some(chance)
            blocked = self.blocked.get(gang)
            if blocked is not None and not blocked.ready():
                continue
            moved = True
            try:
                self.blocked[gang] = next(gang.coroutine)
            except StopIteration:
                self.crowd.gangs.remove(gang)
                self.blocked.pop(gang, None)
            except KernelError:
                raise
            except Exception as error:  # in the NumPy face of an operation, perhaps the user's own
                op = gang.m.step.op
                raise Diagnosis(f"{op.scope}.{op.name} fails on the CPU: {error!r}", location=op.location) from error
        return moved

    def _finish_some(self, chance: random.Random) -> None:
        """Some engines finish early."""
        waiting = [f for f in self.cluster.flights if not f.done]
        if waiting and chance.random() < 0.5:
            chance.choice(waiting).complete()

    def _deadlock(self) -> None:
        waits = [(gang, self.blocked[gang]) for gang in self.crowd.gangs if self.blocked[gang].state()]
        rows = [
            f"    {gang.label}{f', at {blocked.location[0]}' if blocked.location else ''}: {blocked.state()}"
            for gang, blocked in waits
        ]
        where = waits[0][1].location
        block = self.cluster.blocks[0].label
        raise DeadlockError(
            f"deadlock in block {block}: every warp that has not ended waits for something that cannot happen any more:\n"
            + "\n".join(rows),
            fix="let the missing arrivals, bytes or warps come, or do not wait for them; check the parity that is waited for",
            location=where,
            also={f"{gang.label} at": blocked.location for gang, blocked in waits[1:]},
        )
