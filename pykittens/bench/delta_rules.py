"""Delta rules, with a decay for each head or each channel, and gradients: bytes that must move over time, beside a
copy.

Each operand is read once, and each result written once; lengths of queries and keys are divided out. Gradients follow
from a forward pass that is not timed. Peer: flash-linear-attention, where it is installed, which takes (batch, n,
heads, head dimension); its gated backward pass refuses Triton 3.4 to 3.7.0 on Hopper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of
from .recurrences import near, pairs
from .sequences import ROUNDING, _gradients

TITLE = "Delta rules, bf16"
KEY = ("kind", "backward", "batch", "heads", "n", "dim")
SHAPES = ((4, 16, 8192, 128), (1, 4, 32768, 128), (1, 16, 32768, 128), (4, 16, 8192, 64))
CHUNK = 64


def cells() -> list[Cell]:
    """The gated delta rule and Kimi delta attention, and the gradients of each."""
    kinds = ("gated_delta_rule", "kimi_delta_attention")
    return [_cell(kind, back, *shape) for kind in kinds for back in (False, True) for shape in SHAPES]


def _cell(kind: str, backward: bool, batch: int, heads: int, n: int, dim: int) -> Cell:
    rows = batch * heads * n
    gates = 4 * (dim + 1 if kind == "kimi_delta_attention" else 2)
    moved = rows * (2 * dim * (7 if backward else 4) + gates * (2 if backward else 1))
    return Cell(dict(zip(KEY, (kind, backward, batch, heads, n, dim), strict=True)), float(moved), "GB/s")


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    panel = f"{facts['kind']}{' backward' if facts['backward'] else ''}"
    return panel, f"{facts['batch']} x {facts['n']}, {facts['heads']} x {facts['dim']}"


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a device copy; with `everybody` also flash-linear-attention."""
    import torch

    kind, backward, b, h, n, d = (cell.facts[name] for name in KEY)
    device, kimi = normal(1).device, kind == "kimi_delta_attention"
    operands = [normal(b, h, n, d) for _ in range(3)] + [torch.rand(b, h, n, device=device)]
    operands.append(-torch.rand(*((b, h, n, d) if kimi else (b, h, n)), device=device) / 10)
    function = pk.kimi_delta_attention if kimi else pk.gated_delta_rule
    ours: Callable[..., Any] = lambda *x: function(*x, normalize=True)  # noqa: E731
    up = normal(b, h, n, d)
    runs = {OURS: _gradients(ours, operands, up) if backward else lambda: ours(*operands)}
    runs["copy"] = copy_of(int(cell.work))
    where = ("fla.ops.kda", "chunk_kda") if kimi else ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule")
    chunk = peers.function(*where) if everybody else None
    if chunk:
        theirs: Callable[..., Any] = lambda q, k, v, beta, g: peers.first(  # noqa: E731
            chunk(q=q, k=k, v=v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)
        )
        swapped = [x.transpose(1, 2).contiguous() for x in operands]
        runs["fla"] = (
            _gradients(theirs, swapped, up.transpose(1, 2).contiguous()) if backward else lambda: theirs(*swapped)
        )
    places = sorted({(0, 0), (b - 1, h - 1)})

    @cache
    def exact(rounded: bool) -> Any:
        """The rows of some heads, or the gradients of their values, and of queries and keys, in float64."""
        some = [torch.stack([x[at] for at in places]).double() for x in operands]
        with torch.enable_grad():
            rows = [x.requires_grad_(backward) for x in (some[2], *some[:2])]
            o = _chunks(some, rounded)
            ups = torch.stack([up[at] for at in places]).double()
            return torch.autograd.grad(o, rows, ups) if backward else [o]

    def error(found: Any) -> float:
        """That of the rows, or of values' gradients. Those of queries and keys, which follow from other roundings, are
        only looked at.
        """
        results = [found[2], *found[:2]] if backward else [found]
        if not all(torch.isfinite(x).all() for x in results):
            return float("inf")
        turned = [x if x.shape == up.shape else x.transpose(1, 2) for x in results]
        mine = [torch.stack([x[at] for at in places]) for x in turned]
        first, *rest = zip(mine, exact(False), strict=True)
        return row_error(*first) if near(rest) else float("inf")

    def limit(_: Mapping[str, float]) -> float:
        """1.5 times the error of the same chunks in float64, rounded where a tensor core takes an operand."""
        return 1.5 * row_error(exact(True)[0], exact(False)[0]) + 1.01 * ROUNDING

    return Trial(runs, error, limit, frozenset({"copy"}))


def _chunks(operands: list[Any], rounded: bool) -> Any:
    """The rows, chunk by chunk, of (heads, n, d)."""
    import torch

    def cut(x: Any) -> Any:
        """Rounded on the way forward; gradients pass."""
        return x + (x.detach().to(torch.bfloat16).double() - x.detach()) if rounded else x

    q, k, v, beta, g = operands
    q, k = (x / (x * x).sum(-1, keepdim=True).add(1e-6).sqrt() for x in (q, k))
    g = g if g.dim() == 3 else g[..., None]
    state = torch.zeros(q.shape[0], v.shape[-1], q.shape[-1], dtype=q.dtype, device=q.device)
    found = []
    for i in range(0, q.shape[1], CHUNK):
        x, y, z, b, c = (t[:, i : i + CHUNK] for t in (q, k, v, beta[..., None], g))
        c = c.cumsum(1)
        if c.shape[-1] == 1:
            fade = (c - c.mT).clamp_max(0).exp()
            a, p = y @ y.mT * fade, (x @ y.mT * fade).tril()
        else:
            a, p = pairs(y, y, c, cut, cut), pairs(x, y, c, cut, lambda z: z)
        a = a.tril(-1)
        one = torch.eye(a.shape[-1], dtype=q.dtype, device=q.device)
        w = torch.linalg.solve_triangular(one + a * b.mT, a, upper=False)
        y_ = z - cut(y * c.exp()) @ cut(state).mT
        u = b * (y_ - cut(w) @ cut(b * y_))
        found.append((cut(x * c.exp()) @ cut(state).mT + cut(p) @ cut(u)) * x.shape[-1] ** -0.5)
        last = c[:, -1:]
        state = state * last.exp() + cut(u).mT @ cut(y * (last - c).exp())
    return torch.cat(found, 1)
