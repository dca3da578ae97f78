"""Delta rules where there are few heads: sequences in parts, which blocks go through side by side.

Through the chunks of a part the state goes as S' = S M + N: each row of a state by itself. `walk` (see
`gated_delta_rule.py`) finds N from a state of zeros, and M from the identity without values; `carry` goes from part to
part, and the states that parts begin with go to a second walk, which makes the rows. What it multiplies is in two terms
of bf16, high + low, of 16 bits together: parts change no more than the order of sums.

Gradients go the other way, dS = dS' M^T + N', where N' is what `unwind` (see `gated_delta_rule_backward.py`) finds from
a gradient of zeros; `reverse` goes from the last part to the first.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, i32, warpgroup

from ..interop import arrays
from .arguments import machine
from .chunks import CHUNK
from .sequences import terms

LEAST_CHUNKS = 16  # of a part
LEAST_PARTS = 3  # for less it does not pay to go through all chunks twice


class Parts(NamedTuple):
    """How many parts a sequence has, and how many chunks a part."""

    pieces: int
    each: int


def parts_of(v: Any, sequences: int, chunks: int) -> Parts:
    """As many as leave a multiprocessor for each block. `chunks`: those of the longest sequence, at most."""
    info = arrays.describe(v)
    blocks = info.shape[1] * info.shape[3] // CHUNK * sequences
    pieces = min(machine(info)["processors"] // blocks, chunks // LEAST_CHUNKS)
    if pieces < LEAST_PARTS:
        return Parts(1, chunks)
    each = -(-chunks // pieces)
    return Parts(-(-chunks // each), each)


@pk.kernel(warps=4, grid=lambda local, pieces, **_: (local.rows // CHUNK, local.depth, local.batch // pieces))
def carry(
    before: Annotated[Tensor, f32, "S", "H", pk.static("E"), pk.static("D")],
    local: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    high: Annotated[Tensor, bf16, "T", "H", pk.static("D"), pk.static("D")],
    low: Annotated[Tensor, bf16, "T", "H", pk.static("D"), pk.static("D")],
    starts: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    after: Annotated[Tensor, f32, "S", "H", pk.static("E"), pk.static("D")],
    offsets: Annotated[Tensor, i32, "O"],
    each: Annotated[Scalar, i32],
    pieces: Annotated[Scalar, i32],
    *,
    reverse: bool = False,
) -> None:
    """starts = the state at the beginning of each part, from N (`local`) and M (`high` + `low`) of each. In reverse the
    gradient of that at its end, and `after` is that of the state before the first part.
    """
    part, head, sequence = pk.block_index.x, pk.block_index.y, pk.block_index.z
    d, count = local.cols, pieces
    if offsets is not None:  # a sequence has as many as its rows fill: without rows the state passes through
        count = pk.cdiv(pk.packed(offsets)[sequence].rows, each * CHUNK)
    whole = pk.st(bf16, d, d)
    ring = pk.ring(2, high=whole, low=whole)

    def number(i: Any) -> Any:
        """Of a part among those of all sequences."""
        return sequence * pieces + (count - 1 - i if reverse else i)

    def load(i: Any) -> None:
        with pk.when(i < count), ring.fill() as slot:
            for to, source in ((slot.high, high), (slot.low, low)):
                pk.tma.load(to, source, (number(i), head, 0, 0))

    for i in range(2):
        load(i)
    state = (
        warpgroup.zeros(f32, CHUNK, d)
        if before is None
        else warpgroup.load(before, (sequence, head, part, 0), rows=CHUNK)
    )
    for i in pk.range(count):
        place = (number(i), head, part, 0)
        added = warpgroup.load(local, place, rows=CHUNK)
        warpgroup.store(starts, state, place)
        own = terms(state, bf16)
        slot = ring.read()
        state[:] = added
        for left, right in ((own[0], slot.high), (own[1], slot.high), (own[0], slot.low)):
            (warpgroup.mma_ABt if reverse else warpgroup.mma_AB)(state, left, right)
        warpgroup.wait(state)
        ring.release()
        load(i + 2)
    if after is not None:
        warpgroup.store(after, state, (sequence, head, part, 0))
