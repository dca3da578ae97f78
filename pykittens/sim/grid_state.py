"""What all clusters of a run share: the program, global memory and its shadows, the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.control import Role
from ..program import Access, Program, Sync, Value
from ..types import BarrierType
from .footprint import GlobalMap, SharedMap
from .memory import GlobalArray
from .report import Report
from .shadow import Shadow
from .steps import StepPlan

Dim3 = tuple[int, int, int]


class GridState:
    """What all clusters of a run share: the program, global memory and its shadows, the report."""

    def __init__(
        self,
        program: Program,
        plan: StepPlan,
        tensors: dict[Value, GlobalArray],
        scalars: dict[Value, Any],
        grid: Dim3,
        report: Report,
    ):
        self.program, self.plan, self.tensors, self.scalars, self.grid, self.report = (
            program,
            plan,
            tensors,
            scalars,
            grid,
            report,
        )
        self.map = SharedMap(program)
        self.queues = sorted({name for name in map(_queue, plan.effects()) if name})
        self.barriers = [(b, i) for b in program.buffers if isinstance(b.item, BarrierType) for i in range(b.count)]
        x, y, z = program.cluster
        self.blocks = x * y * z
        self.agents = self.blocks * (
            program.warps * (1 + len(self.queues)) + len(self.barriers)
        )  # warps, their queues, barriers
        self.conflicts: dict[int, int] = {}  # extra passes by step
        self.globals: dict[Value, tuple[GlobalMap, Shadow]] = {}
        self._shadow_globals()
        self.roles: list[tuple[int, int, str]] = [
            (op.first, op.scope.warps, op.label) for op in program.walk() if isinstance(op, Role)
        ]

    def _shadow_globals(self) -> None:
        """A shadow for every tensor that is written, one for those that overlap."""
        accesses = [(self.tensors[v], access, warps) for v, access, warps in self.plan.global_accesses()]
        groups: list[list[Value]] = []
        for value, tensor in self.tensors.items():
            near = [g for g in groups if any(np.may_share_memory(self.tensors[v].array, tensor.array) for v in g)]
            groups = [g for g in groups if g not in near] + [[v for g in near for v in g] + [value]]
        for group in groups:
            if any(v in self.plan.written for v in group):
                tensors = [self.tensors[v] for v in group]
                map_ = GlobalMap(tensors, [a for a in accesses if a[0] in tensors])
                shadow = Shadow(len(map_), self.agents, fresh=False)
                self.globals.update({v: (map_, shadow) for v in group})


def _queue(effect: Any) -> str:
    if isinstance(effect, Access) and isinstance(effect.done, str) and effect.done != "now":
        return effect.done
    return effect.queue if isinstance(effect, Sync) else ""
