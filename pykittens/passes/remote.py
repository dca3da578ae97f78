"""What a wait at an mbarrier acquires: what its own block released, or what others of the cluster did.

The default scope of a wait is the block. Where a thread of another block arrives, it releases at cluster scope, and the
wait acquires as widely. A `st.async` completes its bytes with a release at cluster scope too (PTX ISA "st.async"); all
that it hands over lies in shared memory, so the wait polls relaxed and then fences shared memory alone, which costs
nothing.

Other waits need no more than the block's scope: a TMA load makes what it wrote visible where its completion is observed
(PTX ISA "Async proxy"), also when it is multicast and pays the barrier of each block that it writes to; and a slot of a
ring that goes back to all blocks hands over nothing that its readers wrote.
"""

from __future__ import annotations

from ..ops import control, mbarrier
from ..ops.views import root
from ..program import Access, Program, Value


def mark_remote(program: Program) -> None:
    """Sets what every `Wait` acquires."""
    arrivals, sent = set(), set()
    for op in program.walk():
        if isinstance(op, mbarrier.Arrive) and op.rank is not None:
            arrivals.add(root(op.barrier))
        elif not isinstance(op, (control.Range, control.While, control.When, control.Role, control.BreakIf)):
            sent |= {
                root(e.done) for e in op.effects() if isinstance(e, Access) and _sends(e) and isinstance(e.done, Value)
            }
    for op in program.walk():
        if isinstance(op, mbarrier.Wait):
            barrier = root(op.barrier)
            op.acquire = "cluster" if barrier in arrivals else "terms" if barrier in sent else "cta"


def _sends(effect: Access) -> bool:
    """Whether it is a store of threads to another block, which completes at a barrier there."""
    return effect.proxy == "generic" and (effect.rank is not None or effect.mask is not None)
