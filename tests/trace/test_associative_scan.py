"""Scans of any operator, over rows and columns, of one tile and of several together."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32

RNG = np.random.default_rng(0)


def recurrence(gate: np.ndarray, x: np.ndarray) -> np.ndarray:
    """h[t] = gate[t] h[t - 1] + x[t] along rows, in float64."""
    out, h = np.zeros(x.shape), np.zeros(len(x))
    for t in range(x.shape[1]):
        h = gate[:, t].astype(float) * h + x[:, t]
        out[:, t] = h
    return out


@pytest.mark.parametrize("layout", ["row", "col", pk.coalesced(32, 1)], ids=str)
def test_a_recurrence_and_a_maximum(layout: Any) -> None:
    @pk.kernel(warps=1)
    def k(gate: pk.gl(f32, 32, 48), x: pk.gl(f32, 32, 48), h: pk.gl(f32, 4, 32, 64)):
        g, v = (pk.warp.load(t, (0, 0), rows=32, cols=64, layout=layout) for t in (gate, x))
        step = lambda a, b: (a[0] * b[0], pk.fma(a[1], b[0], b[1]))  # noqa: E731
        for i, options in enumerate(({}, {"reverse": True}, {"along": "col"})):
            pk.warp.store(h, pk.associative_scan(step, (g, v), **options)[1], (0, i, 0, 0))
        pk.warp.store(h, pk.associative_scan(pk.maximum, v), (0, 3, 0, 0))

    gate, x = RNG.uniform(0.5, 1, (32, 48)).astype(np.float32), RNG.standard_normal((32, 48)).astype(np.float32)
    h = np.zeros((4, 32, 64), np.float32)
    k(gate, x, h)
    turned = recurrence(gate[:, ::-1], x[:, ::-1])[:, ::-1]
    for got, want in zip(h, (recurrence(gate, x), turned, recurrence(gate.T, x.T).T), strict=False):
        assert np.allclose(got[:, :48], want, atol=1e-5)
    assert np.array_equal(h[3, :, :48], np.maximum.accumulate(x, 1))


@pytest.mark.parametrize("layout", ["row", "col"])
def test_columns_that_lie_in_several_warps(layout: Any) -> None:
    @pk.kernel(warps=4)
    def k(x: pk.gl(i32, 64, 64), y: pk.gl(i32, 3, 64, 64)):
        t = pk.warpgroup.load(x, (0, 0), rows=64, layout=layout)
        pk.warpgroup.store(y, t.col_cumsum(), (0, 0, 0, 0))
        pk.warpgroup.store(y, t.col_cummax(reverse=True), (0, 1, 0, 0))
        pk.warpgroup.store(y, t.col_argmax(), (0, 2, 0, 0))
        pk.warpgroup.store(y, t.col_argmin(), (0, 2, 1, 0))

    x, y = RNG.integers(-99, 99, (64, 64)).astype(np.int32), np.zeros((3, 64, 64), np.int32)
    k(x, y)
    assert np.array_equal(y[0], x.cumsum(0)) and np.array_equal(y[1], np.maximum.accumulate(x[::-1])[::-1])
    assert np.array_equal(y[2, 0], x.argmax(0)) and np.array_equal(y[2, 1], x.argmin(0))
