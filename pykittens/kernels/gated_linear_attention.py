"""Causal linear attention with a decay for each head that changes with time, forward and backward.

    S_i = exp(g_i) S_(i - 1) + v_i k_i          o_i = scale * S_i q_i          for each batch and head, g_i <= 0

Simple GLA (Yang et al. 2024), and with constant g RetNet and Lightning attention. It is Mamba-2's recurrence (`ssd.py`,
`ssd_backward.py`) of v, k and q in the place of dt x, B and C, with a group for each head, and g in that of dt A. The
gradient of g_i is t_i there. Packed sequences lie one after another in the rows of a batch of 1.

log_decay: float32 (batch, heads, n), read where its rows are neighbours or its heads are; or (batch, heads, n, d), a
decay for each channel of the keys, which has kernels of its own (`gla.py`).
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

from ..interop import arrays
from ..interop.views import View
from . import gla, gla_backward
from .arguments import KernelCall
from .chunks import CHUNK, LEAST, LOG2E, accumulate, rows_of
from .mamba2 import ForwardSteps as Launches
from .sequences import check_decays, check_place, dense, readable, readable_offsets
from .ssd_passes import PassCall, by_rows, call_of, of_one_row, pull, run, single
from .ssd_step import advance

WARPS = 4


@pk.kernel(warps=WARPS, grid=lambda sums, **_: (pk.cdiv(sums.cols, CHUNK * WARPS), sums.rows))
def accumulate_lines(
    log_decay: Annotated[Tensor, f32, "B", "H", "N"],
    offsets: Annotated[Tensor, i32, "S"],
    sums: Annotated[Tensor, f32, "H", "M"],
    left: Annotated[Tensor, f32, "H", "M"],
) -> None:
    """sums = log_decay, base 2, summed up from the beginning of each chunk; left, unless that is None, the sums of what
    comes after a row."""
    slot, head = pk.block_index.x * WARPS + warp.index, pk.block_index.y
    with pk.when(slot * CHUNK < sums.cols):
        rows, batch, chunk = rows_of(log_decay.cols, offsets, slot)
        # In runs of 1, wherever it begins: sums are in one order, and a sequence has the bits that it has alone.
        g = warp.load_vec(log_decay, **rows.run(batch, head, chunk, CHUNK), length=CHUNK).as_vec()
        warp.store(sums, pk.maximum(g * LOG2E, LEAST).cumsum(), (head, slot))
        if left is not None:
            row = chunk * CHUNK + 1
            within: Any = {} if offsets is None else {"within": (rows.start, rows.end)}
            first = row if offsets is None else rows.start + row
            behind = warp.load_vec(log_decay, pk.at(batch, head, first), length=CHUNK, **within).as_vec()
            behind = pk.where(pk.iota(behind) < CHUNK - 1, pk.maximum(behind * LOG2E, LEAST), 0.0)
            warp.store(left, behind.cumsum(reverse=True), (head, slot))


@pk.kernel(warps=WARPS, grid=lambda by_y, **_: (pk.cdiv(by_y.cols, CHUNK * WARPS), by_y.rows))
def finish_lines(
    offsets: Annotated[Tensor, i32, "S"],
    by_y: Annotated[Tensor, f32, "P", "H", "M"],
    by_x: Annotated[Tensor, f32, "P", "H", "M"],
    between: Annotated[Tensor, f32, "P", "H", "M"],
    o: Annotated[Tensor, f32, "B", "H", "N"],
) -> None:
    """o = the gradient of log_decay, from dot products of rows, of which heads have P."""
    slot, head = pk.block_index.x * WARPS + warp.index, pk.block_index.y
    with pk.when(slot * CHUNK < by_y.cols):
        rows, batch, chunk = rows_of(o.cols, offsets, slot)
        more, less, behind = (of_parts(x, head, slot) for x in (by_y, by_x, between))
        change = pk.where(pk.iota(more) < rows.rows - chunk * CHUNK, more - less, 0.0)
        slope = change.cumsum(reverse=True) + behind.sum()
        warp.store(o, slope, **rows.run(batch, head, chunk, CHUNK))


def of_parts(x: Any, head: Any, slot: Any) -> Any:
    """The sum of what the parts of a head have of a chunk."""
    total = warp.load_vec(x, (0, head, slot), length=CHUNK)
    for part in pk.range(1, x.depth):
        total += warp.load_vec(x, (part, head, slot), length=CHUNK)
    return total


def summed(call: PassCall, log_decay: Any, exact: bool = False) -> tuple[Any, Any]:
    """The sums of log_decay in each chunk, and with `exact` the sums behind each row."""
    info = arrays.describe(log_decay)
    sums, left = (call.empty((info.shape[1], call.chunks * CHUNK)) if made else None for made in (True, exact))
    if info.strides[2] != 1 and info.strides[1] == 1:
        batch, heads, n = info.shape
        view = View(log_decay, (batch, n, heads), (info.strides[0], info.strides[2], 1))
        accumulate(by_rows(view), None, None, call.offsets, sums, None, left)
    else:
        accumulate_lines(dense(log_decay, "log_decay"), call.offsets, sums, left)
    return sums, left


def channels(log_decay: Any) -> bool:
    """Whether there is a decay for each channel of the keys, not only for each head."""
    return len(arrays.describe(log_decay).shape) == 4


class ForwardSteps(Launches):
    """The launches of the forward pass as one: called as a kernel is."""

    def __call__(  # type: ignore[override]
        self,
        q: Any,
        k: Any,
        v: Any,
        log_decay: Any,
        state: Any,
        offsets: Any,
        o: Any,
        after: Any,
        scale: float,
        *,
        exact: bool,
    ) -> None:
        if single(v, offsets):
            decays = (None, log_decay) if channels(log_decay) else (of_one_row(log_decay, 2), None)
            advance(v, decays[0], None, k, q, None, None, None, decays[1], state, o, after, scale)
            return
        call = call_of(v, offsets)
        if channels(log_decay):
            made = gla.chunks_of(call, q, k, log_decay, scale, exact)
            gla.run(call, v, made.lasting, made, made.asking, state, o, after, rest=made.rest)
            return
        sums, left = summed(call, log_decay, exact)
        run(call, v, k, q, sums, before=state, y=o, after=after, scale=scale, left=left)


class BackwardSteps(Launches):
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
        offsets: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        dlog_decay: Any,
        dstate: Any,
        scale: float,
    ) -> None:
        call = call_of(v, offsets)
        if channels(log_decay):
            results = (dq, dk, dv, dlog_decay, dstate)
            gla_backward.pull(call, do, dafter, q, k, v, log_decay, state, results, scale)
            return
        sums, made = summed(call, log_decay)[0], (dv, None, dk, dq, dstate)
        dots = pull(call, do, dafter, v, k, q, sums, None, None, None, None, state, made, scale)
        heads, parts, m = call.shape[1], call.shape[3] // CHUNK, call.chunks * CHUNK
        seen = [View(x, (parts, heads, m), (m, parts * m, 1)) for x in dots[:3]]
        finish_lines(call.offsets, *seen, dlog_decay)


FORWARD, BACKWARD = ForwardSteps(), BackwardSteps()


def call(
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    offsets: Any,
    o: Any,
    after: Any,
    scale: float,
    exact: bool = False,
) -> KernelCall:
    """What writes o, and the states after the last rows into `after` unless that is None."""
    if not single(v, offsets):  # whose kernel runs everywhere
        check_place("gated linear attention", q)
    offsets = readable_offsets("gated_linear_attention", offsets, arrays.describe(q).shape[2])
    check_decays("gated_linear_attention", "log_decay", log_decay)
    o = arrays.empty_like(v) if o is None else o
    rows = (readable(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
    if channels(log_decay):
        log_decay = readable(log_decay, "log_decay")
    given = (*rows, log_decay, dense(state, "state"), offsets, o, after, scale)
    return KernelCall(FORWARD, given, {"exact": exact})  # type: ignore[arg-type]


def call_backward(
    do: Any, dafter: Any, q: Any, k: Any, v: Any, log_decay: Any, state: Any, offsets: Any, *made: Any, scale: float
) -> KernelCall:
    """What writes the gradients of q, k, v, log_decay and state, of which the last may be None."""
    check_place("gated linear attention", q)
    offsets = readable_offsets("gated_linear_attention", offsets, arrays.describe(q).shape[2])
    do, q, k, v = (readable(x, name) for x, name in ((do, "do"), (q, "q"), (k, "k"), (v, "v")))
    if channels(log_decay):
        log_decay = readable(log_decay, "log_decay")
    given = (do, dense(dafter, "dafter"), q, k, v, log_decay, dense(state, "state"), offsets, *made, scale)
    return KernelCall(BACKWARD, given, {})  # type: ignore[arg-type]
