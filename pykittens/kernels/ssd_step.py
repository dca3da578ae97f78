"""One row of the recurrence of `ssd.py`, for decoding: each state is read and written once, in float32.

    S' = exp(dt A) S + dt x B        y = (scale * S' C + D x) silu(z)        for each sequence and head

or, with `gates`, S' = S diag(exp(gates)) + x B: a decay for each column (`gla.py`).

A warp has 16 rows of a state, in runs of 16 bytes. The work is that of memory: a state has 64 N float32.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f32, warp

from .chunks import LEAST, LOG2E, softplus
from .rows import FLOATS
from .sequences import DTYPES

E, N = pk.static("E"), pk.static("N")
ROWS = 16  # of a warp


@pk.kernel(warps=4, grid=lambda x, **_: (x.cols // (4 * ROWS), x.depth, x.batch))
def advance(
    x: Annotated[Tensor, DTYPES, "B", "H", 1, E],
    dt: Annotated[Tensor, FLOATS, "B", "H"],
    a: Annotated[Tensor, f32, "H"],
    b: Annotated[Tensor, DTYPES, "B", "G", 1, N],
    c: Annotated[Tensor, DTYPES, "B", "G", 1, N],
    d: Annotated[Tensor, f32, "H"],
    z: Annotated[Tensor, DTYPES, "B", "H", 1, E],
    bias: Annotated[Tensor, FLOATS, "H"],
    gates: Annotated[Tensor, f32, "B", "H", 1, N],
    before: Annotated[Tensor, f32, "B", "H", E, N],
    y: Annotated[Tensor, DTYPES, "B", "H", 1, E],
    after: Annotated[Tensor, f32, "B", "H", E, N],
    scale: Annotated[Scalar, f32],
    *,
    soft: bool = False,
) -> None:
    """y and the states `after`; without `a`, dt is the decay itself, or `gates` are. a, d, z, bias, before and after
    may be None."""
    part, head, batch = pk.block_index.x * 4 + warp.index, pk.block_index.y, pk.block_index.z
    group, layout = head // (x.depth // b.depth), pk.coalesced(min(b.cols // 4, 32), 4)
    at, keys = (batch, head, 0, part), (batch, group, 0, 0)
    values = warp.load_col(x, at, length=ROWS, dtype=f32, layout=layout)
    k, q = (warp.load_row(t, keys, length=b.cols, dtype=f32, layout=layout) for t in (b, c))
    if gates is not None:
        weighed, decay = values, warp.load_row(gates, (batch, head, 0, 0), length=b.cols, layout=layout) * LOG2E
    else:
        step: Any = pk.cast(dt[batch, head], f32)
        step = step if bias is None else step + pk.cast(bias[head], f32)
        step = softplus(step) if soft else step
        rate = LOG2E if a is None else pk.maximum(a[head] * LOG2E, -1e30)  # -inf times 0 would be NaN
        weighed, decay = values if a is None else values * step, step * rate
    if before is None:
        state = warp.zeros(f32, ROWS, b.cols, layout=layout)
    else:
        state = warp.load(before, (batch, head, part, 0), rows=ROWS, layout=layout)
        state = state * pk.exp2(pk.maximum(decay, LEAST))
    state = pk.fma(weighed, k, state)
    if after is not None:
        warp.store(after, state, (batch, head, part, 0))
    out = (state * q).row_sum() * scale
    if d is not None:
        out = pk.fma(values, d[head], out)
    if z is not None:
        gate = warp.load_col(z, at, length=ROWS, dtype=f32, layout=layout)
        out = out * (gate * pk.sigmoid(gate))
    warp.store(y, out.to(y.dtype), at)
