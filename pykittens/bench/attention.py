"""Attention forward: the lengths, head dimensions and masks that other kernels have been measured with on an H200.

Operations: 4 * batch * heads * n * n * head dimension, half of that when causal. FA2 and cuDNN are torch's own back
ends; FA4 is the Python package flash-attn-4, which takes (batch, n, heads, head dimension).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Attention forward, bf16"
KEY = ("batch", "heads", "n", "dim", "causal")
SIZES = {
    64: ((16, 16, 768), (16, 32, 1024), (16, 16, 3072), (4, 32, 4096), (4, 16, 12288), (1, 32, 16384)),
    128: ((16, 16, 768), (16, 16, 1024), (16, 16, 3072), (4, 16, 4096), (4, 16, 12288), (1, 16, 16384)),
    256: ((16, 8, 1024), (4, 8, 4096), (1, 8, 16384)),
}  # head dimension: batch, heads, n
_CHECKED = 4  # pairs of batch and head that are compared with float64
ERROR_LIMIT = 1.5  # times cuDNN's


def cells() -> list[Cell]:
    """Every cell, the full mask of a head dimension before the causal one."""
    return [
        Cell(
            {"batch": b, "heads": h, "n": n, "dim": d, "causal": causal},
            4.0 * b * h * n * n * d * (0.5 if causal else 1),
        )
        for d, sizes in SIZES.items()
        for causal in (False, True)
        for b, h, n in sizes
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return f"head dimension {facts['dim']}, {'causal' if facts['causal'] else 'full'}", str(facts["n"])


def trial(cell: Cell, everybody: bool, ours: Mapping[str, Callable[..., Callable[[], Any]]] | None = None) -> Trial:
    """PyKittens and cuDNN; with `everybody` also FA2 and, where it is installed, FA4.

    `ours` stands for PyKittens: names, and functions of (q, k, v, causal) that give what to run.
    """
    import torch

    b, h, n, d, causal = (cell.facts[name] for name in KEY)
    q, k, v = (normal(b, h, n, d) for _ in range(3))
    runs: dict[str, Callable[[], Any]]
    if ours is None:
        runs = {OURS: lambda: pk.attention(q, k, v, causal=causal)}
    else:
        runs = {name: make(q, k, v, causal) for name, make in ours.items()}
    runs["cuDNN"] = lambda: torch_attention("CUDNN_ATTENTION", q, k, v, causal)
    if everybody:
        runs["FA2"] = lambda: torch_attention("FLASH_ATTENTION", q, k, v, causal)
        if fa4 := peers.function("flash_attn.cute", "flash_attn_func"):
            swapped = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
            runs["FA4"] = lambda: peers.first(fa4(*swapped, causal=causal)).transpose(1, 2)
    places = sorted({(i * (b * h - 1)) // (_CHECKED - 1) for i in range(_CHECKED)})
    chosen = [(i // h, i % h) for i in places]
    exact = cache(lambda: [float64(q[at], k[at], v[at], causal) for at in chosen])

    def error(out: Any) -> float:
        if not torch.isfinite(out).all():
            return float("inf")
        return max(row_error(out[at], expected) for at, expected in zip(chosen, exact(), strict=True))

    return Trial(runs, error, lambda errors: ERROR_LIMIT * errors["cuDNN"] if "cuDNN" in errors else 1e-2)


def torch_attention(backend: str, q: Any, k: Any, v: Any, causal: bool) -> Any:
    """torch's attention by one back end and no other."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def float64(q: Any, k: Any, v: Any, causal: bool, rows: int = 1024) -> Any:
    """Attention of one head in float64, some rows at a time."""
    import torch

    n, parts = q.shape[0], []
    for first in range(0, n, rows):
        score = q[first : first + rows].double() @ k.double().T * q.shape[1] ** -0.5
        if causal:
            row = torch.arange(first, first + score.shape[0], device=q.device)
            score.masked_fill_(torch.arange(n, device=q.device) > row[:, None], -torch.inf)
        parts.append(torch.softmax(score, -1) @ v.double())
    return torch.cat(parts)
