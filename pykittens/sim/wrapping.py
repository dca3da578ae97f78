"""Signed scalars that wrap where something is counted with them.

Integers wrap, and most values may: sums, hashes, what is stored, compared or masked is the same modulo 2**32. A
quotient, a remainder, a coordinate, an index and the bound of a loop are not. So a signed scalar that flows into one
of these must not have wrapped: `Step.counts` of what makes it names the operation that counts with it. Unsigned
arithmetic says that it is meant modulo 2**32, and ends the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import Diagnosis
from ..ops.control import Range
from ..ops.grouped_tiles import GroupedTile
from ..ops.scalar_arithmetic import ScalarBinary
from ..ops.scalar_functions import ScalarCast, ScalarSelect, ScalarUnary
from ..ops.variables import DeclareVariable, SetVariable
from ..ops.views import Item, Part
from ..program import Access, Op, Place, Sync, Value
from ..types import ScalarType, i32, i64

# The true results, of Python's ints or of arrays that are wide enough.
TRUE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "shl": lambda a, n: a * 2 ** np.clip(n, 0, 63),
}


def counted_with(ops: Iterable[Op]) -> dict[Op, tuple[str, Op]]:
    """The signed additions, products and shifts that something is counted with: for what, and by which operation."""
    ops = list(ops)
    makers: dict[Value, list[Op]] = {}
    for op in ops:
        for value in _made(op):
            makers.setdefault(value, []).append(op)
    todo = [(value, what, op) for op in ops for value, what in _counts(op)]
    seen: set[Value] = set()
    found: dict[Op, tuple[str, Op]] = {}
    while todo:
        value, what, by = todo.pop()
        if not isinstance(value, Value) or value in seen:
            continue
        seen.add(value)
        for op in makers.get(value, ()):
            if isinstance(op, ScalarBinary) and op.kind in TRUE and op.common in (i32, i64):
                found.setdefault(op, (what, by))
            todo += [(x, what, by) for x in _passes_on(op)]
    return found


def _made(op: Op) -> Iterator[Value]:
    yield from op.results
    if isinstance(op, SetVariable):
        yield op.variable


def _passes_on(op: Op) -> tuple[Any, ...]:
    """The operands whose wrapping would be the result's."""
    if isinstance(op, ScalarBinary) and op.kind in (*TRUE, "min", "max") and op.common in (i32, i64):
        return (op.a,) if op.kind == "shl" else (op.a, op.b)
    if isinstance(op, ScalarUnary) and op.kind in ("neg", "abs"):
        return (op.a,)
    if isinstance(op, ScalarCast):
        return (op.a,) if op.dtype in (i32, i64) else ()
    if isinstance(op, ScalarSelect):
        return (op.a, op.b)
    if isinstance(op, DeclareVariable):
        return (op.initial,) if op.dtype in (i32, i64) else ()
    if isinstance(op, SetVariable):
        return (op.value,) if op.dtype in (i32, i64) else ()
    return ()


def _counts(op: Op) -> Iterator[tuple[Any, str]]:
    """What an operation counts with, and for what."""
    if isinstance(op, ScalarBinary) and op.kind in ("floordiv", "mod"):
        yield from ((x, "divided") for x in (op.a, op.b))
    elif isinstance(op, GroupedTile):
        yield from ((x, "divided") for x in (op.tile, op.rows, op.cols))
    elif isinstance(op, Range):
        yield from ((x, "the bound of a loop") for x in (op.start, op.stop, op.step))
    elif isinstance(op, Item):
        yield op.index, "an index"
    elif isinstance(op, Part):
        yield from ((x, "an index") for x in (op.row, op.col))
    for effect in op.effects():
        target = effect.target
        if isinstance(target, Place):
            yield from ((x, "a coordinate") for x in target.first)
        if isinstance(effect, Access):
            yield from ((x, what) for x, what in ((effect.at, "an index"), (effect.rank, "a rank")) if x is not None)
        elif isinstance(effect, Sync):
            yield from ((x, what) for x, what in ((effect.index, "an index"), (effect.rank, "a rank")) if x is not None)


def check(m: Any, op: Op, out: Any, what: str, by: Op) -> None:
    """Raises a `Diagnosis` where the result of an operation has wrapped, and something is counted with it."""
    assert isinstance(op, ScalarBinary)
    a, b = m.scalar(op.a), m.scalar(op.b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        wide = object if op.common is i64 or op.kind == "shl" else np.int64
        a, b = (np.asarray(x).astype(wide) for x in (a, b))
        wrong = np.flatnonzero(np.broadcast_to(TRUE[op.kind](a, b) != out, np.shape(out)))
        if not len(wrong):
            return
        at = int(wrong[0])
        a, b = (int(np.broadcast_to(x, np.shape(out))[at]) for x in (a, b))
        out, warp = int(np.asarray(out)[at]), at if m.mask is None else int(np.flatnonzero(m.mask.warps)[at])
    else:
        if TRUE[op.kind](int(a), int(b)) == int(out):
            return
        warp = 0 if m.mask is None else int(np.flatnonzero(m.mask.warps)[0])
    given = {x.label: int(v) for x, v in ((op.a, a), (op.b, b)) if isinstance(x, Value) and x.name}
    names = " and ".join(f"{name} = {v}" for name, v in given.items())
    assert isinstance(op.result.type, ScalarType)
    used = "it is divided" if what == "divided" else f"it is {what}"
    raise Diagnosis(
        f"{op.expression} is {TRUE[op.kind](int(a), int(b)):,}, and wraps to {int(out):,} in {op.common}"
        f"{f' ({names})' if names else ''}, before {used}: "
        f"{m.block.warp_label(m.first + warp)} of block {m.block.label}",
        fix="bound its operands"
        if op.common is i64
        else "compute it in i64, with pk.cast(x, pk.i64) of an operand; or in u32, if it is meant to wrap",
        location=op.location,
        also={f"{used} at": by.location},
    )
