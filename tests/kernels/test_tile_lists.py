"""Lists of the tiles that a mask lets be seen, beside NumPy; and that kernels go through no others."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.kernels.attention import scores
from pykittens.kernels.tile_lists import Lists
from pykittens.trace.scoring import Scoring

BF16 = np.dtype(ml_dtypes.bfloat16)
N, M, ROWS, COLS = 150, 200, 64, 32


def stripes(batch: Any, head: Any, row: Any, col: Any) -> Any:
    return ((row // 64 + col // 64 + head) % 2 == 0) & ((row < 100) | (col < 40 + 3 * batch))


@pytest.mark.parametrize("down", (False, True))
@pytest.mark.parametrize("window", ((None, None), (90, 20)))
def test_lists(down: bool, window: tuple[int | None, int | None]) -> None:
    q, k = np.zeros((2, 2, N, 64), BF16), np.zeros((2, 1, M, 64), BF16)
    told = scores(64, False, None, *window, None)
    lists = Lists(Scoring(None, stripes), told, (False, False), ())(q, k, ROWS, COLS, down=down)
    at = np.ogrid[:2, :2, :N, :M]
    distance = at[3] - at[2] - (M - N)
    seen = stripes(*at) & (distance >= -(window[0] or N + M)) & (distance <= (window[1] or N + M))
    seen = np.pad(seen, ((0, 0), (0, 0), (0, -N % ROWS), (0, -M % COLS)))
    real = np.pad(np.ones((N, M), bool), ((0, -N % ROWS), (0, 0)))
    real = np.pad(real, ((0, 0), (0, -M % COLS)), constant_values=True)  # where keys are missing, the tile is no whole
    count, all_of = (x.reshape(*x.shape[:-2], -1, ROWS, x.shape[-1] // COLS, COLS).sum((-3, -1)) for x in (seen, real))
    whole, part = count == all_of, (count > 0) & (count < all_of)
    if down:
        whole, part = whole.swapaxes(2, 3), part.swapaxes(2, 3)
    for where in np.ndindex(*whole.shape[:3]):
        (wholes, parts), found = lists[where][:2], lists[where][2:]
        expected = np.flatnonzero(part[where])
        if not down and not whole[where].any() and not part[where].any():
            expected = np.array([0])
        np.testing.assert_array_equal(found[:wholes], np.flatnonzero(whole[where]))
        np.testing.assert_array_equal(found[::-1][:parts], expected)


def test_alike() -> None:
    """Where the mask asks for neither batch nor head, there is one list for all."""
    q, k = np.zeros((2, 2, 100, 64), BF16), np.zeros((2, 2, 100, 64), BF16)
    told = scores(64, True, None, None, None, None)
    lists = Lists(Scoring(None, lambda batch, head, row, col: row != col), told, (True, True), ())(q, k, 128, 128)
    np.testing.assert_array_equal(lists, [[[[0, 1, 0]]]])


def test_hidden_tiles_are_not_visited() -> None:
    """Whatever their values are: 0 times NaN would be seen."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, n, 64)).astype(BF16) for n in (100, 400, 400))
    v[:, :, 128:256] = np.nan
    out = pk.attention(q, k, v, mask=lambda batch, head, row, col: (col < 128) | (col >= 256))
    kept = np.r_[0:128, 256:400]
    expected = pk.attention(q, k[:, :, kept], v[:, :, kept])
    np.testing.assert_allclose(np.asarray(out, float), np.asarray(expected, float), atol=2e-2)
