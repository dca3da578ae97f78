"""Proxy fences: ordinary writes to memory that TMA or wgmma also touches are fenced before the writers' next synchronisation.

Flow-insensitive: a buffer that the async proxy touches anywhere in the kernel counts. The fence is a statement in the
program (PTX "fence.proxy.async"), right before the next operation that synchronises, or where the region ends.
"""

from __future__ import annotations

from ..ops import control
from ..ops.tma import ProxyFence
from ..ops.views import Item, Part
from ..program import Access, Block, Op, Place, Program, Sync, Value
from ..types import Global, RegisterTile, RegisterVector


def insert_fences(program: Program) -> None:
    """Adds the `ProxyFence`s that the program needs."""
    touched = {
        root(e.target)
        for op in program.walk()
        if not _structural(op)
        for e in op.effects()
        if isinstance(e, Access) and e.proxy == "async"
    }
    touched = {v for v in touched if not isinstance(v.type, (RegisterTile, RegisterVector))}
    if touched:
        _block(program.body, touched)


def root(target: Value | Place) -> Value:
    """The buffer or tensor that an access is to."""
    value = target.tensor if isinstance(target, Place) else target
    while isinstance(value.producer, (Item, Part)):
        value = value.producer.array if isinstance(value.producer, Item) else value.producer.tile
    return value


def _structural(op: Op) -> bool:
    return isinstance(op, (control.Range, control.While, control.When, control.Role, control.BreakIf))


def _block(block: Block, touched: set[Value]) -> None:
    out: list[Op] = []
    unfenced: list[Op] = []  # writes since the last fence

    def fence() -> None:
        if unfenced:
            memory = "all" if any(_writes_global(op, touched) for op in unfenced) else "shared"
            widest = max(unfenced, key=lambda op: op.scope.warps)
            made = ProxyFence(widest.scope, memory)  # type: ignore[arg-type]
            made.location = unfenced[-1].location
            out.append(made)
            unfenced.clear()

    for op in block:
        if _structural(op):
            fence()
            for inner in op.blocks():
                _block(inner, touched)
        else:
            effects = op.effects()
            if any(isinstance(e, Sync) for e in effects) and not isinstance(op, ProxyFence):
                fence()
            if any(
                isinstance(e, Access) and e.mode != "read" and e.proxy == "generic" and root(e.target) in touched
                for e in effects
            ):
                unfenced.append(op)
        out.append(op)
    fence()
    block.ops = out


def _writes_global(op: Op, touched: set[Value]) -> bool:
    return any(
        isinstance(e, Access) and e.mode != "read" and isinstance(root(e.target).type, Global) for e in op.effects()
    )
