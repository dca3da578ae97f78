"""What is in flight on the tensor core at every point of a warpgroup's program.

A queue of groups flows through the program; at a loop's head the queue from before and the one from the end of the body
must agree (a fixpoint), and after a branch those of both sides. The pass sets the number of groups that each wait may
leave, names what each wait finishes, and refuses an operation that touches a tile in flight.
"""

from __future__ import annotations

from ..errors import Frame, InFlightError, TraceError
from ..loading import dataclass
from ..ops import control
from ..ops.wgmma import WgmmaWait
from ..program import Access, Block, Op, Program, Sync, Value
from ..types import RegisterTile


@dataclass(frozen=True)
class Group:
    """One call of the tensor core: the accumulator it writes, the register operand it reads, where it was issued."""

    writes: tuple[Value, ...]
    reads: tuple[Value, ...]
    location: tuple[Frame, ...]

    def same(self, other: Group) -> bool:
        return self.writes == other.writes and self.reads == other.reads


Queue = tuple[Group, ...]


def analyse_inflight(program: Program) -> None:
    """Fills in every `WgmmaWait`; raises `InFlightError` or `TraceError` with both lines."""
    _block(program.body, ())


def _block(block: Block, queue: Queue) -> Queue:
    for op in block:
        queue = _op(op, queue)
    return queue


def _op(op: Op, queue: Queue) -> Queue:
    if isinstance(op, (control.Range, control.While)):
        after = _block(op.body, queue)
        _agree(queue, after, op, "at the end of this loop's body, unlike where it begins")
        return queue
    if isinstance(op, control.When):
        then, otherwise = _block(op.then, queue), _block(op.otherwise, queue)
        _agree(then, otherwise, op, "after one side of this branch, unlike after the other")
        return then
    if isinstance(op, control.Role):
        left = _block(op.body, ())
        if left:
            raise TraceError(
                "a product is still in flight at the end of its role",
                fix="warpgroup.wait(...) before the role ends",
                location=left[-1].location,
            )
        return queue
    if isinstance(op, WgmmaWait):
        return _wait(op, queue)
    effects = op.effects()
    group = _issued(op, effects)
    for value in op.operands():
        _touch(op, value, queue, group)
    return (*queue, group) if group is not None else queue


def _issued(op: Op, effects: tuple[object, ...]) -> Group | None:
    if not any(isinstance(e, Sync) and e.kind == "commit" and e.queue == "wgmma" for e in effects):
        return None
    touched = [
        e
        for e in effects
        if isinstance(e, Access)
        and e.done == "wgmma"
        and isinstance(e.target, Value)
        and isinstance(e.target.type, RegisterTile)
    ]
    writes = tuple(e.target for e in touched if e.mode == "write")
    reads = tuple(e.target for e in touched if e.mode == "read")
    return Group(writes, reads, op.location)  # type: ignore[arg-type]


def _touch(op: Op, value: Value, queue: Queue, group: Group | None) -> None:
    for flying in queue:
        if any(value is w for w in flying.writes) and not (group is not None and any(value is w for w in group.writes)):
            raise InFlightError(
                f"{value.label} is touched while the tensor core still writes it",
                fix=f"warpgroup.wait({value.name or 'tile'}) first",
                location=op.location,
                also={"it is in flight since": flying.location},
            )
        written = any(value is x for name in op.writes for x in _fields(op, name))
        if written and any(value is r for r in flying.reads):
            raise InFlightError(
                f"{value.label} is overwritten while the tensor core still reads it",
                fix=f"warpgroup.wait({value.name or 'tile'}) first, or use another tile",
                location=op.location,
                also={"it is in flight since": flying.location},
            )


def _fields(op: Op, name: str) -> tuple[object, ...]:
    item = getattr(op, name)
    return tuple(item) if isinstance(item, tuple) else (item,)


def _wait(op: WgmmaWait, queue: Queue) -> Queue:
    if op.tiles:
        last = -1
        for tile in op.tiles:
            found = [i for i, g in enumerate(queue) if any(tile is x for x in (*g.writes, *g.reads))]
            if not found:
                raise TraceError(
                    f"warpgroup.wait({tile.name or 'tile'}): nothing in flight touches it here",
                    fix="wait once, after the product that writes it",
                    location=op.location,
                )
            last = max(last, found[-1])
        pending = len(queue) - 1 - last
    else:
        pending = min(op.pending or 0, len(queue))
    finished, left = queue[: len(queue) - pending], queue[len(queue) - pending :]
    op.pending = pending if op.tiles else (op.pending or 0)
    writing = [w for g in left for w in g.writes]
    reading = [r for g in left for r in g.reads]
    op.finished = _unique(w for g in finished for w in g.writes if not any(w is x for x in writing))
    op.released = _unique(r for g in finished for r in g.reads if not any(r is x for x in reading))
    return left


def _unique(values: object) -> tuple[Value, ...]:
    found: list[Value] = []
    for v in values:  # type: ignore[attr-defined]
        if not any(v is x for x in found):
            found.append(v)
    return tuple(found)


def _agree(a: Queue, b: Queue, op: Op, what: str) -> None:
    if len(a) == len(b) and all(x.same(y) for x, y in zip(a, b, strict=True)):
        return
    names = ", ".join(w.label for g in (b if len(b) >= len(a) else a) for w in g.writes) or "nothing"
    longer = max(a, b, key=len)
    raise TraceError(
        f"what is in flight differs {what}: {len(a)} products, then {len(b)} ({names})",
        fix="wait for the same tiles on every way there",
        location=op.location,
        also={"in flight since": longer[-1].location} if longer else {},
    )
