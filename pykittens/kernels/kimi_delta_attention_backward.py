"""Gradients of Kimi delta attention.

With the names of `kimi_delta_attention.py`, and K' the keys as the state before a chunk meets them (`looking`), Q' its
queries (`asking`), K" the keys as the one behind has them (`lasting`), a chunk is

    Y = V - K' S^T,   U = b (I + A b)^-1 Y,   O = Q' S^T + P U,   S' = S diag(exp(c_64)) + U^T K"

and its gradients, with G and the states' from `gated_delta_rule_backward.unwind`, are

    dQ' = dO S        dK' = -b G S        dK" = U dS'        dP = dO U^T, j <= i        dA = -b G U^T, j < i

`differentiate` makes these, a block each chunk; b is not divided by. `spread` brings them to queries, keys and gates, a
warp for 16 rows of a chunk and 16 channels. A pair of rows that part at a power of two s counts by way of the row r
before the parting, as in `prepare`. With f = exp(-|c - c_r|), T = scale * dP and R = dA of the pairs of s alone, and Y
having f Q in rows behind their parting and f K in those before it (which are looked at from the other side only),

    X = (T + T^T) Y      Z = (R + R^T) (f K)      dQ += f X behind      dK += f Z, and f X before

A gate's logarithm counts what a row reads and looks up by, and against what was written by it:

    dc = (Y X + f K Z, negative before the parting) + Q' dQ' + K' dK' - K" dK"

where both ends of a pair have the same rounded numbers, so that what cancels does. That of c_64 has K" dK" of all rows
and exp(c_64) <dS', S> more. dg_i is the sum of dc_j over the rest of the chunk.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp, warpgroup

from ..interop import arrays
from .arguments import KernelCall, Launches
from .gated_delta_rule import CHUNK, FACTORS, Operands
from .gated_delta_rule_backward import called, gradients_of_states, meet
from .kimi_delta_attention import (
    MILD,
    NEAR,
    ROWS,
    WIDTH,
    Sums,
    last_row,
    mild_fades,
    solve,
    sums_of_chunk,
    sums_of_rows,
)
from .sequences import DTYPES

BLOCK = 64  # columns at a time


@pk.kernel(warps=8, grid=lambda do, pairs, **_: (pairs.rows // (2 * CHUNK), do.depth, do.batch))
def differentiate(
    do: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    g: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    errors: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    offsets: Annotated[Tensor, i32, "S"],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    decays: Annotated[Tensor, f32, "B", "H", "C", pk.static("D")],
    states: Annotated[Tensor, DTYPES, "B", "H", "R", pk.static("D")],
    units: Annotated[Tensor, f32, "B", "H", "R"],
    dstates: Annotated[Tensor, DTYPES, "B", "H", "R", pk.static("D")],
    dunits: Annotated[Tensor, f32, "B", "H", "R"],
    pairs: Annotated[Tensor, DTYPES, "B", "H", "P", CHUNK],
    dasking: Annotated[Tensor, f32, "B", "H", "M", pk.static("D")],
    dlooking: Annotated[Tensor, f32, "B", "H", "M", pk.static("D")],
    dlasting: Annotated[Tensor, f32, "B", "H", "M", pk.static("D")],
    energy: Annotated[Tensor, f32, "B", "H", "C", pk.static("D")],
    dbeta: Annotated[Tensor, f32, "B", "H", "N"],
    scale: Annotated[Scalar, f32],
) -> None:
    """T above R of each chunk in `pairs`, each with its transpose on the other side of the diagonal; dQ' times scale,
    dK', dK", exp(c_64) <dS', S>, and db."""
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    half, width = warpgroup.index, dasking.cols // 2
    rows, tile = pk.stretch(do), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    place: Any = lambda part: rows.tile(batch, head, tile, CHUNK, part, CHUNK)  # noqa: E731
    met = meet(do, g, errors, states, units, dstates, dunits, place, (batch, head, chunk), "channels")
    with pk.when(half == 0):
        warpgroup.store(dbeta, met.of_beta, **rows.run(batch, head, tile, CHUNK))
    at = (batch, head, FACTORS.index("beta"), chunk)
    beta, across = warpgroup.load_col(factors, at, length=CHUNK), warpgroup.load_row(factors, at, length=CHUNK)
    weights = met.weights * pk.where(half == 0, scale, -beta) * across
    weights = pk.where(pk.col_index(weights) - pk.row_index(weights) < 1 - half, weights, 0.0)
    mirror = pk.shared(pk.st(do.dtype, CHUNK, CHUNK), count=2, name="mirror")
    warpgroup.store(mirror[half], weights.to(do.dtype))
    warpgroup.sync()
    above = pk.col_index(weights) > pk.row_index(weights)
    weights = pk.where(above, warpgroup.load_transposed(mirror[half]), weights.to(do.dtype))
    warpgroup.store(pairs, weights, (batch, head, 2 * chunk + half, 0))
    results = ((dasking, met.of_q * scale), (dlooking, met.looking * -beta), (dlasting, met.writing * beta))
    for to, x in results:
        warpgroup.store(to, x, (batch, head, chunk, half))
    decay = warpgroup.load_row(decays, (batch, head, chunk, half), length=width)
    warpgroup.store(energy, met.energy * decay, (batch, head, chunk, half))


@pk.kernel(warps=16, grid=lambda pairs, beta, **_: (pairs.rows // (2 * CHUNK), beta.rows, beta.depth))
def spread(
    q: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    log_decay: Annotated[Tensor, f32, "B", "H", "N", pk.static("D")],
    beta: Annotated[Tensor, f32, "B", "H", "N"],
    offsets: Annotated[Tensor, i32, "S"],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    pairs: Annotated[Tensor, DTYPES, "B", "H", "P", CHUNK],
    dasking: Annotated[Tensor, f32, "B", "H", "M", pk.static("D")],
    dlooking: Annotated[Tensor, f32, "B", "H", "M", pk.static("D")],
    dlasting: Annotated[Tensor, f32, "B", "H", "M", pk.static("D")],
    energy: Annotated[Tensor, f32, "B", "H", "C", pk.static("D")],
    dq: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("D")],
    dk: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("D")],
    dlog_decay: Annotated[Tensor, f32, "B", "H", "N", pk.static("D")],
    *,
    norm: bool = False,
) -> None:
    """dQ, dK and dg of a chunk: four columns of warps, one after another, with 16 rows and 16 channels each."""
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, block, mine, steps = q.dtype, warp.index % 4, warp.index // 4, q.cols // BLOCK
    group, place = head // (beta.rows // q.depth), chunk * 4 + block
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    tile = tile * 4 + block
    weights, landed = pk.shared(pk.st(dtype, 2 * CHUNK, CHUNK), name="weights"), pk.barrier()
    far: dict[int, Any] = {
        size: pk.shared(pk.st(dtype, CHUNK, BLOCK), count=2, name=f"far_{size}") for size in (32, 16)
    }
    ends, tails, written = (pk.shared(pk.sv(f32, WIDTH), count=16, name=x) for x in ("ends", "tails", "written"))
    long: Any = pk.shared(pk.sv(f32, ROWS * WIDTH), count=32 * steps, name="long") if norm else None
    dots: Any = pk.shared(pk.sv(f32, ROWS), count=32, name="dots") if norm else None
    pk.tma.expect(landed, weights)
    pk.tma.load(weights, pairs, (batch, head, chunk, 0), barrier=landed)
    owns = [warp.load_col(factors, (batch, head, FACTORS.index(x), place), length=ROWS) for x in ("own_q", "own_k")]
    along = [warp.zeros_col(f32, ROWS) for _ in range(2 if norm else 0)]

    def at(col: Any) -> dict[str, Any]:
        return rows.tile(batch, head, tile, ROWS, col, WIDTH)

    def unit(x: Any, own: Any, col: Any) -> Any:
        """Queries or keys of the warp, of length 1 with `norm`."""
        where = rows.tile(batch, group, tile, ROWS, col, WIDTH)
        return warp.load(x, **where, rows=ROWS, cols=WIDTH, dtype=f32) * own

    def met(x: Any, col: Any) -> Any:
        return warp.load(x, (batch, head, place, col), rows=ROWS, cols=WIDTH)

    def of_column(vectors: Any) -> list[Any]:
        """What the four warps of these columns have stored."""
        return [warp.load_row(vectors[4 * mine + i]) for i in range(4)]

    pk.wait(landed, 0)
    for step in pk.range(steps):
        col = step * (BLOCK // WIDTH) + mine
        query, key = unit(q, owns[0], col), unit(k, owns[1], col)
        own_sums = sums_of_rows(warp.load(log_decay, **at(col), rows=ROWS, cols=WIDTH))
        warp.store(ends[4 * mine + block], last_row(own_sums))
        pk.block.sync()
        sums = sums_of_chunk(own_sums, of_column(ends), block)
        late: dict[int, Any] = {32: block >= 2, 16: block % 2 == 1}  # than the parting: rows of the warp
        late |= {size: pk.row_index(query) // size % 2 == 1 for size in NEAR}

        def faded(
            size: int, query: Any = query, key: Any = key, sums: Sums = sums, late: Any = late
        ) -> tuple[Any, Any, Any]:
            """f, f K, and Y."""
            fade = sums.fade(size)
            keys = (key * fade).to(dtype)
            return fade, keys, pk.where(late[size], (query * fade).to(dtype), keys)

        for size, kept in far.items():
            for i, x in enumerate(faded(size)[1:]):
                warp.store(kept[i].part(block * ROWS, mine * WIDTH, ROWS, WIDTH), x)
        pk.block.sync()
        t, r = (warp.load(weights.part(x + block * ROWS, block * ROWS, ROWS, ROWS)) for x in (0, CHUNK))
        row, column = pk.row_index(weight := t.to(f32)), pk.col_index(weight)
        total = [warp.zeros(f32, ROWS, WIDTH) for _ in range(3)]  # dQ, dK and dc

        def add(
            size: int,
            apart: Any = None,
            total: Any = total,
            t: Any = t,
            r: Any = r,
            faded: Any = faded,
            late: Any = late,
        ) -> None:
            """The pairs that part at blocks of `size` rows: of a warp's rows, those `apart`."""
            fade, keys, mixed = faded(size)
            of_t, of_r = (warp.zeros(f32, ROWS, WIDTH) for _ in range(2))
            if apart is None:
                first = 32 - block // 2 * 32 if size == 32 else (block ^ 1) * ROWS  # of the rows on the other side
                for product, x, others in ((of_t, 0, far[size][1]), (of_r, CHUNK, far[size][0])):
                    other = others.part(first, mine * WIDTH, size, WIDTH)
                    warp.mma_AB(product, weights.part(x + block * ROWS, first, ROWS, size), other)
            else:
                warp.mma_AB(of_t, pk.where(apart, t, 0.0), mixed.swap_layout("col"))
                warp.mma_AB(of_r, pk.where(apart, r, 0.0), keys.swap_layout("col"))
            count = mixed.to(f32) * of_t + keys.to(f32) * of_r
            total[2] += pk.where(late[size], count, -count)
            of_t, of_r = of_t * fade, of_r * fade
            total[0] += pk.where(late[size], of_t, 0.0)
            total[1] += of_r + pk.where(late[size], 0.0, of_t)

        def add_apart(total: Any = total, weight: Any = weight, row: Any = row, column: Any = column) -> None:
            for size in NEAR:
                add(size, (row ^ column) // size == 1)
            diagonal = pk.where(row == column, weight, 0.0).row_sum()
            total[0] += diagonal * key
            total[1] += diagonal * query

        def add_mild(total: Any = total, row: Any = row, column: Any = column) -> None:
            """All pairs of the warp's rows at once, as in `prepare`."""
            rise, fall = mild_fades(sums)
            asks, looks, early = ((x * y).to(dtype) for x, y in ((query, rise), (key, rise), (key, fall)))
            of_q, of_k, back = (warp.zeros(f32, ROWS, WIDTH) for _ in range(3))
            held = early.swap_layout("col")
            warp.mma_AB(of_q, pk.where(row >= column, t, 0.0), held)
            warp.mma_AB(of_k, pk.where(row > column, r, 0.0), held)
            warp.mma_AB(back, pk.where(row <= column, t, 0.0), asks.swap_layout("col"))
            warp.mma_AB(back, pk.where(row < column, r, 0.0), looks.swap_layout("col"))
            total[2] += asks.to(f32) * of_q + looks.to(f32) * of_k - early.to(f32) * back
            total[0] += of_q * rise
            total[1] += of_k * rise + back * fall

        add(32)
        add(16)
        if dtype is f16:
            add_apart()
        else:
            mild = warp.load_vec(ends[4 * mine + block]).min() > MILD
            with pk.when(mild):
                add_mild()
            with pk.otherwise():
                add_apart()
        of_q, of_k, change = total
        rise, fall = pk.exp2(sums.rows), pk.exp2(sums.last - sums.rows)
        asked, looked, lasted = met(dasking, col) * rise, met(dlooking, col) * rise, met(dlasting, col) * fall
        of_q, of_k = of_q + asked, of_k + looked + lasted
        change = change + query * asked + key * (looked - lasted)
        warp.store(tails[4 * mine + block], change.col_sum())
        warp.store(written[4 * mine + block], (key * lasted).col_sum())
        for i, (to, x, y, own) in enumerate(((dq, query, of_q, owns[0]), (dk, key, of_k, owns[1]))):
            if norm:
                along[i] += x.row_dot(y)
                warp.store(long[32 * step + 16 * i + warp.index], y.registers())
            else:
                warp.store(to, (y * own).to(dtype), **at(col))
        pk.block.sync()
        behind = warp.load_row(energy, (batch, head, chunk, col), length=WIDTH)
        for i, (tail, added) in enumerate(zip(of_column(tails), of_column(written), strict=True)):
            behind += added + pk.where(block < i, tail, 0.0)
        warp.store(dlog_decay, change.col_cumsum(reverse=True) + behind, **at(col))
    if norm:
        for i, sum in enumerate(along):
            warp.store(dots[16 * i + 4 * mine + block], sum)
        pk.block.sync()
        for i, sum in enumerate(along):
            sum[:] = warp.load_col(dots[16 * i + block])
            for j in range(1, 4):
                sum += warp.load_col(dots[16 * i + 4 * j + block])
        for step in pk.range(steps):
            col = step * (BLOCK // WIDTH) + mine
            for i, (to, x, own) in enumerate(((dq, q, owns[0]), (dk, k, owns[1]))):
                y = warp.load_vec(long[32 * step + 16 * i + warp.index]).tile(ROWS, WIDTH)
                y = y - unit(x, own, col) * along[i]
                warp.store(to, (y * own).to(dtype), **at(col))


def _backward(do: Any, dafter: Any, *given: Any, norm: bool) -> None:
    x, (dq, dk, dv, dbeta, dlog_decay, dstate, scale) = Operands(*given[:7]), given[7:]
    solved = solve(x, scale, norm)
    factors, decays, d, rows = *solved[4:6], arrays.describe(x.q).shape[3], x.chunks * CHUNK
    errors, g, *states = gradients_of_states(x, do, dafter, dv, dstate, solved)
    pairs = x.made(x.dtype, 2 * rows, CHUNK)
    met = *(x.made("f32", rows, d) for _ in range(3)), x.made("f32", x.chunks, d)
    differentiate(do, g, errors, x.offsets, factors, decays, *states, pairs, *met, dbeta, scale)
    spread(x.q, x.k, x.log_decay, x.beta, x.offsets, factors, pairs, *met, dq, dk, dlog_decay, norm=norm)


BACKWARD = Launches(_backward)


def call(do: Any, *given: Any, scale: float, norm: bool) -> KernelCall:
    """What writes the gradients of q and k (for each head of v), v, beta, log_decay and state, of which the last may be
    None. `given`: what `gated_delta_rule.read` takes, dafter, and these results.
    """
    return called("kimi_delta_attention", BACKWARD, do, *given, scale=scale, norm=norm)
