"""Attention backward: dq, dk and dv of the lengths, head dimensions and masks that training has, and grouped queries.

Operations: 10 * batch * heads * n * n * head dimension, half of that when causal. FA2 and cuDNN are torch's own back
ends; FA4 is the Python package flash-attn-4. Everybody's gradients follow from their own forward pass, which is not
timed; autograd's own work is, for everybody alike. `deterministic`: the same bits every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .measure import OURS, Cell, Trial, normal

TITLE = "Attention backward, bf16"
KEY = ("batch", "heads", "key_heads", "n", "dim", "causal", "deterministic")
SIZES = {
    64: ((16, 32, 32, 1024), (4, 32, 32, 4096), (1, 32, 32, 16384)),
    128: ((16, 16, 16, 1024), (4, 16, 16, 4096), (1, 16, 16, 16384), (1, 64, 8, 4096), (1, 64, 8, 16384)),
    256: ((16, 8, 8, 1024), (4, 8, 8, 4096), (1, 8, 8, 16384)),
}  # head dimension: batch, heads, key heads, n
_CHECKED = 2  # key heads of the first and the last batch that are compared with float64
ERROR_LIMIT = 1.5  # times cuDNN's
_ROWS = 1024  # of float64 scores at a time
_IN_ORDER = ("FA4",)  # the peers that add in one order, too, where it is asked for


def cells() -> list[Cell]:
    """Every cell, the full mask of a head dimension before the causal one; in any order of additions, then in one."""
    return [
        Cell(
            {
                "batch": b,
                "heads": h,
                "key_heads": g,
                "n": n,
                "dim": d,
                "causal": causal,
                "deterministic": deterministic,
            },
            10.0 * b * h * n * n * d * (0.5 if causal else 1),
        )
        for d, sizes in SIZES.items()
        for causal in (False, True)
        for deterministic in (False, True)
        for b, h, g, n in sizes
    ]


def parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows to be summed up together: in any order of additions beside everybody, in one beside who does the
    same.
    """
    in_order = [
        {**row, "peers": {name: peer for name, peer in row["peers"].items() if name in _IN_ORDER}}
        for row in rows
        if row["deterministic"]
    ]
    return {TITLE: [dict(row) for row in rows if not row["deterministic"]], f"{TITLE}, deterministic": in_order}


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    panel = f"head dimension {facts['dim']}, {'causal' if facts['causal'] else 'full'}"
    shared = "" if facts["heads"] == facts["key_heads"] else f", {facts['heads']} over {facts['key_heads']}"
    return panel + (", deterministic" if facts["deterministic"] else ""), f"{facts['n']}{shared}"


def gradients(forward: Callable[..., Any], operands: Any, up: Any) -> Callable[[], Any]:
    """The backward pass of a forward pass that has run, from the gradient `up` of its result."""
    import torch

    @cache
    def graph() -> tuple[Any, Any]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in operands]
            return forward(*leaves), leaves

    def run() -> Any:
        out, leaves = graph()
        return torch.autograd.grad(out, leaves, up, retain_graph=True)

    return run


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and cuDNN; with `everybody` also FA2 and, where it is installed, FA4."""
    b, h, g, n, d, causal, deterministic = (cell.facts[name] for name in KEY)
    q, do = normal(b, h, n, d), normal(b, h, n, d)
    k, v = normal(b, g, n, d), normal(b, g, n, d)

    runs = {OURS: gradients(lambda *x: pk.attention(*x, causal=causal, deterministic=deterministic), (q, k, v), do)}
    for name, backend in {"cuDNN": "CUDNN_ATTENTION", **({"FA2": "FLASH_ATTENTION"} if everybody else {})}.items():
        runs[name] = gradients(lambda q, k, v, via=backend: torch_attention(via, q, k, v, causal), (q, k, v), do)
    if everybody:
        if fa4 := peers.function("flash_attn.cute", "flash_attn_func"):
            swapped = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
            back = gradients(
                lambda *x: peers.first(fa4(*x, causal=causal, deterministic=deterministic)),
                swapped,
                do.transpose(1, 2).contiguous(),
            )
            runs["FA4"] = lambda: [x.transpose(1, 2) for x in back()]
    places = sorted({(0, 0), (b - 1, g - 1)})[:_CHECKED]
    exact = cache(lambda: [float64(q, k, v, do, at, causal) for at in places])

    def error(found: Any) -> float:
        worst = 0.0
        for (batch, head), wanted in zip(places, exact(), strict=True):
            heads = slice(head * (h // g), (head + 1) * (h // g))
            parts = found[0][batch, heads], found[1][batch, head], found[2][batch, head]
            for x, y in zip(parts, wanted, strict=True):
                relative = float((x.double() - y).norm() / y.norm())
                worst = max(worst, relative if relative == relative else float("inf"))
        return worst

    return Trial(runs, error, limit)


def limit(errors: Mapping[str, float]) -> float:
    """How large an error may be beside cuDNN's."""
    return ERROR_LIMIT * errors["cuDNN"] if "cuDNN" in errors else 1e-2


def torch_attention(backend: str, q: Any, k: Any, v: Any, causal: bool) -> Any:
    """torch's attention by one back end and no other, with heads that share keys."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        grouped = q.shape[1] != k.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


def float64(q: Any, k: Any, v: Any, do: Any, at: tuple[int, int], causal: bool) -> tuple[Any, Any, Any]:
    """dq of the heads that share one key head, its dk and dv, in float64, some rows at a time."""
    import torch

    (batch, head), size, scale = at, q.shape[1] // k.shape[1], q.shape[3] ** -0.5
    key, value = k[batch, head].double(), v[batch, head].double()
    dq, dk, dv = [], torch.zeros_like(key), torch.zeros_like(value)
    for h in range(head * size, (head + 1) * size):
        for first in range(0, q.shape[2], _ROWS):
            rows = slice(first, first + _ROWS)
            query, up = q[batch, h, rows].double(), do[batch, h, rows].double()
            score = query @ key.T * scale
            if causal:
                row = torch.arange(first, first + score.shape[0], device=q.device)
                score.masked_fill_(torch.arange(key.shape[0], device=q.device) > row[:, None], -torch.inf)
            weight = torch.softmax(score, -1)
            slope = up @ value.T
            slope = weight * (slope - (weight * slope).sum(-1, keepdim=True)) * scale
            dq.append(slope @ key)
            dk += slope.T @ query
            dv += weight.T @ up
    return torch.cat(dq).view(size, -1, q.shape[3]), dk, dv
