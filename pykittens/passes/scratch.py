"""Barriers before the shared scratch of a reduction is written again, where none stands already.

A reduction over several warps (or blocks) writes its terms to scratch, all meet, and all read them. Who writes the same
scratch again must know that everybody has read: a barrier of those warps must stand between, on every way there, loops
included. The reductions of a kernel take turns between two places (`trace/cross_warp_reduction.py`), so that usually
the barrier of the one between is enough; the pass follows what has been read since the last barrier, finds where it is
not, and records one there as a statement of the program. Scratch in all blocks of a cluster begins as if it had been
read.
"""

from __future__ import annotations

from ..ops import cluster, control, sync
from ..ops.views import root
from ..program import Access, Block, Buffer, Op, Program, Sync, Value

Read = frozenset[Value]  # scratch that some warps may have read since they last met


def insert_scratch_barriers(program: Program) -> None:
    """Adds the barriers that the program needs."""
    scratch = {b.value: b for b in program.buffers if b.scratch is not None}
    if scratch:
        analysis = _ScratchAnalysis(scratch)
        # Nobody may write another block's memory before that block runs, which is known when the cluster has met.
        analysis.block(
            program.body, frozenset(v for v, b in scratch.items() if b.scratch is not None and b.scratch[1] > 1)
        )
        _insert(program.body, analysis.needs)


class _ScratchAnalysis:
    """Walks the program with what has been read, to a fixpoint at loops; `needs` only grows."""

    def __init__(self, scratch: dict[Value, Buffer]):
        self.scratch = scratch
        self.needs: dict[Op, Buffer] = {}  # writes that a barrier must stand before
        self.left: list[Read] = []  # what had been read where the innermost `While` is left

    def block(self, block: Block, read: Read) -> Read:
        for op in block:
            if isinstance(op, control.When):
                read = self.block(op.then, read) | self.block(op.otherwise, read)
            elif isinstance(op, control.Role):
                read |= self.block(op.body, read)
            elif isinstance(op, (control.Range, control.While)):
                read = self._loop(op, read)
            elif isinstance(op, control.BreakIf):
                self.left[-1] |= read
            else:
                read = self._operation(op, read)
        return read

    def _loop(self, op: control.Range | control.While, read: Read) -> Read:
        while True:
            self.left.append(frozenset())
            after = self.block(op.body, read)
            left = self.left.pop()
            if after <= read:
                return left if isinstance(op, control.While) else read
            read |= after

    def _operation(self, op: Op, read: Read) -> Read:
        for effect in op.effects():
            if isinstance(effect, Sync):
                read = frozenset(value for value in read if not _meets(op, effect, self.scratch[value]))
            elif (place := root(effect.target)) in self.scratch and effect.mode != "read":
                if place in read:
                    self.needs[op] = self.scratch[place]
                    read = frozenset(v for v in read if self.scratch[v].scratch != self.scratch[place].scratch)
        return read | {
            place
            for e in op.effects()
            if isinstance(e, Access) and e.mode == "read" and (place := root(e.target)) in self.scratch
        }


def _meets(op: Op, effect: Sync, buffer: Buffer) -> bool:
    """Whether all that read and write a scratch buffer meet here."""
    assert buffer.scratch is not None
    scope, blocks = buffer.scratch
    return effect.kind == "cluster" or (effect.kind == "barrier" and blocks == 1 and op.scope.warps >= scope.warps)


def _insert(block: Block, needs: dict[Op, Buffer]) -> None:
    out: list[Op] = []
    for op in block:
        if op in needs:
            scratch = needs[op].scratch
            assert scratch is not None
            scope, blocks = scratch
            barrier: Op = cluster.ClusterBarrier(scope) if blocks > 1 else sync.Barrier(scope)
            barrier.location = op.location
            out.append(barrier)
        for inner in op.blocks():
            _insert(inner, needs)
        out.append(op)
    block.ops = out
