"""Gradients of Mamba-2's recurrence (`ssd.py`), all chunks at once.

With S the state before a chunk and G the gradient of the state behind it, both kept by passes of `ssd.scan`; c_i the
sums of decays; W_ij = exp(c_i - c_j) for j <= i, else 0; and dY the gradients of S_i C_i + D x_i:

    dX_j = dt_j (sum_i W_ij (C_i . B_j) dY_i + exp(c_63 - c_j) G B_j) + D dY_j
    dC_i = sum_j M_ij B_j + exp(c_i) dY_i S        dB_j = sum_i M_ij C_i + exp(c_63 - c_j) dt_j x_j G
    M_ij = W_ij dt_j (dY_i . x_j), of all heads that share B and C

The rows i and the rows j do the same with other names: `side` is both, a warpgroup each, and the first has the rows y_i
again, which the gradient of the gate z needs. A block has the heads of a group, or some of them, in turn: M, dB and dC
stay in registers, and are rounded once. For the decays, with y'_i = S_i C_i, x'_j = dt_j x_j and dx' its gradient,

    t_i = exp(c_63) <G, S> + sum_j exp(c_63 - c_j) x'_j . G B_j + sum_{i <= j < 64} (dY_j . y'_j - x'_j . dx'_j)

is the gradient of dt_i A (as in `gated_linear_attention.py`, but begun anew in each chunk, so that errors do not add up
over a sequence). No decay lies between a row and itself: what C_i . B_i gives counts in y' and in dx' alike, is left
out of both dot products, and acts on rows as D does: where decays are strong, nothing but its rounding would be left of
the difference. `finish` makes the gradients of dt, A, D and the bias from the dot products of rows that are kept.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp, warpgroup

from .chunks import CHUNK, LEAST, LOG2E, rows_of
from .rows import FLOATS
from .sequences import DTYPES, unit_of

E, N = pk.static("E"), pk.static("N")
STAGES = {64: 3, 128: 2}  # by N
SOME = 16  # heads of a warp that finishes
RUN = 1024  # elements that a block adds up at once


@pk.kernel(warps=12, grid=lambda sums, b, shares, **_: (sums.cols // CHUNK, b.depth, shares))
def differentiate(
    x: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    dy: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    b: Annotated[Tensor, DTYPES, "B", "G", "L", N],
    c: Annotated[Tensor, DTYPES, "B", "G", "L", N],
    sums: Annotated[Tensor, f32, "H", "M"],
    weights: Annotated[Tensor, f32, "H", "M"],
    d: Annotated[Tensor, f32, "H"],
    z: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    ungated: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    offsets: Annotated[Tensor, i32, "S"],
    states: Annotated[Tensor, DTYPES, "T", "H", E, N],
    slopes: Annotated[Tensor, DTYPES, "T", "H", E, N],
    state_units: Annotated[Tensor, f32, "T", "H", E],
    slope_units: Annotated[Tensor, f32, "T", "H", E],
    dx: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    dz: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    db: Annotated[Tensor, (f32, *DTYPES), "SB", "G", "L", N],
    dc: Annotated[Tensor, (f32, *DTYPES), "SB", "G", "L", N],
    by_y: Annotated[Tensor, f32, "HP", "M"],
    by_x: Annotated[Tensor, f32, "HP", "M"],
    between: Annotated[Tensor, f32, "HP", "M"],
    by_d: Annotated[Tensor, f32, "HP", "M"],
    by_own: Annotated[Tensor, f32, "HP", "M"],
    scale: Annotated[Scalar, f32],
    shares: Annotated[Scalar, i32],
    *,
    stages: int = 2,
) -> None:
    """dx, dz, db, dc of each share of a group's heads, and the dot products of rows: dy . y', x . dx' (of dt x), what
    goes between x and the state behind the chunk, dy . x, and that times c . b, which is what is left out of the first
    two. `ungated`: the gradients of rows behind their gate z, of which dy are those before it. `scale` goes with c. d,
    z and weights may be None.
    """
    slot, group, share = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, scaled, cols = x.dtype, x.dtype is f16, b.cols
    parts = x.cols // CHUNK  # of a head
    heads = x.depth // b.depth * parts  # of a group
    each = pk.cdiv(heads, shares)
    rows, batch, chunk = rows_of(x.rows, offsets, slot)
    first = share * each
    count = pk.where(chunk * CHUNK < rows.rows, pk.maximum(pk.minimum(each, heads - first), 0), 0)
    wide, small, line = pk.st(dtype, CHUNK, cols), pk.st(dtype, CHUNK, CHUNK), pk.sv(f32, CHUNK)
    keys_b, keys_c, landed = pk.shared(wide, name="b"), pk.shared(wide, name="c"), pk.barrier(name="landed")
    members: dict[str, Any] = {"x": small, "dy": small, "state": wide, "slope": wide, "sums": line}
    members |= {} if weights is None else {"weights": line}
    members |= {"state_unit": line, "slope_unit": line} if scaled else {}
    ring, result = pk.ring(stages, **members), pk.shared(small, name="result")

    def side(first_rows: bool) -> None:
        """The rows i, or the rows j."""
        wanted = z is not None or not first_rows  # whether anybody asks for them
        score, out = warpgroup.zeros(f32, CHUNK, CHUNK), warpgroup.zeros(f32, CHUNK, CHUNK)
        total, grad = warpgroup.zeros(f32, CHUNK, CHUNK), warpgroup.zeros(f32, CHUNK, cols)
        pk.wait(landed, 0, scope=warpgroup)
        keys, others = (keys_c, keys_b) if first_rows else (keys_b, keys_c)
        warpgroup.mm_ABt(score, keys, others)
        warpgroup.wait(score)
        row, column = pk.row_index(score), pk.col_index(score)
        itself: Any = pk.where(row == column, score * scale, 0.0).row_sum() if wanted else None  # c . b
        score[:] = pk.where(row == column, 0.0, score * scale)
        seen = column <= row if first_rows else row <= column
        for i in pk.range(count):
            which = group * heads + first + i
            head, col = which // parts, which % parts if parts > 1 else 0
            slot_ = ring.read()
            mine, other = (slot_.dy, slot_.x) if first_rows else (slot_.x, slot_.dy)
            state = slot_.state if first_rows else slot_.slope
            warpgroup.mm_ABt(out, mine, other)
            own, ahead, all = warpgroup.load_col(slot_.sums), warpgroup.load_row(slot_.sums), slot_.sums[CHUNK - 1]
            fade = pk.where(seen, pk.exp2(own - ahead if first_rows else ahead - own), 0.0)
            lift: Any = pk.exp2(own) * scale if first_rows else pk.exp2(all - own)
            weight = score * fade
            if weights is not None and first_rows:
                theirs = warpgroup.load_row(slot_.weights)
                weight, fade = weight * theirs, fade * theirs
            elif weights is not None:
                ours = warpgroup.load_col(slot_.weights)
                fade = fade * ours
            warpgroup.wait(out)
            total[:] = pk.fma(fade, out, total)
            within = weight.row_dot(out)
            if wanted:
                unit: Any = unit_of(weight) if scaled else None
                term = (weight * (1.0 / unit) if scaled else weight).to(dtype)
            warpgroup.mm_ABt(out, keys, state)
            given = warpgroup.load(mine).to(f32)
            factor = given * lift
            if weights is not None and not first_rows:
                factor = factor * ours
            if scaled:
                columns = warpgroup.load_row(slot_.state_unit if first_rows else slot_.slope_unit)
                factor = factor * columns
            rounded = factor.to(dtype)
            warpgroup.wait(out)
            out[:] = out * lift
            if scaled:
                out[:] = out * columns
            through = out.row_dot(given)
            warpgroup.store(by_y if first_rows else by_x, within + through, (which, slot))
            if wanted:
                if scaled:
                    out[:] = out * (1.0 / unit)
                warpgroup.mma_AB(out, term, other)
            warpgroup.mma_AB(grad, rounded, state)
            if wanted:
                warpgroup.wait(out)
                if scaled:
                    out[:] = out * unit
            where = rows.tile(batch, head, chunk, CHUNK, col, CHUNK)
            if not first_rows:
                inner = product(slot_.state, slot_.slope)
                if scaled:
                    inner = inner * warpgroup.load_col(slot_.state_unit) * warpgroup.load_col(slot_.slope_unit)
                through = through if weights is None else through * ours
                warpgroup.store(between, pk.fma(inner, pk.exp2(all), through), (which, slot))
                finish_x(out, slot_, head, where, (which, slot), itself, None if weights is None else ours)
            elif z is not None:
                gate_slope(out, slot_, head, where, itself)
            warpgroup.wait(grad)
            ring.release()
        total[:] = total * scale
        unit = unit_of(total) if scaled else None
        if scaled:
            grad[:] = grad * (1.0 / unit)
        last = (total * (1.0 / unit) if scaled else total).to(dtype)
        warpgroup.mma_AB(grad, last, others)
        warpgroup.wait(grad)
        target = dc if first_rows else db
        out_rows = rows.tile(share * b.batch + batch, group, chunk, CHUNK)
        warpgroup.store(target, (grad * unit if scaled else grad).to(target.dtype), **out_rows)
        if not first_rows:
            warpgroup.tma.wait()

    def product(one: Any, two: Any) -> Any:
        """The sums of the products of two tiles' rows, in pieces that registers have room for."""
        pieces = [[t.part(0, k, CHUNK, 32) for t in (one, two)] for k in range(0, cols, 32)]
        total = warpgroup.zeros_col(f32, CHUNK, partial=True)
        for piece in pieces:
            total = warpgroup.load(piece[0]).to(f32).row_dot(warpgroup.load(piece[1]).to(f32), True, onto=total)
        return total.total()

    def gate_slope(out: Any, slot_: Any, head: Any, where: Any, factor: Any) -> None:
        """dz, from the rows before their gate."""
        if weights is not None:
            factor = factor * warpgroup.load_col(slot_.weights)
        out[:] = pk.fma(warpgroup.load(slot_.x).to(f32), factor if d is None else factor + d[head], out)
        gate = warpgroup.load(z, **where, rows=CHUNK, cols=CHUNK).to(f32)
        share_ = pk.sigmoid(gate)
        out[:] = out * (share_ * pk.fma(gate, 1.0 - share_, 1.0))
        given = warpgroup.load(ungated, **where, rows=CHUNK, cols=CHUNK).to(f32)
        warpgroup.store(dz, (out * given).to(dtype), **where)

    def finish_x(out: Any, slot_: Any, head: Any, where: Any, place: Any, itself: Any, ours: Any) -> None:
        """dx, from the gradient of dt x."""
        factor = itself
        if ours is not None:
            out[:], factor = out * ours, itself * ours
        up = warpgroup.load(slot_.dy).to(f32)
        out[:] = pk.fma(up, factor if d is None else factor + d[head], out)
        if d is not None or ours is not None:
            met = up.row_dot(warpgroup.load(slot_.x).to(f32))
        if d is not None:
            warpgroup.store(by_d, met, place)
        if ours is not None:
            warpgroup.store(by_own, met * itself, place)
        warpgroup.tma.wait(read=True)
        warpgroup.sync()  # `result` has been read
        warpgroup.store(result, out.to(dtype))
        warpgroup.sync()
        warpgroup.tma.store(dx, result, **where)
        warpgroup.tma.commit()

    with pk.role("queries", warpgroups=1, registers=240):
        side(True)
    with pk.role("keys", warpgroups=1, registers=240):
        side(False)
    with pk.role("load", warps=4, registers=24), pk.role("rows", warps=1):
        pk.tma.expect(landed, keys_b, keys_c)
        pk.tma.load(keys_b, b, barrier=landed, **rows.tile(batch, group, chunk, CHUNK))
        pk.tma.load(keys_c, c, barrier=landed, **rows.tile(batch, group, chunk, CHUNK))
        for i in pk.range(count):
            which = group * heads + first + i
            head, col = which // parts, which % parts if parts > 1 else 0
            with ring.fill() as slot_:
                pk.tma.load(slot_.x, x, **rows.tile(batch, head, chunk, CHUNK, col, CHUNK))
                pk.tma.load(slot_.dy, dy, **rows.tile(batch, head, chunk, CHUNK, col, CHUNK))
                pk.tma.load(slot_.state, states, (slot, head, col, 0))
                pk.tma.load(slot_.slope, slopes, (slot, head, col, 0))
                pk.tma.load(slot_.sums, sums, (head, slot))
                if weights is not None:
                    pk.tma.load(slot_.weights, weights, (head, slot))
                if scaled:
                    pk.tma.load(slot_.state_unit, state_units, (slot, head, col))
                    pk.tma.load(slot_.slope_unit, slope_units, (slot, head, col))


@pk.kernel(grid=lambda dy, **_: (pk.cdiv(dy.rows, CHUNK), dy.depth, dy.batch))
def gate(
    dy: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    z: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    o: Annotated[Tensor, DTYPES, "B", "H", "L", E],
) -> None:
    """o = dy silu(z)."""
    where = (pk.block_index.z, pk.block_index.y, pk.block_index.x * 4 + warp.index, 0)
    x, y = (warp.load(t, where, rows=CHUNK // 4, layout=pk.coalesced(dy.cols // 8, 8)).to(f32) for t in (dy, z))
    warp.store(o, (x * (y * pk.sigmoid(y))).to(o.dtype), where)


@pk.kernel(warps=1, grid=lambda weights, **_: (weights.cols // CHUNK, pk.cdiv(weights.rows, SOME)))
def finish(
    dt: Annotated[Tensor, FLOATS, "B", 1, "L", "H"],
    a: Annotated[Tensor, f32, "H"],
    bias: Annotated[Tensor, FLOATS, "H"],
    offsets: Annotated[Tensor, i32, "S"],
    weights: Annotated[Tensor, f32, "H", "M"],
    by_y: Annotated[Tensor, f32, "P", "H", "M"],
    by_x: Annotated[Tensor, f32, "P", "H", "M"],
    between: Annotated[Tensor, f32, "P", "H", "M"],
    by_d: Annotated[Tensor, f32, "P", "H", "M"],
    by_own: Annotated[Tensor, f32, "P", "H", "M"],
    ddt: Annotated[Tensor, FLOATS, "B", 1, "L", "H"],
    da: Annotated[Tensor, f32, "T", "H"],
    dbias: Annotated[Tensor, f32, "T", "H"],
    dd: Annotated[Tensor, f32, "T", "H"],
    *,
    soft: bool = False,
) -> None:
    """The gradient of dt, and what each chunk adds to those of a, the bias and d, from dot products of rows, of which
    heads have P. Without `a`, dt is the decay itself, `weights` only say how many chunks there are, and `by_own` is
    None."""
    slot, col = pk.block_index.x, pk.block_index.y
    rows, batch, chunk = rows_of(dt.rows, offsets, slot)
    where = rows.tile(batch, 0, chunk, CHUNK, col, SOME)

    def of_heads(source: Any) -> Any:
        """The dot products of each head and row; nothing behind the last row."""
        total = warp.zeros(f32, SOME, CHUNK)
        for part in pk.range(source.depth):
            total += warp.load(source, (part, col, slot), rows=SOME, cols=CHUNK)
        return total

    behind = pk.where(chunk * CHUNK < rows.rows, of_heads(between).row_sum(), 0.0)
    gain = of_heads(by_x)
    real = pk.col_index(gain) < rows.rows - chunk * CHUNK
    gain = pk.where(real, gain, 0.0)
    weight: Any = 1.0 if a is None else warp.load(weights, (col, slot), rows=SOME, cols=CHUNK)
    slope = pk.where(real, of_heads(by_y) - gain * weight, 0.0)
    slope = pk.where(real, slope.row_cumsum(reverse=True) + behind, 0.0)  # of dt a
    if a is not None:  # where it counts as the least there is, nothing changes it
        rate = pk.maximum(warp.load_col(a, col, length=SOME), -1e30)
        slope = pk.where(weight * rate * LOG2E > LEAST, slope, 0.0)
        warp.store(da, (slope * weight).row_sum(), (slot, col))
        slope = pk.fma(slope, rate, gain + pk.where(real, of_heads(by_own), 0.0))
    if dd is not None:
        warp.store(dd, pk.where(real, of_heads(by_d), 0.0).row_sum(), (slot, col))
    slope = slope.transpose()
    if soft:
        x = warp.load(dt, **where, rows=CHUNK, cols=SOME, dtype=f32, layout="col")
        if bias is not None:
            x = x + warp.load_row(bias, col, length=SOME, dtype=f32, layout="col")
        slope = slope * pk.sigmoid(x)
    if dbias is not None:
        warp.store(dbias, pk.where(pk.row_index(slope) < rows.rows - chunk * CHUNK, slope, 0.0).col_sum(), (slot, col))
    warp.store(ddt, slope.to(ddt.dtype), **where)


@pk.kernel(warps=4, grid=lambda parts, **_: pk.cdiv(parts.cols, RUN))
def add_shares(parts: Annotated[Tensor, f32, "S", "M"], o: Annotated[Tensor, DTYPES, "M"]) -> None:
    """o = the sums of what several blocks have of one tensor."""
    total = warpgroup.full_vec(f32, RUN, 0.0, width=4)
    for i in pk.range(parts.rows):
        total += warpgroup.load_vec(parts, (i, pk.block_index.x), length=RUN)
    warpgroup.store(o, total.to(o.dtype), pk.block_index.x)
