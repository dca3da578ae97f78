"""Gradients of causal linear attention, plain or with a decay for each head: three linear attentions.

With S_i = exp(g) S_(i - 1) + v_i k_i the state and o_i = scale * S_i q_i (`linear_attention.py`), and with G_i the
gradient of S_i, which comes from the rows i and later,

    G_i = exp(g) G_(i + 1) + scale * do_i q_i        exp(g) G_(n + 1) = dS_n
    dq_i = scale * S_i^T do_i        dk_i = G_i^T v_i        dv_i = G_i k_i        dS_0 = exp(g) G_1

The transposed states are those of k and v exchanged. So dq is the linear attention of (do, v, k), and dk and dv are
those of (v, do, q) and (k, q, do) over the rows in reverse: the forward's own kernel, with the forward's precision. The
decay's gradient is the sum of t_i = <exp(g) G_i, S_(i - 1)>; as t_(i + 1) - t_i = k_i . dk_i - q_i . dq_i, it is

    dg = n <dS_n, S_n> + sum_i i (q_i . dq_i - k_i . dk_i)

of the products in float32 which the kernel hands out beside dq and dk (the sums over later rows of Yang et al., "Gated
Linear Attention Transformers" (2024), section 4, for one decay). Shapes and dtypes are the forward's.

Each pass reads three tensors and writes one, and moves at the forward's speed: `pykittens bench linear_backward`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, block, f32, warp

from ..interop import arrays
from ..interop.base import packed
from ..interop.views import View
from .arguments import KernelCall
from .column_sums import add_up
from .linear_attention import CHUNK, CONFIGS, Config, attend
from .sequences import dense, operands, readable

SIDE = 32  # of a block's part of a state
RUN = 1024  # numbers that a block adds up at once


@pk.kernel(warps=1, grid=lambda x, **_: (x.cols // SIDE, x.rows // SIDE, x.depth * x.batch))
def transpose(
    x: Annotated[Tensor, f32, "B", "H", pk.static("E"), pk.static("D")],
    o: Annotated[Tensor, f32, "B", "H", pk.static("D"), pk.static("E")],
) -> None:
    """o = the transposed states."""
    col, row, which = pk.block_index.x, pk.block_index.y, pk.block_index.z
    head, batch = which % x.depth, which // x.depth
    warp.store(o, warp.load(x, (batch, head, row, col), rows=SIDE, cols=SIDE).transpose(), (batch, head, col, row))


@pk.kernel(warps=4, grid=lambda queries, **_: (queries.depth, queries.batch))
def add_decay(
    queries: Annotated[Tensor, f32, "B", "H", "P", "M"],
    keys: Annotated[Tensor, f32, "B", "H", "P", "M"],
    after: Annotated[Tensor, f32, "B", "H", "L"],
    dafter: Annotated[Tensor, f32, "B", "H", "L"],
    o: Annotated[Tensor, f32, "B", "H"],
    n: Annotated[Scalar, pk.i32],
) -> None:
    """o = n <dafter, after> + sum_i i (queries_i - keys_i), of each head; `after` and `dafter` may be None."""
    head, batch = pk.block_index.x, pk.block_index.y
    total = block.full_vec(f32, RUN, 0.0, width=4)
    for i in pk.range(pk.cdiv(queries.cols, RUN)):
        position = (pk.iota(total) + (i * RUN + 1)).to(f32)
        for part in pk.range(queries.rows):
            at = (batch, head, part, i)
            x, y = (_run(x, at) for x in (queries, keys))
            total[:] = pk.fma(x - y, position, total)
    if dafter is not None:
        last = block.full_vec(f32, RUN, 0.0, width=4)
        for i in pk.range(pk.cdiv(after.cols, RUN)):
            last[:] = pk.fma(_run(after, (batch, head, i)), _run(dafter, (batch, head, i)), last)
        total[:] = pk.fma(last, pk.cast(n, f32), total)
    block.set(o, (batch, head), total.sum())


def _run(x: Any, at: Any) -> Any:
    return block.load_vec(x, at, length=RUN)


def passes(
    do: Any,
    dafter: Any,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    gradients: tuple[Any, Any, Any, Any],
    scale: float,
    config: Config | None,
    decays: bool,
) -> tuple[Any, Any]:
    """Launches what writes `gradients`: dq, dk, dv and, unless it is None, dstate. With `decays`, returns q . dq and
    k . dk of each row and each 64 columns, which the gradients of decays are made of.
    """
    kind, device = (info := arrays.describe(q)).kind, info.device
    (batch, heads, n, d), e = info.shape, v.shape[3]
    dq, dk, dv, dstate = gradients

    def turned(x: Any) -> Any:
        if x is None:
            return None
        o = arrays.empty(kind, (batch, heads, d, e), "f32", device)
        transpose(x, o)
        return o

    def pass_over(
        q: Any, k: Any, v: Any, o: Any, before: Any, after: Any, along: Any, reverse: bool, **order: bool
    ) -> Any:
        parts = (batch, heads, v.shape[3] // CHUNK, -(-n // CHUNK) * CHUNK)
        dots = None if along is None else arrays.empty(kind, parts, "f32", device)
        setting = {"config": config or CONFIGS[q.shape[3]], "reverse": reverse, **order}
        attend(q, k, v, o, log_decay, before, after, along, dots, scale, **setting)
        return dots

    dots: list[Any] = [None, None]
    later, begun = turned(dafter), False
    if dq is not None or decays:
        o, begun = arrays.empty_like(q) if dq is None else dq, True
        dots[0] = pass_over(do, v, k, o, turned(state), None, q if decays else None, False, first=True)
    if dk is not None or decays:
        o = arrays.empty_like(k) if dk is None else dk
        dots[1] = pass_over(v, do, q, o, later, None, k if decays else None, True, beside=begun)
    if dv is not None or dstate is not None:
        o = arrays.empty_like(v) if dv is None else dv
        pass_over(k, q, do, o, dafter, dstate, None, True, beside=begun)
    return dots[0], dots[1]


class Steps:
    """The launches as one: called as a kernel is."""

    def __call__(
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
        *,
        config: Config | None = None,
    ) -> None:
        decays = dlog_decay is not None
        gradients = (dq, dk, dv, dstate)
        queries, keys = passes(do, dafter, q, k, v, log_decay, state, gradients, scale, config, decays)
        if decays:
            info = arrays.describe(q)
            each = arrays.empty(info.kind, info.shape[:2], "f32", info.device)
            add_decay(queries, keys, lined(after if dafter is not None else None), lined(dafter), each, info.shape[2])
            add_up(each, None, dlog_decay, None)


def lined(state: Any) -> Any:
    """A dense state, or None, with the elements of each head in a line."""
    if state is None:
        return None
    batch, heads, e, d = arrays.describe(state).shape
    shape = (batch, heads, e * d)
    return View(state, shape, packed(shape))


STEPS = Steps()


def call(
    do: Any,
    dafter: Any,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    after: Any,
    *gradients: Any,
    scale: float,
    **config: Any,
) -> KernelCall:
    """What writes the gradients of q, k, v, log_decay and state; the last two may be None."""
    q, k, v, _ = operands("linear attention", q, k, v, None)
    do = readable(do, "do")
    if scale == 0:  # only the gradient of the last state counts; and states are divided by the scale
        do, scale = arrays.empty_like(do), 1.0
        arrays.fill(do, 0.0)
    dafter, state, after = (dense(x, name) for name, x in (("dafter", dafter), ("state", state), ("after", after)))
    given = (do, dafter, q, k, v, dense(log_decay, "log_decay"), state, after, *gradients, scale)
    return KernelCall(STEPS, given, config)  # type: ignore[arg-type]


def reference(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    log_decay: np.ndarray | None = None,
    scale: float | None = None,
    state: np.ndarray | None = None,
    dafter: np.ndarray | None = None,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, ...]:
    """(dq, dk, dv, dlog_decay, dstate) by the recurrence of the states and that of their gradients, row by row."""
    do, q, k, v = (x.astype(dtype) for x in (do, q, k, v))
    batch, heads, n, d = q.shape
    decay = np.exp(np.zeros(heads, dtype) if log_decay is None else log_decay.astype(dtype))[:, None, None]
    shape, scale = (batch, heads, v.shape[-1], d), dtype(d**-0.5 if scale is None else scale)
    states = [np.zeros(shape, dtype) if state is None else state.astype(dtype)]
    slope = np.zeros(shape, dtype) if dafter is None else dafter.astype(dtype)  # of the state after the row before
    dq, dk, dv, ddecay = np.empty_like(q), np.empty_like(k), np.empty_like(v), np.zeros(heads, dtype)
    with np.errstate(all="ignore"):
        for i in range(n):
            states.append(states[-1] * decay + v[:, :, i, :, None] * k[:, :, i, None, :])
        for i in reversed(range(n)):
            dq[:, :, i] = (do[:, :, i, None, :] @ states[i + 1])[:, :, 0] * scale
            slope = slope + do[:, :, i, :, None] * q[:, :, i, None, :] * scale
            dk[:, :, i] = (v[:, :, i, None, :] @ slope)[:, :, 0]
            dv[:, :, i] = (slope @ k[:, :, i, :, None])[..., 0]
            slope = slope * decay
            ddecay += (slope * states[i]).sum((0, 2, 3))
    return dq, dk, dv, ddecay, slope
