"""Waits at mbarriers where threads of other blocks of the cluster arrive acquire what those released.

Other waits need no more than the block's scope: a TMA load that is multicast pays the barrier of each block it writes
to, and a slot of a ring that goes back to all blocks hands over nothing that its readers wrote.
"""

from __future__ import annotations

from ..ops import mbarrier
from ..program import Program
from .fences import root


def mark_remote(program: Program) -> None:
    """Sets `remote` of every `Wait` that needs it."""
    arrivals = {root(op.barrier) for op in program.walk() if isinstance(op, mbarrier.Arrive) and op.rank is not None}
    for op in program.walk():
        if isinstance(op, mbarrier.Wait):
            op.remote = root(op.barrier) in arrivals
