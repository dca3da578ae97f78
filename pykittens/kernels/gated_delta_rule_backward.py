"""Gradients of the gated delta rule.

With the names of `gated_delta_rule.py`, for a chunk, S' the state behind it and dS' its gradient:

    dU = scale * (D * Q K^T)^T dO + exp(c_64 - c) K dS'^T
    G  = (I + b A)^-T dU = dU - W^T (b dU)          dV = b G          db_i = E_i . G_i
    dS = exp(c_64) dS' + (scale exp(c) dO)^T Q - (exp(c) b G)^T K
    dQ = scale * exp(c) dO S + T K                  T = scale * D * dO U^T, j <= i
    dK = exp(c_64 - c) U dS' - exp(c) b G S + T^T Q + (R + R^T) K           R = - b D * G U^T, j < i

The forward walk is done again, for E and the states before chunks; `unwind` goes through them backwards as `walk` does
forwards, with the gradient of the state in the place of the state, and makes G and the gradients dS'; `differentiate`
has a block for each chunk, whose two warpgroups have half of the columns of dQ and dK each, and one of T and R.

Where lengths are divided out, k = K / |K|, dK = (dk - k (k . dk)) / |K|. A decay's logarithm c_i counts what reads with
row i (its query, and the key by which it looks up) and against what was written by it: with r_i what rows of dQ and dK
have of reading and w_i of writing, dc_i = q_i . r_i + k_i . r_i - k_i . w_i, and that of the chunk's last sum <dS', S'>
more; the products of 64 x 64 count in both with the same numbers, so that what cancels does. dg_i is the sum of dc_j
over the rest of the chunk.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp, warpgroup

from ..interop import arrays
from .arguments import KernelCall, Launches
from .delta_parts import carry
from .gated_delta_rule import CHUNK, EPSILON, FACTORS, Operands, beginnings, fades, parts, read, solve, walk
from .sequences import DTYPES, dense, readable, unit_of


def reference(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray | None,
    beta: np.ndarray,
    *,
    scale: float | None = None,
    state: np.ndarray | None = None,
    dafter: np.ndarray | None = None,
    norm: bool = False,
) -> dict[str, np.ndarray]:
    """The gradients in float64 by the recurrence, row by row from the last, as the kernels call them; and errors, g,
    and the states with their gradients from the one before the first row on.
    """
    batch, heads, n, e = v.shape
    long_q, long_k = (np.repeat(x.astype(float), heads // x.shape[1], 1) for x in (q, k))
    lengths = [np.sqrt((x * x).sum(-1, keepdims=True) + EPSILON) if norm else 1.0 for x in (long_q, long_k)]
    q, k = long_q / lengths[0], long_k / lengths[1]
    do = do.astype(float) * (q.shape[-1] ** -0.5 if scale is None else scale)
    decay = fades(log_decay, (batch, heads, n))
    rows, beta = np.moveaxis(np.stack([q, k]), 3, 1)[..., None], beta.astype(float)[..., None]
    states, dstates = np.zeros((2, n + 1, batch, heads, e, q.shape[-1]))
    states[0], dstates[n] = 0 if state is None else state, 0 if dafter is None else dafter
    errors, g = np.zeros((2, *v.shape))
    dq, dk = np.zeros((2, *q.shape))
    dlog_decay = np.zeros((batch, heads, n) if log_decay is None else log_decay.shape)
    for i in range(n):
        faded = states[i] * decay[:, :, i]
        errors[:, :, i] = v[:, :, i].astype(float) - (faded @ rows[1, i])[..., 0]
        states[i + 1] = faded + (beta[:, :, i] * errors[:, :, i])[..., None] * k[:, :, i, None]
    for i in reversed(range(n)):
        after = dstates[i + 1] + do[:, :, i, :, None] * q[:, :, i, None]
        g[:, :, i] = (after @ rows[1, i])[..., 0]
        faded, written = states[i] * decay[:, :, i], (beta[:, :, i] * errors[:, :, i])[..., None, :]
        dq[:, :, i] = (do[:, :, i, None] @ states[i + 1])[..., 0, :]
        lowered = (beta[:, :, i] * g[:, :, i])[..., None]
        dk[:, :, i] = (written @ after - lowered.swapaxes(2, 3) @ faded)[..., 0, :]
        before = after - lowered * k[:, :, i, None]
        dlog_decay[:, :, i] = (before * faded).sum((2, 3) if dlog_decay.ndim == 3 else 2)
        dstates[i] = before * decay[:, :, i]
    if norm:
        dq, dk = (
            (dx - x * (x * dx).sum(-1, keepdims=True)) / length
            for dx, x, length in zip((dq, dk), (q, k), lengths, strict=True)
        )
    found = {"dq": dq, "dk": dk, "dv": beta * g, "dbeta": (errors * g).sum(-1), "dlog_decay": dlog_decay}
    return {**found, "errors": errors, "g": g, "states": states, "dstates": dstates}


UNWOUND = ("keys", "adds", "queries", "beta", "unit", "solved")


@pk.kernel(
    warps=4,
    grid=lambda do, offsets, pieces, **_: (
        do.cols // CHUNK * pieces,
        do.depth,
        do.batch if offsets is None else offsets.cols - 1,
    ),
)
def unwind(
    q: Annotated[Tensor, DTYPES, "B", "G", "L", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "L", pk.static("D")],
    do: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    offsets: Annotated[Tensor, i32, "S"],
    w: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    p: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    decays: Annotated[Tensor, f32, "B", "H", "C", pk.static("W")],
    lasting: Annotated[Tensor, DTYPES, "B", "H", "L", pk.static("D")],
    dafter: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    g: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    dv: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    dstates: Annotated[Tensor, DTYPES, "B", "H", "R", pk.static("D")],
    units: Annotated[Tensor, f32, "B", "H", "R"],
    dbefore: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    each: Annotated[Scalar, i32],
    pieces: Annotated[Scalar, i32],
) -> None:
    """G, dV, the gradient of the state behind each chunk, and that of the first state; the former may be None. With
    `lasting`, q and k are decayed, as `walk` has them. `dafter` and `dbefore` are of parts, of which `walk` tells.
    """
    head, sequence, values = pk.block_index.y, pk.block_index.z, do.cols // CHUNK
    part, begin = pk.block_index.x % values, pk.block_index.x // values * each
    place = sequence * pieces + pk.block_index.x // values
    dtype, d, scaled = q.dtype, q.cols, q.dtype is f16
    group, channels = head // (do.depth // q.depth), lasting is not None
    rows, first = pk.stretch(do), pk.cast(0, i32)
    batch: Any = sequence
    if offsets is not None:
        sequences = pk.packed(offsets)
        rows, first, batch = sequences[sequence], sequences.first(sequence, CHUNK), 0
    end = pk.minimum(pk.cdiv(rows.rows, CHUNK), begin + each)
    chunks = end - begin
    wide, square = pk.st(dtype, CHUNK, d), pk.st(dtype, CHUNK, CHUNK)
    names = UNWOUND[3 if channels else 0 : 6 if scaled else 4]
    tiles = {"q": wide, "k": wide, "do": square, "w": square, "p": square}
    members: dict[str, Any] = {**tiles, **dict.fromkeys(names, pk.sv(f32, CHUNK))}
    members |= {"lasting": wide, "decays": pk.sv(f32, d)} if channels else {}
    ring = pk.ring(2, **members)
    results: Any = None if g is None else pk.shared(square, count=2, name="results")
    kept: Any = None if g is None else pk.shared(wide, name="kept")

    def load(step: Any) -> None:
        i = end - 1 - step
        with pk.when(step < chunks), ring.fill() as slot:
            at: dict[str, Any] = {"coordinate": (batch, head, first + i, 0)}
            for to, source in ((slot.k, k), (slot.q, q)):
                pk.tma.load(to, source, **(at if channels else rows.tile(batch, group, i, CHUNK)))
            pk.tma.load(slot.do, do, **rows.tile(batch, head, i, CHUNK, part, CHUNK))
            chunk = ((slot.lasting, lasting), (slot.decays, decays)) if channels else ()
            for to, source in ((slot.w, w), (slot.p, p), *chunk):
                pk.tma.load(to, source, **at)
            for name in names:
                pk.tma.load(getattr(slot, name), factors, (batch, head, FACTORS.index(name), first + i))

    def rounded(x: Any, unit: Any = None) -> tuple[Any, Any]:
        """A tile as an operand of a product, and the factor of its rows (`unit`, if that is given)."""
        if not scaled:
            return x.to(dtype), 1.0
        unit = unit_of(x) if unit is None else unit
        return (x / unit).to(dtype), unit

    for i in range(2):
        load(i)
    state = (
        warpgroup.zeros(f32, CHUNK, d) if dafter is None else warpgroup.load(dafter, (place, head, part, 0), rows=CHUNK)
    )
    for step in pk.range(chunks):
        i = end - 1 - step
        change, found = (warpgroup.zeros(f32, CHUNK, CHUNK) for _ in range(2))
        slot = ring.read()
        decay = decays[batch, head, first + i, 0] if decays is not None and not channels else 1.0
        later, unit_s = rounded(state)
        warpgroup.mm_ABt(change, later, slot.lasting if channels else slot.k)
        up = warpgroup.load_transposed(slot.do).to(f32)
        warpgroup.wait(change)
        change[:] = change * unit_s if channels else change * unit_s * warpgroup.load_row(slot.adds)
        seen, unit = (up * warpgroup.load_row(slot.unit), None) if scaled else (up, None)
        unit = unit_of(seen, change) if scaled else None
        seen, unit = rounded(seen, unit)
        change[:] = change / unit if scaled else change
        warpgroup.mma_AB(change, seen, slot.p)
        warpgroup.wait(change)
        change[:] = change * unit if scaled else change
        weighted = change * warpgroup.load_row(slot.beta)
        weighted, unit = rounded(weighted * warpgroup.load_row(slot.solved) if scaled else weighted)
        warpgroup.mm_AB(found, weighted, slot.w)
        lift = warpgroup.load_transposed(slot.do).to(f32) if scaled else up  # again: registers are scarce
        lift = lift if channels else lift * warpgroup.load_row(slot.queries)
        lift = lift * warpgroup.load_row(slot.unit) if scaled and not channels else lift
        if decays is not None:
            state[:] = state * (warpgroup.load_row(slot.decays) if channels else decay)
        warpgroup.wait(found)
        change[:] = change - found * unit
        found[:] = change * warpgroup.load_row(slot.beta)
        lowered = -found if channels else found * -warpgroup.load_row(slot.keys)
        unit = unit_of(lift, lowered, state) if scaled else None
        (lift, unit), (lowered, _) = rounded(lift, unit), rounded(lowered, unit)
        state[:] = state / unit if scaled else state
        warpgroup.mma_AB(state, lift, slot.q)
        warpgroup.mma_AB(state, lowered, slot.k)
        warpgroup.wait()
        state[:] = state * unit if scaled else state
        ring.release()
        load(step + 2)
        if g is None:
            continue
        warpgroup.tma.wait(read=True)
        warpgroup.sync()  # `results` and `kept` have been read
        warpgroup.store_transposed(results[0], change.to(dtype))
        warpgroup.store_transposed(results[1], found.to(dtype))
        warpgroup.store(kept, later)
        warpgroup.sync()
        for to, source in ((g, results[0]), (dv, results[1])):
            warpgroup.tma.store(to, source, **rows.tile(batch, head, i, CHUNK, part, CHUNK))
        at = (first + i) * (do.cols // CHUNK) + part
        warpgroup.tma.store(dstates, kept, (batch, head, at, 0))
        warpgroup.tma.commit()
        if scaled:
            warpgroup.store(units, unit_s, (batch, head, at))
    if g is not None:
        warpgroup.tma.wait()
    if dbefore is not None:
        warpgroup.store(dbefore, state, (place, head, part, 0))


class Met(NamedTuple):
    """What a chunk has of the state before it and of the gradient of that behind it: of half of their columns, a
    warpgroup each.
    """

    weights: Any  # dO E^T, or (the second warpgroup) G E^T
    of_q: Any  # dO S
    looking: Any  # G S
    writing: Any  # E dS'
    energy: Any  # <dS', S>, a column vector; for each channel with `channels`, a row vector; None if not asked for
    of_beta: Any  # E . G


def meet(
    do: Any, g: Any, errors: Any, states: Any, units: Any, dstates: Any, dunits: Any, run: Any, slot: Any, energy: str
) -> Met:
    """The products of a chunk with states; `run(part)` says where its values are, `slot` its number and where it lies.

    energy: "heads", "channels", or "" for none.
    """
    batch, head, chunk = slot
    dtype, half, d = do.dtype, warpgroup.index, states.cols
    scaled, width, parts = dtype is f16, d // 2, do.cols // CHUNK
    square, halves = pk.st(dtype, CHUNK, CHUNK), pk.st(dtype, 2 * CHUNK, width)  # the left columns above the right
    members: dict[str, Any] = {"grads": pk.st(dtype, 2 * CHUNK, CHUNK), "errors": square}
    members |= {"state": halves, "dstate": halves}
    members |= {"unit": pk.sv(f32, CHUNK), "dunit": pk.sv(f32, CHUNK)} if scaled else {}
    ring = pk.ring(min(parts, 2), **members)

    def load(part: Any) -> None:
        with pk.when(part < parts), ring.fill() as slot:
            for x, row in ((do, 0), (g, CHUNK)):
                pk.tma.load(slot.grads.part(row, 0, CHUNK, CHUNK), x, **run(part))
            pk.tma.load(slot.errors, errors, **run(part))
            at = chunk * parts + part
            for to, x in ((slot.state, states), (slot.dstate, dstates)):
                for i in range(2):
                    pk.tma.load(to.part(i * CHUNK, 0, CHUNK, width), x, (batch, head, at, i))
            for to, x in ((slot.unit, units), (slot.dunit, dunits)) if scaled else ():
                pk.tma.load(to, x, (batch, head, at))

    def add(sum: Any, x: Any, unit: Any, y: Any) -> None:
        """sum += x y, the rows of y times `unit`."""
        if not scaled:
            warpgroup.mma_AB(sum, x, y)
            return
        left = warpgroup.load(x).to(f32) * warpgroup.load_row(unit)
        own, made = unit_of(left), warpgroup.zeros(f32, CHUNK, width)
        warpgroup.mm_AB(made, (left / own).to(dtype), y)
        warpgroup.wait(made)
        sum[:] = sum + made * own

    for part in range(min(parts, 2)):
        load(part)
    weights = warpgroup.zeros(f32, CHUNK, CHUNK)
    of_q, looking, writing = (warpgroup.zeros(f32, CHUNK, width) for _ in range(3))
    channels = energy == "channels"
    held: Any = (warpgroup.zeros_row(f32, width) if channels else warpgroup.zeros_col(f32, CHUNK)) if energy else None
    of_beta = warpgroup.zeros_col(f32, CHUNK)
    for part in pk.range(parts):
        slot = ring.read()
        up, down = slot.grads.part(0, 0, CHUNK, CHUNK), slot.grads.part(CHUNK, 0, CHUNK, CHUNK)
        state, dstate = (x.part(half * CHUNK, 0, CHUNK, width) for x in (slot.state, slot.dstate))
        unit: Any = slot.unit if scaled else None
        dunit: Any = slot.dunit if scaled else None
        of_beta += warpgroup.load(down).to(f32).row_dot(warpgroup.load(slot.errors).to(f32))
        if energy:
            one, other = (warpgroup.load(x).to(f32) for x in (state, dstate))
            both = warpgroup.load_col(unit) * warpgroup.load_col(dunit) if scaled else 1.0
            held += (one * other * both).col_sum() if channels else one.row_dot(other) * both
        warpgroup.mma_ABt(weights, slot.grads.part(half * CHUNK, 0, CHUNK, CHUNK), slot.errors)
        add(of_q, up, unit, state)
        add(looking, down, unit, state)
        add(writing, slot.errors, dunit, dstate)
        warpgroup.wait()
        ring.release()
        load(part + 2)
    return Met(weights, of_q, looking, writing, held, of_beta)


def resident(q: Any, do: Any, **_: Any) -> int:
    """Blocks of a multiprocessor that differentiate chunks: short rows leave registers and shared memory for two."""
    return 2 if q.cols == do.cols == CHUNK else 1


@pk.kernel(warps=8, grid=lambda do, w, **_: (w.rows // CHUNK, do.depth, do.batch), blocks_per_sm=resident)
def differentiate(
    q: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    do: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    g: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    errors: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    offsets: Annotated[Tensor, i32, "S"],
    w: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    decays: Annotated[Tensor, f32, "B", "H", "C", 1],
    states: Annotated[Tensor, DTYPES, "B", "H", "R", pk.static("D")],
    units: Annotated[Tensor, f32, "B", "H", "R"],
    dstates: Annotated[Tensor, DTYPES, "B", "H", "R", pk.static("D")],
    dunits: Annotated[Tensor, f32, "B", "H", "R"],
    dq: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("D")],
    dk: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("D")],
    dbeta: Annotated[Tensor, f32, "B", "H", "N"],
    dlog_decay: Annotated[Tensor, f32, "B", "H", "N"],
    scale: Annotated[Scalar, f32],
    *,
    norm: bool = False,
) -> None:
    """dQ, dK, db and dg of a chunk; `w` only says how many chunks there are."""
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, half = q.dtype, warpgroup.index
    scaled, width = dtype is f16, q.cols // 2
    group = head // (do.depth // q.depth)
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        which = sequences.find(chunk, CHUNK)
        rows, tile = sequences[which], chunk - sequences.first(which, CHUNK)
    both = pk.ring(1, keys=pk.st(dtype, 4 * CHUNK, width), name="both")  # queries above keys
    pairs = pk.shared(pk.st(dtype, CHUNK, CHUNK), count=2, name="pairs")  # T and R
    vector = pk.sv(f32, CHUNK)
    told = {name: pk.shared(vector, count=2, name=name) for name in ("read", "written", "columns", "energy")}
    of_beta = pk.shared(vector, count=2, name="of_beta")  # the same twice: no branch beside products
    dots: Any = pk.shared(vector, count=4, name="dots") if norm else None

    def factor(name: str) -> Any:
        """Of the rows of the chunk."""
        return warpgroup.load_col(factors, (batch, head, FACTORS.index(name), chunk), length=CHUNK)

    def across(name: str) -> Any:
        return warpgroup.load_row(factors, (batch, head, FACTORS.index(name), chunk), length=CHUNK)

    with both.fill() as slot:
        for i in range(4):
            to = slot.keys.part(i * CHUNK, 0, CHUNK, width)
            pk.tma.load(to, (q, k)[i // 2], **rows.tile(batch, group, tile, CHUNK, i % 2, width))
    energy = "" if decays is None else "heads"
    place: Any = lambda part: rows.tile(batch, head, tile, CHUNK, part, CHUNK)  # noqa: E731
    met = meet(do, g, errors, states, units, dstates, dunits, place, (batch, head, chunk), energy)
    weights, of_q, looking, writing = met[:4]
    slot = both.read()
    half_q, half_k = (slot.keys.part((half + i) * CHUNK, 0, CHUNK, width) for i in (0, 2))
    beta, own_q, own_k = factor("beta"), factor("own_q"), factor("own_k")
    row, column = pk.row_index(weights), pk.col_index(weights)
    left = pk.where(half == 0, own_q * scale, -(beta * own_k))
    weights[:] = weights * left
    for name in ("beta", "own_k"):
        weights[:] = weights * across(name)
    weights[:] = weights * pk.exp2(pk.minimum(factor("sums") - across("sums"), 0.0))
    weights[:] = pk.where(column - row < 1 - half, weights, 0.0)
    warpgroup.store(pairs[half], weights.to(dtype))
    of_q[:] = of_q * (factor("queries") * factor("unit") if scaled else factor("queries"))
    looking[:] = looking * (factor("keys") * -beta)
    writing[:] = writing * (factor("adds") * beta)
    if decays is not None:
        warpgroup.sync()  # our half of `pairs` is there
        product = warpgroup.zeros(f32, CHUNK, CHUNK)
        for i in range(2):
            one = slot.keys.part((2 * half + i) * CHUNK, 0, CHUNK, width)
            warpgroup.mma_ABt(product, one, slot.keys.part((2 + i) * CHUNK, 0, CHUNK, width))
        warpgroup.wait(product)
        product[:] = product * warpgroup.load(pairs[half]).to(f32)
        warpgroup.store(told["columns"][half], product.col_sum())
        seen = product.row_sum() + warpgroup.load(half_q).to(f32).row_dot(of_q)
        key = warpgroup.load(half_k).to(f32)
        warpgroup.store(told["read"][half], seen + key.row_dot(looking))
        warpgroup.store(told["written"][half], key.row_dot(writing))
        warpgroup.store(told["energy"][half], met.energy)
    warpgroup.store(of_beta[half], met.of_beta)
    of_k = looking + writing
    pk.block.sync()
    warpgroup.mma_AB(of_q, pairs[0], half_k)
    warpgroup.mma_AtB(of_k, pairs[0], half_q)
    warpgroup.mma_AB(of_k, pairs[1], half_k)
    warpgroup.mma_AtB(of_k, pairs[1], half_k)
    warpgroup.wait()
    if offsets is not None:
        rows = sequences[which]  # asked again, not kept in registers
    results = ((of_q, half_q, own_q, dq), (of_k, half_k, own_k, dk))
    if norm:
        for i, (sums, x, _, _) in enumerate(results):
            warpgroup.store(dots[2 * i + half], warpgroup.load(x).to(f32).row_dot(sums))
        pk.block.sync()
        for i, (sums, x, own, _) in enumerate(results):
            along = warpgroup.load_col(dots[2 * i]) + warpgroup.load_col(dots[2 * i + 1])
            sums[:] = sums - warpgroup.load(x).to(f32) * (along * own * own)
    for sums, _, _, to in results:
        warpgroup.store(to, sums.to(dtype), **rows.tile(batch, head, tile, CHUNK, half, width))
    with pk.when(warp.index == 4):
        warp.store(dbeta, warp.load_vec(of_beta[0]), **rows.run(batch, head, tile, CHUNK))
    if decays is not None:
        with pk.when(warp.index == 0):
            read, written, columns, kept = (warp.load_vec(x[0]) + warp.load_vec(x[1]) for x in told.values())
            last = written.sum() + kept.sum() * decays[batch, head, chunk, 0]
            change = (read - columns - written).cumsum(reverse=True) + last
            warp.store(dlog_decay, change, **rows.run(batch, head, tile, CHUNK))


def gradients_of_states(
    x: Operands, do: Any, dafter: Any, dv: Any, dbefore: Any, met: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The walk and its unwinding: E, G, and states with their gradients, each with the factors of its rows. `met`: the
    queries and keys, W, P, factors and decays, and keys as the next state has them, or None.
    """
    d, e, (asking, looking, *solved) = *(arrays.describe(y).shape[3] for y in (x.q, x.v)), met
    errors, g = (x.made(x.dtype, *arrays.describe(x.v).shape[2:]) for _ in range(2))
    states, dstates = (x.made(x.dtype, x.chunks * e, d) for _ in range(2))
    units, dunits = (x.made("f32", x.chunks * e) if x.dtype == "f16" else None for _ in range(2))
    given, back = (asking, looking, x.v, x.offsets, *solved), (asking, looking, do, x.offsets, *solved)
    cut, state = parts(x), x.state
    each = cut.each, cut.pieces
    if cut.pieces > 1:
        state, moves = beginnings(x, given, cut, None)
        local, ends = (arrays.empty_like(state) for _ in range(2))
        unwind(*back, None, None, None, None, None, local, *each)
        carry(dafter, local, *moves, ends, dbefore, x.offsets, *each, reverse=True)
        dafter, dbefore = ends, None
    walk(*given, state, None, None, errors, states, units, None, None, *each)
    unwind(*back, dafter, g, dv, dstates, dunits, dbefore, *each)
    return errors, g, states, units, dstates, dunits


def _backward(do: Any, dafter: Any, *given: Any, norm: bool) -> None:
    x, (dq, dk, dv, dbeta, dlog_decay, dstate, scale) = Operands(*given[:7]), given[7:]
    w, p, factors, decays = solve(x, scale, norm)
    errors, g, *states = gradients_of_states(x, do, dafter, dv, dstate, (x.q, x.k, w, p, factors, decays, None))
    made = (x.offsets, w, factors, decays, *states, dq, dk, dbeta, dlog_decay)
    differentiate(x.q, x.k, do, g, errors, *made, scale, norm=norm)


BACKWARD = Launches(_backward)


def call(do: Any, *given: Any, scale: float, norm: bool) -> KernelCall:
    """What writes the gradients of q and k (for each head of v), v, beta, log_decay and state, of which the last two
    may be None. `given`: what `gated_delta_rule.read` takes, dafter, and these results.
    """
    return called("gated_delta_rule", BACKWARD, do, *given, scale=scale, norm=norm)


def called(name: str, launches: Launches, do: Any, *given: Any, scale: float, norm: bool) -> KernelCall:
    """The call of a backward pass of the function `name`."""
    x, (dafter, *results) = read(name, *given[:7]), given[7:]
    return KernelCall(launches, (readable(do, "do"), dense(dafter, "dafter"), *x, *results, scale), {"norm": norm})
