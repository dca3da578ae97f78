"""Rows that a vector names: loads gather them, stores scatter them, and additions may name one twice."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, block, f32, i32, i64, warp, warpgroup

ROWS, WIDTH = 50, 64


@pk.kernel(warps=4)
def gather(table: pk.gl(bf16, "V", WIDTH), index: pk.gl(i64, "N"), y: pk.gl(f32, "N", WIDTH)) -> None:
    rows = warpgroup.load_col(index, (0,), length=64, dtype=i32)
    warpgroup.store(y, warpgroup.load(table, (rows, 0), rows=64, dtype=f32), (0, 0))


@pk.kernel(warps=4)
def scatter(x: pk.gl(f32, "N", WIDTH), index: pk.gl(i32, "N"), y: pk.gl(f32, "V", WIDTH), *, add: bool) -> None:
    rows = warpgroup.load_col(index, (0,), length=64)
    rows = pk.where(pk.iota(rows) < index.cols, rows, -1)
    tile = warpgroup.load(x, (0, 0), rows=64)
    if add:
        warpgroup.add(y, tile, (rows, 0))
    else:
        warpgroup.store(y, tile, (rows, 0))


def test_rows_are_gathered_and_those_that_are_not_there_are_zero() -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((ROWS, WIDTH)).astype(bf16.numpy)
    index = rng.integers(-5, ROWS + 5, 61)
    y = np.full((61, WIDTH), np.nan, np.float32)
    gather(table, index, y)
    there = (index >= 0) & (index < ROWS)
    assert there.any() and not there.all()
    assert np.array_equal(y, np.where(there[:, None], table.astype(np.float32)[index % ROWS], 0))


def test_rows_are_scattered() -> None:
    rng = np.random.default_rng(2)
    x, index = rng.standard_normal((37, WIDTH)).astype(np.float32), rng.permutation(ROWS)[:37].astype(np.int32)
    y = np.full((ROWS, WIDTH), 7.0, np.float32)
    scatter(x, index, y, add=False)
    want = np.full_like(y, 7.0)
    want[index] = x
    assert np.array_equal(y, want)


def test_a_row_that_is_named_twice_is_added_twice_and_never_stored_twice() -> None:
    rng = np.random.default_rng(3)
    x, index = rng.integers(-9, 9, (64, WIDTH)).astype(np.float32), rng.integers(0, 7, 64).astype(np.int32)
    y, want = np.zeros((ROWS, WIDTH), np.float32), np.zeros((ROWS, WIDTH), np.float32)
    scatter(x, index, y, add=True)
    np.add.at(want, index, x)
    assert np.array_equal(y, want)
    with pytest.raises(pk.RaceError, match=r"rows of its tile for row \d of the tensor"):
        scatter(x, index, y, add=False)


def test_warps_that_scatter_to_one_row_race() -> None:
    @pk.kernel(warps=2)
    def both(index: pk.gl(i32, "N"), y: pk.gl(f32, "V", WIDTH)) -> None:
        rows = warp.load_col(index, (warp.index,), length=16)
        warp.store(y, warp.ones(f32, 16, WIDTH), (rows, 0))

    y = np.zeros((ROWS, WIDTH), np.float32)
    both(np.arange(32, dtype=np.int32), y)
    assert y.sum() == 32 * WIDTH
    with pytest.raises(pk.RaceError, match="nothing orders the two"):
        both(np.r_[np.arange(16), 15 + np.arange(16)].astype(np.int32), y)


def test_lanes_meet_between_a_scatter_and_a_load_of_what_it_may_have_written() -> None:
    @pk.kernel(warps=1)
    def back(index: pk.gl(i32, "N"), y: pk.gl(f32, "V", WIDTH), z: pk.gl(f32, "N", WIDTH)) -> None:
        rows = warp.load_col(index, (0,), length=16)
        warp.store(y, warp.ones(f32, 16, WIDTH), (rows, 0))
        block.sync()
        warp.store(z, warp.load(y, (15 - rows, 0), rows=16), (0, 0))

    y, z = np.zeros((16, WIDTH), np.float32), np.zeros((16, WIDTH), np.float32)
    back(np.arange(16, dtype=np.int32), y, z)
    assert (z == 1).all()
