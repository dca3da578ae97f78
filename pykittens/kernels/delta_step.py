"""Rows of the delta rules one after another, all in float32: one for decoding, or all where the state has to be exact.

The mathematics is that of `gated_delta_rule.py`, by its recurrence. A warp has 16 rows of a state, four columns in each
lane. Decays are those of heads (`log_decay`) or of channels (`gates`).
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp

from ..interop import arrays
from .arguments import KernelCall
from .chunks import CHUNK, LEAST, LOG2E
from .sequences import DTYPES, dense

EPSILON = 1e-6  # beside a sum of squares
ROWS = 16  # of a state, a warp


def advance(state: Any, query: Any, key: Any, value: Any, strength: Any, decays: tuple[Any, ...], norm: bool) -> Any:
    """Takes a row into the state; what the query finds in it. `decays`: of the head, or of channels, or None."""
    if norm:
        ones = warp.full(f32, ROWS, state.cols, 1.0, layout=pk.coalesced(state.cols // 4, 4))
        query, key = (x * pk.rsqrt((ones * (x * x)).row_sum() + EPSILON) * ones for x in (query, key))
    for decay in decays:
        if decay is not None:
            state[:] = state * pk.exp2(pk.maximum(decay * LOG2E, LEAST))
    state[:] = state + strength * (value - (state * key).row_sum()) * key
    return (state * query).row_sum()


@pk.kernel(warps=4, grid=lambda v, **_: (v.cols // CHUNK, v.rows, v.depth))
def step(
    q: Annotated[Tensor, DTYPES, "B", "G", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", pk.static("E")],
    log_decay: Annotated[Tensor, f32, "B", "H"],
    beta: Annotated[Tensor, f32, "B", "H"],
    before: Annotated[Tensor, f32, "B", "H", pk.static("E"), pk.static("D")],
    o: Annotated[Tensor, DTYPES, "B", "H", pk.static("E")],
    after: Annotated[Tensor, f32, "B", "H", pk.static("E"), pk.static("D")],
    gates: Annotated[Tensor, f32, "B", "H", pk.static("D")],
    scale: Annotated[Scalar, f32],
    *,
    norm: bool = False,
) -> None:
    """One row of each sequence; without `before` it is the first."""
    part, head, batch = pk.block_index.x * 4 + warp.index, pk.block_index.y, pk.block_index.z
    d, group, layout = q.cols, head // (v.rows // q.rows), pk.coalesced(q.cols // 4, 4)
    if before is None:
        state = warp.zeros(f32, ROWS, d, layout=layout)
    else:
        state = warp.load(before, (batch, head, part, 0), rows=ROWS, layout=layout)
    query, key = (warp.load_row(x, (batch, group, 0), length=d, layout=layout).to(f32) for x in (q, k))
    value = warp.load_col(v, (batch, head, part), length=ROWS, layout=layout).to(f32)
    gate = None if gates is None else warp.load_row(gates, (batch, head, 0), length=d, layout=layout)
    decays = None if log_decay is None else log_decay[batch, head], gate
    found = advance(state, query, key, value, beta[batch, head], decays, norm)
    warp.store(o, (found * scale).to(o.dtype), (batch, head, part))
    warp.store(after, state, (batch, head, part, 0))


@pk.kernel(
    warps=4,
    grid=lambda v, offsets, **_: (v.cols // CHUNK, v.depth, v.batch if offsets is None else offsets.cols - 1),
)
def recur(
    q: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    log_decay: Annotated[Tensor, f32, "B", "H", "N"],
    beta: Annotated[Tensor, f32, "B", "H", "N"],
    offsets: Annotated[Tensor, i32, "S"],
    before: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    o: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    after: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    gates: Annotated[Tensor, f32, "B", "H", "N", pk.static("D")],
    scale: Annotated[Scalar, f32],
    *,
    norm: bool = False,
) -> None:
    """All rows of each sequence, and the state after the last; without `before` it begins at zero."""
    part, head, sequence = pk.block_index.x * 4 + warp.index, pk.block_index.y, pk.block_index.z
    d, group, layout = q.cols, head // (v.depth // q.depth), pk.coalesced(q.cols // 4, 4)
    batch: Any = sequence
    first, end = pk.cast(0, i32), v.rows
    if offsets is not None:
        batch, first, end = 0, pk.maximum(offsets[sequence], 0), pk.minimum(offsets[sequence + 1], v.rows)
    if before is None:
        state = warp.zeros(f32, ROWS, d, layout=layout)
    else:
        state = warp.load(before, (sequence, head, part, 0), rows=ROWS, layout=layout)
    for i in pk.range(first, end):
        query, key = (warp.load_row(x, (batch, group, i, 0), length=d, layout=layout).to(f32) for x in (q, k))
        value = warp.load_col(v, (batch, head, i, part), length=ROWS, layout=layout).to(f32)
        gate = None if gates is None else warp.load_row(gates, (batch, head, i, 0), length=d, layout=layout)
        decays = None if log_decay is None else log_decay[batch, head, i], gate
        found = advance(state, query, key, value, beta[batch, head, i], decays, norm)
        warp.store(o, (found * scale).to(o.dtype), (batch, head, i, part))
    if after is not None:
        warp.store(after, state, (sequence, head, part, 0))


def call_step(
    q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, *results: Any, scale: float, norm: bool
) -> KernelCall:
    """What writes one row of o, and the state after it; log_decay of heads or of channels."""
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta, "state": state}
    *first, decay, beta, state = (dense(x, name) for name, x in named.items())
    heads, channels = (None, decay) if decay is not None and len(arrays.describe(decay).shape) == 3 else (decay, None)
    return KernelCall(step, (*first, heads, beta, state, *results, channels, scale), {"norm": norm})
