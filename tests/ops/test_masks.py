"""Columns that are filled up to a bound which is known to lie somewhere."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp


@pytest.mark.parametrize("col", [0, 5, 64, 65, 100, 128])
@pytest.mark.parametrize("bound", [0, 64, 70, 128])
def test_bounds_of_a_column_leave_out_no_run(col: int, bound: int) -> None:
    """A bound says which runs need no comparison; the others have it."""

    @pk.kernel(warps=1)
    def fill(x: pk.gl(f32, 1, 128), y: pk.gl(f32, 2, 128), n: pk.i32) -> None:
        row: Any = warp.load(x, (0, 0), rows=1, layout=pk.coalesced(32, 2))
        warp.store(y, pk.right_fill(row, pk.maximum(n, bound), -1.0), (0, 0))
        warp.store(y, pk.left_fill(row, pk.minimum(n, bound), -1.0), (1, 0))

    x, y = np.arange(128, dtype=np.float32)[None], np.zeros((2, 128), np.float32)
    fill(x, y, col)
    assert np.array_equal(y[0], np.where(x[0] >= max(col, bound), -1, x[0]))
    assert np.array_equal(y[1], np.where(x[0] < min(col, bound), -1, x[0]))
    text = fill.cuda(pk.spec(f32, (1, 128)), pk.spec(f32, (2, 128)), 1, arch="sm_90a")
    assert f"< {bound // 64 * 2} || " in text and f">= {-(-bound // 64) * 2} || " in text
