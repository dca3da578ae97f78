"""A program prepared for running: each operation once, with its effects resolved as far as they can be."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from ..ops.control import BreakIf, Range, Role, When, While
from ..program import Access, Block, Effect, Op, Place, Program, Sync, Value, values_in
from ..thread_map import EVERY_THREAD, ONE_THREAD
from ..types import BarrierType, RegisterTile, RegisterVector, ScalarType, SharedTile, SharedVector
from .access_classes import ClassTable, classify
from .banks import extra_passes
from .footprint import SharedMap
from .wrapping import counted_with

STRUCTURE = (Range, While, BreakIf, When, Role)


class Touch:
    """One access of an operation."""

    __slots__ = ("access", "apart", "combines", "copies", "kind", "number", "passes", "place", "threads", "value")

    def __init__(self, access: Access, span: int):
        self.access = access
        target = access.target
        self.place = target if isinstance(target, Place) else None
        self.value: Value = target.tensor if isinstance(target, Place) else target
        type = self.value.type
        shared = type if isinstance(type, (SharedTile, SharedVector)) else None
        self.kind = "global" if self.place else "shared" if shared else "register"
        # Where all threads write the same bytes, one of them does: nobody races with its own copy.
        copies = access.threads == EVERY_THREAD and access.mode != "read"
        self.threads = ONE_THREAD if copies else access.threads
        whole = shared is not None and access.proxy == "generic" and access.at is None and access.index is None
        self.passes = extra_passes(shared, self.threads, span) if shared and whole else 0
        self.copies = 1.0  # how many warps touch an element of shared memory
        if shared and whole:
            lanes = self.threads.lanes(shared.shape, span)
            self.copies = np.count_nonzero(lanes) / lanes.shape[1]
        elif self.threads == EVERY_THREAD:
            self.copies = span
        # Whether lanes other than the first do it, each when it comes to it (ldmatrix reads when all have come).
        together = self.threads.whole_warps and access.mode == "read"
        self.apart = (
            access.proxy == "generic"
            and access.done in ("now", "cp.async")
            and self.threads != ONE_THREAD
            and not together
        )
        self.number = 0  # of its class among the accesses to global memory
        self.combines = access.reduction  # of shared memory: "" of an atomic change whose result is used

    def again(self) -> Touch:
        """The same, for a plan that has yet to number it."""
        made = copy.copy(self)
        made.number, made.combines = 0, self.access.reduction
        return made


class Step:
    """One operation: `before` are the orders it takes first, then it accesses memory, then `after` follow."""

    def __init__(self, op: Op, number: int):
        self.op, self.number, self.numpy = op, number, op.numpy
        self.structure = isinstance(op, STRUCTURE)
        self.span = op.scope.warps if op.collective else 1
        self.single = op.single_thread
        operands = op.operands()
        self.registers = [v for v in operands if isinstance(v.type, (RegisterTile, RegisterVector))]
        self.scalars = [v for v in operands if not isinstance(v.type, (RegisterTile, RegisterVector))]
        self.operands = operands
        self.written = {v for name in op.writes for v in values_in(getattr(op, name))} | set(op.results)
        self.result = op.results[0] if len(op.results) == 1 else None
        self.results = op.results
        self.name, self.flops = op.name, op.flops()
        self.before: list[Sync] = []
        self.touches: list[Touch] = []
        self.after: list[Sync | Touch] = []
        self.late = False  # whether an engine does it
        self.ends = False  # whether it may have to wait
        self.targets: dict[Value, Access] = {}  # shared tiles and vectors, by how it touches them
        self.strong: list[Access] = []
        self.competes = False  # for an element: the order in which warps come may decide what they find
        effects = op.effects()
        self.effects = bool(effects)
        if effects:
            self._resolve([Touch(e, self.span) if isinstance(e, Access) else e for e in effects])
        self._begin()

    def _resolve(self, effects: list[Sync | Touch]) -> None:
        """What follows from its effects alone."""
        first = next((i for i, e in enumerate(effects) if not isinstance(e, Sync)), len(effects))
        last = next((i for i, e in enumerate(effects) if i >= first and isinstance(e, Sync)), len(effects))
        self.before = [e for e in effects[:first] if isinstance(e, Sync)]
        self.touches = [e for e in effects[first:last] if isinstance(e, Touch)]
        self.after = effects[last:]
        if all(_waits(e) for e in effects):
            self.span = 1  # every thread waits for itself
        self.late = any(isinstance(e, Touch) and e.access.done != "now" for e in effects)
        self.ends = any(isinstance(e, Sync) and e.kind in ("barrier", "cluster", "wait", "until") for e in effects)
        self.targets = {e.value: e.access for e in effects if isinstance(e, Touch) and e.kind == "shared"}
        strong = [e.access for e in effects if isinstance(e, Touch) and e.kind == "global" and e.access.order != "weak"]
        # What a release or an acquire may come with: a word, not the atomic additions of a whole vector.
        strong = [a for a in strong if a.proxy == "generic" and a.index is None]
        self.strong = [a for a in strong if isinstance(a.target, Place) and a.target.cols == 1]
        self.competes = bool(self.strong) or any(
            isinstance(e, Touch) and e.kind == "shared" and e.access.mode == "reduce" and self.results for e in effects
        )

    def _begin(self) -> None:
        """What the operations around it decide, before they have."""
        self.observes = False  # whether something is done with what a strong access finds
        self.chance = False  # whether what it finds depends on the order of blocks and warps
        self.counts: tuple[str, Op] | None = None  # of a signed scalar: what it must not wrap for, and where that is
        self.inside: dict[str, list[Step]] = {}
        self.carried: tuple[Value, ...] = ()  # of a loop: what its passes change
        self.changes: set[Value] = set()  # of a role: what it changes

    def again(self, number: int) -> Step:
        """The same operation in another plan, without asking it for its effects again."""
        made = copy.copy(self)
        made.number = number
        made.touches = [touch.again() for touch in self.touches]
        made.after = [e.again() if isinstance(e, Touch) else e for e in self.after]
        made._begin()
        return made

    def __repr__(self) -> str:
        return f"<{self.op.scope}.{self.op.name}>"


class StepPlan:
    """All steps of a program, numbered from 1, and what follows from them before anything runs. Nothing that runs
    changes it. Of operations that the plan `before` has too, its steps are copied."""

    def __init__(self, program: Program, before: StepPlan | None = None):
        self.program = program
        self.steps: list[Step] = []
        self._before = {step.op: step for step in before.steps} if before else {}
        self.body = self._block(program.body)
        self._before = {}
        self.classes = self._classify()
        counted = counted_with(step.op for step in self.steps)
        for step in self.steps:
            step.counts = counted.get(step.op)
        # Whether anything can order clusters, and whether what a run does depends on the order in which they come.
        self.chained = any(a.order not in ("weak", "relaxed") for step in self.steps for a in step.strong) or any(
            isinstance(e, Sync) and e.kind == "memory fence" for e in self.effects()
        )
        self.chance = any(step.chance for step in self.steps)
        self._segments: dict[tuple[int, int], list[tuple[list[Step], int]]] = {}

    def segments(self, steps: list[Step], warps: int) -> list[tuple[list[Step], int]]:
        """A region in runs of steps, and how many of a gang's warps go in lockstep through each: see `segments`."""
        key = id(steps), warps
        if key not in self._segments:
            self._segments[key] = segments(steps, warps, self.program.facts.get("alike", {}))
        return self._segments[key]

    def _classify(self) -> ClassTable:
        """The classes of all accesses to global memory, which are told their numbers."""
        used = {v for step in self.steps for v in step.operands}
        found = {}
        for step in self.steps:
            result = any(r in used for r in step.results)
            until = any(isinstance(e, Sync) and e.kind == "until" for e in step.before)
            step.observes = until or result
            step.chance = until or (step.competes and result)
            for touch in (*step.touches, *step.after):
                if isinstance(touch, Touch) and result:
                    touch.combines = ""
                if isinstance(touch, Touch) and touch.kind == "global":
                    found[touch] = classify(touch.access, result)
        table = ClassTable(found.values())
        for touch, made in found.items():
            touch.number = table.number[made]
        return table

    def _block(self, block: Block) -> list[Step]:
        made = []
        for op in block:
            known, number = self._before.get(op), len(self.steps) + 1
            step = known.again(number) if known else Step(op, number)
            self.steps.append(step)
            made.append(step)
            if op.blocks():
                step.inside = {name: self._block(item) for name, item in op.fields() if isinstance(item, Block)}
                inside = self.steps[step.number :]
                step.changes = {v for inner in inside for v in inner.written}
                step.carried = tuple({v: 0 for inner in inside for v in inner.written - set(inner.results)})
        return made

    def op(self, number: int) -> Op:
        return self.steps[number - 1].op

    def effects(self) -> Iterable[Effect]:
        """All effects of all operations."""
        for step in self.steps:
            for e in (*step.before, *step.touches, *step.after):
                yield e.access if isinstance(e, Touch) else e

    def global_accesses(self) -> Iterable[tuple[Value, Access, int]]:
        """All accesses to global memory: the tensor, the access, and how many warps do it together."""
        return [
            (e.place.tensor, e.access, step.span)
            for step in self.steps
            for e in (*step.before, *step.touches, *step.after)
            if isinstance(e, Touch) and e.place is not None
        ]

    @cached_property
    def map(self) -> SharedMap:
        """The cells of shared memory."""
        return SharedMap(self.program)

    @cached_property
    def waited_for(self) -> set[Value]:
        """The tensors an element of which some operation waits for."""
        return {e.target.tensor for e in self.effects() if isinstance(e, Sync) and isinstance(e.target, Place)}

    @cached_property
    def written(self) -> set[Value]:
        """The tensors that some operation writes: only these can race."""
        return {
            e.target.tensor
            for e in self.effects()
            if isinstance(e, Access) and e.mode != "read" and isinstance(e.target, Place)
        }


def plan_of(program: Program) -> StepPlan:
    """The plan of a program as it is now: that of the run before, unless an operation has come or gone since."""
    last: StepPlan | None = program.facts.get("steps")
    if last is None or not _same((step.op for step in last.steps), program.walk()):
        last = program.facts["steps"] = StepPlan(program, last)
    return last


def _same(some: Iterable[Op], others: Iterable[Op]) -> bool:
    end = object()
    return all(a is b for a, b in itertools.zip_longest(some, others, fillvalue=end))


def gang_size(steps: list[Step], warps: int) -> int:
    """How many warps of a role go in lockstep: all, unless warps wait for single others; then the widest scope that
    computes.
    """
    if not _point_to_point(steps):
        return warps
    size = max((s.span for s in _flat(steps) if _computes(s)), default=1)
    return size if size <= warps and warps % size == 0 else warps


def segments(steps: list[Step], warps: int, alike: dict[Value, Any]) -> list[tuple[list[Step], int]]:
    """Runs of steps between those that all warps of a gang compute together. Where warps may wait for one another in
    such a run, since they do not all wait for the same in it, they go in smaller gangs."""
    found: list[tuple[list[Step], int]] = []
    run: list[Step] = []

    def add(several: list[Step], size: int) -> None:
        if size == warps and found and found[-1][1] == warps:
            found[-1][0].extend(several)
        elif several:
            found.append((list(several), size))

    def end() -> None:
        apart = any(_differs(s, warps, alike) for s in _flat(run))
        add(run, gang_size(run, warps) if apart else warps)
        run.clear()

    for step in steps:
        if isinstance(step.op, Role) or _leaves(step) or any(s.span >= warps and _computes(s) for s in _flat([step])):
            end()
            add([step], warps)
        else:
            run.append(step)
    end()
    return found


def _differs(step: Step, warps: int, alike: dict[Value, Any]) -> bool:
    """Whether the warps of a gang may go different ways here, or wait for different things."""
    decides = isinstance(step.op, (Range, When, BreakIf)) or any(
        isinstance(e, Sync) and e.kind == "wait" for e in (*step.before, *step.after)
    )
    known = [alike[v].warps for v in step.op.operands() if v in alike]
    return decides and any(n > 0 and n % warps for n in known)


def _leaves(step: Step) -> bool:
    """Whether it may leave the loop around it."""
    if isinstance(step.op, BreakIf):
        return True
    return isinstance(step.op, When) and any(_leaves(s) for inner in step.inside.values() for s in inner)


def _flat(steps: list[Step]) -> Iterable[Step]:
    """The steps of a region and of those inside it; roles, which form gangs of their own, left out."""
    for step in steps:
        if isinstance(step.op, Role):
            continue
        yield step
        for inner in step.inside.values():
            yield from _flat(inner)


def _computes(step: Step) -> bool:
    op = step.op
    scalar = all(isinstance(r.type, ScalarType) for r in op.results)
    counted = any(isinstance(e, Sync) and e.kind in ("arrive", "wait") for e in (*step.before, *step.after))
    return (
        op.collective
        and not step.structure
        and not step.single
        and bool(step.touches or step.written or not scalar or counted)
    )


def _waits(effect: Any) -> bool:
    return (
        isinstance(effect, Sync)
        and effect.kind == "wait"
        and effect.target is not None
        and isinstance(effect.target.type, BarrierType)
    )


def _point_to_point(steps: list[Step]) -> bool:
    for step in _flat(steps):
        if any(isinstance(e, Sync) and e.kind in ("arrive", "wait", "until") for e in (*step.before, *step.after)):
            return True
        if step.chance or any(isinstance(e, Touch) and isinstance(e.access.done, Value) for e in step.touches):
            return True
    return False
