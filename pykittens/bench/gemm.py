"""Matrix products: bf16 by rows (a @ b), and 8-bit floats with one scale for each operand, beside cuBLAS and quack.

Operations: 2 * m * n * k. cuBLAS is torch.matmul, and torch._scaled_mm (fast accumulation) for 8-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Matrix products"
KEY = ("m", "n", "k", "dtype")
SHAPES = (
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (16384, 16384, 16384),
    (8192, 28672, 8192),
    (8192, 8192, 28672),
    (16384, 4096, 4096),
    (2048, 8192, 8192),
    (512, 8192, 8192),
    (64, 8192, 8192),
)
FP8 = ((4096, 4096, 4096), (8192, 8192, 8192))
_CHECKED = 64  # rows that are compared with float64
ERROR_LIMIT = 1.5  # times cuBLAS's


def cells() -> list[Cell]:
    """The bf16 shapes, then those of 8-bit floats."""
    shapes = [(*s, "bf16") for s in SHAPES] + [(*s, "e4m3") for s in FP8]
    return [Cell(dict(zip(KEY, s, strict=True)), 2.0 * s[0] * s[1] * s[2]) for s in shapes]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return str(facts["dtype"]), f"{facts['m']} x {facts['n']} x {facts['k']}"


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and cuBLAS; with `everybody` also quack, where it is installed."""
    import torch

    m, n, k, dtype = (cell.facts[name] for name in KEY)
    a, b = normal(m, k, dtype=torch.float32), normal(k, n, dtype=torch.float32)
    runs: dict[str, Callable[[], Any]]
    if dtype == "bf16":
        a, b, scale = a.bfloat16(), b.bfloat16(), 1.0
        runs = {OURS: lambda: pk.matmul(a, b), "cuBLAS": lambda: a @ b}
        if everybody and (quack := peers.function("quack.gemm_interface", "gemm")):
            runs["quack"] = lambda: quack(a, b, tuned=False)
    else:
        (a, scale_a), (b, scale_b) = quantised(a), quantised(b)
        b = b.T.contiguous().T  # by columns, as the tensor cores want 8-bit operands
        scale = float(scale_a) * float(scale_b)
        runs = {
            OURS: lambda: pk.matmul(a, b, scale_a=scale_a, scale_b=scale_b),
            "cuBLAS": lambda: torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=True),
        }
    rows = torch.linspace(0, m - 1, min(m, _CHECKED), device=a.device).long()
    exact = cache(lambda: a[rows].double() @ b.double() * scale)

    def error(out: Any) -> float:
        return row_error(out[rows], exact()) if torch.isfinite(out).all() else float("inf")

    return Trial(runs, error, lambda errors: ERROR_LIMIT * errors["cuBLAS"] if "cuBLAS" in errors else 1e-2)


def quantised(x: Any) -> tuple[Any, Any]:
    """A tensor as 8-bit floats, and the scale that gives it back."""
    import torch

    scale = x.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return (x / scale).to(torch.float8_e4m3fn), scale.float().reshape(1)
