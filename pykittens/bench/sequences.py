"""The causal convolution, and gradients of kernels over sequences: bytes that must move over time, beside a copy.

Each operand is read once, and each result written once. Everybody's gradients follow from their own forward pass, which
is not timed; autograd's own work is, for everybody alike. Peers: flash-linear-attention, where it is installed; it
takes (batch, n, heads, head dimension).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pykittens as pk

from . import peers
from .linear import reference
from .measure import OURS, Cell, Trial, normal, row_error
from .memory import copy_of

TITLE = "Convolution, and gradients over sequences, bf16"
KEY = ("kind", "backward", "batch", "heads", "n", "dim")
CONVOLUTIONS = ((8, 4096, 4096), (1, 65536, 2048))  # batch, n, channels
LENGTHS = (1024, 4096, 16384)
WIDTH = 4
ROUNDING = 2.0**-8  # half a unit in the last place of a bf16 result


def cells() -> list[Cell]:
    """The convolution and its gradient, then those of linear attention and Based."""
    found = [
        _cell("causal_conv1d", backward, b, 1, n, c, (3 if backward else 2) * b * n * c)
        for backward in (False, True)
        for b, n, c in CONVOLUTIONS
    ]
    for kind, features in (("linear_attention", 64), ("linear_attention_decay", 64), ("based", 16)):
        found += [_cell(kind, True, 16, 16, n, 64, 16 * 16 * n * (4 * features + 3 * 64)) for n in LENGTHS]
    return found


def _cell(kind: str, backward: bool, batch: int, heads: int, n: int, dim: int, elements: int) -> Cell:
    facts = {"kind": kind, "backward": backward, "batch": batch, "heads": heads, "n": n, "dim": dim}
    return Cell(facts, 2.0 * elements, "GB/s")


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return f"{facts['kind']}{' backward' if facts['backward'] else ''}", f"{facts['batch']} x {facts['n']}"


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a device copy; with `everybody` also flash-linear-attention."""
    kind, backward, b, h, n, d = (cell.facts[name] for name in KEY)
    if kind == "causal_conv1d":
        return _convolution(cell, b, n, d, backward, everybody)
    import torch

    features = 16 if kind == "based" else 64
    operands = [normal(b, h, n, features), normal(b, h, n, features), normal(b, h, n, d)]
    if kind == "linear_attention_decay":
        operands.append(-torch.rand(h, device=operands[0].device) / 8)
    up = normal(b, h, n, d)
    if kind == "based":
        ours: Callable[..., Any] = pk.based
    else:
        ours = lambda q, k, v, g=None: pk.linear_attention(q, k, v, log_decay=g)  # noqa: E731
    runs = {OURS: _gradients(ours, operands, up), "copy": copy_of(int(cell.work))}
    if theirs := _fla(kind, *operands[3:]) if everybody else None:
        swapped = [x.transpose(1, 2).contiguous() for x in operands[:3]]
        runs["fla"] = _gradients(theirs, swapped, up.transpose(1, 2).contiguous())
    places = sorted({(0, 0), (b - 1, h - 1)})

    @cache
    def exact(dtype: Any) -> list[Any]:
        """The gradients of some heads, one after another."""
        made = []
        for at in places:
            head = [x[at[1]] if x.dim() == 1 else x[at] for x in operands]
            plain = lambda *x: _head(kind, *x, features)  # noqa: E731
            made += _gradients(plain, [x.to(dtype) for x in head[:3]] + [x.to(dtype) for x in head[3:]], up[at])()[:3]
        return made

    def errors(found: Any) -> list[float]:
        turned = [x if x.shape[1] == h else x.transpose(1, 2) for x in found[:3]]  # the peer's rows come before heads
        mine = [x[at] for at in places for x in turned]
        return [row_error(x, y) for x, y in zip(mine, exact(torch.float64), strict=True)]

    def limit(_: Mapping[str, float]) -> float:
        """1.5 times torch's own error: in float32; in bf16 of Based, whose products of features ours rounds, too."""
        torchs = exact(torch.bfloat16) if kind == "based" else exact(torch.float32)
        own = max(row_error(x, y) for x, y in zip(torchs, exact(torch.float64), strict=True))
        return 1.5 * own + 1.01 * ROUNDING * (kind != "based")

    return Trial(runs, lambda found: max(errors(found)), limit, frozenset({"copy"}))


def _fla(kind: str, *decay: Any) -> Callable[..., Any] | None:
    """flash-linear-attention's function of q, k and v, where it is installed. It gives a head's decay no gradient."""
    where, name, options = {
        "linear_attention": ("linear_attn", "chunk_linear_attn", {"normalize": False}),
        "linear_attention_decay": ("simple_gla", "chunk_simple_gla", {}),
        "based": ("based", "fused_chunk_based", {"use_norm": False}),
    }[kind]
    found = peers.function(f"fla.ops.{where}", name)
    given = options | {"scale": 0.25 if kind == "based" else 64**-0.5}
    given |= {"g_gamma": decay[0]} if decay else {}
    return found and (lambda q, k, v: peers.first(found(q, k, v, **given)))


def _head(kind: str, q: Any, k: Any, v: Any, *rest: Any) -> Any:
    """One head, from its definition, in the operands' precision."""
    import torch

    *decay, features = rest
    if not decay:
        return reference(kind, q, k, v, 0.25 if kind == "based" else features**-0.5)
    rows, parts = 1024, []
    for first in range(0, q.shape[0], rows):
        i = torch.arange(first, min(first + rows, q.shape[0]), device=q.device)
        away = (i[:, None] - torch.arange(first + len(i), device=q.device)).clamp_min(0)
        s = q[i] @ k[: first + rows].T * features**-0.5 * (away * decay[0]).exp()
        parts.append(s.tril(first) @ v[: first + rows])
    return torch.cat(parts)


def _convolution(cell: Cell, b: int, n: int, channels: int, backward: bool, everybody: bool) -> Trial:
    import torch

    operands = [normal(b, n, channels), normal(channels, WIDTH), normal(channels)]
    up = normal(b, n, channels)
    ours = lambda x, w, bias: pk.causal_conv1d(x, w, bias, activation="silu")  # noqa: E731
    functions = {OURS: ours}
    if everybody and (found := peers.function("fla.modules.convolution", "causal_conv1d")):
        functions["fla"] = lambda x, w, bias: peers.first(found(x, w, bias, activation="silu"))
    runs: dict[str, Callable[[], Any]] = {
        name: _gradients(f, operands, up) if backward else lambda f=f: f(*operands)  # type: ignore[misc]
        for name, f in functions.items()
    }
    runs["copy"] = copy_of(int(cell.work))

    def plain(x: Any, w: Any, bias: Any) -> Any:
        padded = torch.nn.functional.pad(x.transpose(1, 2), (WIDTH - 1, 0))
        z = torch.nn.functional.conv1d(padded, w[:, None], bias, groups=w.shape[0])
        return torch.nn.functional.silu(z).transpose(1, 2)

    def results(dtype: Any) -> list[Any]:
        """Of the first 64 channels."""
        some = [x[..., :64] if i != 1 else x[:64] for i, x in enumerate(operands)]
        some = [x.to(dtype) for x in some]
        return _gradients(plain, some, up[..., :64])() if backward else [plain(*some)]

    exact, single = cache(lambda: results(torch.float64)), cache(lambda: results(torch.float32))

    def error(found: Any) -> float:
        found = found if isinstance(found, (tuple, list)) else [found]
        if not all(torch.isfinite(x).all() for x in found):
            return float("inf")
        mine = [x[:64] if i == 1 else x[..., :64] for i, x in enumerate(found)]
        return max(row_error(x, y) for x, y in zip(mine, exact(), strict=True))

    def limit(_: Mapping[str, float]) -> float:
        return 1.5 * max(row_error(x, y) for x, y in zip(single(), exact(), strict=True)) + 1.01 * ROUNDING

    return Trial(runs, error, limit, frozenset({"copy"}))


def _gradients(function: Callable[..., Any], operands: list[Any], up: Any) -> Callable[[], Any]:
    """The backward pass of a forward pass that has run."""
    import torch

    @cache
    def graph() -> tuple[Any, Any]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in operands]
            return function(*leaves), leaves

    def run() -> Any:
        out, leaves = graph()
        return torch.autograd.grad(out, leaves, up.to(out.dtype), retain_graph=True)

    return run
