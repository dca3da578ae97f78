"""What a wait at an mbarrier acquires: what its own block released, or what others of the cluster did.

The default scope of a wait is the block. Where a thread of another block arrives, it releases at cluster scope, and the
wait acquires as widely. A `st.async` completes its bytes with a release at cluster scope too (PTX ISA "st.async"); all
that it hands over lies in shared memory, so the wait polls relaxed and then fences shared memory alone, which costs
nothing.

Other waits need no more than the block's scope: a TMA load makes what it wrote visible where its completion is observed
(PTX ISA "Async proxy"), also when it is multicast and pays the barrier of each block that it writes to; and a slot of a
ring that goes back to all blocks hands over nothing that its readers wrote.

And what a barrier of the cluster hands over: nothing where it is the last that the kernel does, so that nobody ends
before the others, and no thread has accessed another block's memory or arrived there.
"""

from __future__ import annotations

from ..ops import cluster, control, mbarrier
from ..ops.views import root
from ..program import Access, Program, Value


def mark_remote(program: Program) -> None:
    """Sets what every `Wait` acquires, and what a barrier of the cluster hands over."""
    arrivals, sent, crosses = set(), set(), False
    for op in program.walk():
        if isinstance(op, mbarrier.Arrive):
            crosses |= op.rank is not None or op.spread > 0
            if op.rank is not None:
                arrivals.add(root(op.barrier))
        elif not isinstance(op, (control.Range, control.While, control.When, control.Role, control.BreakIf)):
            sends = [e for e in op.effects() if isinstance(e, Access) and _sends(e)]
            sent |= {root(e.done) for e in sends if isinstance(e.done, Value)}
            crosses |= bool(sends)
    for op in program.walk():
        if isinstance(op, mbarrier.Wait):
            barrier = root(op.barrier)
            op.acquire = "cluster" if barrier in arrivals else "terms" if barrier in sent else "cta"
    last = program.body.ops[-1] if program.body.ops else None
    if isinstance(last, cluster.ClusterBarrier):
        last.hands_over = crosses


def _sends(effect: Access) -> bool:
    """Whether it is an access of threads to another block."""
    return effect.proxy == "generic" and (effect.rank is not None or effect.mask is not None)
