"""Flash attention 2, forward, with mma.sync, ldmatrix and cp.async: Ampere, Ada, and Hopper without its own
instructions.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

After Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning" (2023). q, o: (batch,
heads, n, d), k, v: (batch, kv heads, m, d), bf16 or f16, d up to 128, any lengths, any strides with contiguous rows;
heads a multiple of kv heads. lse, on request: log(sum(exp(q @ k.T * scale))) for each row, float32 (batch, heads, n). A
block owns `rows` queries, 32 of them each warp: two fragments of 16, so that what ldmatrix brings of keys and values is
multiplied twice. It goes through the keys from the last to the first, `keys` at a time: only the first steps mask. The
values are on their way while the scores are made, the next keys during softmax and the second product. Shared memory:
rows * d + 2 * keys * d elements, 48 KiB at d 128 (two blocks on an Ada multiprocessor), 32 KiB at d 64.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32

from ..trace.scoring import TABLES, Scoring, Where
from ..trace.visits import TileList
from .scale import magnitude, normalised, squashed, turn
from .widths import widths

LOG2E = 1.4426950408889634
LOWEST = -3e38  # the peak of a row that has seen no key: finite, so that no difference is NaN
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)


def grid(q: Any, rows: Any, q_offsets: Any = None, **_: Any) -> Any:
    """A block a tile of queries."""
    tiles = pk.cdiv(q.rows, rows) if q_offsets is None else q.rows // rows + q_offsets.cols - 1
    return tiles, q.depth, q.batch


def keys_of(d: int) -> int:
    """Keys at a time: as many as registers hold scores of."""
    return min(4096 // d // 16 * 16, 64)


@pk.kernel(
    warps=lambda rows, **_: rows // 32,
    blocks_per_sm=lambda blocks, **_: blocks,
    grid=grid,
)
def attend(
    q: Annotated[Tensor, HALF, "B", "H", "N", D],
    k: Annotated[Tensor, HALF, "B", "G", "M", D],
    v: Annotated[Tensor, HALF, "B", "G", "M", DV],
    o: Annotated[Tensor, HALF, "B", "H", "N", DV],
    scale: Annotated[Scalar, f32],
    lse: Annotated[Tensor, f32, "B", "H", "N"] | None = None,
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    sinks: Annotated[Tensor, (f32, *HALF), "H"] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    o0: Annotated[Tensor, TABLES, "A0", "B0", "C0", "D0"] | None = None,
    o1: Annotated[Tensor, TABLES, "A1", "B1", "C1", "D1"] | None = None,
    o2: Annotated[Tensor, TABLES, "A2", "B2", "C2", "D2"] | None = None,
    o3: Annotated[Tensor, TABLES, "A3", "B3", "C3", "D3"] | None = None,
    lists: Annotated[Tensor, i32, "TB", "TH", "TT", "TL"] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    *,
    scoring: Scoring | None = None,
    causal: bool = False,
    rows: int = 128,
    keys: Any = None,
    blocks: int = 2,
) -> None:
    """o = softmax(q @ k.T * scale) @ v; causal: row i sees the keys up to i + m - n.

    `left`, `right`, `softcap`, `sinks`, offsets, `scoring`, `lists` and owners: see `attention_hopper.attend`.
    """
    (d, wide), group = widths(q.cols, v.cols), pk.block
    scored, tables = scoring is not None and scoring.score is not None, (o0, o1, o2, o3)
    unit = (scale if scored else magnitude(scale)) if softcap is None else softcap  # of what is compared
    c = LOG2E if scored else unit * LOG2E
    keys = keys or keys_of(d)
    block, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    sequence = batch
    side: Any = 0 if causal else right
    q_rows, k_rows = pk.stretch(q), pk.stretch(k)
    if q_offsets is not None:
        packed = pk.packed(q_offsets)
        sequence = packed.owner(block, rows, owners)
        q_rows, k_rows = packed[sequence], pk.packed(k_offsets)[sequence]
        block = block - packed.first(sequence, rows)
    if side is not None:  # the longest first
        block = pk.grid_size.x - 1 - block if q_offsets is None else pk.cdiv(q_rows.rows, rows) - 1 - block
    band = pk.band(q_rows.rows, k_rows.rows, left=left, right=side)
    queries, key, value = (
        pk.shared(pk.st(q.dtype, n, width), name=name)
        for n, width, name in ((rows, d, "queries"), (keys, d, "keys"), (keys, wide, "values"))
    )
    peak, total = group.full_col(f32, rows, LOWEST), group.zeros_col(f32, rows, partial=True)
    score, out = group.zeros(f32, rows, keys), group.zeros(f32, rows, wide)

    exists = 1 if q_offsets is None else pk.where((block >= 0) & (block * rows < q_rows.rows), 1, 0)
    line = block if q_offsets is None else pk.packed(q_offsets).first(sequence, rows) + pk.maximum(block, 0)
    listed = None if lists is None else TileList(lists, batch, head, line)
    span = band.key_tiles(block * rows, rows, keys, exists) if listed is None else listed.span
    if q_offsets is not None and listed is not None:
        span = span._replace(end=pk.where(exists == 1, span.end, 1))

    def load(tile: Any, tensor: Any, i: Any) -> None:
        j = i if listed is None else listed[i]
        group.load_async(tile, tensor, **k_rows.tile(batch, head // (q.depth // k.depth), j, keys))
        group.commit()

    def arrived() -> None:
        """What was on its way is here, and what all warps have used may be overwritten."""
        group.wait_loads()
        group.sync()

    group.load_async(queries, q, **q_rows.tile(batch, head, block, rows))
    load(key, k, span.end - 1)
    if softcap is None and not scored:
        with pk.when(scale <= 0.0):
            arrived()
            turn(group, queries, scale)
    query: Any = queries
    if d <= 64:  # registers hold the queries too
        arrived()
        query = group.load(queries)
    for i in pk.range(span.end - 1, span.begin - 1, -1):
        arrived()
        load(value, v, i)
        group.mm_ABt(score, query, key)
        arrived()
        with pk.when(i > span.begin):
            load(key, k, i - 1)
        if softcap is not None:
            score[:] = squashed(score, scale / softcap)
        j = i if listed is None else listed[i]
        if scoring is not None:
            where = Where(sequence, head, block * rows, j * keys)
            score[:] = scoring.apply(score, unit, where, tables, listed is None)
        with pk.when(i >= span.full if left is None or listed else (i >= span.full) | (i < span.clear)):
            if scoring is not None and listed is not None:
                score[:] = scoring.hidden(score, where, tables)
            score[:] = pk.where(band.sees(score, block * rows, j * keys), score, -pk.inf)
        highest = pk.maximum(peak, score.row_max() * c)
        weight, shrink = pk.exp2(pk.fma(score, c, -highest)), pk.exp2(peak - highest)
        total[:] = pk.fma(total, shrink, weight.row_sum(partial=True))
        out *= shrink
        peak[:] = highest
        group.mma_AB(out, weight.to(q.dtype), value)

    sums = total.total()
    unseen = sums == 0.0  # a row that sees no key is 0, even where a value is NaN
    share, log = normalised(peak, 1.0, sums, None if sinks is None else pk.cast(sinks[head], f32))
    if lse is not None:
        group.store(lse, log(), **q_rows.run(batch, head, block, rows))
    staged = queries if wide == d else queries.part(0, 0, rows, wide)
    group.store(staged, pk.where(unseen, 0.0, out * share).to(q.dtype))
    group.sync()
    group.store(o, staged, **q_rows.tile(batch, head, block, rows))
