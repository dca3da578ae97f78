"""Shared tiles and vectors as operands, beside registers of every layout."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32

SCOPES = {1: pk.warp, 4: pk.warpgroup}


@pytest.mark.parametrize("warps", SCOPES)
def test_shared_operands_lie_as_the_other(warps: int) -> None:
    s = SCOPES[warps]

    @pk.kernel(warps=warps)
    def k(x: pk.gl(f32, 64, 128), y: pk.gl(f32, 3, 64, 128)):
        tile, row, col = (pk.shared(t) for t in (pk.st(f32, 64, 128), pk.sv(f32, 128), pk.sv(f32, 64)))
        s.load_into(tile, x, (0, 0))
        s.load_into(row, x, (1, 0))
        s.store(col, s.iota_col(64))
        s.sync()
        for i, layout in enumerate(("row", "col", pk.coalesced(32 * warps, 1))):
            t = s.load(x, (0, 0), rows=64, layout=layout)
            z = pk.fma(t, tile, row) + col - tile
            z[:] = pk.where(t > tile, 0.0, z)
            z *= tile
            s.store(y, z + t.row_sum() * 0.0 * col, (0, i, 0, 0))

    x, y = np.random.default_rng(0).integers(-4, 5, (64, 128)).astype(np.float32), np.zeros((3, 64, 128), np.float32)
    k(x, y)
    assert np.array_equal(y, [(x * x + x[1] + np.arange(64)[:, None] - x) * x] * 3)
