"""Linear layers with their activation, forward and backward, beside torch's functions (cuBLAS) and torch.compile.

Operations: 2 * m * n * k forward, twice that backward (the gradients of x and of the weight); of a gate, whose weight
is stacked, n counts twice. The backward pass gives the gradients of x, weight and bias. Everybody's follow from their
own forward pass, which is not timed; autograd's own work is, for everybody alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import pykittens as pk

from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Linear layers, bf16"
KEY = ("m", "n", "k", "activation", "backward")
SHAPES = (
    (8192, 14336, 4096, "swiglu"),
    (8192, 16384, 4096, "gelu"),
    (8192, 4096, 14336, "none"),
    (2048, 4096, 4096, "silu"),
)
_CHECKED = 64  # rows, and features, that are compared with float64
ERROR_LIMIT = 1.5  # times torch's


def cells() -> list[Cell]:
    """Every shape, forward and backward."""
    return [
        Cell(
            {"m": m, "n": n, "k": k, "activation": activation, "backward": backward},
            (4.0 if backward else 2.0) * m * n * k * (2 if activation == "swiglu" else 1),
        )
        for m, n, k, activation in SHAPES
        for backward in (False, True)
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    what = "" if facts["activation"] == "none" else f", {facts['activation']}"
    return "backward" if facts["backward"] else "forward", f"{facts['m']} x {facts['n']} x {facts['k']}{what}"


def formula(x: Any, weight: Any, bias: Any, activation: str) -> Any:
    """The layer in torch's functions."""
    from torch.nn import functional as F

    z = F.linear(x, weight, bias)
    if activation == "swiglu":
        gate, up = z.chunk(2, -1)
        return F.silu(gate) * up
    return z if activation == "none" else getattr(F, activation)(z)


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and torch; with `everybody` also torch.compile."""
    import torch

    m, n, k, activation, backward = (cell.facts[name] for name in KEY)
    both = 2 * n if activation == "swiglu" else n
    x, weight, bias, dy = normal(m, k), normal(both, k) * k**-0.5, normal(both), normal(m, n)
    calls: dict[str, Callable[..., Any]] = {
        OURS: lambda x, w, b: pk.linear(x, w, b, None if activation == "none" else activation),
        "torch": lambda x, w, b: formula(x, w, b, activation),
    }
    if everybody:
        calls["torch.compile"] = torch.compile(calls["torch"], dynamic=False)
    runs = {name: gradients(call, (x, weight, bias), dy) for name, call in calls.items()}
    if not backward:
        runs = {name: partial(call, x, weight, bias) for name, call in calls.items()}
    rows = torch.linspace(0, m - 1, min(m, _CHECKED), device=x.device).long()
    features = torch.linspace(0, n - 1, min(n, _CHECKED), device=x.device).long()

    @cache
    def exact() -> tuple[Any, ...]:
        """The result of some rows; backward, the gradients of those, and of some features' weight and bias."""
        with torch.enable_grad():
            some, whole, add = x[rows].double().requires_grad_(), weight.double(), bias.double()
            y = formula(some, whole, add, activation)
            if not backward:
                return (y.detach(),)
            (dx,) = torch.autograd.grad(y, some, dy[rows].double())
            chosen = torch.cat([features, features + n]) if both > n else features
            leaves = [z[chosen].double().requires_grad_() for z in (weight, bias)]
            y = formula(x.double(), leaves[0], leaves[1], activation)
            return dx, *torch.autograd.grad(y, leaves, dy[:, features].double()), chosen

    def error(found: Any) -> float:
        if not backward:
            return row_error(found[rows], exact()[0])
        dx, dweight, dbias, chosen = exact()
        return max(
            row_error(found[0][rows], dx), row_error(found[1][chosen], dweight), row_error(found[2][chosen], dbias)
        )

    return Trial(runs, error, limit)


def gradients(forward: Callable[..., Any], operands: Any, up: Any) -> Callable[[], Any]:
    """The backward pass of a forward pass that has run."""
    import torch
    from torch._functorch import config

    @cache
    def graph() -> tuple[Any, Any]:
        with torch.enable_grad(), config.patch(donated_buffer=False):
            leaves = [x.detach().requires_grad_() for x in operands]
            return forward(*leaves), leaves

    def run() -> Any:
        out, leaves = graph()
        return torch.autograd.grad(out, leaves, up, retain_graph=True)

    return run


def limit(errors: Mapping[str, float]) -> float:
    """How large an error may be beside torch's."""
    return ERROR_LIMIT * errors["torch"] if "torch" in errors else 1e-2
