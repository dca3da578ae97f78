"""Walks over tiles: every tile once, and in the promised order."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest

import pykittens as pk
from pykittens import Tensor, i32
from pykittens.trace.schedule import to_and_fro


@pk.kernel(warps=1, grid=lambda blocks, **_: blocks)
def by_groups(
    seen: Annotated[Tensor, i32, "T", "P"], *, rows: int, cols: int, group: int, parts: int, blocks: int
) -> None:
    """Counts the parts of each tile, as many as it is said to have in column 0."""
    for row, col, part, of, number in pk.grouped(rows, cols, group, parts):
        tile = row * cols + col
        pk.atomic_add(seen, (tile, part + 1), 1)
        with pk.when(part == of - 1):
            pk.warp.set(seen, (tile, 0), of)
            pk.assert_(number < blocks)


@pytest.mark.parametrize(("blocks", "parts"), [(5, 2), (6, 3), (7, 2), (4, 2), (24, 2)])
def test_every_part_of_every_tile_is_somebodys(blocks: int, parts: int) -> None:
    rows, cols = 3, 4
    seen = np.zeros((rows * cols, parts + 1), np.int32)
    by_groups(seen, rows=rows, cols=cols, group=2, parts=parts, blocks=blocks)
    rest = rows * cols % blocks
    assert sorted(seen[:, 0]) == [1] * (rows * cols - rest) + [parts] * rest
    assert all((line[1 : line[0] + 1] == 1).all() and not line[line[0] + 1 :].any() for line in seen)


@pk.kernel(warps=1, grid=lambda blocks, **_: blocks)
def by_sections(
    order: Annotated[Tensor, i32, "R", "C"], *, rows: int, count: int, together: int, blocks: int = 1
) -> None:
    """When each tile comes, in a grid of one block."""
    turn = pk.var(i32, 0)
    for row, matrix, real in pk.rectangle(rows, count, together):
        pk.warp.set(order, (row, matrix), turn + real - 1)
        turn.set(turn + 1)


@pytest.mark.parametrize("together", [1, 2, 3, 4, 5, 9])
def test_a_rectangle_takes_so_many_matrices_at_a_time(together: int) -> None:
    rows, count = 3, 5
    wide = {1: 1, 2: 2, 3: 3, 4: 3, 5: 5, 9: 5}[together]  # of four and one it makes three and two
    order = np.full((rows, count), -1, np.int32)
    by_sections(order, rows=rows, count=count, together=together)
    expected = [
        (row, matrix)
        for first in range(0, count, wide)
        for row in range(rows)
        for matrix in range(first, min(first + wide, count))
    ]
    assert [tuple(map(int, np.argwhere(order == i)[0])) for i in range(rows * count)] == expected


@pytest.mark.parametrize("dtype", [i32, pk.u32, pk.i64], ids=str)
def test_a_persistent_kernel_counts_with_any_integers(dtype: pk.DType) -> None:
    @pk.kernel(warps=1, grid=lambda blocks, **_: blocks)
    def count(seen: Annotated[Tensor, i32, 1, "T"], tiles: Annotated[pk.Scalar, dtype], *, blocks: int) -> None:
        for tile in pk.persistent(tiles):
            pk.atomic_add(seen, (0, pk.cast(tile, i32)), 1)

    for blocks in (1, 3, 11):
        seen = np.zeros((1, 12), np.int32)
        count(seen, 10, blocks=blocks)
        assert seen.tolist() == [[1] * 10 + [0] * 2]
        text = count.cuda(seen, 10, blocks=blocks, arch="sm_90a")
        assert ("for (int v_" in text) == (dtype is i32)  # what an int does not hold is counted in 64 bits


@pk.kernel(warps=1, grid=lambda blocks, **_: blocks)
def by_turns(owners: Annotated[Tensor, i32, "R", "C"], turns: Annotated[Tensor, i32, "R", "C"], *, blocks: int) -> None:
    """Whose each tile is, and when it comes."""
    turn = pk.var(i32, 0)
    for row, matrix, _ in to_and_fro(owners.rows, owners.cols):
        pk.warp.set(owners, (row, matrix), pk.block_index.x)
        pk.warp.set(turns, (row, matrix), turn)
        turn.set(turn + 1)


@pytest.mark.parametrize("blocks", [1, 3, 8, 40])
@pytest.mark.parametrize(("rows", "count"), [(7, 5), (4, 4), (1, 9)])
def test_every_other_round_goes_backwards(blocks: int, rows: int, count: int) -> None:
    owners, turns = (np.full((rows, count), -1, np.int32) for _ in range(2))
    by_turns(owners, turns, blocks=blocks)
    tiles = np.where(turns % 2 == 0, owners, blocks - 1 - owners) + turns * blocks
    assert (tiles.T.ravel() == np.arange(rows * count)).all()
