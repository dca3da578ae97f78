"""One row of each recurrence, for decoding: bytes of the states, read and written once, over time, beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pykittens as pk

from .measure import OURS, Cell, Trial, normal, row_error
from .memory import ROUNDING, copy_of

TITLE = "One step of recurrences, bf16"
KEY = ("kind", "batch", "heads", "dim", "state")
SHAPES = {"mamba2": (64, 64, 64, 128)}  # others:
SHAPE = (64, 16, 128, 128)
KINDS: dict[str, Callable[..., Any]] = {
    "mamba2": lambda *x, state: pk.mamba2_step(*x, state=state),
    "gated_linear_attention": lambda *x, state: pk.gated_linear_attention_step(*x, state=state),
    "gla": lambda *x, state: pk.gated_linear_attention_step(*x, state=state),
    "gated_delta_rule": lambda *x, state: pk.gated_delta_rule_step(*x, state=state, normalize=True),
    "kimi_delta_attention": lambda *x, state: pk.kimi_delta_attention_step(*x, state=state, normalize=True),
}


def cells() -> list[Cell]:
    """Each function, for 64 sequences."""
    return [_cell(kind, *SHAPES.get(kind, SHAPE)) for kind in KINDS]


def _cell(kind: str, batch: int, heads: int, dim: int, state: int) -> Cell:
    facts = dict(zip(KEY, (kind, batch, heads, dim, state), strict=True))
    return Cell(facts, 8.0 * batch * heads * dim * state, "GB/s")


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return "one step", f"{facts['kind']}, {facts['batch']} x {facts['heads']} x {facts['dim']} x {facts['state']}"


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a device copy."""
    import torch

    kind, b, h, d, s = (cell.facts[name] for name in KEY)
    values = normal(b, h, d)
    before, gate, strength = (torch.rand(*shape, device=values.device) for shape in ((b, h, d, s), (b, h), (b, h)))
    if kind == "mamba2":
        keys, queries, rate = normal(b, 1, s), normal(b, 1, s), -torch.rand(h, device=values.device)
        operands = [values, gate, rate, keys, queries]
    else:
        gate = torch.rand(b, h, s, device=values.device) if kind in ("gla", "kimi_delta_attention") else gate
        operands = [normal(b, h, s), normal(b, h, s), values]
        operands += [-gate] if "delta" not in kind else [strength, -gate]

    def expected() -> tuple[Any, Any]:
        """(o, state) of the last sequence, in float64."""
        last = [x[-1].double() if x.dim() > 1 else x.double() for x in operands]
        if kind == "mamba2":
            v, dt, a, k, q = last
            decay, v = (dt * a).exp()[:, None, None], v * dt[:, None]
            k, q = (x.expand(h, s) for x in (k, q))
        else:
            q, k, v, g = last[0] * s**-0.5, last[1], last[2], last[-1]
            decay = g.exp()[:, None] if g.dim() > 1 else g.exp()[:, None, None]
        state = before[-1].double() * decay
        if "delta" in kind:
            q, k = (x / ((x * y).sum(-1, keepdim=True) + 1e-6).sqrt() for x, y in ((last[0], last[0]), (k, k)))
            q, v = q * s**-0.5, last[3][:, None] * (v - (state @ k[..., None])[..., 0])
        state = state + v[..., None] * k[:, None]
        return (state @ q[..., None])[..., 0], state

    def error(found: Any) -> float:
        o, state = expected()
        if not torch.isfinite(found[0]).all() or row_error(found[1][-1], state) > 1e-5:
            return float("inf")
        return row_error(found[0][-1], o)

    def limit(_: Mapping[str, float]) -> float:
        """A rounded result."""
        return 1.01 * ROUNDING

    runs = {OURS: lambda: KINDS[kind](*operands, state=before), "copy": copy_of(int(cell.work))}
    return Trial(runs, error, limit, frozenset({"copy"}))
