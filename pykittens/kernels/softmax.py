"""Softmax over the last axis, and its gradient.

    y = exp(x - max(x)) / sum(exp(x - max(x))),    dx = y (dy - sum(y dy))

x: (..., n) with n from 1 to 65,536, bf16, f16 or f32, rows contiguous and evenly spaced; y has its dtype, everything
between is float32. A row with a NaN, with +inf, or of -inf only is NaN, as the formula has it.

Each byte moves once: a team of warps holds its rows in registers (32 elements a thread), and several teams on a
multiprocessor keep enough bytes in flight. Terms of a row meet in shared memory: 4 bytes a warp, twice. Rows wider than
32 KiB stream: see `rows.py`. Speed beside a device copy: docs/benchmarks.md, measured by `pykittens bench memory`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, i32
from pykittens.types import DTYPES

from .arguments import KernelCall, alignment, like, machine, matrix, operand
from .row_calls import row_call
from .rows import FLOATS, WIDEST, Rows, drawn, plan, stream, walk

LOG2E = 1.4426950408889634
OPTIONS: dict[str, Any] = {
    "warps": lambda config, **_: config.warps,
    "grid": lambda x, config, **_: config.blocks(x.rows),
    "cluster": lambda config, **_: config.cluster,
    "blocks_per_sm": lambda config, **_: config.blocks_per_sm,
    "pdl": lambda counter=None, **_: counter is not None,
}


@pk.kernel(**OPTIONS)
def soften(
    x: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    y: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    counter: Annotated[Tensor, i32, 1],
    *,
    config: Any,
) -> None:
    """y = softmax(x) for each row."""
    if counter is not None:
        pk.wait_for_previous()  # which clears it
    for mine in walk(config, (x,), rows=drawn(config, counter, x.rows)):
        value = mine.cut(mine.load(x), -pk.inf)
        weight = pk.exp2((value - mine.max(value)) * LOG2E)
        mine.store(y, weight * pk.rcp(mine.sum(weight)))


@pk.kernel(**{**OPTIONS, "grid": lambda y, config, **_: config.blocks(y.rows)})
def soften_backward(
    y: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dy: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dx: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    counter: Annotated[Tensor, i32, 1],
    *,
    config: Any,
) -> None:
    """dx = y (dy - sum(y dy)) for each row."""
    if counter is not None:
        pk.wait_for_previous()  # which clears it
    for mine in walk(config, (y, dy), rows=drawn(config, counter, y.rows)):
        weight, grad = mine.load(y), mine.load(dy)
        mine.store(dx, weight * (grad - mine.dot(weight, grad)))


def call(x: Any, y: Any, config: Rows | None = None) -> KernelCall:
    """What writes softmax(x) into y; `config` overrides how rows are spread over the machine."""
    rows, info = matrix(x, "x")
    size = DTYPES[info.dtype].size
    config = config or plan(info.shape[-1], size, alignment(rows), inputs=size, **machine(info))
    return row_call(soften, (operand(rows), operand(like(y, rows))), rows.shape[0], config, info)


def call_backward(y: Any, dy: Any, dx: Any, config: Rows | None = None) -> KernelCall:
    """What writes the gradient of x, for the gradient dy of y = softmax(x), into dx."""
    (rows, info), (gradient, about) = matrix(y, "y"), matrix(dy, "dy")
    sizes = DTYPES[about.dtype].size, DTYPES[info.dtype].size
    config = config or plan_backward(info.shape[-1], *sizes, alignment(rows, gradient), **machine(info))
    operands = operand(rows), operand(gradient), operand(like(dx, rows))
    return row_call(soften_backward, operands, rows.shape[0], config, info)


def plan_backward(n: int, size: int, other: int, align: int, *, clusters: bool = True, processors: int = 132) -> Rows:
    """How rows of gradients of `size` bytes and of results of `other` bytes are divided: two rows to hold take twice
    the registers of one."""
    if 16_384 < n <= WIDEST and clusters and align == 16:
        return stream(
            n, size, size + other, 0, processors, cluster=1 << (-(-n // 12_288) - 1).bit_length(), team=16, teams=1
        )
    held, resident = (16, 20) if n <= 8192 else (32, 16)
    return plan(
        n,
        size,
        align,
        inputs=size + other,
        held=held * size,
        resident=resident,
        clusters=clusters,
        processors=processors,
    )


def reference(x: np.ndarray) -> np.ndarray:
    """softmax(x) in float64."""
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        weight = np.exp(x - x.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)


def reference_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dx in float64."""
    dy, y = dy.astype(np.float64), y.astype(np.float64)
    with np.errstate(all="ignore"):
        return y * (dy - (y * dy).sum(-1, keepdims=True))
