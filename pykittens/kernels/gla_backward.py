"""Gradients of gated linear attention with a gate for each channel (`gla.py`).

With S the state before a chunk and G the gradient of the state behind it, both kept by `gla.walk` (the second in
reverse, which makes the gradients of v, too); c_i the sums of g in the chunk, and D_ij = do_i . v_j for j <= i, else 0:

    dq_i = scale * (exp(c_i) S^T do_i + sum_j D_ij exp(c_i - c_j) k_j)
    dk_j = exp(c_63 - c_j) G^T v_j + scale * sum_i D_ij exp(c_i - c_j) q_i
    dg_i = exp(c_63) sum_e G_e S_e + sum_{j < i} k_j h_j + sum_{j >= i} (q_j dq_j - k_j (dk_j - h_j))

for each channel, with h the first term of dk; a row's product with itself has no part in dg, and is left out of both
dq and dk there. dg begins anew in each chunk, from float32, so that errors do not add up over a sequence.

The sums go by the pairs of `channel_decays.py`: a factor of theirs that is at most 1 before the product, one behind it.
A block has a chunk, and each of its warps 16 channels of the rows i, or of the rows j. D is computed twice, by either,
so that in f16 both have rows that are scaled.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, block, f16, f32, i32, warp

from ..interop import arrays
from .channel_decays import ROWS, SIZES, WIDTH, fade, middle, mild, parts_at
from .chunks import CHUNK, LEAST, LOG2E, rows_of
from .gla import chunks_of, run
from .sequences import DTYPES, unit_of
from .ssd_passes import PassCall

E, N = pk.static("E"), pk.static("N")


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


@pk.kernel(warps=lambda q, **_: 2 * q.cols // WIDTH, grid=lambda states, q, **_: (states.batch, q.depth))
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
    slot, head, dtype, scaled = pk.block_index.x, pk.block_index.y, q.dtype, q.dtype is f16
    rows, batch, chunk = rows_of(q.rows, offsets, slot)
    columns, pieces = q.cols // WIDTH, CHUNK // ROWS
    col = warp.index % columns
    ups, values = (pk.shared(pk.st(dtype, CHUNK, v.cols), name=name) for name in ("ups", "values"))
    queries, keys = (pk.shared(pk.st(dtype, CHUNK, q.cols), name=name) for name in ("queries", "keys"))
    state, slope = (pk.shared(pk.st(dtype, v.cols, q.cols), name=name) for name in ("state", "slope"))
    products = [pk.shared(pk.st(dtype, CHUNK, CHUNK), name=name) for name in ("by_rows", "by_columns")]  # D
    units = pk.shared(pk.sv(f32, ROWS), count=2 * pieces, name="units") if scaled else None
    shares = pk.shared(pk.sv(f32, CHUNK * WIDTH), count=2 * columns, name="shares")  # of dlog_decay
    share, landed = shares[warp.index], pk.barrier()
    pk.tma.expect(landed, ups, values, queries, keys, state, slope)
    for to, source in ((ups, do), (values, v), (queries, q), (keys, k)):
        pk.tma.load(to, source, barrier=landed, **rows.tile(batch, head, chunk, CHUNK))
    for to, source in ((state, states), (slope, slopes)):
        pk.tma.load(to, source, (slot, head, 0, 0), barrier=landed)
    where = rows.tile(batch, head, chunk, CHUNK, col, WIDTH)
    g = warp.load(log_decay, **where, rows=CHUNK, cols=WIDTH)
    sums = pk.maximum(g * LOG2E, LEAST).col_cumsum()
    is_mild = None if scaled else mild(sums)
    pk.wait(landed, 0)

    def multiply(side: int, piece: Any) -> None:
        """16 rows of D, or of its transpose."""
        made, (one, other) = warp.zeros(f32, ROWS, CHUNK), (values, ups) if side else (ups, values)
        warp.mma_ABt(made, one.part(piece * ROWS, 0, ROWS, v.cols), other)
        row, column = pk.row_index(made) + piece * ROWS, pk.col_index(made)
        made[:] = pk.where(column >= row if side else column <= row, made, 0.0)
        if units is not None:
            unit = unit_of(made)
            warp.store(units[side * pieces + piece], unit)
            made[:] = made / unit
        warp.store(products[side].part(piece * ROWS, 0, ROWS, CHUNK), made.to(dtype))

    for side in range(2):
        with pk.when(warp.index // pieces == side):
            multiply(side, warp.index % pieces)
    block.sync()

    def pair(found: list[Any], side: int, other: Any, size: int) -> None:
        """Adds what rows get from the earlier rows that they part from at `size`; side 1: from the later ones."""

        def near(piece: int) -> Any:
            part = warp.load(other.part(piece * ROWS, col * WIDTH, ROWS, WIDTH))
            return (part.to(f32) * fade(sums, size, piece)).to(dtype).swap_layout() if size else part.swap_layout()

        for at in range(pieces):
            own = at * ROWS
            if size >= ROWS and bool(own & size) == bool(side):
                continue
            made = warp.zeros(f32, ROWS, WIDTH)
            # the pieces that they part from: all of the neighbouring block, or this piece itself
            first = (own ^ size) // size * size // ROWS if size >= ROWS else at
            for source in range(first, first + max(size // ROWS, 1)):
                weights = warp.load(products[side].part(own, source * ROWS, ROWS, ROWS))
                if size < ROWS:
                    row, column = pk.row_index(found[0]), pk.col_index(found[0])
                    weights = pk.where(parts_at(row, column, size, bool(side)), weights.to(f32), 0.0).to(dtype)
                warp.mma_AB(made, weights, near(source))
            found[at][:] = pk.fma(made, fade(sums, size, at), found[at]) if size else found[at] + made

    def pairs_apart(found: list[Any], side: int, other: Any) -> None:
        """All pairs within 16 rows, but those of a row with itself."""
        for size in SIZES[2:-1]:
            pair(found, side, other, size)

    def mild_pairs(found: list[Any], side: int, other: Any) -> None:
        """The same where one product is enough."""
        row, column = pk.row_index(found[0]), pk.col_index(found[0])
        for at in range(pieces):
            apart = middle(sums, at) * (-1.0 if side else 1.0)
            near = (warp.load(other.part(at * ROWS, col * WIDTH, ROWS, WIDTH)).to(f32) * pk.exp2(-apart)).to(dtype)
            weights = warp.load(products[side].part(at * ROWS, at * ROWS, ROWS, ROWS)).to(f32)
            weights = pk.where((row < column) if side else (row > column), weights, 0.0).to(dtype)
            made = warp.zeros(f32, ROWS, WIDTH)
            warp.mma_AB(made, weights, near.swap_layout())
            found[at][:] = pk.fma(made, pk.exp2(apart), found[at])

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

    def between() -> Any:
        """What the decay of the whole chunk changes between the states, of each channel."""
        inner = warp.zeros_row(f32, WIDTH)
        for e in range(0, v.cols, CHUNK):
            one, two = (warp.load(x.part(e, col * WIDTH, CHUNK, WIDTH)).to(f32) for x in (state, slope))
            if scaled:
                for factors in (state_units, slope_units):
                    one = one * warp.load_col(factors, (slot, head, e // CHUNK), length=CHUNK)
            inner += (one * two).col_sum()
        return inner * pk.exp2(pk.where(pk.row_index(sums) == CHUNK - 1, sums, 0.0).col_sum())

    def finish(side: int) -> None:
        """Writes dq or dk, and keeps its share in dlog_decay."""
        found = [warp.zeros(f32, ROWS, WIDTH) for _ in range(pieces)]
        one, other = (keys, queries) if side else (queries, keys)

        def total() -> Any:
            """What was found."""
            tiles = found
            if units is not None:
                tiles = [x * warp.load_col(units[side * pieces + i]) for i, x in enumerate(tiles)]
            return pk.stack(*tiles) * scale

        pair(found, side, other, 32)
        pair(found, side, other, 16)
        if scaled:
            pairs_apart(found, side, other)
        else:
            with pk.when(is_mild):
                mild_pairs(found, side, other)
            with pk.otherwise():
                pairs_apart(found, side, other)
        own = warp.load(one.part(0, col * WIDTH, CHUNK, WIDTH)).to(f32)
        change = (own * total()).col_cumsum(reverse=True)
        warp.store(share, (-change if side else change).registers())  # registers are short
        pair(found, side, other, SIZES[-1])
        if side:
            far = through(values, slope, slope_units) * pk.exp2(sums.take_rows([CHUNK - 1] * CHUNK) - sums)
        else:
            far = through(ups, state, state_units) * (pk.exp2(sums) * scale)
        warp.store(dk if side else dq, (total() + far).to(dtype), **where)
        far = far * warp.load(one.part(0, col * WIDTH, CHUNK, WIDTH)).to(f32)
        far = (far.col_cumsum() - far) + between() if side else far.col_cumsum(reverse=True)
        warp.store(share, (far + warp.load_vec(share).tile(CHUNK, WIDTH)).registers())

    with pk.when(warp.index < columns):
        finish(0)
    with pk.otherwise():
        finish(1)
    block.sync()
    with pk.when(warp.index < columns):
        of_rows, of_columns = (warp.load_vec(shares[i]).tile(CHUNK, WIDTH) for i in (col, col + columns))
        warp.store(dlog_decay, of_rows + of_columns, **where)


def pull(
    call: PassCall,
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
