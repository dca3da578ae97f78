"""Fences of reads: what a warp has read by ordinary loads is fenced before it is given back to be filled by TMA.

A read through the generic proxy is ordered with a later write through the async one by a proxy fence between them (PTX
ISA, "Memory Consistency Model", "Proxy-preserved base causality order"; "membar, fence"). An arrival writes one itself
(`ops/mbarrier.py`) unless this pass finds one that stands between the last such read and the arrival, or a wait for
products, which it may stand before: a fence costs as long as the loads before it take, and products take longer.
"""

from __future__ import annotations

from ..ops.mbarrier import Arrive
from ..ops.tma import ProxyFence
from ..ops.views import root
from ..ops.wgmma import WgmmaWait
from ..program import Access, Block, Op, Program, Value
from ..types import RegisterTile, RegisterVector


def place_read_fences(program: Program) -> None:
    """Sets `Arrive.fenced`, and puts fences before waits."""
    _block(program.body)


def _block(block: Block) -> None:
    ops = list(block.ops)
    for op in ops:
        for inner in op.blocks():
            _block(inner)
        if isinstance(op, Arrive) and op.fences:
            wait = _fence_or_wait(block.ops[: block.ops.index(op)], {root(x) for x in op.gives})
            if isinstance(wait, WgmmaWait):
                fence = ProxyFence(op.scope)
                fence.location = op.location
                block.ops.insert(block.ops.index(wait), fence)
            op.fenced = wait is not None


def _fence_or_wait(before: list[Op], given: set[Value]) -> Op | None:
    """The fence that stands behind the last read of what is given back, else the last wait for products there."""
    wait = None
    for op in reversed(before):
        if isinstance(op, ProxyFence):
            return op
        if [*op.blocks()] or any(isinstance(e, Access) and _reads(e, given) for e in op.effects()):
            break
        if isinstance(op, WgmmaWait) and wait is None:
            wait = op
    return wait


def _reads(access: Access, given: set[Value]) -> bool:
    """Whether it reads what is given back (nothing said: anything) through the generic proxy."""
    target = root(access.target)
    if access.mode == "write" or access.proxy != "generic" or isinstance(target.type, (RegisterTile, RegisterVector)):
        return False
    return not given or target in given
