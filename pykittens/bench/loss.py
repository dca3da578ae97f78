"""Losses: cross-entropy of logits, and of a linear layer whose logits are never whole, forward and backward together.

Cross-entropy of logits: bytes of a read of the logits and a write of their gradient over time, beside a device copy of
as many. Of a linear layer: 8 rows * hidden * vocabulary operations, which is what a forward pass, logits once more and
two products of gradients take; whoever keeps the logits does with 6. `memory` is what a run holds at most beside its
operands and its results. Autograd's own work is counted for everybody; upstream gradients are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pykittens as pk

from . import measure as measuring
from . import peers
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of

TITLE = "Cross-entropy, loss and gradients, bf16"
KEY = ("kind", "rows", "hidden", "vocabulary")
TRAFFIC = 1 << 30
VOCABULARIES = (32000, 50257, 50304, 131072)
LINEAR = ((8192, 4096, 131072), (8192, 4096, 32000), (8192, 768, 50257))  # rows, hidden, vocabulary
CHUNK = 1024  # rows of logits that "torch, chunked" has at a time
SAMPLE = 64  # rows, and columns, that are compared with float64
ERROR_LIMIT = 1.5  # times torch's


def cells() -> list[Cell]:
    """Logits of every vocabulary, then linear layers."""
    found = []
    for n in VOCABULARIES:
        rows = TRAFFIC // (4 * n)
        facts = {"kind": "logits", "rows": rows, "hidden": 0, "vocabulary": n}
        found.append(Cell(facts, 4.0 * rows * n, "GB/s"))
    for m, h, v in LINEAR:
        found.append(Cell({"kind": "linear", "rows": m, "hidden": h, "vocabulary": v}, 8.0 * m * h * v))
    return found


def parts(rows: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows to be summed up together."""
    words = {"logits": TITLE, "linear": f"{TITLE}, of a linear layer"}
    return {title: [dict(row) for row in rows if row["kind"] == kind] for kind, title in words.items()}


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    linear = facts["kind"] == "linear"
    return ("a linear layer" if linear else "logits"), f"{facts['hidden']} x " * linear + str(facts["vocabulary"])


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and torch, and of logits a device copy; with `everybody` also torch.compile, Liger's Triton, quack."""
    import torch

    m, h, v = (cell.facts[name] for name in KEY[1:])
    targets = torch.randint(v, (m,), device=measuring.DEVICE)
    plain: Callable[..., Any]
    ours: Callable[..., Any]
    if h:
        operands = [normal(m, h), normal(v, h) * h**-0.5]
        ours, plain = pk.linear_cross_entropy, whole_logits
    else:
        operands = [normal(m, v)]
        ours, plain = pk.cross_entropy, torch.nn.functional.cross_entropy
    runs = {OURS: differentiated(ours, operands, targets), "torch": differentiated(plain, operands, targets)}
    if not h:
        runs["copy"] = copy_of(int(cell.work))
    if everybody:
        runs["torch.compile"] = differentiated(torch.compile(plain, dynamic=False), operands, targets)
        if h:
            runs["torch, chunked"] = lambda: chunked(operands[0], operands[1], targets)
        for name, function in others(bool(h)).items():
            # Liger's writes the gradient of logits over them, of its own here: only its first run has logits to read.
            runs[name] = differentiated(function, operands if h else [operands[0].clone()], targets)
    exact = cache(lambda: (sample := places(operands, targets)) and float64(operands, targets, sample))

    def error(result: Any) -> float:
        """The largest error of the loss and of rows of gradients, relative to float64."""
        loss, *gradients = result
        wanted, *rows = exact()
        parts = [row_error(loss.view(1), wanted.view(1))]
        sample = places(operands, targets)
        for found, right, some in zip(gradients, rows, sample, strict=True):
            parts.append(row_error(found[some], right))
        return max(parts)

    return Trial(runs, error, limit, frozenset({"copy"}), memory=bool(h) and measuring.DEVICE == "cuda")


def limit(errors: Mapping[str, float]) -> float:
    """How large an error may be beside torch's."""
    return ERROR_LIMIT * errors["torch"] if "torch" in errors else 1e-2


def differentiated(function: Callable[..., Any], operands: list[Any], targets: Any) -> Callable[[], Any]:
    """What gives the loss and the gradients of the operands."""
    import torch

    def run() -> Any:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in operands]
            loss = function(*leaves, targets)
            return loss.detach(), *torch.autograd.grad(loss, leaves)

    return run


def whole_logits(x: Any, weight: Any, targets: Any) -> Any:
    """torch's own, with all logits."""
    import torch

    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight), targets)


def chunked(x: Any, weight: Any, targets: Any) -> Any:
    """torch's own, some rows at a time; the gradient of the weight is added up in its dtype."""
    import torch

    total, dx, dweight = 0.0, [], torch.zeros_like(weight)
    for rows, wanted in zip(x.split(CHUNK), targets.split(CHUNK), strict=True):
        with torch.enable_grad():
            leaves = [rows.detach().requires_grad_(), weight.detach().requires_grad_()]
            loss = whole_logits(leaves[0], leaves[1], wanted) * (len(wanted) / len(targets))
            found = torch.autograd.grad(loss, leaves)
        total = total + loss.detach()
        dx.append(found[0])
        dweight += found[1]
    return total, torch.cat(dx), dweight


def others(linear: bool) -> dict[str, Callable[..., Any]]:
    """Who is installed."""
    found: dict[str, Callable[..., Any]] = {}
    if linear:
        if liger := peers.function(
            "liger_kernel.ops.fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction"
        ):
            found["Liger"] = lambda x, weight, targets: peers.first(liger.apply(x, weight, targets))
        return found
    if liger := peers.function("liger_kernel.ops.cross_entropy", "LigerCrossEntropyFunction"):
        found["Liger"] = lambda x, targets: peers.first(
            liger.apply(x, targets, None, -100, 0.0, 0.0, "mean", None, False)
        )
    if quack := peers.function("quack", "cross_entropy"):
        found["quack"] = lambda x, targets: quack(x, targets, reduction="mean")
    return found


def places(operands: list[Any], targets: Any) -> list[Any]:
    """Which rows of each operand's gradient are compared: targets' columns among those of a weight."""
    import torch

    m = operands[0].shape[0]
    some = torch.linspace(0, m - 1, min(m, SAMPLE), device=targets.device).long()
    if len(operands) == 1:
        return [some]
    v = operands[1].shape[0]
    spread = torch.linspace(0, v - 1, SAMPLE // 2, device=targets.device).long()
    return [some, torch.cat((targets[: SAMPLE // 2], spread))]


def float64(operands: list[Any], targets: Any, sample: list[Any]) -> list[Any]:
    """The loss and the rows of the gradients in float64, some rows of logits at a time."""
    import torch

    total, m = torch.zeros((), dtype=torch.float64, device=targets.device), len(targets)
    weight = operands[1].double() if len(operands) > 1 else None
    rows, columns = [], 0.0
    wanted = torch.zeros(m, dtype=torch.bool, device=targets.device).index_fill_(0, sample[0], True)
    for first in range(0, m, CHUNK):
        part = slice(first, first + CHUNK)
        x, hot = operands[0][part].double(), targets[part]
        logits = x if weight is None else x @ weight.T
        total += torch.nn.functional.cross_entropy(logits, hot, reduction="sum")
        slope = torch.softmax(logits, -1)
        slope[torch.arange(len(hot), device=hot.device), hot] -= 1
        mine = slope[wanted[part]] / m
        rows.append(mine if weight is None else mine @ weight)
        if weight is not None:
            columns = columns + slope[:, sample[1]].T @ x / m
    return [total / m, torch.cat(rows), *([] if weight is None else [columns])]
