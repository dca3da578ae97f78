"""Causal linear attention with a decay for each head that changes with time, forward and backward.

    S_i = exp(g_i) S_(i - 1) + v_i k_i          o_i = scale * S_i q_i          for each batch and head, g_i <= 0

Mamba-2 (Dao and Gu, "Transformers are SSMs" (2024)), simple GLA, and with constant g RetNet and Lightning attention. In
chunks of 64 rows, with c_i the sum of g from the beginning of the chunk to row i, it is `linear_attention.py` with
c_i - c_j in the place of g (i - j): differences of logarithms, never quotients of exponentials. `accumulate` makes the
c_i, base 2, once for all passes. A g below -160 in base 2 counts as that: its power is 0 in float32, and sums of 64
such are known within 2^-10, so that a row which forgets everything does not blur the decays behind it.

Gradients (`linear_attention_backward.py`): dq, dk and dv are three such attentions; that of g_i is
t_i = <exp(g_i) G_i, S_(i - 1)>: <dS_n, S_n> behind the last row, and t_i = t_(i + 1) + q_i . dq_i - k_i . dk_i.

log_decay: float32 (batch, heads, n). Shapes and dtypes of all else are those of linear attention.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

from ..interop import arrays
from .arguments import KernelCall
from .linear_attention import CHUNK, CONFIGS, LOG2E, Config, attend
from .linear_attention_backward import lined, passes
from .sequences import dense, operands, readable

WARPS = 4
LEAST = -160.0  # of a decay's logarithm, base 2
RUN = 1024  # rows that a warp adds up at once


@pk.kernel(warps=WARPS, grid=lambda sums, **_: (pk.cdiv(sums.cols, CHUNK * WARPS), sums.rows, sums.depth))
def accumulate(log_decay: Annotated[Tensor, f32, "B", "H", "N"], sums: Annotated[Tensor, f32, "B", "H", "M"]) -> None:
    """sums = log_decay, base 2, summed up from the beginning of each chunk; M is n in whole chunks."""
    at = (pk.block_index.z, pk.block_index.y, pk.block_index.x * WARPS + warp.index)
    g = warp.load_vec(log_decay, at, length=CHUNK)
    warp.store(sums, pk.maximum(g * LOG2E, LEAST).cumsum(), at)


@pk.kernel(warps=1, grid=lambda queries, **_: (queries.depth, queries.batch))
def add_back(
    queries: Annotated[Tensor, f32, "B", "H", "P", "M"],
    keys: Annotated[Tensor, f32, "B", "H", "P", "M"],
    after: Annotated[Tensor, f32, "B", "H", "L"],
    dafter: Annotated[Tensor, f32, "B", "H", "L"],
    o: Annotated[Tensor, f32, "B", "H", "N"],
) -> None:
    """o_i = <dafter, after> + sum_{j >= i} (queries_j - keys_j) of each head; `after` and `dafter` may be None."""
    head, batch = pk.block_index.x, pk.block_index.y
    carry, runs = pk.var(f32, 0.0), pk.cdiv(queries.cols, RUN)
    if dafter is not None:
        last = warp.full_vec(f32, RUN, 0.0, width=4)
        for i in pk.range(pk.cdiv(after.cols, RUN)):
            x, y = (warp.load_vec(state, (batch, head, i), length=RUN) for state in (after, dafter))
            last[:] = pk.fma(x, y, last)
        carry.set(last.sum())
    for i in pk.range(runs - 1, -1, -1):
        change = warp.full_vec(f32, RUN, 0.0, width=4)
        for part in pk.range(queries.rows):
            at = (batch, head, part, i)
            change += warp.load_vec(queries, at, length=RUN) - warp.load_vec(keys, at, length=RUN)
        warp.store(o, change.cumsum(reverse=True) + carry, (batch, head, i))
        carry.set(carry + change.sum())


def summed(log_decay: Any) -> Any:
    """The sums of log_decay in each chunk."""
    batch, heads, n = (info := arrays.describe(log_decay)).shape
    sums = arrays.empty(info.kind, (batch, heads, -(-n // CHUNK) * CHUNK), "f32", info.device)
    accumulate(log_decay, sums)
    return sums


class Forward:
    """The launches of the forward pass as one: called as a kernel is."""

    def __call__(
        self, q: Any, k: Any, v: Any, log_decay: Any, state: Any, o: Any, after: Any, scale: float, *, config: Config
    ) -> None:
        attend(q, k, v, o, None, summed(log_decay), state, after, None, None, scale, config=config)


class Backward(Forward):
    """Those of the backward pass."""

    def __call__(  # type: ignore[override]
        self,
        do: Any,
        dafter: Any,
        q: Any,
        k: Any,
        v: Any,
        log_decay: Any,
        state: Any,
        after: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        dlog_decay: Any,
        dstate: Any,
        scale: float,
    ) -> None:
        gradients = (dq, dk, dv, dstate)
        queries, keys = passes(do, dafter, q, k, v, None, summed(log_decay), state, gradients, scale, None, True)
        add_back(queries, keys, lined(after if dafter is not None else None), lined(dafter), dlog_decay)


FORWARD, BACKWARD = Forward(), Backward()


def call(
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    o: Any,
    after: Any,
    scale: float,
    config: Config | None = None,
) -> KernelCall:
    """What writes o, and the state after the last row into `after` unless that is None."""
    q, k, v, state = operands("gated linear attention", q, k, v, state)
    given = (q, k, v, dense(log_decay, "log_decay"), state, o, after, scale)
    return KernelCall(FORWARD, given, {"config": config or CONFIGS[q.shape[-1]]})  # type: ignore[arg-type]


def call_backward(
    do: Any, dafter: Any, q: Any, k: Any, v: Any, log_decay: Any, state: Any, after: Any, *made: Any, scale: float
) -> KernelCall:
    """What writes the gradients of q, k, v, log_decay and state, of which the last may be None."""
    q, k, v, _ = operands("gated linear attention", q, k, v, None)
    do, log_decay = readable(do, "do"), dense(log_decay, "log_decay")
    if scale == 0:  # only the gradient of the last state counts; and states are divided by the scale
        do, scale = arrays.empty_like(do), 1.0
        arrays.fill(do, 0.0)
    dafter, state, after = (dense(x, name) for name, x in (("dafter", dafter), ("state", state), ("after", after)))
    return KernelCall(BACKWARD, (do, dafter, q, k, v, log_decay, state, after, *made, scale), {})  # type: ignore[arg-type]


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray,
    *,
    scale: float | None = None,
    state: np.ndarray | None = None,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """(o, state) by the recurrence, row by row, in float64 (or another dtype)."""
    q, k, v, decay = (x.astype(dtype) for x in (q, k, v, np.exp(log_decay.astype(dtype))))
    batch, heads, n, d = q.shape
    state = np.zeros((batch, heads, v.shape[-1], d), dtype) if state is None else state.astype(dtype)
    o = np.empty(v.shape, dtype)
    with np.errstate(all="ignore"):
        for i in range(n):
            state = state * decay[:, :, i, None, None] + v[:, :, i, :, None] * k[:, :, i, None, :]
            o[:, :, i] = (state @ q[:, :, i, :, None])[..., 0] * dtype(d**-0.5 if scale is None else scale)
    return o, state
