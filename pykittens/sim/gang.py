"""A gang: warps in lockstep, run as a coroutine over the program. It yields where it must wait.

Structure (loops, branches, roles) is walked here; every other operation goes by its effects and its NumPy face alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DeadlockError, Frame
from ..ops.control import BreakIf, Range, Role, When, While
from ..program import Sync, Value
from . import hazards, wrapping
from .machine import Machine
from .registers import WarpMask
from .roles import join_parts, merge, part
from .steps import Step, Touch, gang_size
from .synchronisation import order


@dataclass
class Blocked:
    """Why a gang waits: whether it may go on, in words what for (nothing: for roles it began), and on which line."""

    ready: Callable[[], bool]
    state: Callable[[], str]
    location: tuple[Frame, ...] = ()
    for_memory: bool = False  # it goes on when an element of memory has changed
    polls: bool = False  # it goes on, but may look at memory that others have yet to change


PASSES = 1 << 14  # through one loop that changes no memory; half of it where they do: nobody simulates more
Steps = Generator[Blocked, None, None]


@dataclass
class Crowd:
    """The gangs of a cluster that take turns. `chance` shuffles what may happen in any order, where there is one;
    `interleave`: a gang lets others go first before each strong access to global memory.
    """

    chance: random.Random | None
    interleave: bool = False
    gangs: list[Gang] = field(default_factory=list)


class Gang:
    """`m.warps` warps of a block that run `steps`."""

    def __init__(self, m: Machine, steps: list[Step], crowd: Crowd):
        self.m, self.crowd = m, crowd
        self.left: np.ndarray | None = None  # warps that have left the loop around
        self.leaving = False  # all warps left it
        self.children: list[Gang] = []  # roles begun here that may still run
        self.pending: set[Value] = set()  # what they change
        self.chosen = True  # to go on, and has made no strong access to global memory since
        self.ended = False
        self.blocked: Blocked | None = None
        self.coroutine = self._whole(steps)

    @property
    def label(self) -> str:
        """Its warps in words."""
        return self._named(self.m.first, self.m.first + self.m.warps - 1)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands: its first warp, how many of them, and the last operation."""
        step: Step | None = getattr(self.m, "step", None)  # none, before the first
        return self.m.block.first_agent + self.m.first, self.m.warps, step.number if step else 0

    @property
    def acting(self) -> str:
        """Those of its warps that take the branch it is in."""
        if self.m.mask is None:
            return self.label
        here = np.flatnonzero(self.m.mask.warps) + self.m.first
        return self._named(int(here[0]), int(here[-1]))

    def _named(self, first: int, last: int) -> str:
        name = self.m.block.warp_label(first)
        return name if first == last else name.replace(f"warp {first}", f"warps {first} to {last}", 1)

    def _whole(self, steps: list[Step]) -> Steps:
        yield from self.run(steps)
        if self.children:
            yield from self._join()
        self.ended = True

    def run(self, steps: list[Step]) -> Steps:
        """Runs a region, until its end or until all warps have left the loop around it."""
        m = self.m
        if m.warps == 1:
            yield from self._steps(steps)
            return
        for several, size in m.block.cluster.grid_state.plan.segments(steps, m.warps):
            if size == m.warps or m.mask is not None or m.flying:
                yield from self._steps(several)
            else:
                yield from self._apart(several, size)
            if self.leaving:
                return

    def _apart(self, steps: list[Step], size: int) -> Steps:
        """Runs steps in which warps may wait for one another as smaller gangs."""
        if self.children:
            yield from self._join()
        m = self.m
        gangs = begin(m, steps, m.first, m.warps, size, m.role_first, self.crowd)
        while not all(gang.ended for gang in gangs):
            yield Blocked(lambda: all(gang.ended for gang in gangs), lambda: "")
        join_parts(m, [gang.m for gang in gangs])
        for gang in gangs:
            m.changes += gang.m.changes
            m.looked.update(gang.m.looked)

    def _steps(self, steps: list[Step]) -> Steps:
        m = self.m
        work = m.block.cluster.report.operations
        for step in steps:
            if step.structure:
                yield from self._structure(step)
                if self.leaving:
                    return
                continue
            if self.children and (step.effects or step.op.collective or self.pending.intersection(step.scalars)):
                yield from self._join()
            if step.span > m.warps and step.single and (m.first - m.role_first) % step.span:
                continue  # its one thread is in another gang
            if step.competes and self.crowd.interleave:
                if not self.chosen:
                    yield Blocked(lambda: True, lambda: "nothing")
                self.chosen = False
            m.begin(step)
            work[step.name] += m.units
            if not step.effects:
                if m.flying:
                    hazards.check_registers(m, step)
                out = step.numpy(m)
                if step.counts:
                    wrapping.check(m, step.op, out, *step.counts)
                if step.results:
                    m.finish(step, out)
            elif step.ends:
                yield from self._waiting(step)
            else:
                self._at_once(step)

    # Operations with effects --------------------------------------------------------------------------

    def _at_once(self, step: Step) -> None:
        for sync in step.before:
            order(self.m, step, sync)
        self._act(step)
        for effect in step.after:
            self._follow(step, effect)

    def _waiting(self, step: Step) -> Steps:
        for sync in step.before:
            yield from self._pause(step, sync)
        self._act(step)
        for effect in step.after:
            if isinstance(effect, Touch):
                self._follow(step, effect)
            else:
                yield from self._pause(step, effect)

    def _pause(self, step: Step, effect: Sync) -> Steps:
        waiting = order(self.m, step, effect)
        if waiting is None:
            return
        if self.crowd.chance is not None:
            yield Blocked(lambda: True, lambda: "nothing")
        blocked = Blocked(waiting.ready, waiting.state, step.op.location, effect.kind == "until")
        while not waiting.ready():
            yield blocked
        waiting.proceed()

    def _act(self, step: Step) -> None:
        """Checks the accesses of an operation and does it, or hands it to its engine."""
        m = self.m
        if m.flying:
            hazards.check_registers(m, step)
        m.block.cluster.report.flops += step.flops * m.units
        if not step.late:
            for touch in step.touches:
                hazards.touch(m, step, touch, None)
            m.finish(step, step.numpy(m))
            if step.strong:
                hazards.synchronise(m, step)
            return
        flight = hazards.launch(m, step)
        for touch in step.touches:
            hazards.touch(m, step, touch, flight)
        for value in step.results:
            m.poison(value)

    def _follow(self, step: Step, effect: Sync | Touch) -> None:
        if isinstance(effect, Touch):
            hazards.touch(self.m, step, effect, None)
        else:
            order(self.m, step, effect)

    # Structure ----------------------------------------------------------------------------------------

    def _structure(self, step: Step) -> Steps:
        op = step.op
        if isinstance(op, Role):
            self._role(step, op)
            return
        if self.children:
            yield from self._join()
        self.m.begin(step)
        if isinstance(op, Range):
            yield from self._range(step, op)
        elif isinstance(op, When):
            yield from self._when(step, op)
        elif isinstance(op, While):
            yield from self._while(step)
        elif isinstance(op, BreakIf):
            self._break_if(op)

    def _range(self, step: Step, op: Range) -> Steps:
        m, body = self.m, step.inside["body"]
        bounds = start, stop, stride = [_uniform(m.scalar(x)) for x in (op.start, op.stop, op.step)]
        if not any(isinstance(x, np.ndarray) for x in bounds):
            for i in range(start, stop, stride):
                m.env[op.index] = i
                yield from self.run(body)
                if self.leaving:
                    return
            return
        before = m.mask
        full = np.arange(m.warps) if before is None else np.flatnonzero(before.warps)
        turn, end, each = (np.broadcast_to(x, len(full)).astype(np.int64) for x in bounds)
        while True:
            running = (turn < end) & (each > 0) | (turn > end) & (each < 0)
            active = np.zeros(m.warps, bool)
            active[full[running]] = True
            if self.left is not None:
                active &= ~self.left
            if not active.any():
                break
            index = np.zeros(m.warps, np.int64)
            index[full] = turn
            m.env[op.index] = index
            m.mask = _mask(active)
            yield from self.run(body)
            self.leaving = False
            turn = turn + each
        self._restore(before)

    def _when(self, step: Step, op: When) -> Steps:
        m = self.m
        condition = _uniform(m.scalar(op.condition))
        if not isinstance(condition, np.ndarray):
            yield from self.run(step.inside["then" if condition else "otherwise"])
            return
        before = m.mask
        holds = np.zeros(m.warps, bool)
        here = np.ones(m.warps, bool) if before is None else before.warps
        holds[here] = condition
        for name, warps in (("then", holds), ("otherwise", here & ~holds)):
            if step.inside[name]:
                m.mask = _mask(warps)
                yield from self.run(step.inside[name])
                self.leaving = False
        self._restore(before)

    def _while(self, step: Step) -> Steps:
        m, grid_state = self.m, self.m.block.cluster.grid_state
        before, outer = m.mask, self.left
        self.left = None
        state: Any = None
        count = effort = 0
        while True:
            seen, own = grid_state.changes, m.changes
            m.looked = {}
            yield from self.run(step.inside["body"])
            if self.leaving:
                break
            count, effort = count + 1, effort + (1 if m.changes == own else 2)
            if effort >= PASSES:
                raise DeadlockError(
                    f"{self.label} goes round a pk.loop for the {count:,}th time (block {m.block.label}), which the "
                    "simulator takes for one without an end",
                    fix="leave it with pk.break_if(condition), or simulate a smaller instance",
                    location=step.op.location,
                )
            if m.changes != own:
                state = None
                if m.looked:
                    yield Blocked(lambda: True, lambda: "nothing", polls=True)
                continue
            # A pass that changed nothing: if the next one leaves the same values, all that follow do, until memory
            # changes.
            after = self._values(step)
            if after == state:
                yield self._spinning(step, seen)
            else:
                yield Blocked(lambda: True, lambda: "nothing", polls=bool(m.looked))
            state = after
        self.leaving, self.left, m.mask = False, outer, before

    def _values(self, step: Step) -> Any:
        """All that a pass through a loop can hand to the next one."""
        held = (self.m.env.get(value) for value in step.carried)
        left = None if self.left is None else self.left.tobytes()
        return left, [x.tobytes() if isinstance(x, np.ndarray) else repr(x) for x in held]

    def _spinning(self, step: Step, seen: int) -> Blocked:
        grid_state, looked = self.m.block.cluster.grid_state, dict(self.m.looked)

        def state() -> str:
            found = " and ".join(f"{name}, which is {value}" for name, value in looked.items())
            return f"looks again and again at {found}" if looked else "goes round a loop that nothing ends"

        return Blocked(lambda: grid_state.changes != seen, state, step.op.location, for_memory=True)

    def _break_if(self, op: BreakIf) -> None:
        m = self.m
        condition = _uniform(m.scalar(op.condition))
        if not isinstance(condition, np.ndarray):
            if not condition:
                return
            condition = np.ones(m.warps if m.mask is None else m.mask.count, bool)
        gone = np.zeros(m.warps, bool)
        gone[slice(None) if m.mask is None else m.mask.warps] = condition
        self.left = gone if self.left is None else self.left | gone
        self._restore(m.mask)

    def _restore(self, mask: WarpMask | None) -> None:
        """Back to the warps that came in, but for those that have left the loop around."""
        here = np.ones(self.m.warps, bool) if mask is None else mask.warps
        if self.left is not None:
            here = here & ~self.left
        self.leaving = not here.any()
        self.m.mask = _mask(here)

    # Roles --------------------------------------------------------------------------------------------

    def _role(self, step: Step, op: Role) -> None:
        """The role's warps that are in this gang begin its body, as gangs of their own."""
        m = self.m
        low, high = max(op.first, m.first), min(op.first + op.scope.warps, m.first + m.warps)
        self.pending |= step.changes
        if low < high:
            begun = split(m, step.inside["body"], low, 1 if op.elected else high - low, op.first, self.crowd)
            for gang in begun:
                gang.m.alone = op.elected
            self.children += begun

    def _join(self) -> Steps:
        """Waits for the roles begun here to end, and takes over what they changed."""
        children, self.children, self.pending = self.children, [], set()
        while not all(c.ended for c in children):
            yield Blocked(lambda: all(c.ended for c in children), lambda: "")
        for child in children:
            merge(self.m, child.m)


def split(m: Machine, steps: list[Step], first: int, warps: int, role_first: int, crowd: Crowd) -> list[Gang]:
    """Gangs for `warps` warps of a machine that run `steps`, in the crowd from here on."""
    return begin(m, steps, first, warps, gang_size(steps, warps), role_first, crowd)


def begin(
    m: Machine, steps: list[Step], first: int, warps: int, size: int, role_first: int, crowd: Crowd
) -> list[Gang]:
    """Gangs of `size` warps each for `warps` warps of a machine."""
    gangs = []
    for start in range(first, first + warps, size):
        env = {value: part(held, start - m.first, size, m.warps) for value, held in m.env.items()}
        child = Machine(m.block, start, size, role_first, env)
        child.given = dict(env)
        gangs.append(Gang(child, steps, crowd))
    crowd.gangs.extend(gangs)
    return gangs


def _uniform(x: Any) -> Any:
    """A number where all warps agree."""
    return x[0].item() if isinstance(x, np.ndarray) and (x == x[0]).all() else x


def _mask(warps: np.ndarray) -> WarpMask | None:
    return None if warps.all() else WarpMask(warps)
