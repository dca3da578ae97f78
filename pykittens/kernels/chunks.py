"""What kernels over sequences in chunks share: where a block's chunks are, the decays summed up inside each, and the
states at the beginning of parts of a sequence.

A recurrence S_i = exp(g_i) S_(i - 1) + v_i k_i over a chunk of 64 rows needs exp(c_i - c_j) only, with c_i the sum of g
from the chunk's beginning to row i: differences of logarithms, never quotients of exponentials. `accumulate` makes the
c_i, base 2, and what rows are weighed with, once for all passes. Chunks begin where their sequence does; they are
numbered (slots), those of packed sequences as `pk.packed` numbers tiles. A g below -160 in base 2 counts as that: its
power is 0 in float32, and sums of 64 such are known within 2^-10, so that a row which forgets everything does not blur
the decays behind it.

Where there are fewer sequences and heads than multiprocessors, a block has a part of a sequence (`each` chunks): a pass
for what each part adds to the state, `carry` from part to part, and a pass from the states at their beginnings.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp, warpgroup

from .rows import FLOATS

LOG2E = 1.4426950408889634
CHUNK = 64  # rows
LEAST = -160.0  # of a decay's logarithm, base 2
HEADS = 32  # of a warp that sums up decays
RUN = 1024  # elements of a state that a block carries on


class BlockChunks(NamedTuple):
    """The chunks of a block."""

    rows: Any  # of its sequence
    batch: Any  # where they are in a tensor
    sequence: Any
    first: Any  # the first of its chunks, counted in its sequence
    count: Any
    slot: Any  # the number of that chunk among all
    ends: Any  # whether the sequence ends with it
    number: Any  # of the part among all


def part_of(x: Any, offsets: Any, tile: Any, batch: Any, each: Any) -> BlockChunks:
    """Part number `tile` of sequence `batch`, of `each` chunks; where sequences are packed, of all of them."""
    if offsets is None:
        chunks, first = pk.cdiv(x.rows, CHUNK), tile * each
        count = pk.minimum(each, chunks - first)
        parts = pk.cdiv(chunks, each)
        return BlockChunks(
            pk.stretch(x), batch, batch, first, count, batch * chunks + first, tile == parts - 1, batch * parts + tile
        )
    packed = pk.packed(offsets)
    i = packed.find(tile, each * CHUNK)
    place = tile - packed.first(i, each * CHUNK)
    first, chunks = place * each, pk.cdiv(packed[i].rows, CHUNK)
    count = pk.maximum(pk.minimum(each, chunks - first), 0)
    ends = (first + each >= chunks) & ((place == 0) | (first < chunks))  # some numbers are nobody's
    return BlockChunks(packed[i], 0, i, first, count, packed.first(i, CHUNK) + first, ends, tile)


def rows_of(n: Any, offsets: Any, slot: Any) -> tuple[Any, Any, Any]:
    """(rows of its sequence, which batch they are in, which chunk of them) of the chunk with a number; each batch has
    n rows."""
    if offsets is None:
        chunks = pk.cdiv(n, CHUNK)
        return pk.stretch(n), slot // chunks, slot % chunks
    packed = pk.packed(offsets)
    i = packed.find(slot, CHUNK)
    return packed[i], 0, slot - packed.first(i, CHUNK)


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), also where that is small beside 1."""
    small = pk.exp2(-LOG2E * abs(x))
    series = small * (1.0 - small * (0.5 - small * (1.0 / 3.0)))
    return pk.maximum(x, 0.0) + pk.where(small < 0.01, series, pk.log(1.0 + small))


def later(decay: Any) -> Any:
    """For each row of a chunk, the sum of those behind it: a difference of sums does not know it beside a large one."""
    behind = decay.take_rows([*range(1, CHUNK), CHUNK - 1])
    return pk.where(pk.row_index(decay) == CHUNK - 1, 0.0, behind).col_cumsum(reverse=True)


def slots(rows: int, sequences: int, packed: bool, height: int = CHUNK) -> int:
    """How many chunks (or parts of `height` rows) are numbered, of so many sequences with `rows` rows each, or all."""
    return rows // height + sequences if packed else sequences * -(-rows // height)


@pk.kernel(warps=1, grid=lambda sums, **_: (sums.cols // CHUNK, pk.cdiv(sums.rows, HEADS)))
def accumulate(
    dt: Annotated[Tensor, FLOATS, "B", 1, "N", "H"],
    a: Annotated[Tensor, f32, "H"],
    bias: Annotated[Tensor, FLOATS, "H"],
    offsets: Annotated[Tensor, i32, "S"],
    sums: Annotated[Tensor, f32, "H", "M"],
    weights: Annotated[Tensor, f32, "H", "M"],
    left: Annotated[Tensor, f32, "H", "M"],
    *,
    soft: bool = False,
) -> None:
    """weights = dt + bias, or their softplus; sums = a * weights * log2(e), summed up from the beginning of each chunk;
    left = the sums of what comes after a row. Without `a`, dt is the decay itself; weights and left may be None."""
    slot, col = pk.block_index.x, pk.block_index.y
    rows, batch, chunk = rows_of(dt.rows, offsets, slot)
    where = rows.tile(batch, 0, chunk, CHUNK, col, HEADS)
    x = warp.load(dt, **where, rows=CHUNK, cols=HEADS, dtype=f32)
    if bias is not None:
        x = x + warp.load_row(bias, col, length=HEADS, dtype=f32)
    x = softplus(x) if soft else x
    if a is not None:
        x = pk.where(pk.row_index(x) < rows.rows - chunk * CHUNK, x, 0.0)
        decay = x * pk.maximum(warp.load_row(a, col, length=HEADS) * LOG2E, -1e30)  # -inf times 0 would be NaN
    else:
        decay = x * LOG2E
    decay = pk.maximum(decay, LEAST)
    warp.store(sums, decay.col_cumsum().transpose(), (col, slot))
    if left is not None:
        warp.store(left, later(decay).transpose(), (col, slot))
    if weights is not None:
        warp.store(weights, x.transpose(), (col, slot))


@pk.kernel(warps=4, grid=lambda local, sequences, **_: (local.cols // RUN, local.rows, sequences))
def carry(
    before: Annotated[Tensor, f32, "S", "H", pk.static("L")],
    local: Annotated[Tensor, f32, "P", "H", pk.static("L")],
    decays: Annotated[Tensor, f32, "H", "P"],
    offsets: Annotated[Tensor, i32, "S1"],
    starts: Annotated[Tensor, f32, "P", "H", pk.static("L")],
    after: Annotated[Tensor, f32, "S", "H", pk.static("L")],
    each: Annotated[Scalar, i32],
    sequences: Annotated[Scalar, i32],
    *,
    reverse: bool = False,
) -> None:
    """starts = the state at the beginning of each part, from what each adds to it (`local`) and the logarithm, base 2,
    of its decay; reverse: from the last part to the first. `before` and `after` may be None."""
    run, head, sequence = pk.block_index.x, pk.block_index.y, pk.block_index.z
    if offsets is None:
        parts = local.depth // sequences
        first = sequence * parts
    else:
        packed = pk.packed(offsets)
        first, parts = packed.first(sequence, each * CHUNK), pk.cdiv(packed[sequence].rows, each * CHUNK)
    state = warpgroup.full_vec(f32, RUN, 0.0, width=4)
    if before is not None:
        state[:] = warpgroup.load_vec(before, (sequence, head, run), length=RUN)
    for i in pk.range(parts):
        part = first + (parts - 1 - i if reverse else i)
        warpgroup.store(starts, state, (part, head, run))
        added = warpgroup.load_vec(local, (part, head, run), length=RUN)
        state[:] = pk.fma(state, pk.exp2(decays[head, part]), added)
    if after is not None:
        warpgroup.store(after, state, (sequence, head, run))
