"""What the kernels compute, in float64 on the CPU, and how far from it a result lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    causal: bool = False,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> Array:
    """softmax(q @ k.T * scale) @ v for each batch and head; arrays are (batch, heads, rows, d).

    causal: row i of n sees the keys up to i + m - n; a row that sees none is zero. Those of a window are from
    i + m - n - left to i + m - n + right; scores become softcap * tanh(score / softcap); exp(sink) of a head is added
    to its sums. NaN and infinity pass as the formula has it. `progress` is told, now and then, which fraction is done.
    """
    (batch, heads, n, _), m = q.shape, k.shape[2]
    out = np.empty((*q.shape[:3], v.shape[3]))
    step = max(1, 2**22 // m)  # rows at a time: 32 MiB of scores
    for b, h, first in ((b, h, i) for b in range(batch) for h in range(heads) for i in range(0, n, step)):
        rows = slice(first, min(first + step, n))
        with np.errstate(invalid="ignore", over="ignore"):
            score = q[b, h, rows].astype(np.float64) @ k[b, h].astype(np.float64).T * scale
            if softcap is not None:
                score = softcap * np.tanh(score / softcap)
            score[hidden(np.arange(n)[rows, None] + (m - n), m, causal, left, right)] = -np.inf
            sink = -np.inf if sinks is None else float(sinks[h])
            peak = np.maximum(score.max(axis=1, keepdims=True), sink)
            peak = np.where(peak == -np.inf, 0, peak)
            weight = np.exp(score - peak)
            total = weight.sum(axis=1, keepdims=True) + np.exp(sink - peak)
            out[b, h, rows] = weight @ v[b, h].astype(np.float64) / np.where(total == 0, 1, total)
        progress(((b * heads + h) * n + rows.stop) / (batch * heads * n))
    return out


def hidden(diagonal: Array, m: int, causal: bool, left: int | None, right: int | None) -> Array:
    """Which of m keys a query does not see that stands at key `diagonal`."""
    keys = np.arange(m)
    hidden = keys > diagonal if causal else np.zeros(np.broadcast_shapes(diagonal.shape, keys.shape), bool)
    if right is not None:
        hidden = hidden | (keys > diagonal + right)
    if left is not None:
        hidden = hidden | (keys < diagonal - left)
    return hidden


def attention_backward(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    causal: bool = False,
    dlse: Array | None = None,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> tuple[Array, ...]:
    """(o, lse, dq, dk, dv): attention, the log-sum-exp of its rows, and the gradients of sum(o * do) + sum(lse * dlse);
    with sinks, also theirs.

    k and v may have fewer heads, each shared by as many of q's in a row; their gradients are then sums.
    """
    batch, heads, n, d = q.shape
    (groups, m), size = k.shape[1:3], q.shape[1] // k.shape[1]
    do, q, k, v = (x.astype(np.float64) for x in (do, q, k, v))
    wide_k, wide_v = (x.repeat(size, 1) for x in (k, v))
    score, steep = q @ wide_k.swapaxes(2, 3) * scale, np.ones(())
    if softcap is not None:
        score = softcap * np.tanh(score / softcap)
        steep = 1 - (score / softcap) ** 2
    score[..., hidden(np.arange(n)[:, None] + (m - n), m, causal, left, right)] = -np.inf
    sink = np.full((heads, 1, 1), -np.inf) if sinks is None else sinks.astype(np.float64)[:, None, None]
    peak = np.maximum(score.max(axis=3, keepdims=True), sink)
    seen = np.where(peak == -np.inf, 0, peak)
    with np.errstate(divide="ignore"):
        weight = np.exp(score - seen)
        total = weight.sum(axis=3, keepdims=True) + np.exp(sink - seen)
        lse = (np.log(total) + seen)[..., 0]
    weight /= np.where(total == 0, 1, total)
    o = weight @ wide_v
    delta = (do * o).sum(3) - (0 if dlse is None else dlse)
    slope = weight * (do @ wide_v.swapaxes(2, 3) - delta[..., None]) * steep * scale
    dk, dv = ((x.swapaxes(2, 3) @ y).reshape(batch, groups, size, m, -1).sum(2) for x, y in ((slope, q), (weight, do)))
    dsinks = () if sinks is None else (-(np.exp(sink[..., 0] - lse) * delta).sum((0, 2)),)
    return o, lse, slope @ wide_k, dk, dv, *dsinks


def row_error(result: Array, expected: Array) -> float:
    """The largest row-wise relative error: over the last axis, |result - expected| / |expected| in the 2-norm.

    A row that should be zero counts its absolute error. NaN where the other has a number is an infinite error.
    """
    result, expected = result.astype(np.float64), expected.astype(np.float64)
    same = (result == expected) | (np.isnan(result) & np.isnan(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.linalg.norm(np.where(same, 0.0, result - expected), axis=-1)
        size = np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0), axis=-1)
        error = distance / np.where(size == 0, 1.0, size)
    return float(np.where(np.isnan(error), np.inf, error).max())
