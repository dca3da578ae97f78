"""Proxy fences: ordinary writes to memory that TMA or wgmma also touches are fenced before they are handed over.

TMA and wgmma work through the async proxy, threads and their cp.async copies through the generic one. A write through
one is ordered with an access through the other only if a proxy fence stands on the way between them (PTX ISA, "Memory
Consistency Model", "Proxy-preserved base causality order"; "membar, fence"). The fence is the writers', after the write
has been performed: after an ordinary store at once, after a cp.async copy when its thread has waited for its group. It
is a statement of the program, right before the next operation that hands anything over (synchronises, releases, or
touches memory through the async proxy), or where the region ends.

Flow-insensitive: a buffer that the async proxy touches anywhere in the kernel counts, and so does every wait for copies
where some copy writes such a buffer.
"""

from __future__ import annotations

from ..ops import control
from ..ops.tma import ProxyFence
from ..ops.views import root
from ..program import Access, Block, Effect, Op, Program, Sync, Value
from ..types import Global, RegisterTile, RegisterVector


def insert_fences(program: Program) -> None:
    """Adds the `ProxyFence`s that the program needs."""
    accesses = [e for op in program.walk() if not _structural(op) for e in op.effects() if isinstance(e, Access)]
    touched = {root(e.target) for e in accesses if e.proxy == "async"}
    touched = {v for v in touched if not isinstance(v.type, (RegisterTile, RegisterVector))}
    copied = any(e.done == "cp.async" and _writes(e, touched) for e in accesses)
    if touched:
        _block(program.body, touched, copied)


def _structural(op: Op) -> bool:
    return isinstance(op, (control.Range, control.While, control.When, control.Role, control.BreakIf))


def _writes(effect: Effect, touched: set[Value]) -> bool:
    """Whether it is a write through the generic proxy of what the async proxy touches."""
    return (
        isinstance(effect, Access)
        and effect.mode != "read"
        and effect.proxy == "generic"
        and root(effect.target) in touched
    )


def _hands_over(effect: Effect) -> bool:
    """Whether what was written before may be touched through the async proxy from here on."""
    if isinstance(effect, Sync):
        return effect.kind != "fence"
    return effect.proxy == "async" or effect.order in ("release", "acq_rel")


def _block(block: Block, touched: set[Value], copied: bool) -> None:
    out: list[Op] = []
    unfenced: list[
        tuple[Op, Access | None]
    ] = []  # written since the last fence; None: copies that have been waited for

    def fence() -> None:
        if unfenced:
            widest = max((op for op, _ in unfenced), key=lambda op: op.scope.warps)
            made = ProxyFence(widest.scope, _memory([write for _, write in unfenced]))
            made.location = unfenced[-1][0].location
            out.append(made)
            unfenced.clear()

    for op in block:
        if _structural(op):
            fence()
            for inner in op.blocks():
                _block(inner, touched, copied)
            out.append(op)
            continue
        effects = op.effects()
        if any(map(_hands_over, effects)):
            fence()
        out.append(op)
        unfenced += [(op, e) for e in effects if isinstance(e, Access) and e.done == "now" and _writes(e, touched)]
        if copied and any(isinstance(e, Sync) and e.kind == "join" and e.queue == "cp.async" for e in effects):
            unfenced.append((op, None))
    fence()
    block.ops = out


def _memory(writes: list[Access | None]) -> ProxyFence.Memory:
    """What the fence is about: own shared memory, that of the cluster's blocks, or all memory.

    A store to a peer's shared memory is to the window `shared::cluster`, of which `shared::cta` is a part.
    """
    if any(write is not None and isinstance(root(write.target).type, Global) for write in writes):
        return "all"
    remote = any(write is not None and (write.rank is not None or write.mask is not None) for write in writes)
    return "cluster" if remote else "shared"
