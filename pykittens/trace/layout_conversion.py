"""Tiles and vectors in another register layout: shuffled where elements stay in their warp, exchanged through shared
memory where they do not, or where a warp would shuffle large tiles register by register.
"""

from __future__ import annotations

from typing import Any

from ..ops.layout_conversion import ConvertLayout, converted
from ..ops.layout_exchange import ShareElements, TakeElements, room
from ..ops.layout_route import shuffles
from ..ops.sync import Barrier
from ..program import Value
from ..types import Layout, RegisterTile, RegisterVector
from .recorder import record, result, scope_of
from .scratch import scratch
from .vector_forms import as_vector

MOST_SHUFFLES = 1024  # of a warp's tile; beyond, shared memory is several times as fast, and NVRTC takes minutes


def convert_layout(x: Value, layout: Layout, transpose: bool) -> Any:
    """The tile or vector `x` in a layout, or the transposed tile."""
    target, source = converted(x, layout, transpose), x.type
    if isinstance(target, RegisterVector):
        return as_vector(x, target)
    assert isinstance(source, RegisterTile)
    scope = scope_of(source.warps)
    moves = shuffles(source, target, transpose)
    if moves is not None and moves <= MOST_SHUFFLES:
        return result(ConvertLayout(scope, x, layout, transpose))
    lies = room(source, target, transpose)
    place = scratch(scope, lies.vector(source), name="exchange", turns=1)
    record(ShareElements(scope, place, x, lies))
    record(Barrier(scope))
    return result(TakeElements(scope, place, target, lies.transposed() if transpose else lies))
