"""Running a program on the simulated GPU, in every order that its results may depend on."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..program import Program, Value
from ..types import Global
from .grid_state import Dim3, Footprints, GridState
from .memory import GlobalArray
from .orders import RunOrder, left_to_run, run_orders
from .report import Conflicts, Report
from .scheduler import Scheduler
from .steps import plan_of


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
    blocks. A program whose results depend on the order of its blocks and warps (`sim/orders.py`) runs in several; what
    it writes is of the first. A `seed` chooses the first, and makes gangs take turns, and engines finish, in a random
    legal order. Raises a `Diagnosis` for what the program does wrong. `progress` is told, after each cluster of the
    first order, which fraction of the blocks has run.
    """
    if any(g < 1 or g % c for g, c in zip(grid, program.cluster, strict=True)):
        raise ArgumentError(
            f"a grid of {grid} blocks in clusters of {program.cluster}",
            fix="make it a multiple of the cluster",
            location=program.location,
        )
    plan = plan_of(program)
    tensors, scalars = _operands(program, arguments, plan.written)
    clusters = grid[0] * grid[1] * grid[2] // math.prod(program.cluster)
    orders = run_orders(clusters, len(plan.steps), plan.chance, program.cooperative, seed)
    written = [tensors[v].array for v in plan.written] if len(orders) > 1 else []
    given = [array.copy() for array in written]
    footprints: Footprints = defaultdict(dict)

    def run(order: RunOrder, progress: Callable[[int], None] | None = None) -> GridState:
        report = Report(blocks=grid[0] * grid[1] * grid[2])
        grid_state = GridState(program, plan, tensors, scalars, grid, report, footprints)
        with np.errstate(all="ignore"):  # once for all operations: entering it takes as long as one of them
            Scheduler(grid_state, order, random.Random(seed) if seed is not None else None).run(progress)
        return grid_state

    grid_state = run(orders[0], progress and (lambda ended: progress(ended / clusters)))
    made = [array.copy() for array in written]
    for order in left_to_run(orders, sum(grid_state.report.operations.values())):
        if not order.tried.everything:
            _restore(written, given)
            run(order)
    _restore(written, made)
    report = grid_state.report
    for number, passes in sorted(grid_state.conflicts.items()):
        step = plan.steps[number - 1]
        tile = ", ".join(t.value.label for t in step.touches if t.passes)
        report.conflicts.append(Conflicts(step.op.name, tile, step.op.location, passes))
    return report


def _restore(arrays: list[np.ndarray], contents: list[np.ndarray]) -> None:
    for array, content in zip(arrays, contents, strict=True):
        array[...] = content


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
