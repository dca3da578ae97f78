"""Gradients of gated linear attention with a gate for each channel (`gla.py`).

With S the state before a chunk and G the gradient of the state behind it, both kept by `gla.walk` (the second in
reverse, which makes the gradients of v, too); c_i the sums of g in the chunk, and D_ij = do_i . v_j for j <= i, else 0:

    dq_i = scale * (exp(c_i) S^T do_i + sum_j D_ij exp(c_i - c_j) k_j)
    dk_j = exp(c_63 - c_j) G^T v_j + scale * sum_i D_ij exp(c_i - c_j) q_i
    dg_i = exp(c_63) sum_e G_e S_e + sum_{j < i} k_j h_j + sum_{j >= i} (q_j dq_j - k_j (dk_j - h_j))

for each channel, with h the first term of dk; a row's product with itself has no part in dg, and is left out of both
dq and dk there. dg begins anew in each chunk, from float32, so that errors do not add up over a sequence.

The sums go by the pairs of `channel_decays.py`: a factor of theirs that is at most 1 before the product, one behind it.
A block has a chunk, and each of its warps 16 channels; D is computed twice, by rows i and by rows j, so that in f16
either has rows that are scaled.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, block, f16, f32, i32, warp

from ..interop import arrays
from .channel_decays import SIZES, WIDTH, fade, parts_at
from .chunks import CHUNK, LEAST, LOG2E, rows_of
from .gla import chunks_of, run
from .sequences import DTYPES, unit_of
from .ssd_passes import Call

E, N = pk.static("E"), pk.static("N")
ROWS = 16


def reference(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray,
    *,
    scale: float | None = None,
    state: np.ndarray | None = None,
    dafter: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """(dq, dk, dv, dlog_decay, dstate) by the recurrence, row by row and back, in float64."""
    do, q, k, v, decay = (x.astype(np.float64) for x in (do, q, k, v, np.exp(log_decay.astype(np.float64))))
    batch, heads, n, d = q.shape
    scale = d**-0.5 if scale is None else scale
    kept = [np.zeros((batch, heads, v.shape[-1], d)) if state is None else state.astype(np.float64)]
    for i in range(n):
        kept.append(kept[-1] * decay[:, :, i, None] + v[:, :, i, :, None] * k[:, :, i, None, :])
    slope = np.zeros_like(kept[0]) if dafter is None else dafter.astype(np.float64)
    dq, dk, dv, dg = (np.zeros_like(x) for x in (q, k, v, decay))
    for i in reversed(range(n)):
        slope = slope + scale * do[:, :, i, :, None] * q[:, :, i, None, :]
        dq[:, :, i] = scale * np.einsum("bhed,bhe->bhd", kept[i + 1], do[:, :, i])
        dk[:, :, i] = np.einsum("bhed,bhe->bhd", slope, v[:, :, i])
        dv[:, :, i] = np.einsum("bhed,bhd->bhe", slope, k[:, :, i])
        slope = slope * decay[:, :, i, None]
        dg[:, :, i] = (slope * kept[i]).sum(2)
    return dq, dk, dv, dg, slope


@pk.kernel(warps=lambda q, **_: q.cols // WIDTH, grid=lambda states, q, **_: (states.batch, q.depth))
def differentiate(
    q: Annotated[Tensor, DTYPES, "B", "H", "L", N],
    k: Annotated[Tensor, DTYPES, "B", "H", "L", N],
    v: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    do: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    log_decay: Annotated[Tensor, f32, "B", "H", "L", N],
    offsets: Annotated[Tensor, i32, "S"],
    states: Annotated[Tensor, DTYPES, "T", "H", E, N],
    slopes: Annotated[Tensor, DTYPES, "T", "H", E, N],
    state_units: Annotated[Tensor, f32, "T", "H", E],
    slope_units: Annotated[Tensor, f32, "T", "H", E],
    dq: Annotated[Tensor, DTYPES, "B", "H", "L", N],
    dk: Annotated[Tensor, DTYPES, "B", "H", "L", N],
    dlog_decay: Annotated[Tensor, f32, "B", "H", "L", N],
    scale: Annotated[Scalar, f32],
) -> None:
    """The gradients of q, k and log_decay, from the states before each chunk and the gradients of those behind."""
    slot, head, col, dtype = pk.block_index.x, pk.block_index.y, warp.index, q.dtype
    rows, batch, chunk = rows_of(q.rows, offsets, slot)
    scaled, warps = dtype is f16, q.cols // WIDTH
    ups, values = (pk.shared(pk.st(dtype, CHUNK, v.cols), name=name) for name in ("ups", "values"))
    state, slope = (pk.shared(pk.st(dtype, v.cols, q.cols), name=name) for name in ("state", "slope"))
    products = [pk.shared(pk.st(dtype, CHUNK, CHUNK), name=name) for name in ("by_rows", "by_columns")]  # D
    units = pk.shared(pk.sv(f32, ROWS), count=2 * CHUNK // ROWS, name="units") if scaled else None
    landed = pk.barrier()
    pk.tma.expect(landed, ups, values, state, slope)
    for to, source in ((ups, do), (values, v)):
        pk.tma.load(to, source, barrier=landed, **rows.tile(batch, head, chunk, CHUNK))
    for to, source in ((state, states), (slope, slopes)):
        pk.tma.load(to, source, (slot, head, 0, 0), barrier=landed)
    where = rows.tile(batch, head, chunk, CHUNK, col, WIDTH)
    g = warp.load(log_decay, **where, rows=CHUNK, cols=WIDTH)
    query, key = (warp.load(x, **where, rows=CHUNK, cols=WIDTH) for x in (q, k))
    sums = pk.maximum(g * LOG2E, LEAST).col_cumsum()
    pk.wait(landed, 0)

    def multiply(side: int, piece: Any) -> None:
        """16 rows of D, or of its transpose."""
        made, (one, other) = warp.zeros(f32, ROWS, CHUNK), (values, ups) if side else (ups, values)
        warp.mma_ABt(made, one.part(piece * ROWS, 0, ROWS, v.cols), other)
        row, column = pk.row_index(made) + piece * ROWS, pk.col_index(made)
        made[:] = pk.where(column >= row if side else column <= row, made, 0.0)
        if units is not None:
            unit = unit_of(made)
            warp.store(units[side * (CHUNK // ROWS) + piece], unit)
            made[:] = made / unit
        warp.store(products[side].part(piece * ROWS, 0, ROWS, CHUNK), made.to(dtype))

    if warps == 4:
        multiply(0, col)
        multiply(1, col)
    else:
        with pk.when(col < 4):
            multiply(0, col)
        with pk.otherwise():
            multiply(1, col - 4)
    block.sync()

    def through(one: Any, kept: Any, factors: Any) -> Any:
        """Rows times the states: in f16, whose rows have `factors`, these meet the rows in float32."""
        made = warp.zeros(f32, CHUNK, WIDTH)
        if factors is None:
            warp.mma_AB(made, one, kept.part(0, col * WIDTH, v.cols, WIDTH))
            return made
        largest = warp.load_vec(factors, (slot, head, 0)).max()
        for e in range(0, v.cols, WIDTH):
            ours = warp.load_row(factors, (slot, head, e // WIDTH), length=WIDTH) / largest
            some = (warp.load(one.part(0, e, CHUNK, WIDTH)).to(f32) * ours).to(dtype)
            warp.mma_AB(made, some, kept.part(e, col * WIDTH, WIDTH, WIDTH))
        return made * largest

    found: Any = [[warp.zeros(f32, ROWS, WIDTH) for _ in range(CHUNK // ROWS)] for _ in range(2)]
    row, column = pk.row_index(found[0][0]), pk.col_index(found[0][0])

    def part_at(size: int) -> None:
        """Adds what rows get from the earlier rows that they part from at `size`, and those (side 1) from them."""
        faded, height = fade(sums, size), max(size, ROWS)
        for side, other in enumerate((key, query)):
            near = (other.to(f32) * faded).to(dtype) if size else other
            for at in range(0, CHUNK, height):
                source = at if size < ROWS else at ^ size
                if size >= ROWS and (source > at) != bool(side):
                    continue
                weights = warp.load(products[side].part(at, source, height, height))
                if size < ROWS:
                    weights = pk.where(parts_at(row, column, size, bool(side)), weights.to(f32), 0.0).to(dtype)
                made = warp.zeros(f32, height, WIDTH)
                warp.mma_AB(made, weights, near[source : source + height, :].swap_layout())
                for i in range(0, height, ROWS):
                    to, piece = found[side][(at + i) // ROWS], made[i : i + ROWS, :]
                    to[:] = pk.fma(piece, faded[at + i : at + i + ROWS, :], to) if size else to + piece

    def sum_of(side: int) -> Any:
        """What a side has found."""
        tiles = found[side]
        if units is not None:
            tiles = [x * warp.load_col(units[side * (CHUNK // ROWS) + i]) for i, x in enumerate(tiles)]
        return pk.stack(*tiles) * scale

    for size in SIZES[:-1]:
        part_at(size)
    change = query.to(f32) * sum_of(0) - key.to(f32) * sum_of(1)
    part_at(SIZES[-1])
    far = through(ups, state, state_units) * (pk.exp2(sums) * scale)
    change = pk.fma(query.to(f32), far, change)
    warp.store(dq, (sum_of(0) + far).to(dtype), **where)
    far = through(values, slope, slope_units) * pk.exp2(sums.take_rows([CHUNK - 1] * CHUNK) - sums)
    warp.store(dk, (sum_of(1) + far).to(dtype), **where)
    behind = key.to(f32) * far
    inner = warp.zeros_row(f32, WIDTH)
    for e in range(0, v.cols, CHUNK):
        one, two = (warp.load(x.part(e, col * WIDTH, CHUNK, WIDTH)).to(f32) for x in (state, slope))
        if scaled:
            for factors in (state_units, slope_units):
                one = one * warp.load_col(factors, (slot, head, e // CHUNK), length=CHUNK)
        inner += (one * two).col_sum()
    end = pk.where(pk.row_index(sums) == CHUNK - 1, sums, 0.0).col_sum()
    made = change.col_cumsum(reverse=True) + (behind.col_cumsum() - behind) + inner * pk.exp2(end)
    warp.store(dlog_decay, made, **where)


def pull(
    call: Call,
    do: Any,
    dafter: Any,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    results: tuple[Any, ...],
    scale: float,
) -> None:
    """Writes the gradients of q, k, v, log_decay and the state, `results`."""
    dq, dk, dv, dlog_decay, dstate = results
    dtype, kept = arrays.describe(q).dtype, (call.chunks, call.shape[1], call.shape[3], arrays.describe(q).shape[3])
    made = chunks_of(call, q, k, log_decay, scale, flip=True)
    states, slopes = (call.empty(kept, dtype) for _ in range(2))
    units = [call.empty(kept[:3]) if dtype == "f16" else None for _ in range(2)]
    run(call, v, made.lasting, made, before=state, every=states, units=units[0])
    ends = {"before": dafter, "y": dv, "after": dstate}
    run(call, do, made.asking, made, made.lasting, **ends, every=slopes, units=units[1], reverse=True)
    differentiate(q, k, v, do, log_decay, call.offsets, states, slopes, *units, dq, dk, dlog_decay, scale)
