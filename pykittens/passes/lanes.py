"""Warp barriers among the lanes of a warp that hand memory to each other: statements (`warp.sync()`) that this pass
writes.

Lanes of a warp need not run in step, so what one lane writes another sees only after both have met. The compiler lets
them meet where its own vocabulary promises order: around a warp's stores of registers, tiles or scalars, into shared
memory and tensors; after a warp's wait for its copies or bulk stores; around an atomic operation; before one lane
arrives for its warp, which has read what it gives back. Nothing is written where the thread maps of the two accesses
agree lane by lane, or where a barrier stands between them anyway.

What the lanes copy themselves, or write together with other warps, is the author's to order, with `warp.sync()` or a
wider barrier: the simulator finds it where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace

from ..loading import dataclass
from ..ops import control
from ..ops.scalar_arithmetic import ScalarBinary
from ..ops.sync import Barrier
from ..ops.views import Item, Part
from ..program import Access, Block, Effect, Op, Place, Program, Scope, Sync, Value
from ..thread_map import ONE_THREAD, agree
from ..types import BarrierType, Global, SharedTile, SharedVector
from .fences import root

WARP = Scope("warp", 1)
LOOPS = (control.Range, control.While)
STRUCTURE = (*LOOPS, control.When, control.Role, control.BreakIf)


@dataclass(frozen=True)
class Open:
    """What lanes have done since they last met: an access, or (None) something that one lane has waited for.

    Two of the same access are equal, not two of accesses that look alike: comparing those takes the time of a trace.
    """

    access: Access | None = field(compare=False)
    identity: int = field(init=False)
    warps: int
    promised: bool  # the compiler lets lanes meet before another lane's access
    again: bool = False  # in an earlier pass of a loop
    flying: bool = False  # copies that their lanes have not waited for: that they have met means nothing yet

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", id(self.access))

    def clashes(self, access: Access, warps: int, promised: bool) -> bool:
        """Whether lanes must meet before an access."""
        if not (self.promised or promised):
            return False
        if self.access is None:
            return access.threads != ONE_THREAD
        if self.access.mode == "read" and (access.mode == "read" or self.access.threads.whole_warps):
            return False  # no lane is past an ldmatrix before all are
        if self.access.mode == access.mode == "reduce" and self.access.reduction == access.reduction:
            return False  # they commute
        if self.access.mode == access.mode and isinstance(access.target, Place):
            return False  # a warp's stores to a tensor go to places of their own, or the author orders them
        return root(self.access.target) is root(access.target) and not self._agrees(access, warps)

    def _agrees(self, access: Access, warps: int) -> bool:
        """Whether each element is touched by the same lane both times."""
        mine, other = self.access, access
        assert mine is not None
        if warps != self.warps or any(x.at is not None or x.index is not None for x in (mine, other)):
            return mine.threads == other.threads == ONE_THREAD and warps == self.warps
        if not _same(mine.target, other.target, self.again):
            return mine.threads == other.threads == ONE_THREAD
        shape = mine.target.shape if isinstance(mine.target, Place) else mine.target.type.shape  # type: ignore[union-attr]
        return agree(mine.threads, other.threads, shape, warps)


def insert_lane_barriers(program: Program) -> None:
    """Adds the warp barriers that the program needs."""
    effects = {op: op.effects() for op in program.walk() if not isinstance(op, STRUCTURE)}
    found = [e for some in effects.values() for e in some if isinstance(e, Access)]
    _Walk(effects, {root(e.target) for e in found if e.mode != "read"}).block(program.body, frozenset(), True)


class _Walk:
    """Goes through the program with what is open: from the last meeting of the lanes to each operation."""

    def __init__(self, effects: dict[Op, tuple[Effect, ...]], written: set[Value]) -> None:
        self.effects = effects  # that do anything to memory or order it
        self.written = written  # what nothing writes may be read in any order
        self.left: list[frozenset[Open]] = []  # what is open where the loops around are left early
        self.needed: set[Op] = set()  # the operations before which barriers stand

    def block(self, block: Block, open: frozenset[Open], write: bool) -> frozenset[Open]:
        """Walks a region; with `write`, puts barriers where they are needed. What is open at its end."""
        out: list[Op] = []
        roles: frozenset[Open] = frozenset()  # what roles that have just begun leave: each is of other warps
        for op in block:
            if isinstance(op, control.Role):
                roles |= open if op.elected else self.block(op.body, open, write)
                out.append(op)
                continue
            open, roles = open | roles, frozenset()
            if isinstance(op, STRUCTURE):
                barrier, open = self._structure(op, open, write)
            elif effects := self.effects[op]:
                barrier = _needs(op, effects, open)
                after = _after(op, effects, _met(open) if barrier else open)
                open = frozenset(x for x in after if x.access is None or root(x.access.target) in self.written)
            else:
                barrier = False
            if barrier:
                self.needed.add(op)
                made = Barrier(WARP)
                made.location = op.location
                out.append(made)
            out.append(op)
        if write:
            block.ops = out
        return open | roles

    def _structure(self, op: Op, open: frozenset[Open], write: bool) -> tuple[bool, frozenset[Open]]:
        """Walks a loop or branch: whether a barrier stands before it, and what is open after it."""
        if isinstance(op, control.BreakIf):
            if self.left:
                self.left[-1] |= open
            return False, open
        if isinstance(op, control.When):
            return False, self.block(op.then, open, write) | self.block(op.otherwise, open, write)
        assert isinstance(op, LOOPS)
        self.left.append(frozenset())
        around = frozenset(replace(x, again=True) for x in self.block(op.body, open, False))
        # One barrier before the loop rather than one in each pass of it.
        before = bool(self._barriers(op.body, open | around) - self._barriers(op.body, around))
        start = (_met(open) if before else open) | around
        end = self.block(op.body, start, write)
        return before, start | end | self.left.pop()

    def _barriers(self, block: Block, open: frozenset[Open]) -> set[Op]:
        """The operations of a region before which barriers would stand."""
        kept, self.needed = self.needed, set()
        self.block(block, open, False)
        found, self.needed = self.needed, kept
        return found


def _needs(op: Op, effects: tuple[Effect, ...], open: frozenset[Open]) -> bool:
    """Whether the lanes must meet before an operation."""
    if not open:
        return False
    warps = op.scope.warps if op.collective else 1
    for e in effects:
        if isinstance(e, Sync):
            # With bytes it announces loads, and hands nothing over.
            hands = e.kind == "arrive" and op.single_thread and isinstance(e.bytes, int) and not e.bytes
            gives = getattr(op, "gives", ())
            handed = [x for x in open if not gives or (x.access is not None and root(x.access.target) in gives)]
            if hands and _hands_over(handed, op.lanes_ordered):
                return True
        elif _memory(e) and any(x.clashes(e, warps, op.lanes_ordered) for x in open):
            return True
    return False


def _hands_over(open: Iterable[Open], all: bool) -> bool:
    """Whether one lane that arrives for its warp must meet the others first: for what they read, and for stored
    registers.

    A warp that has read only by ldmatrix is together: no lane is past it before all are.
    """
    others = [x for x in open if x.access is not None and x.access.threads != ONE_THREAD]
    reads = [x.access for x in others if x.access is not None and x.access.mode == "read"]
    apart = [x for x in others if not (x.access in reads and x.access is not None and x.access.threads.whole_warps)]
    return bool(apart) and (bool(reads) or all or any(x.promised for x in apart))


def _after(op: Op, effects: tuple[Effect, ...], open: frozenset[Open]) -> frozenset[Open]:
    """What is open after an operation."""
    warps = op.scope.warps if op.collective else 1
    for e in effects:
        if isinstance(e, Sync):
            counted = isinstance(getattr(e.target, "type", None), BarrierType)  # each lane waits for itself
            if e.kind in ("barrier", "cluster", "memory fence") or (e.kind == "wait" and not counted):
                open = _met(open)
            elif e.kind == "join" and op.single_thread:
                open |= {Open(None, warps, op.lanes_ordered)}
            elif e.kind == "join" and e.queue == "cp.async":
                landed = {x for x in open if x.flying}
                open = open - landed | {
                    replace(x, promised=x.promised or op.lanes_ordered, flying=e.pending > 0) for x in landed
                }
        else:
            if _memory(e):
                open |= {Open(e, warps, op.lanes_ordered, flying=e.done == "cp.async")}
            if e.order not in ("weak", "relaxed"):  # one lane does it for a warp that meets around it
                open = _met(open)
    return open


def _met(open: frozenset[Open]) -> frozenset[Open]:
    """What is still open when the lanes have met."""
    return frozenset(replace(x, promised=False) for x in open if x.flying)


def _memory(access: Access) -> bool:
    """Whether the lanes themselves touch memory, with ordinary accesses or copies."""
    type = root(access.target).type
    return (
        isinstance(type, (SharedTile, SharedVector, Global))
        and access.proxy == "generic"
        and access.done in ("now", "cp.async")
    )


def _same(a: object, b: object, again: bool) -> bool:
    """Whether two targets are certainly the same elements, or have none in common."""
    if isinstance(a, Place) and isinstance(b, Place):  # whose coordinates, traced scalars, have an == of their own
        first = all(_alike(x, y) for x, y in zip(a.first, b.first, strict=True))
        return a.tensor is b.tensor and a.shape == b.shape and first and a.gathered is None and not again
    if not isinstance(a, Value) or not isinstance(b, Value):
        return False
    if a is b:
        return not (again and isinstance(a.producer, Part) and not _fixed(a.producer))
    if isinstance(a.producer, Item) and isinstance(b.producer, Item):
        return a.producer.array is b.producer.array
    x, y = a.producer, b.producer
    return (
        isinstance(x, Part)
        and isinstance(y, Part)
        and _fixed(x)
        and _fixed(y)
        and ((x.tile, x.row, x.col, x.rows, x.cols) == (y.tile, y.row, y.col, y.rows, y.cols))
    )


def _alike(x: object, y: object) -> bool:
    """Whether two coordinates are certainly one number: the same, or made of the same in the same way."""
    if isinstance(x, int) and isinstance(y, int):
        return x == y
    if x is y:
        return not getattr(getattr(x, "type", None), "mutable", False)  # a variable may have changed
    a, b = getattr(x, "producer", None), getattr(y, "producer", None)
    if not isinstance(a, ScalarBinary) or not isinstance(b, ScalarBinary):
        return False
    return a.kind == b.kind and _alike(a.a, b.a) and _alike(a.b, b.b)


def _fixed(part: Part) -> bool:
    return isinstance(part.row, int) and isinstance(part.col, int)
