"""What all clusters of a run share: the program, global memory and its shadows, the report."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from ..ops.cluster import DependencyWait
from ..ops.control import Role
from ..program import Access, Program, Sync, Value
from ..types import BarrierType
from .engines import PER_WARP, QUEUES
from .footprint import GlobalMap
from .global_shadow import GlobalShadow
from .memory import GlobalArray
from .releases import Releases
from .report import Report
from .steps import StepPlan, Touch

Dim3 = tuple[int, int, int]
Footprints = defaultdict[Touch, dict[Any, Any]]  # of each access, by where the units of a gang point
WORK = {"cp.async": "a cp.async copy", "wgmma": "a matrix product", "bulk": "a bulk store", "bulk.read": "a bulk store"}


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
        footprints: Footprints,
    ):
        self.program, self.plan, self.tensors, self.scalars, self.grid, self.report = (
            program,
            plan,
            tensors,
            scalars,
            grid,
            report,
        )
        self.map = plan.map
        self.footprints = footprints
        self.queues = sorted({name for name in map(_queue, plan.effects()) if name})
        self.barriers = [(b, i) for b in program.buffers if isinstance(b.item, BarrierType) for i in range(b.count)]
        x, y, z = program.cluster
        self.blocks = x * y * z
        # Agents: warps, their queues, barriers, and the kernels before this one.
        self.previous = self.blocks * (program.warps * (1 + len(self.queues)) + len(self.barriers))
        self.agents = self.previous + 1
        waits = [op for op in program.walk() if isinstance(op, DependencyWait)]
        self.waits_for_previous = program.pdl or bool(waits)
        self.independent = {tensor for op in waits for tensor in op.independent}  # of what those kernels touch
        warps, ranks = program.warps, np.arange(self.blocks)
        self.block_of = np.concatenate(  # by agent, the rank of its block in the cluster
            [np.repeat(ranks, warps)] * (1 + len(self.queues)) + [np.repeat(ranks, len(self.barriers)), [0]]
        )
        self.releases = Releases()
        self.changes = 0  # how often something has changed that others may look at
        every, self.warp_of = (
            np.arange(self.blocks * warps),
            np.full(self.agents, -1),
        )  # the warp whose lanes do what an agent does
        for i, name in enumerate(["", *self.queues]):
            if i == 0 or QUEUES.get(name) == PER_WARP:
                self.warp_of[i * len(every) + every] = every
        self.conflicts: dict[int, int] = {}  # extra passes by step
        self.globals: dict[Value, tuple[GlobalMap, GlobalShadow]] = {}
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
            kinds = {
                (a.index is not None, a.mode, a.reduction)
                for x, a, _ in accesses
                if any(x is self.tensors[v] for v in group)
            }
            alike = len(kinds) == 1 and next(iter(kinds))[:2] == (
                True,
                "reduce",
            )  # additions, which no order is wrong for
            if any(v in self.plan.written for v in group) and not alike:
                tensors = [self.tensors[v] for v in group]
                map_ = GlobalMap(tensors, [a for a in accesses if a[0] in tensors])
                shadow = GlobalShadow(len(map_), self.plan.classes, self.block_of, self.warp_of, self.plan.chained)
                self.globals.update({v: (map_, shadow) for v in group})

    def warp_label(self, warp: int) -> str:
        """A warp of a block in words, with its role."""
        roles = [label for first, count, label in self.roles if first <= warp < first + count]
        return f"warp {warp} ({roles[-1]})" if roles else f"warp {warp}"

    def agent_label(self, agent: int, cluster: int | None = None) -> str:
        """An agent in words: of a cluster by its number, or of the one that the words are about."""
        count = self.blocks * self.program.warps
        if agent == self.previous:
            return "a kernel before this one"
        unit, place = divmod(agent, count)
        if unit > len(self.queues):
            rank, item = divmod(agent - count * (1 + len(self.queues)), len(self.barriers))
            buffer, index = self.barriers[item]
            name = buffer.value.label + (f"[{index}]" if buffer.count > 1 else "")
            return f"a load that completes on {name}{self._of_block(rank, cluster)}"
        rank, warp = divmod(place, self.program.warps)
        who = self.warp_label(warp) + self._of_block(rank, cluster)
        if unit == 0:
            return who
        name = self.queues[unit - 1]
        return f"{WORK.get(name, f'an operation of queue {name}')} of {who}"

    def _of_block(self, rank: int, cluster: int | None) -> str:
        if cluster is not None:
            return f" of block {','.join(map(str, self.block_index(cluster, rank)))}"
        return f" of block {rank} of the cluster" if self.blocks > 1 else ""

    def block_index(self, cluster: int, rank: int) -> Dim3:
        """Which block of the grid block `rank` of a cluster is. Clusters count along x, then y, then z."""
        shape = self.program.cluster
        count = [n // c for n, c in zip(self.grid, shape, strict=True)]
        corner = cluster % count[0], cluster // count[0] % count[1], cluster // (count[0] * count[1])
        inner = rank % shape[0], rank // shape[0] % shape[1], rank // (shape[0] * shape[1])
        return tuple(c * s + i for c, s, i in zip(corner, shape, inner, strict=True))  # type: ignore[return-value]


def _queue(effect: Any) -> str:
    if isinstance(effect, Access) and isinstance(effect.done, str) and effect.done != "now":
        return effect.done
    return effect.queue if isinstance(effect, Sync) else ""
