"""Vectors that meet in different forms, and what reduces tiles and vectors of any layout to scalars."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32

RNG = np.random.default_rng(0)
SCOPES = {1: pk.warp, 2: pk.group(2), 4: pk.warpgroup}


@pytest.mark.parametrize("warps", SCOPES)
def test_vectors_of_different_alignment_meet(warps: int) -> None:
    s = SCOPES[warps]

    @pk.kernel(warps=warps, grid=(4,))
    def k(x: pk.gl(f32, "N"), y: pk.gl(f32, "N"), z: pk.gl(f32, "N")):
        i = pk.block_index.x
        a, b = (s.load_vec(source, (i,), length=256) for source in (x, y))
        c = a + b
        c[:] = b  # the runs of c stay
        s.store(z, pk.where(a > b, pk.maximum(b, a), pk.fma(a, b, c)), (i,))

    x, z = RNG.integers(-9, 9, 1001).astype(np.float32), np.zeros(1000, np.float32)
    a, b = x[:-1], x[1:]
    k(a, b, z)
    assert np.array_equal(z, np.where(a > b, np.maximum(a, b), a * b + b))


@pytest.mark.parametrize("warps", SCOPES)
def test_a_vector_takes_every_form(warps: int) -> None:
    s = SCOPES[warps]

    @pk.kernel(warps=warps)
    def k(x: pk.gl(f32, "N"), z: pk.gl(f32, "K", 256)):
        v = s.load_vec(x, (0,), length=256)
        forms = (
            v.as_col(),
            v.as_row(),
            v.as_col(layout="col"),
            v.as_row(layout=pk.coalesced(32 * warps, 2)),
            s.load_col(x, (0,), length=256).as_row(layout="col"),
            v.to(bf16).as_col().as_vec(width=8),
            pk.where((v > 0).as_row().as_vec(width=2), v, -v),
            s.iota(256),
            s.iota_col(256),
            s.iota_row(256, layout="col"),
            pk.ones_like(v, i32) + pk.full_like(s.iota(256, width=4), 2) - pk.zeros_like(s.iota(256)),
        )
        for i, form in enumerate(forms):
            s.store(z, form, (i, 0))

    x, z = RNG.integers(-9, 9, 256).astype(np.float32), np.zeros((11, 256), np.float32)
    k(x, z)
    expected = [*[x] * 6, np.abs(x), *[np.arange(256)] * 3, np.full(256, 3)]
    for i, row in enumerate(expected):
        assert np.array_equal(z[i], row), i


@pytest.mark.parametrize("dtype", [f32, bf16, i32])
@pytest.mark.parametrize("warps", SCOPES)
def test_scalars_of_tiles_and_their_vectors(warps: int, dtype: pk.DType) -> None:
    s = SCOPES[warps]

    @pk.kernel(warps=warps)
    def k(x: pk.gl(dtype, "M", "N"), y: pk.gl(f32, "K", 9)):
        for i, layout in enumerate(("row", "col", pk.coalesced(32 * warps, 2))):
            t: Any = s.load(x, (0, 0), rows=64, cols=256, layout=layout)
            scalars = (t.sum(), t.max(), t.min(), (t > 0).sum(), t.row_max().min(), t.col_min().max())
            for j, value in enumerate((*scalars, t.col_max().sum())):
                s.set(y, (i, j), value)
            s.set(y, (i, 7), pk.where((t > 8).any(), 1, 0))
            s.set(y, (i, 8), pk.where((t >= -8).all(), 1, 0))

    x, y = RNG.integers(-8, 9, (61, 250)), np.zeros((3, 9), np.float32)
    k(x.astype(dtype.numpy), y)
    whole = np.pad(x, ((0, 3), (0, 6)))  # what lies past the end is 0
    extremes = whole.max(1).min(), whole.min(0).max(), whole.max(0).sum()
    assert (y == [whole.sum(), 8, -8, (whole > 0).sum(), *extremes, 0, 1]).all(), y


@pytest.mark.parametrize("warps", SCOPES)
def test_atomics_at_indices(warps: int) -> None:
    s = SCOPES[warps]

    @pk.kernel(warps=warps)
    def k(index: pk.gl(i32, "N"), counts: pk.gl(i32, 32), weights: pk.gl(f32, 32), last: pk.gl(i32, 32)):
        i = s.load_vec(index, (0,), length=256)
        s.add(counts, pk.full_like(i, 1), pk.at(i))
        s.add(weights, s.full_vec(f32, 256, 0.5, width=2), pk.at(i))
        s.max(last, s.iota(256), pk.at(i))

    index = RNG.integers(-2, 40, 256).astype(np.int32)
    counts, weights, last = np.zeros(32, np.int32), np.zeros(32, np.float32), np.full(32, -1, np.int32)
    k(index, counts, weights, last)
    hits = [np.flatnonzero(index == i) for i in range(32)]
    assert np.array_equal(counts, [len(x) for x in hits]) and np.array_equal(weights, counts / 2)
    assert np.array_equal(last, [max(x, default=-1) for x in hits])


@pytest.mark.parametrize("kind", ["min", "max"])
def test_atomic_extremes_of_floats(kind: str) -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 64), y: pk.gl(f32, 64)):
        getattr(pk.warp, kind)(y, pk.warp.load_vec(x, (0,), length=64), (0,))

    hard = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    x, old = np.repeat(hard, 8), np.tile(np.where(np.isnan(hard), 2.0, hard), 8).astype(np.float32)
    y = old.copy()
    k(x, y)
    want = np.maximum(old, x) if kind == "max" else np.minimum(old, x)
    with np.errstate(invalid="ignore"):  # of two zeros the one of the wanted sign
        want = np.where((old == 0) & (x == 0), old + x if kind == "max" else -(-old + -x), want)
    assert np.array_equal(y, want, equal_nan=True) and np.array_equal(np.signbit(y[y == 0]), np.signbit(want[y == 0]))
