"""Arithmetic of scalars, as Python writes it."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, warp


@pytest.mark.parametrize("exponent", (0, 1, 2, 5, -1, 0.5))
def test_powers(exponent: float) -> None:
    """Of a number of a tensor; of an integer with a whole exponent, also where the product wraps."""
    whole = isinstance(exponent, int) and exponent >= 0

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 2), n: pk.gl(i32, 2)) -> None:
        warp.set(x, 1, x[0] ** exponent)
        if whole:
            warp.set(n, 1, n[0] ** exponent)

    x, n = np.array([2.25, 0], np.float32), np.array([-70001, 1], np.int32)
    k.simulate(x, n)
    assert x[1] == pytest.approx(2.25**exponent, rel=1e-6)
    assert n[1] == (np.array([-70001], np.int32) ** exponent if whole else 1)
    assert "pow" in k.cuda(pk.spec(f32, (2,)), pk.spec(i32, (2,)), arch="sm_90") or exponent in (0, 1, 2)
