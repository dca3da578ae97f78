"""Loads that a `pk.loop` may have to wait for are made in every pass: ptxas moves ordinary ones out of a loop that
writes nothing.

A condition that leaves the loop may follow from global memory. Single elements are then read as C "volatile" (PTX
"ld.volatile"); tiles and vectors, whose loads are ordinary, behind a fence at the start of each pass.
"""

from __future__ import annotations

from ..ops import control
from ..ops.element import LoadScalar
from ..program import Access, Block, Op, Place, Program, Value, values_in


def mark_polling(program: Program) -> None:
    """Marks the loads of single elements, and the loops whose conditions follow from other loads."""
    for op in program.walk():
        if isinstance(op, control.While):
            for load in _looked_at(op.body):
                if isinstance(load, LoadScalar):
                    load.repeated = True
                else:
                    op.polls = True


def _looked_at(body: Block) -> list[Op]:
    """The ordinary loads of global memory in a loop from which the conditions follow that leave it."""
    ops = list(body.walk())
    needed: set[Value] = {v for op in ops if isinstance(op, control.BreakIf) for v in values_in(op.condition)}
    found: dict[Op, None] = {}
    before = -1
    while before != len(needed):
        before = len(needed)
        for op in reversed(ops):
            made = {*op.results, *(v for name in op.writes for v in values_in(getattr(op, name)))}
            decides = isinstance(op, (control.When, control.Range)) and any(
                not needed.isdisjoint(values_in(getattr(inner, name)))
                for block in op.blocks()
                for inner in block.walk()
                for name in inner.writes
            )
            if decides or not needed.isdisjoint(made):
                needed.update(op.operands())
                if any(_loads(e) for e in op.effects()):
                    found[op] = None
    return list(found)


def _loads(effect: object) -> bool:
    return (
        isinstance(effect, Access)
        and effect.mode == "read"
        and isinstance(effect.target, Place)
        and effect.order == "weak"
        and effect.proxy == "generic"
        and effect.done == "now"
    )
