"""Products of rows that decay, channel by channel, on the way from one to the other: within a chunk of 64 rows,

    A_ij = sum_d x_id y_jd exp(c_id - c_jd)    for j <= i, with c_i the sums of logarithms of decays (base 2 here)

A difference of sums is no factor of row i times one of row j that stay small: one of them would be exp(-c_j). So pairs
of rows are grouped by where they part. Of blocks of 32, 16, 8, 4, 2, 1 rows, let s be the largest that has i in one
block and j in the block before, of a pair of blocks; with r the last row of the first,

    exp(c_i - c_j) = exp(c_i - c_r) exp(c_r - c_j),   both at most 1,

and the same number exp(-|c - c_r|) is of use whether a row is an i or a j. Each s has products of its own: one of 32 x
32, two of 16 x 16, and of each smaller s the 16 x 16 blocks on the diagonal, with the pairs that are not its own
masked. A 64 x 64 tile is kept as these: 80 registers of a thread of a warp, not 128.

Within 16 rows that decay by less than 2^30 on either side of the one in the middle, one product in bf16 is enough: that
row is r for all pairs, and a factor may be large where the other is small. Each factor is two terms there, since early
rows of a sequence have no other products, in whose sum an error of one would be small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pykittens as pk
from pykittens import bf16, f32, warp

from .sequences import terms

WIDTH = 16  # columns at a time
ROWS = 16  # of a piece
MILD = 30.0  # base 2: a quarter of the range of bf16, so that both factors of a product have room
SIZES = (32, 16, 8, 4, 2, 1, 0)  # of the blocks that pairs of rows part at; 0: a row with itself


def piece_of(x: Any, piece: int) -> Any:
    """16 rows of a 64 x 16 tile."""
    return x[piece * ROWS : piece * ROWS + ROWS, :]


def fade(sums: Any, size: int, piece: int) -> Any:
    """exp(-|c - c_r|) of 16 rows that part at blocks of `size` rows."""
    parting = [row // (2 * size) * 2 * size + size - 1 for row in range(piece * ROWS, piece * ROWS + ROWS)]
    base = piece_of(sums, parting[0] // ROWS).take_rows([row % ROWS for row in parting])
    return pk.exp2(-abs(piece_of(sums, piece) - base))


def middle(sums: Any, piece: int) -> Any:
    """c - c_r of 16 rows, r that in the middle."""
    rows = piece_of(sums, piece)
    return rows - rows.take_rows([ROWS // 2 - 1] * ROWS)


def mild(sums: Any) -> Any:
    """Whether one product is enough for pairs of 16 rows, for all that the warp has."""
    peak = abs(middle(sums, 0))
    for piece in range(1, 4):
        peak = pk.maximum(peak, abs(middle(sums, piece)))
    return peak.row_max().max() < MILD


def parts_at(row: Any, column: Any, size: int, flip: bool = False) -> Any:
    """Which elements of a 16 x 16 block on the diagonal are of pairs that part there: the rows' numbers are equal but
    for the bit `size` and what is below it. `flip`: the rows are the earlier ones."""
    if not size:
        return row == column
    return ((row ^ column) // size == 1) & ((row <= column) if flip else (row >= column))


class Products(NamedTuple):
    """The products of rows with those before them (`flip`: with those behind them), 64 x 64, of a warp."""

    whole: Any
    halves: list[Any]
    blocks: list[Any]
    flip: bool

    @classmethod
    def zeros(cls, flip: bool = False) -> Products:
        """Before the first columns."""
        halves, blocks = ([warp.zeros(f32, 16, 16) for _ in range(n)] for n in (2, 4))
        return cls(warp.zeros(f32, 32, 32), halves, blocks, flip)

    def add(self, sums: Any, late: Any, early: Any) -> None:
        """Adds what some columns give: 64 x 16 tiles of a 16-bit type, which are rounded again when they have decayed.

        Piece by piece, so that few registers are in use.
        """
        row, column = pk.row_index(self.blocks[0]), pk.col_index(self.blocks[0])

        def multiply(to: Any, size: int, above: tuple[int, ...], below: tuple[int, ...]) -> None:
            pairs = ((late, above), (early, below))
            x, y = (
                pk.stack(*(faded(t, size, i) for i in pieces)) if len(pieces) > 1 else faded(t, size, pieces[0])
                for t, pieces in (reversed(pairs) if self.flip else pairs)
            )
            warp.mma_ABt(to, x, y)

        def faded(x: Any, size: int, piece: int) -> Any:
            part = piece_of(x, piece)
            return (part.to(f32) * fade(sums, size, piece)).to(x.dtype) if size else part

        multiply(self.whole, 32, (2, 3), (0, 1))
        for i, half in enumerate(self.halves):
            multiply(half, 16, (2 * i + 1,), (2 * i,))

        def near() -> None:
            for i, block in enumerate(self.blocks):
                apart = middle(sums, i)
                both = ((late, apart), (early, -apart))
                x, y = (terms(piece_of(t, i).to(f32) * pk.exp2(c), bf16) for t, c in both)
                x, y = (y, x) if self.flip else (x, y)
                made = warp.zeros(f32, ROWS, ROWS)
                for one, other in ((0, 1), (1, 0), (0, 0)):
                    warp.mma_ABt(made, x[one], y[other])
                block += pk.where((row <= column) if self.flip else (row >= column), made, 0.0)

        def apart() -> None:
            for i, block in enumerate(self.blocks):
                for size in SIZES[2:]:
                    made = warp.zeros(f32, ROWS, ROWS)
                    multiply(made, size, (i,), (i,))
                    block += pk.where(parts_at(row, column, size, self.flip), made, 0.0)

        if late.dtype is not bf16:
            apart()
            return
        is_mild = mild(sums)
        with pk.when(is_mild):
            near()
        with pk.otherwise():
            apart()

    def rows(self) -> list[Any]:
        """All of them, and zeros, in tiles of 16 rows."""
        none, (upper, lower), whole, blocks = warp.zeros(f32, 16, 16), self.halves, self.whole, self.blocks
        if self.flip:
            rows = [
                (blocks[0], upper, whole[0:16, :]),
                (none, blocks[1], whole[16:32, :]),
                (none, none, blocks[2], lower),
                (none, none, none, blocks[3]),
            ]
        else:
            rows = [
                (blocks[0], none, none, none),
                (upper, blocks[1], none, none),
                (whole[0:16, :], blocks[2], none),
                (whole[16:32, :], lower, blocks[3]),
            ]
        return [pk.join(*row) for row in rows]
