"""Gradients of the row kernels: bytes that must move over time, beside a device copy of as many and torch.compile.

At least 1 GiB moves in every cell: each operand that the derivative needs is read once, each gradient of a matrix is
written once. Everybody's gradients follow from their own forward pass, which is not timed; autograd's own work is, for
everybody alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of, rotated

TITLE = "Gradients of memory-bound kernels, bf16"
KEY = ("kind", "width")
TRAFFIC = 1 << 30
WIDTHS = (1024, 2048, 4096, 8192, 16384)
MOVED = {"layernorm": 3, "rmsnorm": 3, "softmax": 3, "swiglu": 5, "geglu": 5, "rotary": 2}  # matrices read or written
GATES = (1024, 11008, 16384)
ROTARY = ((16, 4096, 64), (16, 16384, 128))  # heads, n, head dimension
ERROR_LIMIT = 1.5  # times torch's


def cells() -> list[Cell]:
    """Every kernel at every width; rotary embedding at its head dimensions."""
    found = [
        (kind, width)
        for kind in MOVED
        for width in (
            [d for _, _, d in ROTARY] if kind == "rotary" else GATES if kind in ("swiglu", "geglu") else WIDTHS
        )
    ]
    return [
        Cell({"kind": kind, "width": width}, float(_rows(kind, width) * width * 2 * MOVED[kind]), "GB/s")
        for kind, width in found
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return str(facts["kind"]), str(facts["width"])


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a device copy; with `everybody` also torch.compile and, where it is installed, quack."""
    import torch

    import pykittens as pk

    kind, width = cell.facts["kind"], cell.facts["width"]
    functional, x = torch.nn.functional, normal(_rows(kind, width), width)
    operands, constants = [x], []
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    theirs: Callable[..., Any] | None = None
    if kind == "layernorm":
        operands += [normal(width), normal(width)]
        ours, plain = pk.layernorm, lambda x, w, b: functional.layer_norm(x, (width,), w, b, 1e-5)
    elif kind == "rmsnorm":
        operands += [normal(width)]
        ours, plain = pk.rmsnorm, lambda x, w: functional.rms_norm(x, (width,), w, 1e-6)
        theirs = peers.function("quack", "rmsnorm")
    elif kind == "softmax":
        ours, plain, theirs = pk.softmax, lambda x: torch.softmax(x, -1), peers.function("quack", "softmax")
    elif kind == "rotary":
        heads, n, d = next(r for r in ROTARY if r[2] == width)
        angle = normal(n, d // 2, dtype=torch.float32)
        operands, constants = [x.view(-1, heads, n, d)], [angle.cos().bfloat16(), angle.sin().bfloat16()]
        ours, plain = pk.rotary, rotated
    else:
        operands += [normal(*x.shape)]
        act = functional.silu if kind == "swiglu" else functional.gelu
        ours, plain = pk.swiglu if kind == "swiglu" else pk.geglu, lambda gate, up: act(gate) * up
    do = normal(*operands[0].shape)

    def gradients(function: Callable[..., Any], dtype: Any = None) -> Callable[[], Any]:
        """The backward pass of a forward pass that has run."""

        @cache
        def graph() -> tuple[Any, Any]:
            with torch.enable_grad():
                leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in operands]
                return function(*leaves, *(x.to(dtype or x.dtype) for x in constants)), leaves

        def run() -> Any:
            out, leaves = graph()
            return torch.autograd.grad(out, leaves, do.to(out.dtype), retain_graph=True)

        return run

    runs: dict[str, Callable[[], Any]] = {OURS: gradients(ours), "copy": copy_of(int(cell.work))}
    if everybody:
        config: Any = import_module("torch._functorch.config")
        config.donated_buffer = False  # the graph is kept
        runs["torch.compile"] = gradients(torch.compile(plain, dynamic=False))
        if theirs:
            runs["quack"] = gradients(theirs)
    exact = cache(lambda: [x.cpu() for x in gradients(plain, torch.float64)()])
    torchs = cache(lambda: error(gradients(plain)()))

    def error(found: Any) -> float:
        """The largest of rows' errors, relative to float64; of a weight's gradient as a whole."""
        return max(row_error(x, right.to(x.device)) for x, right in zip(found, exact(), strict=True))

    def limit(errors: Mapping[str, float]) -> float:
        return ERROR_LIMIT * torchs()

    return Trial(runs, error, limit, frozenset({"copy", "torch.compile", "quack"}))


def _rows(kind: str, width: int) -> int:
    """Rows that make 1 GiB of traffic; whole sequences for rotary embedding."""
    unit = next(h * n for h, n, d in ROTARY if d == width) if kind == "rotary" else 1
    return -(-TRAFFIC // (2 * MOVED[kind] * width * unit)) * unit
