"""Words of the vocabulary that no shipped kernel uses say what they mean."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warp

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", ["max", "min", "sum", "prod"])
@pytest.mark.parametrize("axis", ["row", "col"])
def test_reductions(axis: str, kind: str) -> None:
    length = 16 if axis == "row" else 32

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 32), y: pk.gl(f32, 1, "N")):
        tile = warp.load(x, (0, 0), rows=16)
        warp.store(y, getattr(tile, f"{axis}_{kind}")(), (0, 0))

    x, y = RNG.uniform(0.5, 1.5, (16, 32)).astype(np.float32), np.zeros((1, length), np.float32)
    k(x, y)
    expected: Any = getattr(np, kind)(x.astype(float), axis=1 if axis == "row" else 0)
    assert np.allclose(y[0], expected, rtol=1e-5)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("name", ["mma", "mm"])
def test_products(name: str, ta: bool, tb: bool) -> None:
    @pk.kernel(warps=1)
    def k(a: pk.gl(bf16, "AM", "AK"), b: pk.gl(bf16, "BK", "BN"), d: pk.gl(f32, 16, 32)):
        left, right = (
            pk.shared(pk.st(bf16, *((48, 16) if ta else (16, 48)))),
            pk.shared(pk.st(bf16, *((32, 48) if tb else (48, 32)))),
        )
        warp.load_into(left, a, (0, 0))
        warp.load_into(right, b, (0, 0))
        warp.sync()
        out = warp.ones(f32, 16, 32)
        getattr(warp, f"{name}_A{'t' if ta else ''}B{'t' if tb else ''}")(out, left, right)
        warp.store(d, out, (0, 0))

    a, b = RNG.integers(-4, 5, (16, 48)).astype(bf16.numpy), RNG.integers(-4, 5, (48, 32)).astype(bf16.numpy)
    d = np.zeros((16, 32), np.float32)
    k(np.ascontiguousarray(a.T) if ta else a, np.ascontiguousarray(b.T) if tb else b, d)
    assert np.array_equal(d, a.astype(float) @ b.astype(float) + (name == "mma"))


def test_new_vectors() -> None:
    @pk.kernel(warps=1)
    def k(y: pk.gl(f32, 4, 32)):
        warp.store(y, warp.full_vec(f32, 32, 3), (0, 0))
        warp.store(y, warp.zeros_row(f32, 32), (1, 0))
        warp.store(y, warp.full_row(f32, 32, 2), (2, 0))
        warp.store(y, warp.full_col(f32, 32, 1), (3, 0))

    y = np.full((4, 32), 7, np.float32)
    k(y)
    assert np.array_equal(y, np.repeat([[3], [0], [2], [1]], 32, axis=1))
