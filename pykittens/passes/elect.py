"""Roles in which every operation is a single thread's (a loader, say) run in one elected thread. In others nothing may
want one thread alone to do for several warps what has a result.
"""

from __future__ import annotations

from ..ops import control
from ..program import Block, Program


def elect_roles(program: Program) -> None:
    """Marks such roles `elected`."""
    for op in program.walk():
        if isinstance(op, control.Role):
            op.elected = any(o.single_thread and not isinstance(o, control.Role) for o in op.body.walk()) and _single(
                op.body, op.scope.warps
            )
            for inner in () if op.elected else op.body.walk():
                if inner.single_thread and not isinstance(inner, control.Role):
                    inner.refuse_crowd()


def _single(block: Block, warps: int) -> bool:
    """Whether one thread can do for all `warps` warps of the role: none of them, or of their groups, does anything
    of its own.
    """
    for op in block:
        if isinstance(op, (control.Range, control.While, control.When)):
            if not all(_single(inner, warps) for inner in op.blocks()):
                return False
        elif isinstance(op, control.BreakIf):
            continue
        elif isinstance(op, control.Role) or (op.collective and not (op.single_thread and op.scope.warps == warps)):
            return False
    return True
