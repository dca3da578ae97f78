"""Zeros in the rows of tensors that are nobody's: behind the last of packed sequences, or outside of an entry's length.

    x[:, :, offsets[-1]:] = 0        x[b, :, lengths[b]:] = 0, or x[b, :, :n - lengths[b]] = 0 where entries stand last

Attention writes the rows of sequences only. What the others held would be taken for results, or, of gradients, be added
to those of whatever made the rows.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, f16, f32, i32, warp

HALF = (bf16, f16)
ROWS, BLOCKS = 16, 128


@pk.kernel(warps=1, grid=(BLOCKS, 1, 1))
def blank(
    ends: Annotated[Tensor, i32, "S"],
    x: Annotated[Tensor, HALF, "B", "H", "N", pk.static("D")],
    y: Annotated[Tensor, HALF, "B", "H", "N", pk.static("E")] | None = None,
    lse: Annotated[Tensor, f32, "B", "H", "N"] | None = None,
    *,
    packed: bool = False,
    last: bool = False,
) -> None:
    """0 in x and y, and -inf in lse. ends: offsets of packed sequences, or the length of each entry, whose rows are the
    `last` ones or the first."""
    blank_part(pk.block_index.x, BLOCKS, ends, x, y, lse, packed, last)


def blank_part(
    part: Any, parts: Any, ends: Any, x: Any, y: Any, lse: Any, packed: bool = True, last: bool = False
) -> None:
    """What one of `parts` warps does of `blank`."""
    for which in pk.range(pk.cdiv(x.depth * x.batch - part, parts)):
        matrix = which * parts + part
        batch, head = matrix // x.depth, matrix % x.depth
        end = pk.maximum(ends[ends.cols - 1 if packed else batch], 0)
        first, behind = (0, x.rows - end) if last else (end, x.rows)
        for i in pk.range(pk.cdiv(pk.maximum(behind - first, 0), ROWS)):
            row = first + i * ROWS
            for z in (x, y):
                if z is not None:
                    nothing = warp.zeros(z.dtype, ROWS, -(-z.cols // 16) * 16)
                    warp.store(z, nothing, pk.at(batch, head, row, 0), within=(first, behind))
            if lse is not None:
                hidden = warp.full_col(f32, ROWS, -pk.inf)
                warp.store(lse, hidden, pk.at(batch, head, row), within=(first, behind))


class Blanked:
    """A forward kernel and the rows that are nobody's, as one: called as the kernel is."""

    def __init__(self, kernel: Any, ends: Any, lse: Any, **how: bool):
        self.kernel, self.ends, self.lse, self.how = kernel, ends, lse, how

    def __call__(self, q: Any, k: Any, v: Any, out: Any, *rest: Any, **static: Any) -> None:
        blank(self.ends, out, None, self.lse, **self.how)
        self.kernel(q, k, v, out, *rest, **static)
