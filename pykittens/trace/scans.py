"""Scans: at once where a line lies in one warp; where it lies in several, segment by segment, with the totals of all
through shared memory.
"""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..ops.reduce import check_numbers
from ..ops.scan import Scan, crosses
from ..ops.segment_scan import CombineSegments, ScanSegments, room
from ..ops.sync import Barrier
from ..types import RegisterVector, f32
from .recorder import record, result, scope_of
from .scratch import scratch


def scan(x: Any, kind: str, along: Any, reverse: bool) -> Any:
    """`kind` over the beginning (`reverse`: the end) of each "row" or "col" of a tile, or ("") of a vector."""
    type, scope = x.type, scope_of(x.type.warps)
    vector = isinstance(type, RegisterVector)
    if vector != (along == ""):
        words = f"cum{kind}" if vector else f"row_cum{kind} or col_cum{kind}"
        raise TypeRuleError(f"{along}{'_' if along else ''}cum{kind} of {type}", fix=f"call {words}")
    along = along or "row"
    if not crosses(type, along) or getattr(type, "partial", False):
        return result(Scan(scope, kind, x, along, reverse))
    check_numbers(kind, type)
    wide = x.to(f32) if type.dtype.packed else x
    place = scratch(scope, room(wide.type, along))
    segments = result(ScanSegments(scope, kind, wide, place, along, reverse))
    record(Barrier(scope))
    return result(CombineSegments(scope, kind, segments, place, along, reverse)).to(type.dtype)
