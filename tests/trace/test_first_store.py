"""Sums that nobody clears: whoever comes first stores."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import Tensor, f32, i32, warp
from pykittens.trace.first_store import FirstStores

BLOCKS, ROWS, LENGTH = 5, 3, 64


@pk.kernel(warps=1, grid=(BLOCKS, 1, 1))
def add_up(
    x: Annotated[Tensor, f32, BLOCKS, LENGTH],
    sums: Annotated[Tensor, f32, 1, 1, ROWS, LENGTH],
    turns: Annotated[Tensor, i32, 1, 1, ROWS] | None = None,
    claims: Annotated[Tensor, i32, 1, 1, ROWS] | None = None,
) -> None:
    """x of every block, added to all rows of sums."""
    staged, to = pk.shared(pk.sv(f32, LENGTH)), FirstStores(sums, turns, claims)
    for row in pk.range(ROWS):
        at = 0, 0, row
        first = to.wait(at, lambda: pk.block_index.x)
        warp.store(staged, warp.load_vec(x, (pk.block_index.x, 0)))
        warp.sync()
        to.add(staged, at, first)


@pytest.mark.parametrize("seed", (None, 1, 2, 3))
@pytest.mark.parametrize(("order", "stored"), ((False, False), (False, True), (True, False), (True, True)))
def test_first_store(order: bool, stored: bool, seed: Any) -> None:
    x = np.random.default_rng(0).standard_normal((BLOCKS, LENGTH)).astype(np.float32)
    sums = np.full((1, 1, ROWS, LENGTH), np.nan if stored else 0, np.float32)
    flags = np.zeros((1, 1, ROWS), np.int32)
    add_up.simulate(x, sums, flags if order else None, flags if stored else None, seed=seed)
    np.testing.assert_allclose(sums[0, 0], np.broadcast_to(x.sum(0), (ROWS, LENGTH)), rtol=1e-5, atol=1e-5)
