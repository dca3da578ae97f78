"""Vectors of one kind as another, and naive vectors that meet: in one warp by shuffles, of several through shared
memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..ops import load, store, sync
from ..ops.layout_route import route
from ..ops.vector_conversion import ConvertVector
from ..program import Value
from ..types import RegisterVector, SharedVector, bool_, i32, with_dtype
from .recorder import record, result, scope_of
from .scratch import scratch


def same_runs(*operands: Any) -> tuple[Any, ...]:
    """Operands whose naive vectors of one length, from one scope, are in the longest runs that one of them has:
    what runs a vector has is the alignment of the memory that it comes from.
    """
    naive: list[Any] = [x.type for x in operands if _naive(x)]
    widths = {x.width for x in naive}
    if len(widths) < 2 or len({(x.length, x.warps) for x in naive}) > 1:
        return operands
    return tuple(as_vector(x, replace(x.type, width=max(widths))) if _naive(x) else x for x in operands)


def _naive(x: Any) -> bool:
    return isinstance(x, Value) and isinstance(x.type, RegisterVector) and x.type.kind == "naive"


def as_vector(vector: Any, type: RegisterVector) -> Any:
    """A complete vector as another of the same length and scope."""
    own = vector.type
    type = with_dtype(type, own.dtype)  # type: ignore[assignment]
    if own == type:
        return vector
    scope = scope_of(own.warps)
    if own.warps == 1 or route(own, type, False) is not None:
        return result(ConvertVector(scope, vector, type))
    if own.dtype is bool_:
        return as_vector(vector.to(i32), type) != 0
    place = scratch(scope, SharedVector(own.dtype, own.length))
    record(store.Store(scope, place, vector))
    record(sync.Barrier(scope))
    return result(load.Load(scope, place, type))
