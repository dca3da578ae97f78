"""Register budgets (setmaxnreg) add up to no more than the block was launched with: a warp that asks for more waits
forever.
"""

from __future__ import annotations

from ..architectures import REGISTERS
from ..errors import ResourceError
from ..ops import control
from ..program import Program


def at_launch(program: Program) -> int:
    """Registers a thread has when a block starts: an equal share, rounded down to the allocation unit of 8."""
    return min(255, REGISTERS // (program.threads * program.blocks_per_sm)) // 8 * 8


def check_budgets(program: Program) -> None:
    """Raises `ResourceError` with the sum when the roles ask for too many registers, or only some of them ask."""
    roles = [op for op in program.body if isinstance(op, control.Role)]
    asking = [op for op in roles if op.registers]
    if not asking:
        return
    silent = [op for op in roles if not op.registers]
    rest = program.warps - sum(op.scope.warps for op in roles)
    if silent or rest:
        names = ", ".join(repr(op.label) for op in silent) or f"the last {rest} warps"
        raise ResourceError(
            f"{names} of {program.name!r} have no register budget, others do",
            fix="give every role registers=...",
            location=asking[0].location,
        )
    total, pool = sum(op.registers * op.scope.warps * 32 for op in roles), at_launch(program) * program.threads
    if total > pool:
        rows = " + ".join(f"{op.registers} x {op.scope.warps * 32} ({op.label})" for op in roles)
        raise ResourceError(
            f"register budgets add up to {rows} = {total}; a block of {program.threads} threads starts with "
            f"{at_launch(program)} each, {pool} in all",
            fix="lower a budget: a warp that asks for more than is left waits forever",
            location=asking[0].location,
        )
