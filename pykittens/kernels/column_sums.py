"""Sums over the rows of a workspace: the second pass of kernels whose blocks each summed some rows of a matrix.

    o[j] = sum over i of parts[i, j]

parts: (g, n) float32, o: (n,) bf16, f16 or f32. A block takes 16 to 64 columns. Its warps take rows in turn, and their sums are
added in a fixed order, so that the result has the same bits every time.
"""

from __future__ import annotations

from typing import Any

import pykittens as pk
from pykittens import f32, warp
from pykittens.types import Coalesced

from .rows import FLOATS

WARPS, TILE = 16, 1024  # of a block; elements of a warp's tile


@pk.kernel(warps=WARPS, grid=lambda parts, cols, **_: -(-parts.cols // cols))
def column_sums(
    parts: pk.gl(f32, "G", pk.static("N")),
    more: pk.gl(f32, "G", pk.static("N")),
    o: pk.gl(FLOATS, pk.static("N")),
    other: pk.gl(FLOATS, pk.static("N")),
    *,
    cols,
    width,
):
    """o = sums of the columns of parts; and of `more` into `other`, where they are given. `width`: floats read at once."""
    layout = Coalesced(min(32, cols // width), width)
    sums = pk.shared(pk.sv(f32, cols), count=2 * WARPS, name="sums")
    jobs = [(i, x, y) for i, (x, y) in enumerate(((parts, o), (more, other))) if x is not None]
    for i, x, _ in jobs:
        total = warp.zeros(f32, TILE // cols, cols, layout=layout)
        for lap in pk.range(pk.cdiv(x.rows, TILE // cols * WARPS)):
            total += warp.load(
                x, (0, 0, lap * WARPS + warp.index, pk.block_index.x), rows=TILE // cols, cols=cols, layout=layout
            )
        warp.store(sums[i * WARPS + warp.index], total.col_sum())
    pk.block.sync()
    for i, _, y in jobs:
        with pk.when(warp.index == i):
            whole = warp.load_vec(sums[i * WARPS])
            for k in range(1, WARPS):
                whole += warp.load_vec(sums[i * WARPS + k])
            warp.store(y, whole, (0, 0, 0, pk.block_index.x))


def add_up(parts: Any, more: Any, o: Any, other: Any) -> None:
    """`column_sums` of arrays; either pair may be None."""
    if parts is None:
        parts, more, o, other = more, None, other, None
    n = parts.shape[-1]
    column_sums(parts, more, o, other, cols=16 if n <= 2048 else 64, width=min(4, n & -n))
