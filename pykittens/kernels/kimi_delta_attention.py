"""Kimi delta attention, forward: the gated delta rule with a decay for each channel of the keys.

    S_i = S_(i-1) diag(exp(g_i)) + u_i k_i,   u_i = b_i (v_i - S_(i-1) diag(exp(g_i)) k_i),   o_i = scale * S_i q_i

Kimi Team, "Kimi Linear" (2025). In chunks of 64 rows it is `gated_delta_rule.py` with c_i the sums of g, a vector, in

    A_ij = sum_d k_id k_jd exp(c_id - c_jd)

and alike in q_i.k_j; and with the decays in the queries and keys that meet the state: exp(c) q, exp(c) k on its way
out, exp(c_64 - c) k on its way in. A difference of sums is no factor of row i times one of row j that stay small: pairs
of rows are grouped by where they part, as in `channel_decays.py`: of blocks of 32, 16, 8, 4, 2, 1 rows, let s be the
largest that has i in one block and j in the block before, of a pair of blocks; with r the last row of the first,

    exp(c_i - c_j) = exp(c_i - c_r) exp(c_r - c_j),   both at most 1.

`prepare` makes the products, a block of four warps each chunk: a warp has 16 rows, pairs that part at 8 or less within
them, and gets the keys that part at 16 and 32 from other warps through shared memory. `invert` solves each chunk, a
warp each, and `walk` is that of the gated delta rule. The reference is that of `gated_delta_rule.py`.

log_decay: float32 (batch, heads, n, d). Shapes and dtypes of all else are those of the gated delta rule.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp

from ..interop import arrays
from .arguments import KernelCall, Launches
from .gated_delta_rule import CHUNK, EPSILON, FACTORS, LEAST, LOG2E, Operands, inverse, read, walk
from .sequences import DTYPES, unit_of

ROWS = 16  # of a warp
WIDTH = 16  # columns at a time
NEAR = (8, 4, 2, 1)  # blocks of rows whose pairs lie within a warp


class Sums(NamedTuple):
    """Of a warp's rows, base 2: the sums of decays from the beginning of the chunk."""

    rows: Any
    apart: dict[int, Any]  # those of the row before the parting, a row vector, for partings of 32 and 16 rows
    last: Any  # those of the chunk's last row

    def fade(self, size: int) -> Any:
        """exp(-|c - c_r|) of pairs that part at blocks of `size` rows."""
        if size in self.apart:
            return pk.exp2(-abs(self.rows - self.apart[size]))
        parting = [i // (2 * size) * 2 * size + size - 1 for i in range(ROWS)]
        return pk.exp2(-abs(self.rows - self.rows.take_rows(parting)))


def sums_of_rows(decay: Any) -> Any:
    """Sums of a warp's 16 rows of g from the first, base 2."""
    return pk.maximum(decay * LOG2E, LEAST).col_cumsum()


def last_row(x: Any) -> Any:
    """Of a warp's 16."""
    return pk.where(pk.row_index(x) == ROWS - 1, x, 0.0).col_sum()


def sums_of_chunk(own: Any, ends: list[Any], block: Any) -> Sums:
    """From those of the warp's rows, and what all four warps have in their last."""
    first, second = ends[0], ends[0] + ends[1]
    third = second + ends[2]
    start = pk.where(block == 0, 0.0, pk.where(block == 1, first, pk.where(block == 2, second, third)))
    return Sums(own + start, {32: second, 16: pk.where(block < 2, first, third)}, third + ends[3])


@pk.kernel(warps=4, grid=lambda v, a, **_: (a.rows // CHUNK, v.depth, v.batch), blocks_per_sm=3)
def prepare(
    q: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    log_decay: Annotated[Tensor, f32, "B", "H", "N", pk.static("D")],
    offsets: Annotated[Tensor, i32, "S"],
    a: Annotated[Tensor, f32, "B", "H", "M", CHUNK],
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
    """A, what stands for scale * Q K^T, the factors of rows; queries and keys as they meet the state before (`asking`,
    `looking`) and the one behind (`lasting`), and the decays of the chunk.
    """
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, d, block = q.dtype, q.cols, warp.index
    group, parts, place = head // (v.depth // q.depth), d // WIDTH, chunk * 4 + block
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    tile = tile * 4 + block
    ends = pk.shared(pk.sv(f32, WIDTH), count=4 * parts, name="ends")
    far: dict[int, Any] = {
        size: pk.shared(pk.st(dtype, CHUNK, d), count=2, name=f"far_{size}") for size in (16, 32)
    }  # keys, queries

    def some(x: Any, col: Any, of: Any = head) -> Any:
        return warp.load(x, **rows.tile(batch, of, tile, ROWS, col, WIDTH), rows=ROWS, cols=WIDTH, dtype=f32)

    def write(name: str, column: Any) -> None:
        warp.store(factors, column, (batch, head, FACTORS.index(name), place))

    def add(products: list[Any], size: int, first: Any) -> None:
        """Those of the warp's rows with `size` rows of keys before them."""
        for i, product in enumerate(products):
            warp.mma_ABt(product, far[size][i].part(block * ROWS, 0, ROWS, d), far[size][0].part(first, 0, size, d))

    owns = [warp.zeros_col(f32, ROWS) for _ in range(2)]
    for col in pk.range(parts):
        for own, x in zip(owns, (q, k), strict=True) if norm else ():
            own += (one := some(x, col, group)).row_dot(one)
        warp.store(ends[block * parts + col], last_row(sums_of_rows(some(log_decay, col))))
    own_q, own_k = (pk.rsqrt(x + EPSILON) if norm else x + 1.0 for x in owns)
    write("own_q", own_q)
    write("own_k", own_k)
    pk.block.sync()
    near = [warp.zeros(f32, ROWS, ROWS) for _ in range(2)]  # of keys and of queries with keys of the same 16 rows
    row, column = pk.row_index(near[0]), pk.col_index(near[0])
    for col in pk.range(parts):
        query, key = some(q, col, group) * (own_q * scale), some(k, col, group) * own_k
        own = sums_of_rows(some(log_decay, col))
        sums = sums_of_chunk(own, [warp.load_row(ends[i * parts + col]) for i in range(4)], block)
        for size, kept in far.items():
            fade = sums.fade(size)
            for i, x in enumerate((key, query)):
                warp.store(kept[i].part(block * ROWS, col * WIDTH, ROWS, WIDTH), (x * fade).to(dtype))
        for size in (*NEAR, 0):
            fade = sums.fade(size) if size else 1.0
            # The pairs that part here: equal but for the bit `size`, and what is below it; of 0, row and column
            mask = (row ^ column) // size == 1 if size else row == column
            right = (key * fade).to(dtype)
            for product, left in ((near[0], right), (near[1], (query * fade).to(dtype)))[size == 0 :]:
                made = warp.zeros(f32, ROWS, ROWS)
                warp.mma_ABt(made, left, right)
                product += pk.where(mask & (row >= column), made, 0.0)
        rise, fall = pk.exp2(sums.rows), pk.exp2(sums.last - sums.rows)
        for to, x in ((asking, query * rise), (looking, key * rise), (lasting, key * fall)):
            warp.store(to, x.to(dtype), (batch, head, place, col))
        with pk.when(block == 0):
            warp.store(decays, pk.exp2(sums.last), (batch, head, chunk, col))

    pk.block.sync()
    half, whole = ([warp.zeros(f32, ROWS, n) for _ in range(2)] for n in (16, 32))
    with pk.when(block >= 2):
        add(whole, 32, 0)
    with pk.when(block % 2 == 1):
        add(half, 16, (block - 1) * ROWS)

    def strip(i: int) -> Any:
        """The warp's rows, 16 x 64."""
        left, right = whole[i][:, 0:16], whole[i][:, 16:32]
        return pk.join(
            pk.where(block == 0, near[i], pk.where(block == 1, half[i], left)),
            pk.where(block == 1, near[i], right),  # zeros of the first
            pk.where(block == 2, near[i], pk.where(block == 3, half[i], 0.0)),
            pk.where(block == 3, near[i], 0.0),
        )

    warp.store(a, strip(0), (batch, head, place, 0))
    product = strip(1)
    if dtype is f16:
        unit = unit_of(product)
        write("unit", unit)
        write("queries", 1.0 / unit)
        product = product / unit
    warp.store(p, product.to(dtype), (batch, head, place, 0))


@pk.kernel(warps=1, grid=lambda a, **_: (a.rows // CHUNK, a.depth, a.batch))
def invert(
    a: Annotated[Tensor, f32, "B", "H", "M", CHUNK],
    beta: Annotated[Tensor, f32, "B", "H", "N"],
    offsets: Annotated[Tensor, i32, "S"],
    w: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
) -> None:
    """W of each chunk, and b among the factors of rows."""
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    rows, tile = pk.stretch(beta.cols), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    b = warp.load_col(beta, **rows.run(batch, head, tile, CHUNK), length=CHUNK)
    warp.store(factors, b, (batch, head, FACTORS.index("beta"), chunk))
    product = inverse(warp.load(a, (batch, head, chunk, 0), rows=CHUNK, cols=CHUNK), b)
    if w.dtype is f16:
        unit = unit_of(product)
        warp.store(factors, unit, (batch, head, FACTORS.index("solved"), chunk))
        product = product / unit
    warp.store(w, product.to(w.dtype), (batch, head, chunk, 0))


def solve(x: Operands, scale: float, norm: bool) -> tuple[Any, ...]:
    """What `prepare` and `invert` make."""
    d, (w, p, factors) = arrays.describe(x.q).shape[3], x.squares()
    asking, looking, lasting = met = [x.made(x.dtype, x.chunks * CHUNK, d) for _ in range(3)]
    a, decays = x.made("f32", x.chunks * CHUNK, CHUNK), x.made("f32", x.chunks, d)
    prepare(*x[:4], x.offsets, a, p, factors, decays, *met, scale, norm=norm)
    invert(a, x.beta, x.offsets, w, factors)
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
