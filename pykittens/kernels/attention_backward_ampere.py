"""Flash attention, backward, with mma.sync, ldmatrix and cp.async: Ampere, Ada, and newer without Hopper's
instructions.

The mathematics and the operands are those of `attention_backward_hopper`, for d 64 and 128. A block has 128 keys and
values, and goes through the tiles of queries of all heads that share them; the next tile is on its way meanwhile. S
and dP are made transposed, so that P and dS are left operands in registers; dS goes through shared memory for dq, of
which a warp makes a piece and adds it to a float32 tensor in the order of its registers. What ldmatrix brings (128
bytes a clock) bounds the speed: at d 64 a warp has two fragments of 16 keys to multiply each fragment of queries with,
and two blocks share a multiprocessor; at d 128 registers hold one, and tiles are long instead. Where blocks are too few
for all multiprocessors, several divide the tiles of queries that one goes through, and `merge` adds up what they make:

    dk = scale * sum(dk_p)        dv = sum(dv_p)        over parts p, always in the same order
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp

from ..trace.scoring import TABLES, Differentiated, Scoring, Where
from ..trace.visits import TileList
from .scale import squashed
from .widths import backward_width

LOG2E = 1.4426950408889634
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)
KEYS = 128  # of a block
AMPLE = 163 * 1024  # bytes of shared memory: A100, H100. Two blocks with two slots at d 64, slots of 64 rows at d 128
LINES = 4  # rows that a warp of `merge` adds up
MOST, ROOM = 16, 2**28  # parts of the work on a tile of keys, and bytes for them
HEIGHT = 32  # rows of the piece of dq that a warp makes of a tile of queries


def configuration(d: int, shared_bytes: int) -> dict[str, int]:
    """Queries of a tile, warps of a block and slots for tiles, where a block has so many bytes of shared memory."""
    ample = shared_bytes >= AMPLE
    return {"rows": 64 if d > 64 and ample else 32, "warps": 4 if d == 64 else 8, "slots": 2 if ample else 1}


def parts(padded: int, d: int, rows: int, warps: int) -> tuple[int, int]:
    """How many pieces the sums of dq have, and their elements."""
    return padded // rows * warps, rows * d // warps


def divided(batch: int, shared: int, group: int, n: int, m: int, d: int, cut: dict[str, int], processors: int) -> int:
    """Into how many parts the work on each tile of keys is divided: as many as leave no multiprocessor idle, each of
    two tiles of queries or more, on `shared` heads of keys, each of `group` heads.
    """
    blocks = max(-(-m // KEYS) * batch * shared, 1)
    room = ROOM // max(8 * batch * shared * m * d, 1)
    return max(1, min(processors * (8 // cut["warps"]) // blocks, group * -(-n // cut["rows"]) // 2, MOST, room))


def place_of(piece: Any, d: int, width: int) -> tuple[Any, Any]:
    """First row and column of a piece in its tile."""
    return piece // (d // width) * HEIGHT, piece % (d // width) * width


def key_tiles_of(k: Any, k_offsets: Any) -> Any:
    """Blocks for each head of keys: tiles of one sequence, or as many as packed ones may have."""
    return pk.cdiv(k.rows, KEYS) if k_offsets is None else k.rows // KEYS + k_offsets.cols - 1


@pk.kernel(
    warps=lambda warps, **_: warps,
    blocks_per_sm=lambda warps, **_: 8 // warps,
    grid=lambda k, k_offsets=None, sums=None, **_: (
        key_tiles_of(k, k_offsets) * k.depth * (k.batch if sums is None else sums.batch // 2)
    ),
)
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
    turns: Annotated[Tensor, i32, "B", "H", "T"] | None = None,
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    o0: Annotated[Tensor, TABLES, "A0", "B0", "C0", "D0"] | None = None,
    o1: Annotated[Tensor, TABLES, "A1", "B1", "C1", "D1"] | None = None,
    o2: Annotated[Tensor, TABLES, "A2", "B2", "C2", "D2"] | None = None,
    o3: Annotated[Tensor, TABLES, "A3", "B3", "C3", "D3"] | None = None,
    d0: Annotated[Tensor, f32, "A0", "B0", "C0", "D0"] | None = None,
    d1: Annotated[Tensor, f32, "A1", "B1", "C1", "D1"] | None = None,
    d2: Annotated[Tensor, f32, "A2", "B2", "C2", "D2"] | None = None,
    d3: Annotated[Tensor, f32, "A3", "B3", "C3", "D3"] | None = None,
    lists: Annotated[Tensor, i32, "TB", "TH", "TT", "TL"] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    sums: Annotated[Tensor, f32, "PB", "G", "M", pk.static("PL")] | None = None,
    *,
    scoring: Scoring | None = None,
    causal: bool = False,
    rows: int,
    warps: int,
    slots: int,
) -> None:
    """dk, dv, and dq / scale added to float32 `dq`; causal: row i sees the keys up to i + m - n.

    `turns`, `left`, `right`, `softcap`, offsets, owners and `scoring`: see `attention_backward_hopper.differentiate`.
    With `sums`, (2 parts B, G, M, width of a tile), blocks divide the work on a tile of keys: part p of dk / scale is
    at p * B + batch, that of dv behind those of all.
    """
    d, dtype, group = backward_width(q.cols, v.cols), q.dtype, pk.block
    side: Any = 0 if causal else right
    key_tiles, shared_by = key_tiles_of(k, k_offsets), q.depth // k.depth
    together = k.depth * (k.batch if sums is None else sums.batch // 2)  # blocks for the same tile
    if side is None:  # a head after the other, for L2
        tile, owner = pk.block_index.x % key_tiles, pk.block_index.x // key_tiles
    else:  # the longest tiles of all heads first, or those that nobody waits for
        tile, owner = pk.block_index.x // together, pk.block_index.x % together
        tile = tile if turns is None else key_tiles - 1 - tile
    head, entry = owner % k.depth, owner // k.depth
    batch = entry if sums is None else entry % k.batch
    q_rows, k_rows, base, sequence, line = pk.stretch(q), pk.stretch(k), 0, batch, tile
    if q_offsets is not None:
        sequence = pk.packed(k_offsets).owner(tile, KEYS, owners)
        tile = tile - pk.packed(k_offsets).first(sequence, KEYS)
        q_rows, k_rows = pk.packed(q_offsets)[sequence], pk.packed(k_offsets)[sequence]
        base = pk.packed(q_offsets).padded(sequence, rows)
        key_tiles = pk.cdiv(k_rows.rows, KEYS)
    band = pk.band(q_rows.rows, k_rows.rows, left=left, right=side)
    scored, tables = scoring is not None and scoring.score is not None, (o0, o1, o2, o3)
    unit = scale if softcap is None else softcap
    span, c = band.query_tiles(tile * KEYS, KEYS, rows), LOG2E if scored else unit * LOG2E
    whole = tile * KEYS + KEYS <= k_rows.rows
    key, value = (pk.shared(pk.st(dtype, KEYS, d), name=name) for name in ("key", "value"))
    queries, do_rows = (pk.shared(pk.st(dtype, rows, d), count=slots, name=name) for name in ("queries", "do_rows"))
    logs, deltas = (pk.shared(pk.sv(f32, rows), count=slots, name=name) for name in ("logs", "deltas"))
    slopes = pk.shared(pk.st(dtype, KEYS, rows), name="slopes")
    score, grad = group.zeros(f32, KEYS, rows), group.zeros(f32, KEYS, rows)
    dkey, dvalue = group.zeros(f32, KEYS, d), group.zeros(f32, KEYS, d)
    part = warp.zeros(f32, HEIGHT, rows * d // warps // HEIGHT)
    down, across = place_of(warp.index, d, part.cols)
    listed = None if lists is None else TileList(lists, batch, head * shared_by, line, parts_first=True)
    length = span.end - span.begin if listed is None else listed.count
    if q_offsets is not None:  # a number that is no tile's
        length = pk.where(tile * KEYS < k_rows.rows, length, 0)

    first, end = 0, length * shared_by
    if sums is not None:
        many = sums.batch // 2 // k.batch
        first, end = entry // k.batch * end // many, (entry // k.batch + 1) * end // many

    def slot(i: Any) -> tuple[Any, Any, Any, Any]:
        return tuple(x if slots == 1 else x[i % slots] for x in (queries, do_rows, logs, deltas))  # type: ignore[return-value]

    def place(i: Any) -> tuple[Any, Any]:
        """Head and number of the i-th tile of queries."""
        return head * shared_by + i // length, span.begin + i % length if listed is None else listed[i % length]

    def load(i: Any) -> None:
        (h, j), tiles = place(i), slot(i)
        for x, tensor in zip(tiles[:2], (q, do), strict=True):
            group.load_async(x, tensor, **q_rows.tile(batch, h, j, rows))
        for x, tensor in zip(tiles[2:], (lse, delta), strict=True):
            group.load_async(x, tensor, (batch, h, base + j))
        group.commit()

    group.load_async(key, k, **k_rows.tile(batch, head, tile, KEYS))
    group.load_async(value, v, **k_rows.tile(batch, head, tile, KEYS))
    with pk.when(first < end):
        load(first)
    for i in pk.range(first, end):
        (h, j), (query, grads, log, row_delta) = place(i), slot(i)
        group.wait_loads()
        group.sync()  # this tile is here, and nobody reads the one before any more
        if slots > 1:
            with pk.when(i + 1 < end):
                load(i + 1)
        group.mm_ABt(score, key, query)
        x = score if softcap is None else squashed(score, scale / softcap)
        where = scoring and Where(sequence, h, j * rows, tile * KEYS, down=True)
        made = Differentiated(scoring, x, unit, where, tables, (d0, d1, d2, d3))
        p = pk.exp2(pk.fma(made.result, c, -group.load_row(log)))
        p = p if lists is not None else made.hide(p)
        edge = ~whole | (j < span.clear) | (j >= span.full) if listed is None else i % length < listed.parts
        with pk.when(edge):
            if lists is not None:
                p[:] = made.hide(p)
            p[:] = pk.where(band.sees(score, j * rows, tile * KEYS, down=True), p, 0.0)
        weights = p.to(dtype)
        if softcap is not None and not scored:
            p = p * pk.fma(x, -x, 1.0)  # the derivative of tanh
        group.mm_ABt(grad, value, grads)
        group.mma_AB(dvalue, weights, grads)
        steep = made.pull(p * (grad - group.load_row(row_delta)))
        if softcap is not None and scored:
            steep = steep * pk.fma(x, -x, 1.0)
        slope = steep.to(dtype)
        group.store(slopes, slope)
        group.sync()  # all of dS is there
        group.mma_AB(dkey, slope, query)
        warp.mm_AtB(part, slopes.part(0, down, KEYS, HEIGHT), key.part(0, across, KEYS, part.cols))
        piece = (base + j) * warps + warp.index
        if turns is not None:
            pk.wait_for(turns, (batch, h, piece), band.turn(j, rows, tile, KEYS, key_tiles))
        warp.add(dq, part.registers(), (batch, h, piece, 0))
        if turns is not None:
            pk.signal(turns, (batch, h, piece), by=warp)
        if slots == 1:
            group.sync()
            with pk.when(i + 1 < end):
                load(i + 1)
    if any(x is not None for x in (left, right, q_offsets, lists, sums)):  # perhaps nobody has waited for the keys
        group.commit()
        group.wait_loads()
    if sums is not None:
        group.store(sums, dkey, (entry, head, tile, 0))
        group.store(sums, dvalue, (sums.batch // 2 + entry, head, tile, 0))
        return
    group.sync()
    own = k_rows if q_offsets is None else pk.packed(k_offsets).covering(sequence, k.rows)
    for out, found, staged in ((dk, dkey * scale, key), (dv, dvalue, value)):
        group.store(staged, found.to(dtype))
        group.sync()
        group.store(out, staged, **own.tile(batch, head, tile, KEYS))


@pk.kernel(warps=4, grid=lambda sums, dk, **_: (pk.cdiv(dk.rows, 4 * LINES), dk.depth * dk.batch, 2))
def merge(
    sums: Annotated[Tensor, f32, "PB", "G", "M", pk.static("PL")],
    dk: Annotated[Tensor, HALF, "B", "G", "M", D],
    dv: Annotated[Tensor, HALF, "B", "G", "M", DV],
    scale: Annotated[Scalar, f32],
) -> None:
    """dk and dv of all parts; a warp has some rows."""
    row, layout = pk.block_index.x * 4 + warp.index, pk.coalesced(min(sums.cols // 4, 32), 4)
    head, batch = pk.block_index.y % dk.depth, pk.block_index.y // dk.depth

    def add(gradient: int, out: Any, by: Any) -> None:
        total = warp.zeros(f32, LINES, sums.cols, layout=layout)
        for part in pk.range(sums.batch // 2 // dk.batch):
            at = (gradient * (sums.batch // 2) + part * dk.batch + batch, head, row, 0)
            total[:] = total + warp.load(sums, at, rows=LINES, cols=sums.cols, layout=layout)
        warp.store(out, (total * by).to(out.dtype), (batch, head, row, 0))

    with pk.when(pk.block_index.z == 0):
        add(0, dk, scale)
    with pk.when(pk.block_index.z == 1):
        add(1, dv, 1.0)


@pk.kernel(grid=lambda dq, warps, **_: dq.rows // warps * dq.depth * dq.batch)
def finish(
    dq: Annotated[Tensor, f32, "B", "H", "T", pk.static("L")],
    scaled: Annotated[Tensor, f32, "B", "H", "P"],
    out: Annotated[Tensor, HALF, "B", "H", "N", D],
    scale: Annotated[Scalar, f32],
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    *,
    width: int,
    rows: int,
    warps: int,
) -> None:
    """out = dq * scale, and 0 where a row sees no key. width: of the tiles of `rows`, each in as many pieces as
    `differentiate` had warps.
    """
    tiles, cols = dq.rows // warps, dq.cols // HEIGHT
    tile, rest = pk.block_index.x % tiles, pk.block_index.x // tiles
    head, batch = rest % out.depth, rest // out.depth
    staged = pk.shared(pk.st(out.dtype, rows, width), name="staged")
    for i in range(warps // 4):
        piece = i * 4 + warp.index
        down, across = place_of(piece, width, cols)
        x = warp.load_vec(dq, (batch, head, tile * warps + piece, 0)).tile(HEIGHT, cols)
        hidden = warp.load_col(scaled, pk.at(batch, head, tile * rows + down), length=HEIGHT) == pk.inf
        warp.store(staged.part(down, across, HEIGHT, cols), pk.where(hidden, 0.0, x * scale).to(out.dtype))
    pk.block.sync()
    q_rows, base = pk.stretch(out), 0
    if q_offsets is not None:
        i = pk.packed(q_offsets).owner(tile * rows // 128, 128, owners)
        q_rows, base = pk.packed(q_offsets).covering(i, out.rows), pk.packed(q_offsets).padded(i, rows)
    pk.block.store(out, staged, **q_rows.tile(batch, head, tile - base, rows))
