"""Linear attention: Based (TFLOP/s, as its published kernel counts them) and plain (bytes that must move, beside a
device copy).

Based: 2 * B * N * H * E + 4 * B * N * H * 64 * E operations with E = 16 * 16 + 16 + 1. Plain: q, k, v are read and o is
written once. Peers: flash-linear-attention, where it is installed; it takes (batch, n, heads, head dimension).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of

TITLE = "Linear attention, bf16, batch 16, 16 heads"
KEY = ("kind", "batch", "heads", "n", "features", "dim")
LENGTHS = (1024, 4096, 16384)
ROUNDING = 2.0**-8  # half a unit in the last place of a bf16 result


def cells() -> list[Cell]:
    """Based, then plain linear attention."""
    based = [
        Cell(
            {"kind": "based", "batch": 16, "heads": 16, "n": n, "features": 16, "dim": 64},
            (2.0 + 4 * 64) * 16 * n * 16 * (16 * 16 + 16 + 1),
        )
        for n in LENGTHS
    ]
    plain = [
        Cell(
            {"kind": "linear_attention", "batch": 16, "heads": 16, "n": n, "features": 64, "dim": 64},
            4.0 * 16 * 16 * n * 64 * 2,
            "GB/s",
        )
        for n in LENGTHS
    ]
    return based + plain


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return str(facts["kind"]), str(facts["n"])


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and, for plain linear attention, a device copy; with `everybody` also flash-linear-attention."""
    import torch

    from pykittens import based, linear_attention

    kind, b, h, n, f, d = (cell.facts[name] for name in KEY)
    q, k, v = normal(b, h, n, f), normal(b, h, n, f), normal(b, h, n, d)
    runs: dict[str, Callable[[], Any]]
    only_timed = {"copy"}
    if kind == "based":
        runs, scale = {OURS: lambda: based(q, k, v)}, 0.25
    else:
        runs, scale = {OURS: lambda: linear_attention(q, k, v, scale=f**-0.5), "copy": copy_of(int(cell.work))}, f**-0.5
    if everybody:
        swapped = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        for name, run in _fla(kind, swapped, scale).items():
            runs[name] = run
            only_timed.add(name)  # some of its kernels leave rounding to bf16 inside: only ours must be exact
    heads = [(0, 0), (b - 1, h - 1)]
    exact, single = (
        cache(partial(references, kind, [(q[at], k[at], v[at]) for at in heads], scale, t))
        for t in (torch.float64, torch.float32)
    )

    def error(out: Any) -> float:
        if not torch.isfinite(out).all():
            return float("inf")
        return max(row_error(out[at], e) for at, e in zip(heads, exact(), strict=True))

    def limit(errors: dict[str, float]) -> float:
        return 1.5 * max(row_error(s, e) for s, e in zip(single(), exact(), strict=True)) + 1.01 * ROUNDING

    return Trial(runs, error, limit, frozenset(only_timed))


def references(kind: str, heads: list[Any], scale: float, dtype: Any) -> list[Any]:
    """`reference` of some heads in a precision."""
    return [reference(kind, *(x.to(dtype) for x in operands), scale) for operands in heads]  # type: ignore[call-arg]


def reference(kind: str, q: Any, k: Any, v: Any, scale: float, rows: int = 1024) -> Any:
    """One head, from its definition, in the operands' precision, some rows at a time."""
    import torch

    parts = []
    for first in range(0, q.shape[0], rows):
        s = q[first : first + rows] @ k[: first + rows].T * scale
        weight = (1 + s + s * s / 2 if kind == "based" else s).tril(first)
        parts.append(weight @ v[: first + rows])
    return torch.cat(parts)


def _fla(kind: str, swapped: list[Any], scale: float) -> dict[str, Callable[[], Any]]:
    """flash-linear-attention's functions for a kind."""
    q, k, v = swapped
    if kind == "based":
        found = {name: peers.function("fla.ops.based", name) for name in ("parallel_based", "fused_chunk_based")}
        return {
            f"fla {name}": partial(function, q, k, v, use_norm=False) for name, function in found.items() if function
        }
    chunk = peers.function("fla.ops.linear_attn", "chunk_linear_attn")
    return {"fla": lambda: peers.first(chunk(q, k, v, scale=scale, normalize=False))} if chunk else {}
