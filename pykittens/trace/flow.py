"""Run-time control flow: `pk.range`, `pk.loop`, `pk.when`, `pk.role`, and the checks that Python agrees with it.

A loop body is recorded twice and the recordings compared, so that Python state which changes from one
pass to the next is caught: it would be frozen at its first value in the compiled kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import KernelError, TraceError, user_frame_objects
from ..ops import control
from ..ops.scalars import THREAD, scalar_dtype
from ..program import Block, Op, Operand, Place, Scope, Value
from ..types import ScalarType, i32, i64
from . import recorder
from .recorder import current, here, record
from .values import Scalar, _number


def range(*bounds: Operand, unroll: int = 1) -> Iterator[Any]:
    """A run-time loop: `for i in pk.range(stop)`, `(start, stop)` or `(start, stop, step)`.

    `step` is a Python int. `unroll=n` records n phases of the body after one another, each with its own Python
    state (two score tiles that alternate, say), and one phase at a time for what is left over.
    """
    start, stop, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}.get(len(bounds), (0, 0, 0))
    start, stop = _number(start), _number(stop)
    if not isinstance(step, int) or step == 0:
        raise TraceError(f"pk.range with step {step!r}", fix="the step is a Python int other than 0")
    if unroll == 1:
        yield from _loop(start, stop, step)
        return
    whole = (stop - start) // (step * unroll) * (step * unroll) + start
    first: Any
    for first in _loop(start, whole, step * unroll):
        for phase in _python_range(unroll):
            yield first + phase * step if phase else first
    yield from _loop(whole, stop, step)


_python_range = __builtins__["range"] if isinstance(__builtins__, dict) else __builtins__.range


def _loop(start: Operand, stop: Operand, step: int) -> Iterator[Any]:
    r = current()
    dtype = i64 if any(scalar_dtype(x) is i64 for x in (start, stop)) else i32
    index = recorder.make_value(ScalarType(dtype))
    index.where = here()

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
    frame = _user_frame()
    finished = False
    try:
        with r.region(kind) as body:
            yield body
            name_locals(frame)
        if not r.verifying:
            r.verifying += 1
            before = len(r.program.buffers), len(r.program.maps)
            with r.region(kind) as again:
                yield again
            r.verifying -= 1
            _compare(body, again, frame)
            del r.program.buffers[before[0] :], r.program.maps[before[1] :]
        finished = True
    finally:
        if not finished and r.error is None:
            r.verifying = 0
            where = here()
            r.error = TraceError(
                f"the body of a {kind} was left by break, return or an exception", fix="leave a run-time loop with pk.break_if(condition) in pk.loop()", where=where
            )
    op = record(make(body))
    body.parent = r.block
    del op


def break_if(condition: Operand) -> None:
    """Leaves the innermost `pk.loop()` when the condition holds."""
    if not any(kind == "pk.loop" for kind, _ in current().open):
        raise TraceError("pk.break_if outside of pk.loop()", fix="write `for _ in pk.loop():` around it")
    record(control.BreakIf(THREAD, _number(condition)))


_last_when: dict[int, tuple[Any, Any]] = {}


@contextmanager
def when(condition: Operand) -> Iterator[None]:
    """Runs its body where a traced condition holds: `with pk.when(i > 0): ...`."""
    r = current()
    frame = _user_frame()
    before = _snapshot(frame)
    op = control.When(THREAD, _number(condition), Block(), Block())
    control.check_condition(op.condition)
    with r.region("pk.when") as body:
        yield
        name_locals(frame)
    op.then = body
    _check_names(frame, before, "pk.when")
    record(op)
    r.cache["last when"] = op  # type: ignore[assignment]


@contextmanager
def otherwise() -> Iterator[None]:
    """Runs its body where the condition of the `pk.when` just before did not hold."""
    r = current()
    op = r.cache.get("last when")
    if not isinstance(op, control.When) or not r.block.ops or r.block.ops[-1] is not op:
        raise TraceError("pk.otherwise without a pk.when just before it", fix="write `with pk.when(c): ...` and then `with pk.otherwise(): ...`")
    frame = _user_frame()
    before = _snapshot(frame)
    with r.region("pk.otherwise") as body:
        yield
    op.otherwise = body
    _check_names(frame, before, "pk.otherwise")


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
    frame = _user_frame()
    before = _snapshot(frame)
    with r.region("pk.role") as body:
        r.warps, r.first_warp, r.role, r.role_level = count, r.first_warp + first, name, r.role_level + 1
        r.role_warpgroups = warpgroups > 0
        r.role_blocks.append(body)
        try:
            from .scopes import group, warp

            yield (group(4) if warpgroups else warp).index
            name_locals(frame)
        finally:
            absolute = r.first_warp
            (r.warps, r.first_warp, r.role, r.role_warpgroups), r.role_level = saved, r.role_level - 1
            r.role_blocks.pop()
    _check_names(frame, before, "pk.role")
    record(control.Role(Scope("role", count), name, absolute, registers, body))


# Checks -----------------------------------------------------------------------------------------------------


def _user_frame() -> FrameType | None:
    frames = user_frame_objects(1)
    return frames[0] if frames else None


def _snapshot(frame: FrameType | None) -> dict[str, Any]:
    return dict(frame.f_locals) if frame is not None else {}


def _check_names(frame: FrameType | None, before: dict[str, Any], kind: str) -> None:
    """A name from before the region must still mean the same: the other branch does not rebind it."""
    if frame is None:
        return
    after = frame.f_locals
    for name, old in before.items():
        new = after.get(name, old)
        if new is old or (not isinstance(old, Value) and not isinstance(new, Value) and _same(old, new)):
            continue
        if isinstance(old, Value) and not current().visible(old):
            continue  # dead already: the index of an earlier loop, say
        if isinstance(new, Value) or isinstance(old, Value) or (kind != "pk.role" and isinstance(new, (int, float, bool, tuple))):
            fix = f"change it in place: {name}[:] = ..." if isinstance(old, Value) else f"make it a variable: {name} = pk.var(pk.i32, {old!r})"
            raise TraceError(f"{name!r} is rebound inside {kind}: after it, Python would keep the new value whether or not it ran", fix=fix)


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:
        return False


def name_locals(frame: FrameType | None) -> None:
    """Names traced values after the Python variables that hold them, for diagnoses and readable code."""
    if frame is None:
        return
    for name, value in frame.f_locals.items():
        if isinstance(value, Value) and not value.name:
            value.name = name


def _compare(first: Block, second: Block, frame: FrameType | None) -> None:
    """Both recordings of a loop body must be the same, up to the names of the values made inside."""
    names: dict[Value, Value] = {}
    difference = _difference(first, second, names)
    if difference is None:
        return
    op, other, what = difference
    fact = "Python state changes from one pass of this loop to the next, and would be frozen at its first value"
    fix = "keep what changes in a tile (x[:] = ...) or a pk.var; or pk.range(..., unroll=2) for state that alternates"
    if isinstance(other, Value) and other.name:
        name = other.name
        fact += f": {name!r} was rebound in the loop ({what})"
        fix = f"change it in place: {name}[:] = ..., or make it before the loop with pk.var; unroll=2 for state that alternates"
    else:
        fact += f" ({what})"
    raise TraceError(fact, fix=fix, where=op.where if op is not None else here())


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


def _line(value: Value) -> str:
    return str(value.where[0]) if value.where else "the signature"


__all__ = ["KernelError", "Scalar", "break_if", "loop", "name_locals", "otherwise", "range", "role", "when"]
