"""Shared memory of the compiler's own, in which the warps of a scope exchange what they hold: written, met, read.

It is used again and again: `passes/scratch.py` adds a barrier where it would be written before everybody has read.
"""

from __future__ import annotations

from typing import Any

from ..ops import thread_indices
from ..program import Scope
from ..types import SharedVector
from .memory import shared
from .recorder import current, result


def scratch(scope: Scope, type: SharedVector, blocks: int = 1, *, name: str = "terms", turns: int = 2) -> Any:
    """Room for one unit of the scope, or for each of the `blocks` of a cluster that exchange something.

    turns: 2 for small things, which two places take in turn (and two others in the bodies of loops), so that the
    barrier between write and read is mostly the only one; 1 for large ones.
    """
    r = current()
    in_loop = turns > 1 and any(kind in ("pk.range", "pk.loop") for kind, _ in r.open)
    pool = (name, scope.warps, r.first_warp, type, blocks, in_loop)
    counts: dict[Any, Any] = r.cache
    turn = counts.get((*pool, r.block if in_loop else None), -1) + 1
    counts[(*pool, r.block if in_loop else None)] = turn
    key = (*pool, "place", turn % turns)
    units = r.warps // scope.warps
    if key not in r.cache:
        r.cache[key] = shared(type, count=units if blocks == 1 else blocks, name=name)
        r.program.buffers[-1].scratch = scope, blocks
    places: Any = r.cache[key]
    return places[result(thread_indices.Index(scope, "unit"))] if units > 1 else places
