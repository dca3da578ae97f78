"""Flash attention, backward, with mma.sync, ldmatrix and cp.async: Ampere, Ada, and newer without Hopper's
instructions.

The mathematics and the operands are those of `attention_backward_hopper`, for d 64 and 128. A block of eight warps has
128 keys and values, 16 of each a warp, and goes through the tiles of queries of all heads that share them. S and dP are
made transposed, so that P and dS are left operands in registers; dS goes through shared memory for dq, of which a warp
makes some columns and adds them to a float32 tensor in the order of its registers. Shared memory: 88 KiB at d 128, 64
at d 64.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp

from .scale import squashed
from .widths import backward_width

LOG2E = 1.4426950408889634
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)
KEYS, WARPS = 128, 8
PIECE = (32, 16)  # rows and columns of dq that a warp makes of a tile of queries


def rows_of(d: Any) -> Any:
    """Queries of a tile: as many as shared memory of 99 KiB holds beside the keys and values."""
    return 4096 // d


def parts(padded: int, d: int) -> tuple[int, int]:
    """How many pieces the sums of dq have, and their elements."""
    return padded // rows_of(d) * WARPS, PIECE[0] * PIECE[1]


def place_of(piece: Any, d: int) -> tuple[Any, Any]:
    """First row and column of a piece in its tile."""
    return piece // (d // PIECE[1]) * PIECE[0], piece % (d // PIECE[1]) * PIECE[1]


def grid(k: Any, k_offsets: Any = None, **_: Any) -> Any:
    """A block for each tile of keys."""
    return pk.cdiv(k.rows, KEYS) if k_offsets is None else k.rows // KEYS + k_offsets.cols - 1, k.depth, k.batch


@pk.kernel(warps=WARPS, grid=grid)
def differentiate(
    q: Annotated[Tensor, HALF, "B", "H", "N", D],
    k: Annotated[Tensor, HALF, "B", "G", "M", D],
    v: Annotated[Tensor, HALF, "B", "G", "M", DV],
    do: Annotated[Tensor, HALF, "B", "H", "N", DV],
    lse: Annotated[Tensor, f32, "B", "H", "P"],
    delta: Annotated[Tensor, f32, "B", "H", "P"],
    dq: Annotated[Tensor, f32, "B", "H", "T", pk.static("L")],
    dk: Annotated[Tensor, HALF, "B", "G", "M", D],
    dv: Annotated[Tensor, HALF, "B", "G", "M", DV],
    scale: Annotated[Scalar, f32],
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    *,
    causal: bool = False,
) -> None:
    """dk, dv, and dq / scale added to float32 `dq`; causal: row i sees the keys up to i + m - n.

    `left`, `right`, `softcap` and offsets: see `attention_backward_hopper.differentiate`.
    """
    d, dtype, group = backward_width(q.cols, v.cols), q.dtype, pk.block
    rows = rows_of(d)
    tile, shared_by = pk.block_index.x, q.depth // k.depth
    head, batch = pk.block_index.y, pk.block_index.z
    q_rows, k_rows, base = pk.stretch(q), pk.stretch(k), 0
    if q_offsets is not None:
        i = pk.packed(k_offsets).find(tile, KEYS)
        tile = tile - pk.packed(k_offsets).first(i, KEYS)
        q_rows, k_rows, base = pk.packed(q_offsets)[i], pk.packed(k_offsets)[i], pk.packed(q_offsets).padded(i, rows)
    band = pk.band(q_rows.rows, k_rows.rows, left=left, right=0 if causal else right)
    span, c = band.query_tiles(tile * KEYS, KEYS, rows), (scale if softcap is None else softcap) * LOG2E
    key, value = (pk.shared(pk.st(dtype, KEYS, d), name=name) for name in ("key", "value"))
    query, grads = (pk.shared(pk.st(dtype, rows, d), name=name) for name in ("query", "grads"))
    logs, deltas = (pk.shared(pk.sv(f32, rows), name=name) for name in ("logs", "deltas"))
    slopes = pk.shared(pk.st(dtype, KEYS, rows), name="slopes")
    score, grad = group.zeros(f32, KEYS, rows), group.zeros(f32, KEYS, rows)
    dkey, dvalue = group.zeros(f32, KEYS, d), group.zeros(f32, KEYS, d)
    part, (down, across) = warp.zeros(f32, *PIECE), place_of(warp.index, d)
    if q_offsets is not None:  # a number that is no tile's
        span = span._replace(end=pk.where(tile * KEYS < k_rows.rows, span.end, span.begin))
    group.load_async(key, k, **k_rows.tile(batch, head, tile, KEYS))
    group.load_async(value, v, **k_rows.tile(batch, head, tile, KEYS))
    for g in pk.range(shared_by):
        for j in pk.range(span.begin, span.end):
            at = (batch, head * shared_by + g, base + j)
            group.load_async(query, q, **q_rows.tile(batch, at[1], j, rows))
            group.load_async(grads, do, **q_rows.tile(batch, at[1], j, rows))
            group.load_async(logs, lse, at)
            group.load_async(deltas, delta, at)
            group.commit()
            group.wait_loads()
            group.sync()
            group.mm_ABt(score, key, query)
            x = score if softcap is None else squashed(score, scale / softcap)
            p = pk.exp2(pk.fma(x, c, -group.load_row(logs)))
            p = pk.where(band.sees(score, j * rows, tile * KEYS, down=True), p, 0.0)
            group.mma_AB(dvalue, p.to(dtype), grads)
            if softcap is not None:
                p = p * pk.fma(x, -x, 1.0)  # the derivative of tanh
            group.mm_ABt(grad, value, grads)
            slope = (p * (grad - group.load_row(deltas))).to(dtype)
            group.store(slopes, slope)
            group.sync()  # all of dS is there
            group.mma_AB(dkey, slope, query)
            warp.mm_AtB(part, slopes.part(0, down, KEYS, PIECE[0]), key.part(0, across, KEYS, PIECE[1]))
            group.sync()  # nobody reads the queries any more
            warp.add(dq, part.registers(), (at[0], at[1], at[2] * WARPS + warp.index, 0))
    if left is not None or right is not None or q_offsets is not None:  # perhaps nobody has waited for the keys
        group.commit()
        group.wait_loads()
        group.sync()
    for out, sums, staged in ((dk, dkey * scale, key), (dv, dvalue, value)):
        group.store(staged, sums.to(dtype))
        group.sync()
        group.store(out, staged, **k_rows.tile(batch, head, tile, KEYS))


@pk.kernel(grid=lambda dq, **_: dq.rows // WARPS * dq.depth * dq.batch)
def finish(
    dq: Annotated[Tensor, f32, "B", "H", "T", pk.static("L")],
    scaled: Annotated[Tensor, f32, "B", "H", "P"],
    out: Annotated[Tensor, HALF, "B", "H", "N", D],
    scale: Annotated[Scalar, f32],
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    *,
    width: int | None = None,
) -> None:
    """out = dq * scale, and 0 where a row sees no key. width: of the tiles, unless it is that of `out`."""
    width = width or out.cols
    tiles, rows = dq.rows // WARPS, rows_of(width)
    tile, rest = pk.block_index.x % tiles, pk.block_index.x // tiles
    head, batch = rest % out.depth, rest // out.depth
    staged = pk.shared(pk.st(out.dtype, rows, width), name="staged")
    for i in range(2):
        piece = i * 4 + warp.index
        down, across = place_of(piece, width)
        x = warp.load_vec(dq, (batch, head, tile * WARPS + piece, 0)).tile(*PIECE)
        seen = warp.load_col(scaled, pk.at(batch, head, tile * rows + down), length=PIECE[0]) < pk.inf
        warp.store(staged.part(down, across, *PIECE), pk.where(seen, x * scale, 0.0).to(out.dtype))
    pk.block.sync()
    q_rows, base = pk.stretch(out), 0
    if q_offsets is not None:
        i = pk.packed(q_offsets).find(tile * rows // 128, 128)
        q_rows, base = pk.packed(q_offsets)[i], pk.packed(q_offsets).padded(i, rows)
    pk.block.store(out, staged, **q_rows.tile(batch, head, tile - base, rows))
