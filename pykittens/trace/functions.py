"""Statements that belong to no scope: named barriers, printing, assertions, CUDA C of the author's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import TraceError
from ..ops import debug, inline
from ..ops.sync import NamedBarrierType
from ..program import Operand
from . import recorder
from .handle import number
from .handle_types import NamedBarrier
from .recorder import current, record, scope_of
from .scopes import ScopeHandle, warp
from .tile import Tile


def named_barrier(warps: int, count: int = 1) -> NamedBarrier:
    """`count` hardware barriers (of the block's 16), each ended by `warps` warps."""
    r = current()
    handle = recorder.make_value(NamedBarrierType(warps))
    assert isinstance(handle, NamedBarrier)
    handle.count, handle.location = count, recorder.here()
    r.program.facts.setdefault("named barriers", []).append(handle)
    return handle


def print(*parts: Any, scope: ScopeHandle = warp) -> None:
    """Prints from inside the kernel, on both back ends.

    `parts`: texts, scalars and register tiles. `scope`: who prints scalars, once each unit of it; tiles are printed by
    their own.
    """
    shown = tuple(part if isinstance(part, str) else number(part) for part in parts)
    tiles = [x for x in shown if isinstance(x, Tile)]
    record(debug.Print(scope_of(tiles[0].type.warps) if tiles else scope.scope, shown))


def assert_(condition: Operand, text: str = "") -> None:
    """Stops the simulated kernel, or a debug build on a GPU, where a traced bool `condition` does not hold.

    `text` is what the error says.

    Raises `TraceError` for a Python bool that is False, `KernelAssertionError` where the kernel runs.
    """
    if isinstance(condition, bool) and not condition:
        raise TraceError(f"pk.assert_ failed while tracing: {text}", fix="the condition is a Python bool that is False")
    record(debug.Assert(warp.scope, condition, text))


def cuda(
    text: str,
    *,
    reads: dict[str, Any] | None = None,
    writes: dict[str, Any] | None = None,
    numpy: Callable[..., Any] | None = None,
    scope: ScopeHandle = warp,
    support: str = "",
    touches: dict[str, Callable[..., Any]] | None = None,
) -> None:
    """Inlines the CUDA C or PTX `text`, with `{name}` for operands: of a tile or vector an array of its registers, of
    shared memory an address of 32 bits, of a scalar its value.

    `reads` and `writes` name the operands; `numpy(**arrays)` returns the new value of each written operand (a tuple
    if several), for the simulator. `support` is CUDA C put once before the kernel (device functions).

    Any thread of the scope is taken to touch every element of an operand in shared memory, so that all its threads must
    have met those that touch it before and after; unless `touches` says for an operand which thread touches which
    element: a function from the elements' indices (arrays, one a dimension) to the thread's number in the scope (-1:
    none).

    Raises `TraceError` where `touches` names what is neither read nor written.
    """
    if unknown := set(touches or ()) - set(reads or ()) - set(writes or ()):
        raise TraceError(
            f"pk.cuda: touches names {', '.join(sorted(unknown))}, which it neither reads nor writes",
            fix="name operands of reads or writes",
        )
    inputs, outputs = reads or {}, writes or {}
    both = {**{k: number(v) for k, v in inputs.items()}, **outputs}
    record(
        inline.Inline(
            scope.scope,
            text,
            tuple(both),
            tuple(both.values()),
            tuple(outputs),
            numpy,
            support,
            tuple((touches or {}).items()),
        )
    )
