"""Gradients of Kimi delta attention.

With the names of `kimi_delta_attention.py`, and K' the keys as the state before a chunk meets them (`looking`), Q' its
queries (`asking`), K" the keys as the one behind has them (`lasting`), a chunk is

    Y = V - K' S^T,   U = b (I + A b)^-1 Y,   O = Q' S^T + P U,   S' = S diag(exp(c_64)) + U^T K"

and its gradients, with G and the states' from `gated_delta_rule_backward.unwind`, are

    dQ' = dO S        dK' = -b G S        dK" = U dS'        dP = dO U^T, j <= i        dA = -b G U^T, j < i

`differentiate` makes these, a block each chunk; b is not divided by. `spread` brings them to queries, keys and gates, a
warp for 16 channels of a chunk. A pair of rows that part at a power of two s counts by way of the row r before the
parting, as in `prepare`: with f = exp(-|c - c_r|), and T = scale * dP and R = dA of the pairs of s alone,

    dQ += f (T (f K))        dK += f ((R + R^T) (f K) + T^T (f Q))

A row is behind the parting or before it, so that the product for dK is what the row looks up by or what was written by
it; the gate's logarithm counts the former and against the latter,

    dc = f Q (T f K) +- f K ((R + R^T) f K + T^T f Q) + Q' dQ' + K' dK' - K" dK"

where both ends of a pair have the same rounded numbers, so that what cancels does. That of c_64 has K" dK" of all rows
and exp(c_64) <dS', S> more. dg_i is the sum of dc_j over the rest of the chunk.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp, warpgroup

from ..interop import arrays
from .arguments import KernelCall, Launches
from .gated_delta_rule import CHUNK, FACTORS, LEAST, LOG2E, Operands
from .gated_delta_rule_backward import called, gradients_of_states, meet
from .kimi_delta_attention import WIDTH, solve
from .sequences import DTYPES


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
    """T above R of each chunk in `pairs`; dQ' times scale, dK', dK", exp(c_64) <dS', S>, and db."""
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
    warpgroup.store(pairs, weights.to(do.dtype), (batch, head, 2 * chunk + half, 0))
    results = ((dasking, met.of_q * scale), (dlooking, met.looking * -beta), (dlasting, met.writing * beta))
    for to, x in results:
        warpgroup.store(to, x, (batch, head, chunk, half))
    decay = warpgroup.load_row(decays, (batch, head, chunk, half), length=width)
    warpgroup.store(energy, met.energy * decay, (batch, head, chunk, half))


@pk.kernel(
    warps=lambda q, **_: q.cols // WIDTH,
    grid=lambda pairs, beta, **_: (pairs.rows // (2 * CHUNK), beta.rows, beta.depth),
)
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
    """dQ, dK and dg of a chunk, a warp for 16 channels."""
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, col, warps = q.dtype, warp.index, q.cols // WIDTH
    group = head // (beta.rows // q.depth)
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    weights, landed = pk.shared(pk.st(dtype, 2 * CHUNK, CHUNK), name="weights"), pk.barrier()
    dots: Any = pk.shared(pk.sv(f32, CHUNK), count=2 * warps, name="dots") if norm else None
    pk.tma.expect(landed, weights)
    pk.tma.load(weights, pairs, (batch, head, chunk, 0), barrier=landed)
    at: Any = {**rows.tile(batch, head, tile, CHUNK, col, WIDTH), "rows": CHUNK, "cols": WIDTH}
    shared_at = {**rows.tile(batch, group, tile, CHUNK, col, WIDTH), "rows": CHUNK, "cols": WIDTH}
    owns = [warp.load_col(factors, (batch, head, FACTORS.index(x), chunk), length=CHUNK) for x in ("own_q", "own_k")]
    query, key = (warp.load(x, **shared_at).to(f32) * own for x, own in zip((q, k), owns, strict=True))
    sums = pk.maximum(warp.load(log_decay, **at) * LOG2E, LEAST).col_cumsum()
    pk.wait(landed, 0)

    def level(size: int, query: Any, key: Any, sums: Any, multiply: Any) -> tuple[Any, Any, Any]:
        """What pairs that part at `size` add to dQ, dK and dc. `multiply` gives T (f K), and the product for dK."""
        parting = [i // (2 * size) * 2 * size + size - 1 for i in range(query.rows)]
        fade = pk.exp2(-abs(sums - sums.take_rows(parting)))
        left, right = (query * fade).to(dtype), (key * fade).to(dtype)
        of_q, of_k = multiply(left, right)
        count = right.to(f32) * of_k
        count = pk.where(pk.row_index(fade) // size % 2 == 1, count, -count)
        return of_q * fade, of_k * fade, count + left.to(f32) * of_q

    def far(size: int) -> Any:
        """Of products of blocks."""

        def multiply(query: Any, key: Any) -> tuple[Any, Any]:
            none = warp.zeros(f32, size, WIDTH)
            of_q, of_k = [], []
            for i in range(0, CHUNK, 2 * size):
                t, r = (weights.part(x + i + size, i, size, size) for x in (0, CHUNK))
                early, late = (key[j : j + size, :].swap_layout("col") for j in (i, i + size))
                late_q = query[i + size : i + 2 * size, :].swap_layout("col")
                reads, looks, written = (warp.zeros(f32, size, WIDTH) for _ in range(3))
                warp.mma_AB(reads, t, early)
                warp.mma_AB(looks, r, early)
                warp.mma_AtB(written, r, late)
                warp.mma_AtB(written, t, late_q)
                of_q += [none, reads]
                of_k += [written, looks]
            return pk.stack(*of_q), pk.stack(*of_k)

        return multiply

    added = [level(size, query, key, sums, far(size)) for size in (32, 16)]
    of_q, of_k, change = (sum(x[1:], x[0]) for x in zip(*added, strict=True))
    near = []
    for i in range(0, CHUNK, 16):
        t, r = (weights.part(x + i, i, 16, 16) for x in (0, CHUNK))
        ahead, back = warp.load(t), warp.load_transposed(t)
        whole = ahead.to(f32)
        row, column = pk.row_index(whole), pk.col_index(whole)
        both = pk.where(column < row, warp.load(r), warp.load_transposed(r))
        own_query, own_key, own_sums = (x[i : i + 16, :] for x in (query, key, sums))
        diagonal = pk.where(row == column, whole, 0.0).row_sum()
        found = [diagonal * own_key, diagonal * own_query, warp.zeros(f32, 16, WIDTH)]
        for size in (8, 4, 2, 1):
            apart = (row ^ column) // size == 1

            def multiply(query: Any, key: Any, apart: Any = apart, t: Any = (ahead, back, both)) -> tuple[Any, Any]:
                reads, others = (warp.zeros(f32, 16, WIDTH) for _ in range(2))
                ahead, back, both = (pk.where(apart, x, 0.0) for x in t)
                query, key = query.swap_layout("col"), key.swap_layout("col")
                warp.mma_AB(reads, ahead, key)
                warp.mma_AB(others, both, key)
                warp.mma_AB(others, back, query)
                return reads, others

            for x, y in zip(found, level(size, own_query, own_key, own_sums, multiply), strict=True):
                x += y
        near.append(found)
    of_q, of_k, change = (x + pk.stack(*y) for x, y in zip((of_q, of_k, change), zip(*near, strict=True), strict=True))

    def met(x: Any) -> Any:
        return warp.load(x, (batch, head, chunk, col), rows=CHUNK, cols=WIDTH)

    rise, fall = pk.exp2(sums), pk.exp2(sums.take_rows([CHUNK - 1] * CHUNK) - sums)
    asked, looked, lasted = met(dasking) * rise, met(dlooking) * rise, met(dlasting) * fall
    of_q, of_k = of_q + asked, of_k + looked + lasted
    lasted = lasted * key
    last = lasted.col_sum() + warp.load_row(energy, (batch, head, chunk, col), length=WIDTH)
    change = change + query * asked + key * looked - lasted
    warp.store(dlog_decay, change.col_cumsum(reverse=True) + last, **rows.tile(batch, head, tile, CHUNK, col, WIDTH))
    if norm:
        for i, (x, y) in enumerate(((query, of_q), (key, of_k))):
            warp.store(dots[i * warps + col], x.row_dot(y))
        pk.block.sync()
    for i, (to, x, y, own) in enumerate(((dq, query, of_q, owns[0]), (dk, key, of_k, owns[1]))):
        if norm:
            along = sum((warp.load_col(dots[i * warps + j]) for j in range(1, warps)), warp.load_col(dots[i * warps]))
            y = y - x * along
        warp.store(to, (y * own).to(dtype), **rows.tile(batch, head, tile, CHUNK, col, WIDTH))


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
