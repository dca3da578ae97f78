"""Copies of matrices whose rows begin anywhere, with rows that begin at multiples of 128 bytes: what TMA can address,
and what lies across no two lines of L2.

Each thread moves the widest accesses that the source's alignment allows, neighbours beside one another. Several
matrices in one launch; the product behind it begins beside it (`dependent`), and waits where it first loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, e4m3, e5m2, f16, f32, warp
from pykittens.types import DTYPES

from ..interop import arrays
from ..interop.views import View

FLOATS = (bf16, f16, e4m3, e5m2)
WARPS = 8
ROWS = 8  # of a warp's tile
LINE = 128  # bytes


def tiles(x: Any, width: int) -> Any:
    """How many there are, of columns that each thread of a warp moves twice."""
    return pk.cdiv(x.rows, ROWS) * pk.cdiv(x.cols, 64 * width)


@pk.kernel(
    warps=WARPS,
    grid=lambda x, widths, x1=None, x2=None, **_: pk.cdiv(
        sum(tiles(y, width) for y, width in zip((x, x1, x2), widths, strict=False)), WARPS
    ),
)
def align(
    x: Annotated[Tensor, FLOATS, "M", "N"],
    y: Annotated[Tensor, FLOATS, "M", "L"],
    x1: Annotated[Tensor, FLOATS, "M1", "N1"] | None = None,
    y1: Annotated[Tensor, FLOATS, "M1", "L1"] | None = None,
    x2: Annotated[Tensor, FLOATS, "M2", "N2"] | None = None,
    y2: Annotated[Tensor, FLOATS, "M2", "L2"] | None = None,
    *,
    widths: tuple[int, ...],
    dependent: bool = False,
) -> None:
    """y = x, y1 = x1, y2 = x2, and zeros up to the end of their rows, of a line more at most. widths: how many
    neighbours a thread moves at once, of each matrix that is given. dependent: the next kernel may begin.
    """
    if dependent:
        pk.launch_next()
    first: Any = pk.block_index.x * WARPS + warp.index

    def move(source: Any, target: Any, width: int) -> None:
        """A tile. Runs of one hold no pairs of 16 bits; float32 has every number of these dtypes."""
        wide = pk.cdiv(source.cols, 64 * width)
        at, layout = pk.at(first // wide * ROWS, first % wide * 64 * width), pk.coalesced(32, width)
        warp.store(target, warp.load(source, at, rows=ROWS, cols=64 * width, layout=layout, dtype=f32), at)

    for source, target, width in zip((x, x1, x2), (y, y1, y2), widths, strict=False):
        count = tiles(source, width)
        with pk.when((first >= 0) & (first < count)):
            move(source, target, width)
        first = first - count


def copies(matrices: Sequence[Any], dependent: bool) -> list[View]:
    """Aligned copies of one to three matrices with contiguous rows, as long as these; whole lines lie behind them, with
    zeros (`View.array`)."""
    made, widths = [], []
    for x in matrices:
        info = arrays.describe(x)
        (rows, cols), size = info.shape, DTYPES[info.dtype].size
        each, bits = LINE // size, info.pointer | (info.strides[0] * size if rows > 1 else 0) | 16
        widths.append(max(1, min(bits & -bits, 8) // size))
        wide = -(-cols // each) * each
        copy = arrays.empty(info.kind, (rows, wide), info.dtype, info.device)
        made.append(View(copy, (rows, cols), (wide, 1)))
    given = (z for x, copy in zip(matrices, made, strict=True) for z in (x, copy.array))
    align(*given, widths=tuple(widths), dependent=dependent)
    return made
