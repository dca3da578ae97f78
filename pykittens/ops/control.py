"""Control flow for data: loops, branches, roles. The back ends walk their regions; the rest is ordinary."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import TypeRuleError
from ..loading import dataclass
from ..program import Block, Op, Operand, Scope, Value, values_in
from ..types import ScalarType, Type, bool_
from .scalars import scalar_dtype


@dataclass(eq=False)
class Range(Op):
    """`for index in range(start, stop, step)`: step is a Python int other than 0, or a positive number known at run
    time."""

    scope: Scope
    index: Value
    start: Operand
    stop: Operand
    step: Operand
    body: Block

    def operands(self) -> Iterator[Value]:
        yield from values_in((self.start, self.stop, self.step))

    def types(self) -> tuple[Type, ...]:
        for bound in (self.start, self.stop, self.step):
            check_bound(bound)
        return ()


@dataclass(eq=False)
class While(Op):
    """Repeats its body until a `BreakIf` leaves it.

    `polls` (set by passes/polling.py): it may wait for what ordinary loads of tiles find, which every pass must make
    anew.
    """

    scope: Scope
    body: Block
    polls: bool = False


@dataclass(eq=False)
class BreakIf(Op):
    """Leaves the innermost `While` when the condition holds."""

    scope: Scope
    condition: Operand

    def types(self) -> tuple[Type, ...]:
        check_condition(self.condition)
        return ()


@dataclass(eq=False)
class When(Op):
    """Runs `then` where the condition holds, else `otherwise`."""

    scope: Scope
    condition: Operand
    then: Block
    otherwise: Block

    def types(self) -> tuple[Type, ...]:
        check_condition(self.condition)
        return ()


@dataclass(eq=False)
class Role(Op):
    """Warps `first` to `first + scope.warps - 1` of the block run `body`; `registers` is their budget a thread (0:
    none).

    `elected` (set by passes/elect.py): every operation inside is a single thread's, so that one thread runs the whole.
    """

    scope: Scope
    label: str
    first: int
    registers: int
    body: Block
    elected: bool = False


def check_bound(bound: Operand) -> None:
    dtype = scalar_dtype(bound)
    if dtype is not None and dtype.kind not in "iu":
        raise TypeRuleError(
            f"a loop bound is {bound.label if isinstance(bound, Value) else bound}: {dtype}",
            fix="loop bounds are integers",
        )


def check_condition(condition: Operand) -> None:
    if scalar_dtype(condition) is not bool_:
        kind = condition.type if isinstance(condition, Value) and isinstance(condition.type, ScalarType) else condition
        raise TypeRuleError(f"a condition is a bool, not {kind}", fix="compare first, e.g. pk.when(x != 0)")
