"""Recurrences whose decay changes with time, Mamba-2 and gated linear attention, and their gradients: bytes that must
move over time, beside a copy.

Each operand is read once, and each result written once. Gradients follow from a forward pass that is not timed. "gla"
is gated linear attention with a gate for each channel. Peer: flash-linear-attention's simple GLA, or its GLA, where it
is installed, which takes (batch, n, heads, head dimension); for Mamba-2 with B and C expanded to all heads, and x
already times dt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of
from .sequences import ROUNDING, _gradients

TITLE = "Recurrences with decays that change, bf16"
KEY = ("kind", "backward", "batch", "heads", "n", "dim", "state")
MAMBA = (  # batch, heads, n, dim, state; one group
    (1, 128, 65536, 64, 128),
    (16, 128, 4096, 64, 128),
    (16, 16, 1024, 64, 64),
    (16, 16, 4096, 64, 64),
    (16, 16, 16384, 64, 64),
    (1, 8, 32768, 64, 128),
)
GATED = ((4, 16, 8192, 128, 128), (4, 16, 8192, 64, 64), (1, 16, 32768, 128, 128))
CHUNK = 64
FAR = 0.03  # a relative error, of all rows together, that no rounding explains


def cells() -> list[Cell]:
    """Both functions, and their gradients."""
    found = [_cell("mamba2", back, *shape) for back in (False, True) for shape in MAMBA]
    gated = ("gated_linear_attention", "gla")
    return found + [_cell(kind, back, *shape) for kind in gated for back in (False, True) for shape in GATED]


def _cell(kind: str, backward: bool, batch: int, heads: int, n: int, dim: int, state: int) -> Cell:
    facts = dict(zip(KEY, (kind, backward, batch, heads, n, dim, state), strict=True))
    wide, keys = heads * dim, 2 * state * (1 if kind == "mamba2" else heads)
    rows = 2.0 * batch * n
    moved = rows * ((3 if backward else 2) * wide + (2 if backward else 1) * keys)
    gates = heads * (state if kind == "gla" else 1)
    return Cell(facts, moved + 4.0 * batch * n * gates * (2 if backward else 1), "GB/s")


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    panel = f"{facts['kind']}{' backward' if facts['backward'] else ''}"
    return panel, f"{facts['batch']} x {facts['n']}, {facts['heads']} x {facts['dim']}"


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a device copy; with `everybody` also flash-linear-attention."""
    import torch

    kind, backward, b, h, n, d, s = (cell.facts[name] for name in KEY)
    device = normal(1).device
    steps = torch.rand(b, n, h, device=device) / 10
    if kind == "mamba2":
        x, keys, queries = normal(b, n, h, d), normal(b, n, 1, s), normal(b, n, 1, s)
        rate = -torch.rand(h, device=device) * 2
        operands = [x, steps, rate, keys, queries]
        ours: Callable[..., Any] = lambda x, dt, a, k, q: pk.mamba2(x, dt, a, k, q)  # noqa: E731
        scale, axis = 1.0, 1
    else:
        gates = torch.rand(b, h, n, s, device=device) / 10 if kind == "gla" else steps.transpose(1, 2).contiguous()
        operands = [*(normal(b, h, n, s) for _ in range(2)), normal(b, h, n, d), -gates]
        ours = pk.gated_linear_attention
        scale, axis = s**-0.5, 2
    up = normal(*operands[0 if kind == "mamba2" else 2].shape)
    runs = {OURS: _gradients(ours, operands, up) if backward else lambda: ours(*operands)}
    runs["copy"] = copy_of(int(cell.work))
    where = ("fla.ops.gla", "chunk_gla") if kind == "gla" else ("fla.ops.simple_gla", "chunk_simple_gla")
    chunk = peers.function(*where) if everybody else None
    if chunk:
        theirs = [y.contiguous() for y in _by_time(kind, operands)]
        fla: Callable[..., Any] = lambda q, k, v, g: peers.first(chunk(q, k, v, g, scale=scale))  # noqa: E731
        wide = up if axis == 1 else up.transpose(1, 2).contiguous()
        runs["fla"] = _gradients(fla, theirs, wide) if backward else lambda: fla(*theirs)
    places = sorted({(0, 0), (b - 1, h - 1)})

    def heads(x: Any, along: int = axis) -> Any:
        """Some heads of a result like x: (heads, n, d)."""
        return torch.stack([x[i].select(2 - along, j) for i, j in places])

    @cache
    def exact(rounded: bool) -> Any:
        """The rows of some heads, or the gradients of their values, and of queries and keys, in float64."""
        q, k, v, g = ([y[i, :, j] for i, j in places] for y in _by_time(kind, operands))
        wide = [torch.stack(y).double() for y in (q, k, v, g)]
        if kind == "mamba2":  # rounded where dt x is, not before
            wide[2] = heads(operands[0]).double()
        dt = heads(operands[1]).double() if kind == "mamba2" else torch.ones(wide[3].shape[:2]).to(wide[3])
        with torch.enable_grad():
            rows = [x.requires_grad_(backward) for x in (wide[2], *wide[:2])]
            o = _chunks(rows[1] * scale, rows[2], rows[0], wide[3], dt, rounded)
            return torch.autograd.grad(o, rows, heads(up).double()) if backward else [o]

    def error(found: Any) -> float:
        """That of the rows, or of values' gradients. Those of queries and keys, which follow from other roundings, are
        only looked at; Mamba-2's are sums over the heads of a group, and the peer's gradients there those of dt x.
        """
        results = [found]
        if backward:
            results = [found[0]] if kind == "mamba2" or len(found) != 4 else [found[2], *found[:2]]
        if not all(torch.isfinite(x).all() for x in results):
            return float("inf")
        turned = [x if x.shape[1:3] == up.shape[1:3] else x.transpose(1, 2) for x in results]
        first, *rest = zip(map(heads, turned), exact(False), strict=False)
        return row_error(*first) if near(rest) else float("inf")

    def limit(_: Mapping[str, float]) -> float:
        """1.5 times the error of the same chunks in float64, rounded where a tensor core takes an operand."""
        return 1.5 * row_error(exact(True)[0], exact(False)[0]) + 1.01 * ROUNDING

    other = kind == "mamba2" and backward  # the peer's results are
    return Trial(runs, error, limit, frozenset({"copy", "fla"} if other else {"copy"}))


def near(both: list[tuple[Any, Any]]) -> bool:
    """Whether results are as exact ones, whatever was rounded on the way."""
    return all(float((x.double() - y).norm() / y.norm()) < FAR for x, y in both)


def _by_time(kind: str, operands: list[Any]) -> list[Any]:
    """q, k, v and the logarithms of decays as (batch, n, heads, d)."""
    if kind != "mamba2":
        return [y.transpose(1, 2) for y in operands]
    x, dt, rate, keys, queries = operands
    heads = x.shape[2]
    wide = [y.expand(-1, -1, heads, -1) for y in (queries, keys)]
    return [*wide, (x * dt[..., None]).to(x.dtype), dt * rate]


def _chunks(q: Any, k: Any, v: Any, g: Any, dt: Any, rounded: bool) -> Any:
    """The rows, chunk by chunk, of (heads, n, d)."""
    import torch

    low = torch.bfloat16

    def cut(x: Any) -> Any:
        """Rounded on the way forward; gradients pass."""
        return x + (x.detach().to(low).double() - x.detach()) if rounded else x

    def back(x: Any) -> Any:
        """The gradient of a state is rounded, too, where it meets the rows of a chunk."""
        if rounded and x.requires_grad:
            x.register_hook(lambda gradient: gradient.to(low).double())
        return x

    state, found = torch.zeros(q.shape[0], v.shape[-1], q.shape[-1], dtype=q.dtype, device=q.device), []
    for i in range(0, q.shape[1], CHUNK):
        a, b, x, c, w = (y[:, i : i + CHUNK] for y in (q, k, v, g, dt))
        c = c.cumsum(1)
        last = c[:, -1:]
        if g.dim() == 3:  # of each channel: keys and queries have decayed when they are rounded
            weights = cut(pairs(a, b, c, cut, near=lambda x: x))
            found.append(weights @ x + cut(a * c.exp()) @ cut(state).mT)
            state = state * last.exp() + back(x.mT @ cut(b * (last - c).exp()))
            continue
        fade = (c[:, :, None] - c[:, None]).clamp_max(0).exp()
        weights = cut((a @ b.mT * fade * w[:, None]).tril())
        found.append(weights @ x + c.exp()[..., None] * (a @ cut(state).mT))
        state = state * last.exp()[..., None] + back(cut(x * (w * (last - c).exp())[..., None]).mT @ b)
    return torch.cat(found, 1)


def pairs(q: Any, k: Any, c: Any, cut: Callable[[Any], Any], near: Callable[[Any], Any]) -> Any:
    """q_i k_j exp(c_i - c_j), j <= i, channel by channel, from factors that are rounded as `channel_decays.py` has
    them: pairs of rows part at blocks of 32 or of 16 rows, or (`near`) have the middle of 16 rows, which decay little,
    between them.
    """
    import torch

    row = torch.arange(q.shape[1], device=q.device)
    past, found = row[:, None] >= row, 0.0
    for size in (32, 16, 8):
        apart = c - c[:, (row // (2 * size) * 2 * size + size - 1).clamp_max(len(row) - 1)]
        late, early = (apart, -apart) if size == 8 else (-apart.abs(), -apart.abs())
        mine = row[:, None] // 16 == row // 16 if size == 8 else (row[:, None] ^ row) // size == 1
        rounded = near if size == 8 else cut
        found = found + (rounded(q * late.exp()) @ rounded(k * early.exp()).mT) * (mine & past)
    return found
