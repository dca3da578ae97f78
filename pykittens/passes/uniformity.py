"""Operations that a whole scope does together may not stand where only a part of it comes.

For every value the pass finds how many warps are sure to have the same: a kernel parameter is the same for the whole
cluster, the block's index for the block, `warpgroup.index` for four warps in turn, and what is computed from several as
little as the least. What is changed in place takes what the branches around the change leave, with a fixpoint at loops.
An operation of more warps than agree on a condition around it is refused: the others would wait for it for ever.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from ..errors import TraceError
from ..ops import control
from ..program import BLOCK, CLUSTER, Block, Op, Operand, Program, Sync, Value, values_in


class Uniform(NamedTuple):
    """The same value in `warps` warps in turn, beginning at warp `first` of the block; or in all of the `BLOCK` or
    `CLUSTER`.
    """

    warps: int
    first: int = 0

    def meet(self, other: Uniform) -> Uniform:
        """What two values have in common."""
        if self == other:
            return self
        if self.warps <= 0 or other.warps <= 0:
            return min(self, other, key=lambda x: x.warps if x.warps > 0 else 100 - x.warps)
        warps = gcd(self.warps, other.warps, self.first - other.first)
        return Uniform(warps, self.first % warps)

    def covers(self, warps: int, first: int) -> bool:
        """Whether each of the units of `warps` warps, the first of which begins at warp `first`, has one value."""
        return self.warps <= 0 or (self.warps % warps == 0 and (first - self.first) % warps == 0)


class Condition(NamedTuple):
    """A loop or branch around an operation, and who agrees on whether it is taken."""

    op: Op
    alike: Uniform
    value: Operand


def check_uniform(program: Program) -> None:
    """Raises a `TraceError` for a collective operation in a branch or loop that only a part of its scope takes.

    Leaves who has the same value, `Uniform` by value, in the program's facts under "alike".
    """
    analysis = _UniformityAnalysis(program)
    analysis.block(program.body, (), 0)
    program.facts["alike"] = analysis.known


class _UniformityAnalysis:
    """Walks the program with what is known at each point; what is not mentioned in `known` is the same everywhere."""

    def __init__(self, program: Program):
        self.known: dict[Value, Uniform] = {b.value: Uniform(BLOCK) for b in program.buffers}
        self.depth: dict[Value, int] = {}  # under how many conditions a value was made
        self.loops: dict[Op, Condition] = {}  # who agrees on when a `While` is left

    def of(self, item: Operand) -> Uniform:
        """Who has the same value of an operand."""
        alike = Uniform(CLUSTER)
        for value in values_in(item):
            alike = alike.meet(self.known.get(value, alike))
        return alike

    def block(self, block: Block, around: tuple[Condition, ...], first: int) -> None:
        for op in block:
            if isinstance(op, control.Range):
                self._loop(op, (*around, Condition(op, self.of((op.start, op.stop, op.step)), op.stop)), first)
            elif isinstance(op, control.While):
                self._loop(op, (*around, Condition(op, Uniform(CLUSTER), True)), first)
            elif isinstance(op, control.When):
                inside = (*around, Condition(op, self.of(op.condition), op.condition))
                before = dict(self.known)
                self.block(op.then, inside, first)
                then, self.known = self.known, before
                self.block(op.otherwise, inside, first)
                self._merge(then)
            elif isinstance(op, control.BreakIf):
                self._break(op, around)
            elif isinstance(op, control.Role):
                self.block(op.body, around, op.first)
            else:
                if op.collective and around:
                    self._check(op, around, first)
                self._operation(op, around, first)

    def _merge(self, other: dict[Value, Uniform]) -> bool:
        """Keeps what holds on both ways; says whether anything changed."""
        changed = False
        for value, alike in other.items():
            known = self.known.get(value)
            both = alike if known is None else alike.meet(known)
            if both != known:
                self.known[value], changed = both, True
        return changed

    def _loop(self, op: control.Range | control.While, around: tuple[Condition, ...], first: int) -> None:
        if isinstance(op, control.Range):
            self.depth[op.index] = len(around)
            self.known[op.index] = self.of((op.start, op.step))
        changed = True
        while changed:
            before, left = dict(self.known), self.loops.get(op)
            self.block(op.body, around if left is None else (*around[:-1], left), first)
            changed = self._merge(before) | (self.loops.get(op) != left)

    def _break(self, op: control.BreakIf, around: tuple[Condition, ...]) -> None:
        inner = next(i for i in reversed(range(len(around))) if isinstance(around[i].op, control.While))
        alike = around[inner].alike.meet(self.of(op.condition))
        for condition in around[inner + 1 :]:
            alike = alike.meet(condition.alike)
        loop = around[inner].op
        if loop not in self.loops or alike != self.loops[loop].alike:
            self.loops[loop] = Condition(
                loop, alike.meet(self.loops[loop].alike) if loop in self.loops else alike, op.condition
            )

    def _operation(self, op: Op, around: tuple[Condition, ...], first: int) -> None:
        alike = Uniform(op.uniform_over, first % op.uniform_over if op.uniform_over > 0 else 0)
        for value in op.depends_on():
            alike = alike.meet(self.known.get(value, alike))
        for value in op.results:
            self.depth[value] = len(around)
            self.known[value] = alike
        for name in op.writes:
            for value in values_in(getattr(op, name)):
                for condition in around[self.depth.get(value, 0) :]:
                    alike = alike.meet(condition.alike)
                self.known[value] = alike

    def _check(self, op: Op, around: tuple[Condition, ...], first: int) -> None:
        cluster = any(isinstance(e, Sync) and e.kind == "cluster" for e in op.effects())
        for condition in around:
            if cluster and condition.alike.warps != CLUSTER:
                self._refuse(op, condition, "blocks of its cluster", "use a condition that is the same for all of them")
            if op.scope.warps > 1 and not condition.alike.covers(op.scope.warps, first):
                self._refuse(
                    op,
                    condition,
                    f"warps of a {op.scope}",
                    f"use a condition that is the same for all {op.scope.warps} warps, or do it on fewer warps",
                )

    def _refuse(self, op: Op, condition: Condition, whom: str, advice: str) -> None:
        label = condition.value.label if isinstance(condition.value, Value) else str(condition.value)
        what = {
            control.When: f"a branch on {label}",
            control.Range: f"a loop up to {label}",
            control.While: f"a loop left on {label}",
        }[type(condition.op)]
        raise TraceError(
            f"{op.scope} {op.name} inside {what}, which may differ between the {whom}: those that do not come would be "
            "waited for, for ever",
            fix=f"move it out of there, or {advice}",
            location=op.location,
            also={"the condition is at": condition.op.location},
        )
