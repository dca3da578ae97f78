"""Scans, arg-max and top-k of rows, columns and vectors that lie in several warps: as NumPy has them."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, i64, u32

RUNS = pk.coalesced(128, 2)
LINES = [("row", f32, RUNS, 2, 512), ("row", bf16, RUNS, 3, 256), ("row", i64, pk.coalesced(128, 1), 1, 384)] + [
    ("col", dtype, layout, 128, 16) for dtype, layout in ((f32, "row"), (i32, "col"), (u32, "row"))
]


def run(work: Any, x: np.ndarray, layout: Any, dtype: pk.DType, *results: np.ndarray) -> None:
    rows, cols = x.shape

    def kernel(*given: Any) -> None:
        tensor, *outs = given
        work(pk.block.load(tensor, (0, 0), rows=rows, cols=cols, layout=layout), outs)

    types = [pk.gl(dtype, rows, cols), *(pk.gl(dtype if r.dtype == x.dtype else i32, *r.shape) for r in results)]
    names = ["x", "y", "z"][: len(types)]
    space: dict[str, Any] = {"kernel": kernel}
    exec(f"def made({', '.join(names)}): kernel({', '.join(names)})", space)
    space["made"].__annotations__ = dict(zip(names, types, strict=True))
    pk.kernel(warps=4)(space["made"])(x, *results)


def numbers(dtype: pk.DType, shape: tuple[int, int]) -> np.ndarray:
    low = 0 if dtype.kind == "u" else -6
    return np.random.default_rng(3).integers(low, 7, shape).astype(dtype.numpy)


@pytest.mark.parametrize(("along", "dtype", "layout", "rows", "cols"), LINES, ids=str)
def test_scans(along: str, dtype: pk.DType, layout: Any, rows: int, cols: int) -> None:
    x, axis = numbers(dtype, (rows, cols)), int(along == "row")
    total, least = np.zeros_like(x), np.zeros_like(x)

    def work(tile: Any, outs: Any) -> None:
        pk.block.store(outs[0], getattr(tile, f"{along}_cumsum")(), (0, 0))
        pk.block.store(outs[1], getattr(tile, f"{along}_cummin")(reverse=True), (0, 0))

    run(work, x, layout, dtype, total, least)
    exact = x.astype(np.int64)
    assert (total.astype(np.int64) == np.cumsum(exact, axis)).all()
    assert (least == np.flip(np.minimum.accumulate(np.flip(exact, axis), axis), axis).astype(x.dtype)).all()


@pytest.mark.parametrize(("along", "dtype", "layout", "rows", "cols"), LINES, ids=str)
def test_where_the_largest_and_the_smallest_stand(
    along: str, dtype: pk.DType, layout: Any, rows: int, cols: int
) -> None:
    x, axis = numbers(dtype, (rows, cols)), int(along == "row")
    if dtype.kind == "f":
        x[-1, -1], x[0, 3] = np.nan, -0.0
    count = x.shape[1 - axis]
    high, low = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def work(tile: Any, outs: Any) -> None:
        for out, word in zip(outs, ("argmax", "argmin"), strict=True):
            pk.block.store(out, getattr(tile, f"{along}_{word}")(), (0,))

    run(work, x, layout, dtype, high, low)
    wide = x.astype(np.float64)  # small numbers: exact
    assert (high == wide.argmax(axis)).all() and (low == wide.argmin(axis)).all()


def test_the_three_largest_of_a_row_of_the_block() -> None:
    x = np.random.default_rng(4).permutation(512).astype(np.float32)[None]
    values, places = np.zeros((3, 1), np.float32), np.zeros((3, 1), np.int32)

    def work(tile: Any, outs: Any) -> None:
        for i, (value, place) in enumerate(tile.row_topk(3)):
            pk.block.store(outs[0], value, pk.at(i, 0))
            pk.block.store(outs[1], place, pk.at(i, 0))

    run(work, x, RUNS, f32, values, places)
    assert values[:, 0].tolist() == [511, 510, 509] and (x[0, places[:, 0]] == values[:, 0]).all()


@pytest.mark.parametrize("kind", ["naive", "col"])
def test_scans_of_vectors(kind: str) -> None:
    x, y = numbers(f32, (1, 192)), np.zeros((1, 192), np.float32)

    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 1, 192), y: pk.gl(f32, 1, 192)) -> None:
        found = pk.block.load_vec(x, (0, 0), length=192)
        found = found.as_col() if kind == "col" else found
        for _ in pk.range(2):  # the scratch is used again
            found[:] = found.cumsum()
        pk.block.store(y, found, (0, 0))

    kernel(x, y)
    assert (y == np.cumsum(np.cumsum(x, 1), 1)).all()


def test_the_largest_and_the_smallest_of_int64() -> None:
    """Of numbers that no key holds, the least and the greatest among them, and of equal ones the first."""
    low, high = -(2**63), 2**63 - 1
    x = np.array([[low, 5, high, high, low, 2**40] + [low] * 26] * 16, np.int64)
    values, places = np.zeros((6, 16), np.int64), np.zeros((6, 16), np.int32)

    @pk.kernel(warps=1)
    def kernel(x: pk.gl(i64, 16, 32), values: pk.gl(i64, 6, 16), places: pk.gl(i32, 6, 16)) -> None:
        tile = pk.warp.load(x, (0, 0), rows=16)
        for i, (value, place) in enumerate(tile.row_topk(6)):
            pk.warp.store(values, value, (i, 0))
            pk.warp.store(places, place if i < 5 else tile.row_argmin(), (i, 0))

    kernel(x, values, places)
    assert values[:, 0].tolist() == [high, high, 2**40, 5, low, low]
    assert places[:, 0].tolist() == [2, 3, 5, 1, 0, 0]


def test_rows_of_a_loop_meet_once() -> None:
    layout = pk.coalesced(128, 2)

    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 2, "N"), y: pk.gl(f32, 2, 2)) -> None:
        total = pk.block.zeros_col(f32, 2, layout=layout, partial=True)
        squares = pk.block.zeros_col(f32, 2, layout=layout, partial=True)
        for i in pk.range(pk.cdiv(x.cols, 256)):
            tile = pk.block.load(x, (0, i), rows=2, cols=256, layout=layout)
            total += tile.row_sum(partial=True)
            squares += tile.row_dot(tile, partial=True)
        pk.block.store(y, total.total(), (0, 0))
        pk.block.store(y, squares.total(), (1, 0))

    x, y = numbers(f32, (2, 777)), np.zeros((2, 2), np.float32)
    report = kernel.simulate(x, y)
    assert (y == [x.sum(1), (x * x).sum(1)]).all()
    assert report.written["shared"] == 2 * 2 * 4 * 4  # two float32 of each of four warps, twice: not in every pass
