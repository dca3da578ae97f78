"""Run-time control flow: `pk.range`, `pk.loop`, `pk.when`, `pk.role`, and the checks that Python agrees with it.

A loop body is recorded twice and the recordings compared, so that Python state which changes from one
pass to the next is caught: it would be frozen at its first value in the compiled kernel.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from math import gcd
from typing import Any

from ..errors import TraceError, user_frame_objects
from ..ops import control
from ..ops.addressing import known_multiple
from ..ops.scalars import THREAD, promoted
from ..program import Block, Op, Operand, Scope
from ..types import ScalarType, i32, i64
from . import recorder
from .consistency import RegionGuard, check_unentered, compare
from .elementwise import maximum
from .handle import number
from .loop_driver import targets
from .recorder import current, here, name_locals, record, region
from .scopes import group, warp
from .snapshot import Snapshot


@recorder.run_time_loop("pk.range")
def range(*bounds: Operand, unroll: int = 1) -> Iterator[Any]:
    """A run-time loop: `for i in pk.range(stop)`, `(start, stop)` or `(start, stop, step)`.

    `step` is a Python int. `unroll=n` records n phases of the body after one another, each with its own Python
    state (two score tiles that alternate, say), and what is left over phase by phase. After such a loop the Python
    state is that after a whole number of rounds (and exact where both bounds are Python ints).

    Raises `TraceError` for more than three bounds, and a `step` of 0 or an `unroll` below 1.
    """
    if not 1 <= len(bounds) <= 3:
        raise TraceError(
            f"pk.range with {len(bounds)} bounds", fix="write pk.range(stop), (start, stop) or (start, stop, step)"
        )
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
    with r.region(
        "pk.range"
    ):  # the last phase never runs here: it brings the Python state back to where the rounds leave it
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


@recorder.run_time_loop("pk.range")
def strided(start: Operand, stop: Operand, step: Operand) -> Iterator[Any]:
    """As `range`, with a positive step known at run time."""
    yield from _loop(number(start), number(stop), number(step))


def _loop(start: Operand, stop: Operand, step: Operand) -> Iterator[Any]:
    r = current()
    dtype = i64 if promoted(start, stop, step) is i64 else i32
    index = recorder.make_value(ScalarType(dtype))
    index.location = here()
    index.multiple = gcd(known_multiple(start), known_multiple(step))

    def make(body: Block) -> Op:
        return control.Range(THREAD, index, start, stop, step, body)

    known = all(isinstance(x, int) for x in (start, stop, step))
    runs = known and len(builtins.range(start, stop, step)) > 0
    for body in _recorded("pk.range", make, runs):
        index.block = body
        yield index
    r.check()


@recorder.run_time_loop("pk.loop")
def loop() -> Iterator[None]:
    """A run-time loop without end: `for _ in pk.loop():`, left by `pk.break_if(condition)`."""
    for _ in _recorded("pk.loop", lambda body: control.While(THREAD, body)):
        yield None
    current().check()


def _recorded(kind: str, make: Any, runs: bool = False) -> Iterator[Block]:
    """Records a loop body, and again to verify it; then adds the loop made of the first recording. `runs`: it surely
    does, once at least.
    """
    r = current()
    frames = user_frame_objects(until=r.entry)
    before, verifying = Snapshot(frames), r.verifying[:]
    finished = False
    try:
        with r.region(kind) as body:
            yield body
            name_locals(frames)
        r.check()
        if not r.verifying:
            made = r.program.buffers[:], r.program.maps[:], r.program.facts.get("named barriers", [])[:]
            first = Snapshot(frames)
            r.verifying.append(body)
            with r.region(kind) as again:
                yield again
            r.verifying[:] = verifying
            r.check()
            compare(body, again, before, first, Snapshot(frames), len(made[0]))
            if not runs:
                check_unentered(kind, before, first, frozenset[str]().union(*(targets(f.f_code) for f in frames)))
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
            location=here(),
        )


def break_if(condition: Operand) -> None:
    """Leaves the innermost `pk.loop()` when the condition holds.

    Raises `TraceError` where the innermost region is no `pk.loop()`.
    """
    loops = [kind for kind, _ in current().open if kind in ("pk.loop", "pk.range")]
    if not loops or loops[-1] != "pk.loop":
        inside = "inside a pk.range" if loops else "outside of pk.loop()"
        raise TraceError(
            f"pk.break_if {inside}", fix="write `for _ in pk.loop():` right around it, with a pk.var to count"
        )
    record(control.BreakIf(THREAD, number(condition)))


@region("pk.when")
def when(condition: Operand) -> Iterator[None]:
    """Runs its body where a traced condition holds: `with pk.when(i > 0): ...`."""
    r = current()
    op = control.When(THREAD, number(condition), Block(), Block())
    control.check_condition(op.condition)
    guard = RegionGuard("pk.when")
    with r.region("pk.when") as op.then:
        yield
    guard.close()
    record(op)
    r.cache["last when"] = op  # type: ignore[assignment]


@region("pk.otherwise")
def otherwise() -> Iterator[None]:
    """Runs its body where the condition of the `pk.when` just before did not hold.

    Raises `TraceError` where no `pk.when` ends right before it.
    """
    r = current()
    r.check()
    op = r.cache.get("last when")
    if not isinstance(op, control.When) or not r.block.ops or r.block.ops[-1] is not op or op.otherwise.ops:
        raise TraceError(
            "pk.otherwise without a pk.when just before it",
            fix="write `with pk.when(c): ...` and then `with pk.otherwise(): ...`",
        )
    guard = RegionGuard("pk.otherwise")
    with r.region("pk.otherwise") as op.otherwise:
        yield
    guard.close()


@region("pk.role")
def role(name: str, *, warps: int = 0, warpgroups: int = 0, registers: int = 0) -> Iterator[Any]:
    """Gives the next `warps` warps (or `warpgroups` groups of four) of the block, or of the role around it, a program
    of their own.

    `name` is for reports and errors. Yields the index of the running warpgroup (or warp) in the role. `registers` is
    the budget a thread (setmaxnreg, PTX: a multiple of 8 from 24 to 256, whole warpgroups).

    Raises `TraceError` where the block has not as many warps left, inside a loop or a branch, and for a budget that
    setmaxnreg does not take.
    """
    r = current()
    count = warps + 4 * warpgroups
    if count <= 0 or (warps and warpgroups):
        raise TraceError(
            f"role {name!r} has {warps} warps and {warpgroups} warpgroups", fix="give it warps=n or warpgroups=n"
        )
    if any(kind != "pk.role" for kind, _ in r.open):
        raise TraceError(
            f"role {name!r} begins inside a {r.open[-1][0]}",
            fix="roles are static: open them outside of loops and branches",
        )
    if registers and (registers % 8 or not 24 <= registers <= 256 or count % 4 or r.role_level):
        raise TraceError(
            f"role {name!r}: {registers} registers a thread for {count} warps",
            fix="setmaxnreg takes a multiple of 8 from 24 to 256 for whole warpgroups",
        )
    taken = r.cache.setdefault(("warps of", id(r.block)), 0)  # type: ignore[arg-type]
    first: int = taken  # type: ignore[assignment]
    if first + count > r.warps:
        raise TraceError(
            f"role {name!r} wants warps {first} to {first + count - 1} of {r.warps}",
            fix="give the kernel more warps, or the roles fewer",
        )
    if (warpgroups or registers) and (r.first_warp + first) % 4:
        raise TraceError(
            f"role {name!r} begins at warp {r.first_warp + first}",
            fix="warpgroups begin at multiples of 4 warps: order the roles so",
        )
    r.cache[("warps of", id(r.block))] = first + count  # type: ignore[assignment]
    saved = r.warps, r.first_warp, r.role, r.role_warpgroups
    guard = RegionGuard("pk.role")
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
    guard.close()
    record(control.Role(Scope("role", count), name, absolute, registers, body))


__all__ = ["break_if", "loop", "otherwise", "range", "role", "when"]
