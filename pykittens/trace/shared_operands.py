"""Shared tiles and vectors as operands: beside registers loaded as the others lie, alone by the warp."""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..ops import load
from ..program import Value
from ..types import Coalesced, Layout, RegisterTile, RegisterVector, SharedTile, SharedVector
from .memory import Shared, register_dtype
from .recorder import result, scope_of
from .vector_forms import same_runs


def together(*operands: Any) -> tuple[Any, ...]:
    """Operands of an elementwise operation: what is shared beside a register tile or vector is loaded, and naive
    vectors have the same runs.
    """
    held = [x.type for x in operands if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector))]
    if held and any(isinstance(x, Shared) for x in operands):
        beside = next((type for type in held if isinstance(type, RegisterTile)), held[0])
        operands = tuple(_loaded(x, beside) if isinstance(x, Shared) and x.count == 1 else x for x in operands)
    return same_runs(*operands)


def in_registers(*operands: Any) -> tuple[Any, ...]:
    """The same operands; where none of them lies in registers, what is shared is loaded by the warp, as `alone` does:
    vectors too, unless they go with a tile.
    """
    if any(isinstance(getattr(x, "type", None), (RegisterTile, RegisterVector)) for x in operands):
        return operands
    tiles = any(isinstance(x, Shared) and isinstance(x.type, SharedTile) for x in operands)
    return tuple(
        alone(x) if isinstance(x, Shared) and isinstance(x.type, SharedTile if tiles else SharedVector) else x
        for x in operands
    )


def alone(x: Shared) -> Any:
    """A shared tile as one of the warp, in row layout (coalesced, where its rows are no multiple of 16); a vector as a
    naive one.
    """
    if x.count > 1:
        raise TypeRuleError(f"{x.label} is an array of {x.count} {x.type}", fix=f"index one: {x.name or 'tiles'}[0]")
    dtype, type = register_dtype(x.dtype), x.type
    if isinstance(type, SharedVector):
        return result(load.Load(scope_of(1), x, load.naive_vector(x, dtype, type.length, 1)))
    assert isinstance(type, SharedTile)
    layout: Layout = "row" if type.rows % 16 == 0 else Coalesced(4, 4)
    return result(load.Load(scope_of(1), x, RegisterTile(dtype, type.rows, type.cols, layout)))


def _loaded(x: Shared, beside: RegisterTile | RegisterVector) -> Any:
    type = _type(x, beside)
    return result(load.Load(scope_of(beside.warps), x, type)) if type is not None else x


def _type(x: Shared, beside: RegisterTile | RegisterVector) -> RegisterTile | RegisterVector | None:
    """What a shared operand becomes; None for what lies beside nothing."""
    layout, warps = beside.layout, beside.warps
    if isinstance(x.type, SharedTile) and getattr(beside, "kind", "") != "naive":
        return RegisterTile(register_dtype(x.dtype), x.type.rows, x.type.cols, layout, warps)
    if not isinstance(x.type, SharedVector):
        return None
    if isinstance(beside, RegisterTile):
        kinds = [kind for kind, n in (("col", beside.rows), ("row", beside.cols)) if n == x.type.length]
        if len(kinds) != 1:
            fix = "say which: one value a column, warp.load_row(v), or one a row, warp.load_col(v)"
            raise TypeRuleError(f"{x.label}: {x.type} beside {beside}", fix=fix)
        return beside.vector(kinds[0], register_dtype(x.dtype))  # type: ignore[arg-type]
    return RegisterVector(register_dtype(x.dtype), x.type.length, beside.kind, layout, warps, width=beside.width)
