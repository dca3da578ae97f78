"""Run-time control flow: `pk.range`, `pk.loop`, `pk.when`, `pk.role`, and the checks that Python agrees with it.

A loop body is recorded twice and the recordings compared, so that Python state which changes from one
pass to the next is caught: it would be frozen at its first value in the compiled kernel.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from typing import Any

from ..errors import TraceError, user_frame_objects
from ..ops import control
from ..ops.places import known_multiple
from ..ops.scalars import THREAD, scalar_dtype
from ..program import Block, Op, Operand, Place, Scope, Value
from ..types import ScalarType, i32, i64
from . import recorder
from .elementwise import maximum
from .handle import number
from .leaving import entered, left_early
from .recorder import current, here, name_locals, record
from .scopes import group, warp
from .state import State


def range(*bounds: Operand, unroll: int = 1) -> Iterator[Any]:
    """A run-time loop: `for i in pk.range(stop)`, `(start, stop)` or `(start, stop, step)`.

    `step` is a Python int. `unroll=n` records n phases of the body after one another, each with its own Python
    state (two score tiles that alternate, say), and what is left over phase by phase. After such a loop the Python
    state is that after a whole number of rounds (and exact where both bounds are Python ints).
    """
    if not 1 <= len(bounds) <= 3:
        raise TraceError(f"pk.range with {len(bounds)} bounds", fix="write pk.range(stop), (start, stop) or (start, stop, step)")
    start, stop, step = (number(x) for x in ((0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]))
    if not isinstance(step, int) or step == 0:
        raise TraceError(f"pk.range with step {step!r}", fix="the step is a Python int other than 0")
    if not isinstance(unroll, int) or unroll < 1:
        raise TraceError(f"pk.range with unroll={unroll!r}", fix="unroll is a positive Python int")
    for bound in (start, stop):
        control.check_bound(bound)
    if unroll == 1:
        yield from _loop(start, stop, step)
        return
    count = (stop - start + (step - 1 if step > 0 else step + 1)) // step  # how often the body runs
    static = isinstance(count, int)
    rounds = (max(count, 0) if static else maximum(count, 0)) // unroll
    whole = start + rounds * (unroll * step)  # where the rounds end
    first: Any
    if not static or rounds:
        for first in _loop(start, whole, step * unroll):
            for phase in builtins.range(unroll):
                yield first + phase * step if phase else first
    if static:
        yield from builtins.range(whole, stop, step)
        return
    r = current()
    for phase in builtins.range(unroll - 1):
        index = whole + phase * step
        yield from _guarded(control.When(THREAD, index < stop if step > 0 else index > stop, Block(), Block()), index)
    with r.region("pk.range"):  # the last phase never runs here: it brings the Python state back to where the rounds leave it
        yield whole + (unroll - 1) * step


def _guarded(op: control.When, index: Any) -> Iterator[Any]:
    """One phase that is left over, recorded under its condition."""
    r = current()
    finished = False
    try:
        with r.region("pk.range") as op.then:
            yield index
        finished = True
    finally:
        if not finished:
            _left(r, "pk.range")
    record(op)


def _loop(start: Operand, stop: Operand, step: int) -> Iterator[Any]:
    r = current()
    dtype = i64 if any(scalar_dtype(x) is i64 for x in (start, stop)) else i32
    index = recorder.make_value(ScalarType(dtype))
    index.where = here()
    index.multiple = gcd(known_multiple(start), step)

    def make(body: Block) -> Op:
        return control.Range(THREAD, index, start, stop, step, body)

    for body in _recorded("pk.range", make):
        index.block = body
        yield index
    r.check()


def loop() -> Iterator[None]:
    """A run-time loop without end: `for _ in pk.loop():`, left by `pk.break_if(condition)`."""
    for _ in _recorded("pk.loop", lambda body: control.While(THREAD, body)):
        yield None
    current().check()


def _recorded(kind: str, make: Any) -> Iterator[Block]:
    """Records a loop body, and again to verify it; then adds the loop made of the first recording."""
    r = current()
    frames = user_frame_objects()
    before, verifying = State(frames), r.verifying[:]
    finished = False
    try:
        with r.region(kind) as body:
            yield body
            name_locals(frames)
        r.check()
        if not r.verifying:
            made = r.program.buffers[:], r.program.maps[:], r.program.facts.get("named barriers", [])[:]
            first = State(frames)
            r.verifying.append(body)
            with r.region(kind) as again:
                yield again
            r.verifying[:] = verifying
            r.check()
            _compare(body, again, before, first, State(frames), len(made[0]))
            r.program.buffers[:], r.program.maps[:] = made[:2]
            r.program.facts.get("named barriers", [])[:] = made[2]
        finished = True
    finally:
        if not finished:
            r.verifying[:] = verifying
            _left(r, kind)
    record(make(body))
    body.parent = r.block


def _left(r: recorder.Recorder, kind: str) -> None:
    """The generator of a loop was closed before its end: noted, and raised by the next operation."""
    if r.error is None and not r.raised and r.tracing():  # not when what is left of an old trace is collected
        r.error = TraceError(
            f"the body of a {kind} was left by break, return or an exception",
            fix="leave a run-time loop with pk.break_if(condition) in pk.loop()",
            where=here(),
        )


def break_if(condition: Operand) -> None:
    """Leaves the innermost `pk.loop()` when the condition holds."""
    loops = [kind for kind, _ in current().open if kind in ("pk.loop", "pk.range")]
    if not loops or loops[-1] != "pk.loop":
        inside = "inside a pk.range" if loops else "outside of pk.loop()"
        raise TraceError(f"pk.break_if {inside}", fix="write `for _ in pk.loop():` right around it, with a pk.var to count")
    record(control.BreakIf(THREAD, number(condition)))


class Watch:
    """Checks that a `with` region runs to its end and leaves Python's names as they were."""

    def __init__(self, kind: str):
        self.kind, self.frames = kind, user_frame_objects()
        self.sites, self.before = entered(self.frames), State(self.frames)

    def close(self) -> None:
        """At the end of the region: raises if it was left by return, break or continue, or rebound a name."""
        name_locals(self.frames)
        line = left_early(self.sites)
        if line is not None:
            raise TraceError(
                f"the body of a {self.kind} was left by return, break or continue: the kernel is recorded once, so what follows would never run",
                fix="let the region end; put what follows under pk.otherwise or another pk.when", where=(line,),
            )  # fmt: skip
        for name, old, new in self.before.changes(State(self.frames), self._same):
            values = isinstance(old, Value) or isinstance(new, Value)
            if isinstance(old, Value) and not current().visible(old):
                continue  # dead already: the index of an earlier loop, say
            if self.kind == "pk.role" and not values:
                continue  # roles are static: what Python does in one is known
            raise TraceError(
                f"{name!r} changes inside {self.kind}, from {_shown(old)} to {_shown(new)}: after it, Python would keep the new value whether or not it ran",
                fix=_advice(name, old), where=here(),
            )  # fmt: skip

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        return a is b or not (isinstance(a, Value) or isinstance(b, Value))


def _shown(x: Any) -> str:
    if isinstance(x, Value):
        return f"the {x.type} made at line {x.where[0].line}" if x.where else f"the {x.type}"
    return repr(x)


def _advice(name: str, old: Any) -> str:
    """How to write a change of `name` that the compiled kernel can follow."""
    if isinstance(old, Value):
        scalar = isinstance(old.type, ScalarType) and not old.type.mutable
        change = (
            f"make it a variable, {name} = pk.var(pk.{old.type}, ...), and change that: {name}[:] = ..." if scalar else f"change it in place: {name}[:] = ..."
        )
        return change + ", or give what is made inside another name"
    if isinstance(old, (bool, int, float)):
        dtype = "bool_" if isinstance(old, bool) else "i32" if isinstance(old, int) else "f32"
        return f"make it a variable, {name} = pk.var(pk.{dtype}, {old!r}), and change that: {name}[:] = ...; or give what is made inside another name"
    return f"keep {name} as it is: index shared tiles by a traced number, or keep numbers in a pk.var"


@contextmanager
def when(condition: Operand) -> Iterator[None]:
    """Runs its body where a traced condition holds: `with pk.when(i > 0): ...`."""
    r = current()
    op = control.When(THREAD, number(condition), Block(), Block())
    control.check_condition(op.condition)
    watch = Watch("pk.when")
    with r.region("pk.when") as op.then:
        yield
    watch.close()
    record(op)
    r.cache["last when"] = op  # type: ignore[assignment]


@contextmanager
def otherwise() -> Iterator[None]:
    """Runs its body where the condition of the `pk.when` just before did not hold."""
    r = current()
    r.check()
    op = r.cache.get("last when")
    if not isinstance(op, control.When) or not r.block.ops or r.block.ops[-1] is not op or op.otherwise.ops:
        raise TraceError("pk.otherwise without a pk.when just before it", fix="write `with pk.when(c): ...` and then `with pk.otherwise(): ...`")
    watch = Watch("pk.otherwise")
    with r.region("pk.otherwise") as op.otherwise:
        yield
    watch.close()


@contextmanager
def role(name: str, *, warps: int = 0, warpgroups: int = 0, registers: int = 0) -> Iterator[Any]:
    """Gives the next `warps` warps (or `warpgroups` groups of four) of the block, or of the role around it, a program of their own.

    Yields the index of the running warpgroup (or warp) in the role. `registers` is the budget a thread
    (setmaxnreg, PTX: a multiple of 8 from 24 to 256, whole warpgroups).
    """
    r = current()
    count = warps + 4 * warpgroups
    if count <= 0 or (warps and warpgroups):
        raise TraceError(f"role {name!r} has {warps} warps and {warpgroups} warpgroups", fix="give it warps=n or warpgroups=n")
    if any(kind != "pk.role" for kind, _ in r.open):
        raise TraceError(f"role {name!r} begins inside a {r.open[-1][0]}", fix="roles are static: open them outside of loops and branches")
    if registers and (registers % 8 or not 24 <= registers <= 256 or count % 4 or r.role_level):
        raise TraceError(
            f"role {name!r}: {registers} registers a thread for {count} warps", fix="setmaxnreg takes a multiple of 8 from 24 to 256 for whole warpgroups"
        )
    taken = r.cache.setdefault(("warps of", id(r.block)), 0)  # type: ignore[arg-type]
    first: int = taken  # type: ignore[assignment]
    if first + count > r.warps:
        raise TraceError(f"role {name!r} wants warps {first} to {first + count - 1} of {r.warps}", fix="give the kernel more warps, or the roles fewer")
    if (warpgroups or registers) and (r.first_warp + first) % 4:
        raise TraceError(f"role {name!r} begins at warp {r.first_warp + first}", fix="warpgroups begin at multiples of 4 warps: order the roles so")
    r.cache[("warps of", id(r.block))] = first + count  # type: ignore[assignment]
    saved = r.warps, r.first_warp, r.role, r.role_warpgroups
    watch = Watch("pk.role")
    with r.region("pk.role") as body:
        r.warps, r.first_warp, r.role, r.role_level = count, r.first_warp + first, name, r.role_level + 1
        r.role_warpgroups = warpgroups > 0
        r.role_blocks.append(body)
        try:
            yield (group(4) if warpgroups else warp).index
        finally:
            absolute = r.first_warp
            (r.warps, r.first_warp, r.role, r.role_warpgroups), r.role_level = saved, r.role_level - 1
            r.role_blocks.pop()
    watch.close()
    record(control.Role(Scope("role", count), name, absolute, registers, body))


# Checks -----------------------------------------------------------------------------------------------------


def _compare(body: Block, again: Block, before: State, first: State, second: State, buffers: int) -> None:
    """Both recordings of a loop body must be the same, up to the names of the values made inside; and so must Python's state."""
    r = current()
    made = len(r.program.buffers) - buffers
    old, new = r.program.buffers[buffers - made : buffers], r.program.buffers[buffers:]
    names: dict[Value, Value] = {b.value: a.value for a, b in zip(old, new, strict=False)}
    difference = _difference(body, again, names)
    existing = {id(x) for x in before.values.values()}

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Value) and isinstance(b, Value):
            return names.get(b, b) is a or not (r.visible(a) or r.visible(b))  # made in the loop, both: of no use after it
        return id(b) not in existing  # an object of the user's that is as old as the loop may not trade places

    changes = list(first.changes(second, same))
    if difference is None and not changes:
        for name, a, b in before.changes(first):  # an outer value under a new name would be right from the second pass on only
            if isinstance(a, Value) and isinstance(b, Value) and r.visible(a) and r.visible(b):
                raise TraceError(_frozen(name, a, b), fix=_advice(name, a), where=here())
        return
    where = difference[0].where if difference is not None and difference[0] is not None else here()
    alternating = {name for name, _, _ in changes}
    blamed = [(n, a, b) for n, a, b in before.changes(first, lambda a, b: a is b) if n in alternating or (not alternating and not isinstance(b, Value))]
    if blamed or changes:
        name, a, b = (blamed or changes)[0]
        others = [repr(n) for n, _, _ in blamed[1:4]]
        raise TraceError(
            _frozen(name, a, b) + (f" (so do {', '.join(others)})" if others else ""),
            fix=_advice(name, a) + "; or pk.range(..., unroll=2) for what alternates",
            where=where,
        )
    assert difference is not None
    raise TraceError(
        f"Python state changes from one pass of this loop to the next, and would be frozen as in the first ({difference[2]})",
        fix="keep what changes in a tile (x[:] = ...) or a pk.var; or pk.range(..., unroll=2) for state that alternates", where=where,
    )  # fmt: skip


def _frozen(name: str, a: Any, b: Any) -> str:
    return f"{name!r} changes from one pass of this loop to the next, from {_shown(a)} to {_shown(b)}: the compiled loop would keep the first"


def _difference(first: Block, second: Block, names: dict[Value, Value]) -> tuple[Op | None, Any, str] | None:
    for a, b in zip(first.ops, second.ops, strict=False):
        if type(a) is not type(b) or a.scope != b.scope:
            return a, None, f"{a.name} in the first pass, {b.name} in the second"
        for (field, x), (_, y) in zip(a.fields(), b.fields(), strict=True):
            if isinstance(x, Block):
                if isinstance(a, control.Range):
                    names[b.index] = a.index  # type: ignore[attr-defined]
                inner = _difference(x, y, names)
                if inner is not None:
                    return inner
                continue
            if isinstance(a, control.Range) and field == "index":
                names[y] = x
                continue
            bad = _operand_difference(x, y, names)
            if bad is not None:
                return a, bad[0], f"operand {field!r} of {a.name} {bad[1]}"
        for x, y in zip(a.results, b.results, strict=True):
            if x.type != y.type:
                return a, None, f"{a.name} makes {x.type}, then {y.type}"
            names[y] = x
    if len(first.ops) != len(second.ops):
        longer = first.ops if len(first.ops) > len(second.ops) else second.ops
        return longer[min(len(first.ops), len(second.ops))], None, "one pass records more operations than the other"
    return None


def _operand_difference(x: Any, y: Any, names: dict[Value, Value]) -> tuple[Any, str] | None:
    if isinstance(x, Value) and isinstance(y, Value):
        if names.get(y, y) is x:
            return None
        return y if y.name else x, f"is {x.label} made at {_line(x)} in the first pass, {y.label} made at {_line(y)} in the second"
    if isinstance(x, Place) and isinstance(y, Place):
        return _operand_difference((x.tensor, *x.first), (y.tensor, *y.first), names) or (None if x.shape == y.shape else (None, "changes its shape"))
    if isinstance(x, (tuple, list)) and isinstance(y, (tuple, list)) and len(x) == len(y):
        for p, q in zip(x, y, strict=True):
            bad = _operand_difference(p, q, names)
            if bad is not None:
                return bad
        return None
    if callable(x) and callable(y) and getattr(x, "__code__", x) is getattr(y, "__code__", y):
        return None
    if isinstance(x, Value) or isinstance(y, Value) or not _same(x, y):
        return None if x is y else (None, f"is {x!r} in the first pass, {y!r} in the second")
    return None


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b) or (a != a and b != b)  # a NaN is the same as itself here
    except Exception:
        return False


def _line(value: Value) -> str:
    return str(value.where[0]) if value.where else "the signature"


__all__ = ["break_if", "loop", "otherwise", "range", "role", "when"]
