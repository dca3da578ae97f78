"""Kimi delta attention, forward: the gated delta rule with a decay for each channel of the keys.

    S_i = S_(i-1) diag(exp(g_i)) + u_i k_i,   u_i = b_i (v_i - S_(i-1) diag(exp(g_i)) k_i),   o_i = scale * S_i q_i

Kimi Team, "Kimi Linear" (2025). In chunks of 64 rows it is `gated_delta_rule.py` with c_i the sums of g, a vector, in

    A_ij = sum_d k_id k_jd exp(c_id - c_jd)

and alike in q_i.k_j; and with the decays in the queries and keys that meet the state: exp(c) q, exp(c) k on its way
out, exp(c_64 - c) k on its way in. A difference of sums is no factor of row i times one of row j that stay small:
one of them would be exp(-c_j). So pairs of rows are grouped by where they part. Of blocks of 32, 16, 8, 4, 2, 1
rows, let s be the largest that has i in one block and j in the block before, of a pair of blocks; with r the last row
of the first,

    exp(c_i - c_j) = exp(c_i - c_r) exp(c_r - c_j),   both at most 1,

and the same number exp(-|c - c_r|) is of use whether a row is an i or a j. Each s has products of its own: one of 32 x
32, two of 16 x 16, and of each smaller s the 16 x 16 blocks on the diagonal, with the pairs that are not its own
masked.
`prepare` does so, a warp each chunk; `walk` is that of the gated delta rule.

log_decay: float32 (batch, heads, n, d). Shapes and dtypes of all else are those of the gated delta rule.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp

from ..interop import arrays
from .arguments import KernelCall, Launches
from .gated_delta_rule import CHUNK, FACTORS, LEAST, LOG2E, TINY, Operands, lengths, read, walk
from .sequences import DTYPES, unit_of

WIDTH = 16  # columns at a time


@pk.kernel(warps=1, grid=lambda v, w, **_: (w.rows // CHUNK, v.depth, v.batch))
def prepare(
    q: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    log_decay: Annotated[Tensor, f32, "B", "H", "N", pk.static("D")],
    beta: Annotated[Tensor, f32, "B", "H", "N"],
    offsets: Annotated[Tensor, i32, "S"],
    w: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    p: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    decays: Annotated[Tensor, f32, "B", "H", "C", pk.static("D")],
    asking: Annotated[Tensor, DTYPES, "B", "H", "M", pk.static("D")],
    looking: Annotated[Tensor, DTYPES, "B", "H", "M", pk.static("D")],
    lasting: Annotated[Tensor, DTYPES, "B", "H", "M", pk.static("D")],
    scale: Annotated[Scalar, f32],
    *,
    norm: bool = False,
) -> None:
    """W, what stands for scale * Q K^T, the factors of rows; queries and keys as they meet the state before (`asking`,
    `looking`) and the one behind (`lasting`), and the decays of the chunk.
    """
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, d = q.dtype, q.cols
    group = head // (v.depth // q.depth)
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    queries, keys = (pk.shared(pk.st(dtype, CHUNK, d), name=name) for name in ("queries", "keys"))
    landed = pk.barrier()
    pk.tma.expect(landed, keys, queries)
    for to, source in ((keys, k), (queries, q)):
        pk.tma.load(to, source, **rows.tile(batch, group, tile, CHUNK), barrier=landed)
    b = warp.load_col(beta, **rows.run(batch, head, tile, CHUNK), length=CHUNK)
    pk.wait(landed, 0)
    own_k, own_q = lengths(keys, norm, d), lengths(queries, norm, d)

    def write(name: str, column: Any) -> None:
        warp.store(factors, column, (batch, head, FACTORS.index(name), chunk))

    for name, own in (("own_k", own_k), ("own_q", own_q)):
        write(name, own)
    own_q = own_q * scale

    def part(x: Any, own: Any, col: Any) -> Any:
        """Some columns of queries or keys."""
        return warp.load(x.part(0, col * WIDTH, CHUNK, WIDTH)).to(f32) * own

    def multiply(asked: bool) -> Any:
        """The products of rows of keys with those before them, decayed, below the diagonal; or (`asked`) of queries,
        and on it, too.
        """
        whole, halves = warp.zeros(f32, 32, 32), [warp.zeros(f32, 16, 16) for _ in range(2)]
        blocks = [warp.zeros(f32, 16, 16) for _ in range(4)]
        row, column = pk.row_index(blocks[0]), pk.col_index(blocks[0])
        for col in pk.range(d // WIDTH):
            g = warp.load(log_decay, **rows.tile(batch, head, tile, CHUNK, col, WIDTH), rows=CHUNK, cols=WIDTH)
            sums = pk.maximum(g * LOG2E, LEAST).col_cumsum()
            key = part(keys, own_k, col)
            query = part(queries, own_q, col) if asked else key
            for size in (32, 16, 8, 4, 2, 1, *((0,) if asked else ())):
                left, right = query, key
                if size:
                    parting = [i // (2 * size) * 2 * size + size - 1 for i in range(CHUNK)]
                    fade = pk.exp2(-abs(sums - sums.take_rows(parting)))
                    left, right = left * fade, right * fade
                left, right = left.to(dtype), right.to(dtype)
                if size == 32:
                    warp.mma_ABt(whole, left[32:64, :], right[0:32, :])
                    continue
                if size == 16:
                    for i, half in enumerate(halves):
                        warp.mma_ABt(half, left[32 * i + 16 : 32 * i + 32, :], right[32 * i : 32 * i + 16, :])
                    continue
                # The pairs that part here: equal but for the bit `size`, and what is below it; of 0, row and column.
                mask = (row ^ column) // size == 1 if size else row == column
                for i, block in enumerate(blocks):
                    made = warp.zeros(f32, 16, 16)
                    warp.mma_ABt(made, left[16 * i : 16 * i + 16, :], right[16 * i : 16 * i + 16, :])
                    block += pk.where(mask & (row >= column), made, 0.0)
            if asked:
                rise, last = pk.exp2(sums), sums.take_rows([CHUNK - 1] * CHUNK)
                for to, x in ((asking, query * rise), (looking, key * rise), (lasting, key * pk.exp2(last - sums))):
                    warp.store(to, x.to(dtype), (batch, head, chunk, col))
                end = pk.where(pk.row_index(rise) == CHUNK - 1, rise, 0.0).col_sum()
                warp.store(decays, end, (batch, head, chunk, col))
        none = warp.zeros(f32, 16, 16)
        return pk.stack(
            pk.join(blocks[0], none, none, none),
            pk.join(halves[0], blocks[1], none, none),
            pk.join(whole[0:16, :], blocks[2], none),
            pk.join(whole[16:32, :], halves[1], blocks[3]),
        )

    write("beta", b)
    safe = pk.where(abs(b) < TINY, TINY, b)
    product = (multiply(False) * safe).unit_lower_inverse() * (-1.0 / safe)
    product = pk.where(pk.col_index(product) < pk.row_index(product), product, 0.0)
    if dtype is f16:
        unit = unit_of(product)
        write("solved", unit)
        product = product / unit
    warp.store(w, product.to(dtype), (batch, head, chunk, 0))
    product = multiply(True)
    if dtype is f16:
        unit = unit_of(product)
        write("unit", unit)
        write("queries", 1.0 / unit)
        product = product / unit
    warp.store(p, product.to(dtype), (batch, head, chunk, 0))


def solve(x: Operands, scale: float, norm: bool) -> tuple[Any, ...]:
    """What `prepare` makes."""
    d, (w, p, factors) = arrays.describe(x.q).shape[3], x.squares()
    asking, looking, lasting = met = [x.made(x.dtype, x.chunks * CHUNK, d) for _ in range(3)]
    decays = x.made("f32", x.chunks, d)
    prepare(*x[:6], w, p, factors, decays, *met, scale, norm=norm)
    return asking, looking, w, p, factors, decays, lasting


def _forward(*given: Any, norm: bool) -> None:
    x, (o, after, scale) = Operands(*given[:7]), given[7:]
    asking, looking, *solved = solve(x, scale, norm)
    walk(asking, looking, x.v, x.offsets, *solved, x.state, o, after, None, None, None)


FORWARD = Launches(_forward)


def call(*given: Any, scale: float, norm: bool) -> KernelCall:
    """What writes o, and the state after the last row into `after` unless that is None: the last two of `given`, which
    come behind what `read` takes.
    """
    *taken, o, after = given
    return KernelCall(FORWARD, (*read("kimi_delta_attention", *taken), o, after, scale), {"norm": norm})
