"""Persistent kernels: which tiles a block works through, one after another.

The blocks of a cluster walk together and get the same tiles. The grid is as many blocks as run at once; blocks without
a tile do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import TraceError
from ..ops.grouped_tiles import GroupedTile
from ..ops.scalars import THREAD
from ..program import Operand
from . import flow
from .elementwise import maximum, minimum, where
from .handle import number
from .recorder import current, record
from .scalar import block_index, cdiv, grid_size


def persistent(count: Operand) -> Iterator[Any]:
    """This block's share of tiles 0 to count - 1, in turn with the other blocks of the grid (which is
    one-dimensional).
    """
    first, stride = _place()
    yield from flow.strided(first, count, stride)


def grouped(rows: Operand, cols: Operand, group: int, parts: Operand | None = None) -> Iterator[tuple[Any, ...]]:
    """Tiles of a matrix of rows x cols tiles: (row, col), `group` rows at a time, column after column.

    Blocks at work at the same time then stand in a rectangle, and read each row and column of the operands from L2
    together. parts: into so many the last tiles are divided, of which there are fewer than blocks: (row, col, part, of
    how many, number), where all tiles before are part 0 of 1. The block of the last part begins last. The grid has a
    block for each of the parts at least.

    Raises `TraceError` for a group that is no Python int from 1 on.
    """
    if not isinstance(group, int) or group < 1:
        raise TraceError(
            f"pk.grouped with group {group!r}", fix="pass how many rows go together, a Python int from 1 on: group=8"
        )
    count = rows * cols
    if parts is None:
        for tile in persistent(count):
            yield _in_groups(tile, rows, cols, group)
        return
    stride = _place()[1]
    whole = count // stride * stride
    last = maximum(count - whole, 1)
    for item in persistent(whole + (count - whole) * parts):
        rest = maximum(item - whole, 0)
        tile = minimum(item, whole + rest % last)
        yield (*_in_groups(tile, rows, cols, group), rest // last, where(item < whole, 1, parts), rest % last)


def _in_groups(tile: Any, rows: Operand, cols: Operand, group: int) -> tuple[Any, ...]:
    return record(GroupedTile(THREAD, number(tile), number(rows), number(cols), group)).results


def rectangle(
    rows: Operand, count: Operand, together: Operand = 1, tiles: Iterable[Any] | None = None
) -> Iterator[tuple[Any, Any, Any]]:
    """Tiles of `count` matrices of `rows` rows: (row, matrix, 1), the rows of a matrix next to one another in time.

    together: so many matrices at a time at most, of all of them the first row, then the second, in groups alike: after
    a few at the end blocks would wait for their first rows. Rows that differ in length come by length then, and what
    these matrices share is still in L2. tiles: the numbers of those that the block has, of `pk.dynamic`, instead of its
    share of all.
    """
    if not (isinstance(together, int) and together == 1):
        together = cdiv(count, cdiv(count, together))
    for tile in persistent(rows * count) if tiles is None else tiles:
        if isinstance(together, int) and together == 1:
            yield tile % rows, tile // rows, 1
        else:
            first, inside = tile // (rows * together) * together, tile % (rows * together)
            width = minimum(count - first, together)
            yield inside // width, first + inside % width, 1


def to_and_fro(rows: Operand, count: Operand) -> Iterator[tuple[Any, Any, Any]]:
    """As `rectangle`, every other round of tiles backwards: a block that was the first of one is the last of the next,
    so that none always has rows of the same number.
    """
    first, stride = _place()
    rounds, rest = rows * count // stride, rows * count % stride
    back = stride - 1 - first
    more = where(where(rounds % 2 == 0, first, back) < rest, 1, 0)
    for i in flow.range(rounds + more):
        tile = i * stride + where(i % 2 == 0, first, back)
        yield tile % rows, tile // rows, 1


def triangle(rows: Operand, count: Operand) -> Iterator[tuple[Any, Any, Any]]:
    """Tiles of `count` triangles of `rows` rows, row r costing r + 1: (row, matrix, 1 or 0).

    A block takes a long row and then the short one that makes their sum the same for all, so that every block does as
    much; the middle one of an odd number is followed by row `rows`, which does not exist and is marked 0.
    """
    first, stride = _place()
    pairs = cdiv(rows, 2)
    for i in flow.range(2 * cdiv(pairs * count - first, stride)):
        pair = i // 2 * stride + first
        short, long = pair % pairs, i % 2 == 0
        real = where(long | (2 * short + 1 < rows), 1, 0)
        yield where(long, rows - 1 - short, where(real > 0, short, rows)), pair // pairs, real


def _place() -> tuple[Any, Any]:
    """Number of this block's cluster in the grid, and how many there are."""
    size = current().program.cluster[0]
    return block_index.x // size, grid_size.x // size
