"""Whether Python agrees with what is recorded: names that a region rebinds, passes of a loop that differ.

What changes in Python while a kernel is traced would be frozen in the compiled kernel.
"""

from __future__ import annotations

from typing import Any

from ..errors import TraceError, user_frame_objects
from ..ops import control
from ..program import Block, Op, Place, Value
from ..types import ScalarType
from .early_exit import entered, left_early
from .recorder import current, here, name_locals
from .snapshot import Snapshot, has_grown


class RegionGuard:
    """Checks that a `with` region runs to its end and leaves Python's names as they were."""

    def __init__(self, kind: str):
        self.kind, self.frames = kind, user_frame_objects(until=current().entry)
        self.sites, self.before = entered(self.frames), Snapshot(self.frames)

    def close(self) -> None:
        """At the end of the region: raises if it was left by return, break or continue, or rebound a name."""
        name_locals(self.frames)
        line = left_early(self.sites)
        if line is not None:
            raise TraceError(
                f"the body of a {self.kind} was left by return, break or continue: the kernel is recorded once, so "
                "what follows would never run",
                fix="let the region end; put what follows under pk.otherwise or another pk.when",
                location=(line,),
            )
        for name, old, new in self.before.changes(Snapshot(self.frames), self._same, memos=True):
            values = isinstance(old, Value) or isinstance(new, Value)
            if isinstance(old, Value) and not current().visible(old):
                continue  # dead already: the index of an earlier loop, say
            if self.kind == "pk.role" and not values:
                continue  # roles are static: what Python does in one is known
            raise TraceError(
                f"{name!r} changes inside {self.kind}, from {_shown(old)} to {_shown(new)}: after it, Python would "
                "keep the new value whether or not it ran",
                fix=_advice(name, old),
                location=here(),
            )

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        return a is b or not (isinstance(a, Value) or isinstance(b, Value))


def _shown(x: Any) -> str:
    if isinstance(x, Value):
        return f"the {x.type} made at line {x.location[0].line}" if x.location else f"the {x.type}"
    return repr(x)


def _advice(name: str, old: Any) -> str:
    """How to write a change of `name` that the compiled kernel can follow."""
    if isinstance(old, Value):
        scalar = isinstance(old.type, ScalarType) and not old.type.mutable
        change = (
            f"make it a variable, {name} = pk.var(pk.{old.type}, ...), and change that: {name}[:] = ..."
            if scalar
            else f"change it in place: {name}[:] = ..."
        )
        return change + ", or give what is made inside another name"
    if isinstance(old, (bool, int, float)):
        dtype = "bool_" if isinstance(old, bool) else "i32" if isinstance(old, int) else "f32"
        return (
            f"make it a variable, {name} = pk.var(pk.{dtype}, {old!r}), and change that: {name}[:] = ...; or give what "
            "is made inside another name"
        )
    return f"keep {name} as it is: index shared tiles by a traced number, or keep numbers in a pk.var"


def check_unentered(kind: str, before: Snapshot, after: Snapshot, targets: frozenset[str]) -> None:
    """Raises where a loop that may run no time leaves what a name of Python's means changed: after it, Python would
    take it for run. What was made in the loop is of no use after it, and says so; nor are targets of `for` statements
    what somebody looks at.
    """
    for name, old, new in before.changes(after, RegionGuard._same, memos=True):
        if name not in targets and not _holds_values(old) and not _holds_values(new) and not has_grown(old, new):
            raise TraceError(
                f"{name!r} changes inside {kind}, from {_shown(old)} to {_shown(new)}: after it, Python would keep the "
                "new value, also where the loop ran no time",
                fix=_advice(name, old),
                location=here(),
            )


def _holds_values(x: Any) -> bool:
    return isinstance(x, Value) or (isinstance(x, tuple) and any(map(_holds_values, x)))


def compare(body: Block, again: Block, before: Snapshot, first: Snapshot, second: Snapshot, buffers: int) -> None:
    """Both recordings of a loop body must be the same, up to the names of the values made inside; and so must
    Python's state.
    """
    r = current()
    made = len(r.program.buffers) - buffers
    old, new = r.program.buffers[buffers - made : buffers], r.program.buffers[buffers:]
    names: dict[Value, Value] = {b.value: a.value for a, b in zip(old, new, strict=False)}
    difference = _difference(body, again, names)
    existing = {id(x) for x in before.values.values()}

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Value) and isinstance(b, Value):
            return names.get(b, b) is a or not (
                r.visible(a) or r.visible(b)
            )  # made in the loop, both: of no use after it
        return id(b) not in existing  # an object of the user's that is as old as the loop may not trade places

    changes = list(first.changes(second, same))
    if difference is None and not changes:
        for name, a, b in before.changes(
            first
        ):  # an outer value under a new name would be right from the second pass on only
            if isinstance(a, Value) and isinstance(b, Value) and r.visible(a) and r.visible(b):
                raise TraceError(_frozen(name, a, b), fix=_advice(name, a), location=here())
        return
    where = difference[0].location if difference is not None and difference[0] is not None else here()
    alternating = {name for name, _, _ in changes}
    blamed = [
        (n, a, b)
        for n, a, b in before.changes(first, lambda a, b: a is b)
        if n in alternating or (not alternating and not isinstance(b, Value))
    ]
    if blamed or changes:
        name, a, b = (blamed or changes)[0]
        others = [repr(n) for n, _, _ in blamed[1:4]]
        raise TraceError(
            _frozen(name, a, b) + (f" (so do {', '.join(others)})" if others else ""),
            fix=_advice(name, a) + "; or pk.range(..., unroll=2) for what alternates",
            location=where,
        )
    assert difference is not None
    raise TraceError(
        "Python state changes from one pass of this loop to the next, and would be frozen as in the first "
        f"({difference[2]})",
        fix="keep what changes in a tile (x[:] = ...) or a pk.var; or pk.range(..., unroll=2) for state that "
        "alternates",
        location=where,
    )


def _frozen(name: str, a: Any, b: Any) -> str:
    return (
        f"{name!r} changes from one pass of this loop to the next, from {_shown(a)} to {_shown(b)}: the compiled loop "
        "would keep the first"
    )


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
        return (
            y if y.name else x,
            f"is {x.label} made at {_line(x)} in the first pass, {y.label} made at {_line(y)} in the second",
        )
    if isinstance(x, Place) and isinstance(y, Place):
        return _operand_difference((x.tensor, *x.first), (y.tensor, *y.first), names) or (
            None if x.shape == y.shape else (None, "changes its shape")
        )
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
    return str(value.location[0]) if value.location else "the signature"
