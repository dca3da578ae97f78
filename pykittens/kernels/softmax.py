"""Softmax over the last axis, forward.

    y = exp(x - max(x)) / sum(exp(x - max(x)))

x: (..., n) with n from 1 to 65,536, bf16, f16 or f32, rows contiguous and evenly spaced; y has its dtype, everything
between is float32. A row with a NaN, with +inf, or of -inf only is NaN, as the formula has it.

Each byte moves once: a team of warps holds its rows in registers (32 elements a thread), and several teams on a
multiprocessor keep enough bytes in flight. Terms of a row meet in shared memory: 4 bytes a warp, twice. Rows wider than
32 KiB stream: see `rows.py`. Speed beside a device copy: docs/benchmarks.md, measured by `pykittens bench memory`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import pykittens as pk
from pykittens.types import DTYPES

from .arguments import Ready, alignment, machine, matrix, remembered, result, shown
from .rows import FLOATS, Rows, plan, walk

LOG2E = 1.4426950408889634
OPTIONS: dict[str, Any] = {
    "warps": lambda config, **_: config.warps,
    "grid": lambda x, config, **_: config.blocks(x.rows),
    "cluster": lambda config, **_: config.cluster,
    "blocks_per_sm": lambda config, **_: config.blocks_per_sm,
}


@pk.kernel(**OPTIONS)
def soften(x: pk.gl(FLOATS, "M", pk.static("N")), y: pk.gl(FLOATS, "M", pk.static("N")), *, config):
    """y = softmax(x) for each row."""
    for mine in walk(config, (x,)):
        value = mine.cut(mine.load(x), -pk.inf)
        weight = pk.exp2((value - mine.max(value)) * LOG2E)
        mine.store(y, weight * pk.rcp(mine.sum(weight)))


def softmax(x: Any, *, config: Rows | None = None) -> Any:
    """softmax over the last axis of an array of any framework; `config` overrides how rows are spread over the machine."""
    return _prepare(x, config=config).run(soften, (x,))[0]


@remembered
def _prepare(x: Any, *, config: Rows | None) -> Ready:
    rows, info = matrix(x, "x")
    size = DTYPES[info.dtype].size
    config = config or plan(info.shape[-1], size, alignment(rows), inputs=size, **machine(info))
    return Ready(config, (shown(rows),), (result(info, rows),))


def reference(x: np.ndarray) -> np.ndarray:
    """softmax(x) in float64."""
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        weight = np.exp(x - x.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)
