"""Derivatives of traced functions: what a function records is walked backwards, and its derivative is recorded.

    y, pullback = pk.vjp(lambda s: pk.tanh(s / 30.0) * 30.0, scores)
    (dscores,) = pullback(dy)

Operations say what they add to their operands' cotangents (`Op.vjp`). Cotangents are float32. That of a vector or
scalar that was broadcast stays as wide as what it came from, to be summed at the end: between, all is elementwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import TraceError
from ..ops import fill, unary
from ..ops.layout_conversion import ConvertLayout
from ..ops.layout_exchange import ShareElements, TakeElements
from ..program import Access, Op, Operand, Place, Value, mapped, values_in
from ..types import Global, Layout, RegisterTile, RegisterVector, ScalarType, Type, f32, with_dtype
from . import elementwise
from .handle import number
from .layout_conversion import convert_layout
from .recorder import current, record, scope_of
from .scalar import cast
from .tile import Tile

Pullback = Callable[[Any], tuple[Any, ...]]


def vjp(function: Callable[..., Any], *inputs: Any) -> tuple[Any, Pullback]:
    """`function(*inputs)` and its pullback: from the cotangent of the result to those of the inputs (JAX's `jax.vjp`).

    Inputs: register tiles, vectors and scalars of floats. The function is made of elementwise operations, reductions of
    rows and columns, and Python; it may change tiles in place and read tensors, shared memory and integers, which have
    no derivative. A corner has torch's derivative. The pullback takes a tile like the result, or a number for all its
    elements, and returns a tile like each input, of the input's dtype; call it in the region of `vjp`.

    Raises `TraceError` where floats that depend on an input go through what has no derivative: memory, regions of
    `pk.when` and loops, products.
    """
    tape = Tape(function, inputs)

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        found = tape.cotangents(cotangent, tape.inputs)
        return tuple(_like(tape.words.total(terms, x.type), x.type) for terms, x in zip(found, inputs, strict=True))

    return tape.result, pullback


def derivative(function: Callable[..., Any]) -> Callable[..., Any]:
    """The derivative of an elementwise function by its first argument: another such function.

    `pk.derivative(pk.tanh)(x)` is 1 - tanh(x)^2. Of a function that mixes elements it is the column sums of the
    Jacobian, see `vjp`.
    """

    def derived(x: Any, *rest: Any) -> Any:
        tape = Tape(lambda first: function(first, *rest), (x,))
        (terms,) = tape.cotangents(1.0, tape.inputs)
        found = _like(tape.words.total(terms, x.type), x.type)
        tape.forget_result()
        return found

    return derived


@dataclasses.dataclass
class RecordedOp:
    """An operation of the function, with its operands as they were then: a tile changed since is a copy of it."""

    op: Op
    results: tuple[Value, ...]

    def renamed(self, old: Value, new: Value) -> RecordedOp:
        def change(x: Value) -> Value:
            return new if x is old else x

        if not any(x is old for x in (*self.op.operands(), *self.results)):
            return self
        op = dataclasses.replace(self.op, **{k: mapped(v, change) for k, v in self.op.fields()})  # type: ignore[type-var]
        op.location, op.results = self.op.location, tuple(map(change, self.op.results))
        return RecordedOp(op, tuple(map(change, self.results)))


class Tape:
    """What a function records of values that depend on its inputs, or on what it loads from `tensors`."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any], tensors: Sequence[Any] = ()):
        for x in inputs:
            if not _differentiable(x):
                fix = "pass register tiles, vectors or scalars of floats; close over the rest"
                raise TraceError(f"the derivative of a function by {x!r}", fix=fix)
        self.recorder, self.tensors = current(), tensors
        self.block, self.steps = self.recorder.block, list[RecordedOp]()
        self.inputs = [_copy(x) if any(x is y for y in inputs[:i]) else x for i, x in enumerate(inputs)]  # each its own
        self.active: set[Value] = set(self.inputs)
        self.loads: list[tuple[Any, Value]] = []  # from `tensors`: the operation, and what it loaded
        self.words = Words()
        self.shared: dict[Value, ShareElements] = {}  # into scratch, and not taken out yet
        self.copying = False
        self.begin = len(self.block.ops)
        self.recorder.hooks.append(self._note)
        try:
            self.result = function(*self.inputs)
        finally:
            self.recorder.hooks.remove(self._note)
        self.end = len(self.block.ops)
        if not _differentiable(self.result):
            fix = "return a register tile, vector or scalar of floats"
            raise TraceError(f"a function whose derivative is wanted returns {self.result!r}", fix=fix)

    def _note(self, op: Op) -> None:
        """Called with every operation before it joins its region."""
        if self.copying:
            return
        depends = [x for x in op.operands() if x in self.active]
        if self.recorder.block is self.block and self._exchanged(op):
            return
        places = [e for e in op.effects() if isinstance(e, Access)] if not op.blocks() else []
        inner = self.recorder.block is not self.block
        changed = changed_by(op)
        writes = any(e.mode != "read" for e in places) or (
            bool(changed) and not isinstance(op, fill.Assign) and any(_floats(x.type) for x in changed)
        )
        if depends and (writes or (inner and changed)):
            self._refuse(op, "leaves what has a derivative" if writes else "is inside a region")
        if inner:
            if any(x in self.active for x in changed):
                self._refuse(op, "is inside a region")
            return
        if isinstance(op, fill.Assign):
            self._assign(op)
            return
        for e in places:
            if isinstance(e.target, Place) and any(e.target.tensor is x for x in self.tensors):
                self.loads.append((op, op.result))
                self.active.add(op.result)
        if depends and any(_floats(x.type) for x in op.results):
            self.steps.append(RecordedOp(op, op.results))
            self.active.update(x for x in op.results if _floats(x.type))

    def _exchanged(self, op: Op) -> bool:
        """A layout that changes through scratch is one step, a conversion, though two operations do it."""
        if isinstance(op, ShareElements) and op.source in self.active:
            self.shared[op.target] = op
            return True
        if not isinstance(op, TakeElements) or op.source not in self.shared:
            return False
        share = self.shared.pop(op.source)
        whole = ConvertLayout(op.scope, share.source, op.type.layout, transpose=op.room != share.room)
        whole.location, whole.results = op.location, op.results
        self.steps.append(RecordedOp(whole, op.results))
        self.active.update(op.results)
        return True

    def _assign(self, op: fill.Assign) -> None:
        """A tile that changes: what was recorded of it is of a copy from now on."""
        target = op.target
        if target in self.active or any(target in set(step.op.operands()) for step in self.steps):
            self.copying = True
            old = _copy(target)
            self.copying = False
            self.steps = [step.renamed(target, old) for step in self.steps]
            self.inputs = [old if x is target else x for x in self.inputs]
            self.loads = [(o, old if x is target else x) for o, x in self.loads]
            if target in self.active:
                self.active.add(old)
        self.active.discard(target)
        if isinstance(op.value, Value) and op.value in self.active:
            self.active.add(target)
            value = old if op.value is target else op.value
            self.steps.append(RecordedOp(dataclasses.replace(op, value=value), (target,)))

    def _refuse(self, op: Op, why: str) -> None:
        fix = "choose with pk.where, loop in Python, and store outside of the function whose derivative is taken"
        raise TraceError(f"{op.name} of a value whose derivative is wanted {why}", fix=fix, location=op.location)

    def cotangents(self, cotangent: Any, wanted: Sequence[Value]) -> list[list[Any]]:
        """For each wanted value the terms of its cotangent, which is their sum, each summed to the value's shape."""
        self._check_unchanged()
        terms: dict[Value, list[Any]] = {}
        kept = set(wanted)
        self._add(terms, self.result, self.words.covering(cotangent, self.result.type))
        for step in reversed(self.steps):
            given = [(terms.get if x in kept else terms.pop)(x, []) for x in step.results]
            if not any(given):
                continue
            if type(step.op).vjp is Op.vjp:
                what = f"the derivative of {step.op.name}"
                reason = step.op.no_vjp or "it has no rule (Op.vjp)"
                raise TraceError(what, fix=f"leave it out of the function: {reason}", location=step.op.location)
            if step.op.pointwise:
                for term in given[0]:
                    self._share(terms, step.op, term)
            else:
                types = [x.type for x in step.results]
                whole = [self.words.total(x, type) for x, type in zip(given, types, strict=True)]
                self._share(terms, step.op, *whole)
        return [terms.get(x, []) for x in wanted]

    def forget_result(self) -> None:
        """Takes out of the kernel what only the function's result needs: called once the cotangents are there."""
        ops, used = self.block.ops, set[Value]()
        for i in range(len(ops) - 1, self.begin - 1, -1):
            op = ops[i]
            spare = i < self.end and op.results and not (op.writes or op.effects() or op.blocks())
            if spare and not used & set(op.results):
                del ops[i]
            else:
                used.update(op.operands(), *(inner.operands() for part in op.blocks() for inner in part.walk()))

    def _share(self, terms: dict[Value, list[Any]], op: Op, *cotangents: Any) -> None:
        for x, share in op.vjp(self.words, *cotangents):
            if isinstance(x, Value) and x in self.active and _floats(x.type):
                self._add(terms, x, share())

    def _add(self, terms: dict[Value, list[Any]], x: Value, term: Any) -> None:
        """Terms of one type are added; others are of different broadcasts, and wait to be summed."""
        found = terms.setdefault(x, [])
        for i, other in enumerate(found):
            if getattr(other, "type", None) == getattr(term, "type", None):
                found[i] = other + term
                return
        found.append(term)

    def _check_unchanged(self) -> None:
        """A pullback reads what the function made: nothing of it may have changed since."""
        block, ops = self.recorder.block, list[Op]()
        while block is not self.block:
            if block.parent is None:
                fix = "call it where vjp was called, or inside"
                raise TraceError("a pullback is called outside of the region of its vjp", fix=fix)
            ops += block.walk()
            block = block.parent
        for later in self.block.ops[self.end :]:
            ops += [later, *(inner for part in later.blocks() for inner in part.walk())]
        used = {id(x) for step in self.steps for x in (*step.op.operands(), *step.results)}
        for op in ops:
            for x in changed_by(op):
                if id(x) in used:
                    fix = "call the pullback first, or give the function a tile that stays as it is"
                    raise TraceError(f"{x.label} changes between a vjp and its pullback", fix=fix, location=op.location)


class Words:
    """The words in which operations write their derivatives, see `program.interfaces.Derivation`."""

    def wide(self, x: Any) -> Any:
        return x.to(f32) if isinstance(x, Tile) and x.dtype.packed else x

    def unary(self, kind: str, x: Any) -> Any:
        if isinstance(x, Tile):
            return record(unary.Unary(scope_of(x.type.warps), kind, x)).result
        return getattr(elementwise, kind)(x)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if not isinstance(condition, Tile) and isinstance(condition, Value) and (_tile(a) or _tile(b)):
            yes, no = elementwise.where(condition, 1.0, 0.0), elementwise.where(condition, 0.0, 1.0)
            if a == 0.0 if not isinstance(a, Value) else False:
                return b * no
            return a * yes if not isinstance(b, Value) and b == 0.0 else a * yes + b * no
        return elementwise.where(condition, a, b)

    def full(self, type: Type, x: Any) -> Any:
        assert isinstance(type, (RegisterTile, RegisterVector))
        wide: Any = with_dtype(type, f32)
        if isinstance(wide, RegisterVector) and wide.partial and isinstance(x, Tile):
            return x
        if isinstance(x, Tile) and x.type == wide:
            return x
        made = record(fill.Fill(scope_of(wide.warps), wide, number(x) if not isinstance(x, Tile) else 0.0)).result
        return made + x if isinstance(x, Tile) else made

    def covering(self, cotangent: Any, type: Type) -> Any:
        """A cotangent as float32 that covers a value of this type."""
        if isinstance(type, ScalarType):
            return cotangent
        return self.full(type, self.wide(cotangent))

    def summed(self, cotangent: Any, type: Type) -> Any:
        if not isinstance(cotangent, Tile):
            return cotangent
        own = cotangent.type
        if isinstance(type, ScalarType) and isinstance(own, RegisterTile):
            return (cotangent.col_sum() if own.warps > 1 else cotangent.row_sum()).sum()  # the warps meet in col_sum
        if isinstance(type, ScalarType):
            return cotangent.sum()
        assert isinstance(type, (RegisterTile, RegisterVector))
        if isinstance(own, RegisterTile) and isinstance(type, RegisterVector):
            return cotangent.row_sum() if type.kind == "col" else cotangent.col_sum()
        if isinstance(own, RegisterVector) and own.partial and not getattr(type, "partial", False):
            return cotangent.total()
        return cotangent

    def total(self, terms: Sequence[Any], type: Type) -> Any:
        """The sum of a cotangent's terms, with the shape of the value; zeros where there is none."""
        found = [self.summed(x, type) for x in terms]
        if not found:
            return 0.0 if isinstance(type, ScalarType) else self.full(type, 0.0)
        whole = found[0]
        for x in found[1:]:
            whole = whole + x
        return whole

    def reduced(self, kind: str, x: Any, like: Type) -> Any:
        if isinstance(like, ScalarType):
            return getattr(x, kind)()
        assert isinstance(like, RegisterVector)
        return getattr(x, f"{'row' if like.kind == 'col' else 'col'}_{kind}")()

    def converted(self, x: Any, layout: Layout, transpose: bool) -> Any:
        return convert_layout(x, layout, transpose)

    def recorded(self, op: Any) -> Any:
        results = record(op).results
        return results[0] if len(results) == 1 else results


def changed_by(op: Op) -> list[Value]:
    """The register values that an operation changes in place."""
    return [x for name in op.writes for x in values_in(getattr(op, name))]


def _copy(x: Value) -> Any:
    if isinstance(x.type, ScalarType):
        return cast(x, x.type.dtype)
    assert isinstance(x.type, (RegisterTile, RegisterVector))
    return record(unary.Convert(scope_of(x.type.warps), x, x.type.dtype)).result


def _tile(x: Any) -> bool:
    return isinstance(x, Tile)


def _floats(type: Any) -> bool:
    return isinstance(type, (RegisterTile, RegisterVector, ScalarType)) and type.dtype.kind == "f"


def _differentiable(x: Any) -> bool:
    return isinstance(x, Value) and not isinstance(x.type, Global) and _floats(x.type)


def _like(x: Operand, type: Type) -> Any:
    """A cotangent in the dtype of its value."""
    if isinstance(type, ScalarType):
        return x if isinstance(x, Value) else cast(x, type.dtype)
    assert isinstance(type, (RegisterTile, RegisterVector)) and isinstance(x, Tile)
    return x.to(type.dtype)
