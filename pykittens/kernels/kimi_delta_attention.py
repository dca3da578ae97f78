"""Kimi delta attention, forward: the gated delta rule with a decay for each channel of the keys.

    S_i = S_(i-1) diag(exp(g_i)) + u_i k_i,   u_i = b_i (v_i - S_(i-1) diag(exp(g_i)) k_i),   o_i = scale * S_i q_i

Kimi Team, "Kimi Linear" (2025). In chunks of 64 rows it is `gated_delta_rule.py` with c_i the sums of g, a vector, in

    A_ij = sum_d k_id k_jd exp(c_id - c_jd)

and alike in q_i.k_j; and with the decays in the queries and keys that meet the state: exp(c) q, exp(c) k on its way
out, exp(c_64 - c) k on its way in. A difference of sums is no factor of row i times one of row j that stay small: pairs
of rows are grouped by where they part, as in `channel_decays.py`: of blocks of 32, 16, 8, 4, 2, 1 rows, let s be the
largest that has i in one block and j in the block before, of a pair of blocks; with r the last row of the first,

    exp(c_i - c_j) = exp(c_i - c_r) exp(c_r - c_j),   both at most 1.

`prepare` makes the products, a block of eight warps each chunk: a warp has 16 rows and half of the channels; keys that
part at 16 and 32 come from other warps through shared memory. Within 16 rows that decay by less than 2^60 together, one
product in bf16 is enough: r is the row in the middle, and a factor may be large where the other is small. `invert`
solves each chunk, a warp each, and `walk` is that of the gated delta rule. The reference is that of
`gated_delta_rule.py`.

log_decay: float32 (batch, heads, n, d). Shapes and dtypes of all else are those of the gated delta rule.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp, warpgroup

from ..interop import arrays
from .arguments import KernelCall, Launches
from .delta_step import recur
from .gated_delta_rule import CHUNK, EPSILON, FACTORS, LEAST, LOG2E, Operands, inverse, read, through
from .sequences import DTYPES, terms, unit_of

ROWS = 16  # of a warp
WIDTH = 16  # columns at a time
NEAR = (8, 4, 2, 1)  # blocks of rows whose pairs lie within a warp
MILD = -60.0  # base 2: half the range of bf16, for both factors of a product


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


def mild_fades(sums: Sums) -> tuple[Any, Any]:
    """exp(c - c_r) and exp(c_r - c), r the row in the middle of the warp's. Where all rows together decay by no more
    than MILD, bf16 holds both, and their product is what pairs decay by.
    """
    middle = sums.rows.take_rows([ROWS // 2 - 1] * ROWS)
    return pk.exp2(sums.rows - middle), pk.exp2(middle - sums.rows)


@pk.kernel(warps=8, grid=lambda v, a, **_: (a.rows // CHUNK, v.depth, v.batch), blocks_per_sm=2)
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
    """A and its diagonal, what stands for scale * Q K^T, the factors of rows; queries and keys as they meet the state
    before (`asking`, `looking`) and the one behind (`lasting`), and the decays of the chunk.
    """
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, d, block, half = q.dtype, q.cols, warp.index % 4, warpgroup.index
    group, parts, place = head // (v.depth // q.depth), d // WIDTH, chunk * 4 + block
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    queries, keys = (pk.shared(pk.st(dtype, CHUNK, d), name=name) for name in ("queries", "keys"))
    far: dict[int, Any] = {
        size: pk.shared(pk.st(dtype, CHUNK, d), count=2, name=f"far_{size}") for size in (16, 32)
    }  # keys, queries
    ends = pk.shared(pk.sv(f32, WIDTH), count=4 * parts, name="ends")
    squares: Any = pk.shared(pk.sv(f32, ROWS), count=16, name="squares") if norm else None
    shares, landed = pk.shared(pk.sv(f32, ROWS * ROWS), count=8, name="shares"), pk.barrier()
    pk.tma.expect(landed, keys, queries)
    for to, source in ((keys, k), (queries, q)):
        pk.tma.load(to, source, **rows.tile(batch, group, tile, CHUNK), barrier=landed)

    def sums_here(col: Any) -> Any:
        at = rows.tile(batch, head, tile * 4 + block, ROWS, col, WIDTH)
        return sums_of_rows(warp.load(log_decay, **at, rows=ROWS, cols=WIDTH))

    def part(x: Any, col: Any) -> Any:
        return x.part(block * ROWS, col * WIDTH, ROWS, WIDTH)

    def write(name: str, column: Any) -> None:
        warp.store(factors, column, (batch, head, FACTORS.index(name), place))

    columns = half * (parts // 2), (half + 1) * (parts // 2)  # those of the warp
    for col in pk.range(*columns):
        warp.store(ends[block * parts + col], last_row(sums_here(col)))
    pk.wait(landed, 0)
    owns = [warp.full_col(f32, ROWS, 1.0) for _ in range(2)]
    if norm:
        for i, (held, own) in enumerate(zip((queries, keys), owns, strict=True)):
            own[:] = own * 0.0
            for col in pk.range(*columns):
                one = warp.load(part(held, col)).to(f32)
                own += one.row_dot(one)
            warp.store(squares[8 * i + warp.index], own)
    pk.block.sync()
    for i, own in enumerate(owns if norm else ()):
        own[:] = pk.rsqrt(sum(warp.load_col(squares[8 * i + 4 * j + block]) for j in range(2)) + EPSILON)
    with pk.when(half == 0):
        write("own_q", owns[0])
        write("own_k", owns[1])
    near = [warp.zeros(f32, ROWS, ROWS) for _ in range(2)]  # of keys and of queries with keys of the same 16 rows
    row, column = pk.row_index(near[0]), pk.col_index(near[0])

    def add(query: Any, key: Any, with_key: Any, mask: Any) -> None:
        """Products of some columns; of queries, which make results, with two terms of bf16 a factor: early rows of a
        sequence have no other products, in whose sum an error of one would be small."""
        for i, left in enumerate((key, query)):
            made = warp.zeros(f32, ROWS, ROWS)
            if left is query and dtype is not f16:
                (y, more), (x, rest) = (terms(t, dtype) for t in (with_key, left))
                warp.mma_ABt(made, rest, y)
                warp.mma_ABt(made, x, more)
                warp.mma_ABt(made, x, y)
            else:
                warp.mma_ABt(made, left.to(dtype), with_key.to(dtype))
            near[i] += pk.where(mask, made, 0.0)

    def add_apart(query: Any, key: Any, sums: Sums) -> None:
        """Pairs by where they part: equal but for the bit `size` of their rows, and what is below it."""
        for size in NEAR:
            fade = sums.fade(size)
            add(query * fade, key * fade, key * fade, ((row ^ column) // size == 1) & (row > column))
        add(query, key, key, row == column)

    def add_mild(query: Any, key: Any, sums: Sums) -> None:
        """All at once, by the row in the middle: factors are large, and their products at most 1 where they count."""
        rise, fall = mild_fades(sums)
        add(query * rise, key * rise, key * fall, row >= column)

    for col in pk.range(*columns):
        query, key = (warp.load(part(x, col)).to(f32) * own for x, own in zip((queries, keys), owns, strict=True))
        query = query * scale
        sums = sums_of_chunk(sums_here(col), [warp.load_row(ends[i * parts + col]) for i in range(4)], block)
        for size, kept in far.items():
            fade = sums.fade(size)
            for i, x in enumerate((key, query)):
                warp.store(part(kept[i], col), (x * fade).to(dtype))
        if dtype is f16:
            add_apart(query, key, sums)
        else:  # its range holds what rows decay by, where that is mild
            mild = warp.load_vec(ends[block * parts + col]).min() > MILD
            with pk.when(mild):
                add_mild(query, key, sums)
            with pk.otherwise():
                add_apart(query, key, sums)
        rise, fall = pk.exp2(sums.rows), pk.exp2(sums.last - sums.rows)
        warp.store(part(queries, col), (query * rise).to(dtype))
        warp.store(part(keys, col), (key * rise).to(dtype))
        warp.store(lasting, (key * fall).to(dtype), (batch, head, place, col))
        with pk.when(block == 0):
            warp.store(decays, pk.exp2(sums.last), (batch, head, chunk, col))
    # A warp goes on with keys or with queries, and has the other's part of the sum
    warp.store(shares[warp.index], pk.where(half == 0, near[1], near[0]).registers())
    pk.block.sync()
    with pk.when(half == 0):
        warpgroup.tma.store(asking, queries, (batch, head, chunk, 0))
    with pk.otherwise():
        warpgroup.tma.store(looking, keys, (batch, head, chunk, 0))
    warpgroup.tma.commit()
    own = pk.where(half == 0, near[0], near[1]) + warp.load_vec(shares[(warp.index + 4) % 8]).tile(ROWS, ROWS)
    before, early = warp.zeros(f32, ROWS, 16), warp.zeros(f32, ROWS, 32)  # with the 16 rows before, with the 32
    with pk.when(block >= 2):
        warp.mma_ABt(early, far[32][half].part(block * ROWS, 0, ROWS, d), far[32][0].part(0, 0, 32, d))
    with pk.when(block % 2 == 1):
        first = (block - 1) * ROWS
        warp.mma_ABt(before, far[16][half].part(block * ROWS, 0, ROWS, d), far[16][0].part(first, 0, 16, d))
    product = pk.join(
        pk.where(block == 0, own, pk.where(block == 1, before, early[:, 0:16])),
        pk.where(block == 1, own, early[:, 16:32]),  # zeros of the first
        pk.where(block == 2, own, pk.where(block == 3, before, 0.0)),
        pk.where(block == 3, own, 0.0),
    )
    with pk.when(half == 0):
        warp.store(a, product, (batch, head, place, 0))
    with pk.otherwise():
        unit: Any = unit_of(product) if dtype is f16 else 1.0
        if dtype is f16:
            write("unit", unit)
            write("queries", 1.0 / unit)
        warp.store(p, (product / unit).to(dtype), (batch, head, place, 0))
    warpgroup.tma.wait()


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
    through(x, (asking, looking, x.v, x.offsets, *solved), o, after)


FORWARD = Launches(_forward)


def call(*given: Any, scale: float, norm: bool, exact: bool = False) -> KernelCall:
    """What writes o, and the state after the last row into `after` unless that is None: the last two of `given`, which
    come behind what `read` takes. `exact`: row by row, in float32.
    """
    *taken, o, after = given
    x = read("kimi_delta_attention", *taken)
    if not exact:
        return KernelCall(FORWARD, (*x, o, after, scale), {"norm": norm})
    return KernelCall(recur, (*x._replace(log_decay=None), o, after, x.log_decay, scale), {"norm": norm})
