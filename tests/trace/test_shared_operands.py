"""Shared tiles and vectors as operands, beside registers of every layout."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp

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


def test_rows_and_columns_of_tiles() -> None:
    """As NumPy's index takes them, whatever the layout and who holds them."""

    @pk.kernel(warps=4)
    def k(x: pk.gl(f32, 64, 128), y: pk.gl(f32, 4, 64), z: pk.gl(f32, 3, 128), n: pk.i32):
        for i, layout in enumerate(("row", pk.coalesced(128, 1))):
            t = pk.block.load(x, (0, 0), rows=64, layout=layout)
            pk.block.store(y, t[:, 3], (2 * i, 0))
            pk.block.store(y, t[:, n], (2 * i + 1, 0))
            pk.block.store(z, t[-1, :], (i, 0))
        pk.block.store(z, (t > 0.0)[n, :].to(f32), (2, 0))

    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    x[5, 3], x[63, 2] = np.nan, -0.0
    y, z = np.zeros((4, 64), np.float32), np.zeros((3, 128), np.float32)
    k(x, y, z, 9)
    assert np.array_equal(y, [x[:, 3], x[:, 9]] * 2, equal_nan=True)
    assert np.array_equal(z, [x[-1], x[-1], x[9] > 0]) and np.signbit(z[0, 2])


def test_shared_operands_alone_are_the_warps() -> None:
    """Maps, arithmetic, reductions, choices, of tiles and vectors that nothing in registers stands beside."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 64), y: pk.gl(f32, 5, 16, 64), z: pk.gl(f32, 3, 64)):
        tile, thin, row = (pk.shared(t) for t in (pk.st(f32, 16, 64), pk.st(f32, 8, 64), pk.sv(f32, 64)))
        pk.warp.load_into(tile, x, (0, 0))
        pk.warp.load_into(thin, x, (0, 0))
        pk.warp.load_into(row, x, (1, 0))
        pk.warp.sync()
        shown = (abs(-tile) * 2.0, tile + row, pk.where(tile > 0.0, 1.0 - tile, row), pk.fma(tile, row, tile))
        for i, found in enumerate((*shown, pk.maximum(tile, 0) + tile.row_max())):
            pk.warp.store(y, found, (i, 0, 0))
        pk.warp.store(z, pk.relu(row) - row, (0, 0))
        pk.warp.store(z, row.cumsum() + row.sum(), (1, 0))
        pk.warp.store(z, thin.col_sum(), (2, 0))
        pk.warp.store(tile, pk.relu(tile))
        pk.warp.store(x, tile, (0, 0))

    x = np.random.default_rng(0).integers(-4, 5, (16, 64)).astype(np.float32)
    y, z, given = np.zeros((5, 16, 64), np.float32), np.zeros((3, 64), np.float32), x.copy()
    k(x, y, z)
    row = given[1]
    wanted = abs(given) * 2, given + row, np.where(given > 0, 1 - given, row), given * row + given
    assert np.array_equal(y, [*wanted, np.maximum(given, 0) + given.max(1, keepdims=True)])
    assert np.array_equal(z, [np.maximum(row, 0) - row, np.cumsum(row) + row.sum(), given[:8].sum(0)])
    assert np.array_equal(x, np.maximum(given, 0))


def test_memory_is_compared_by_its_elements() -> None:
    """Shared tiles by `==`, as by `<`; what lies in global memory is refused, and nothing is silently False."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 3, 16, 16)):
        s, other, bar = pk.shared(pk.st(f32, 16, 16)), pk.shared(pk.st(f32, 16, 16)), pk.barrier()
        assert s != "s" and bar == bar and bar != s and s != other and x != None  # noqa: E711
        for tile in (s, other):
            warp.load_into(tile, x, (0, 0))
        warp.sync()
        for i, mask in enumerate((s == 2.0, warp.load(other) != s, np.float32(3.0) == s)):
            warp.store(y, pk.where(mask, 1.0, 0.0), (i, 0, 0))

    x, y = np.arange(256, dtype=np.float32).reshape(16, 16), np.full((3, 16, 16), np.nan, np.float32)
    k(x, y)
    assert np.array_equal(y, [x == 2, x != x, x == 3])
    for compare in (lambda x: x == 2, lambda x: np.float32(2) != x, lambda x: x < 2, lambda x: np.int32(2) >= x):

        @pk.kernel(warps=1)
        def refused(x: pk.gl(f32, 16, 16), *, compare):
            compare(x)

        with pytest.raises(pk.TypeRuleError, match="which is in memory"):
            refused.program(pk.spec(f32, (16, 16)), compare=compare)
