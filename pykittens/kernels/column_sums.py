"""Sums over the rows of a workspace: the second pass of kernels whose blocks each summed some rows of a matrix.

    o[j] = sum over i of parts[i, j]

parts: (g, n) float32, o: (n,) bf16, f16 or f32. A block takes 32 columns of one workspace. Its warps take 16 rows in
turn, and their sums are added in a fixed order, so that the result has the same bits every time.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, f32, warp
from pykittens.interop import arrays
from pykittens.types import Coalesced

from .arguments import may_overlap
from .rows import FLOATS

WARPS, ROWS, COLS = 16, 16, 32  # warps of a block; rows and columns of a warp's tile
LAYOUT = Coalesced(COLS, 1)


@pk.kernel(
    warps=WARPS,
    grid=lambda parts, more, **_: (-(-parts.cols // COLS), 1 + (more is not None)),
    pdl=lambda dependent=False, **_: dependent,
)
def column_sums(
    parts: Annotated[Tensor, f32, "G", pk.static("N")],
    more: Annotated[Tensor, f32, "G", pk.static("N")],
    o: Annotated[Tensor, FLOATS, pk.static("N")],
    other: Annotated[Tensor, FLOATS, pk.static("N")],
    *,
    dependent: bool = False,
) -> None:
    """o = sums of the columns of parts; and of `more` into `other`, where they are given. `dependent`: the kernel ahead
    may still run.
    """
    sums = pk.shared(pk.sv(f32, COLS), count=WARPS, name="sums")
    if dependent:
        pk.wait_for_previous()

    def add(x: Any, y: Any) -> None:
        total = warp.zeros(f32, ROWS, COLS, layout=LAYOUT)
        for lap in pk.range(pk.cdiv(x.rows, ROWS * WARPS)):
            at = (0, 0, lap * WARPS + warp.index, pk.block_index.x)
            total += warp.load(x, at, rows=ROWS, cols=COLS, layout=LAYOUT)
        warp.store(sums[warp.index], total.col_sum())
        pk.block.sync()
        with pk.when(warp.index == 0):
            whole = warp.load_vec(sums[0])
            for k in range(1, WARPS):
                whole += warp.load_vec(sums[k])
            warp.store(y, whole, (0, 0, 0, pk.block_index.x))

    if more is None:
        add(parts, o)
        return
    with pk.when(pk.block_index.y == 0):
        add(parts, o)
    with pk.otherwise():
        add(more, other)


def add_up(parts: Any, more: Any, o: Any, other: Any) -> None:
    """`column_sums` of arrays; either pair may be None."""
    if parts is None:
        parts, more, o, other = more, None, other, None
    column_sums(parts, more, o, other, dependent=may_overlap(arrays.describe(parts)))
