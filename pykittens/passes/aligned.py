"""Named barriers at which several roles wait, each at a statement of its own.

"bar.sync" is "barrier.sync.aligned": the threads of a warp wait at one instruction (PTX "barrier"), as ours always do.
synccheck of the compute sanitizer asks it of all warps that wait for a phase. It costs little to promise nothing where
several roles wait, and the tool then sees what else is wrong.
"""

from __future__ import annotations

from typing import Any

from ..ops import control
from ..ops.sync import NamedSync
from ..program import Block, Program


def align_named_barriers(program: Program) -> None:
    """Marks the waits for phases for which one role waits `aligned`."""
    waits: list[tuple[Any, NamedSync]] = []

    def visit(block: Block, role: Any) -> None:
        for op in block:
            if isinstance(op, NamedSync):
                waits.append((role, op))
            for inner in op.blocks():
                visit(inner, op if isinstance(op, control.Role) else role)

    visit(program.body, None)
    for role, op in waits:
        op.aligned = all(role is other or not _may_meet(op, theirs) for other, theirs in waits)


def _may_meet(a: NamedSync, b: NamedSync) -> bool:
    """Whether both may wait at one barrier: numbers that are known must be the same."""
    known = isinstance(a.index, int) and isinstance(b.index, int)
    return a.barrier is b.barrier and (not known or a.index == b.index)
