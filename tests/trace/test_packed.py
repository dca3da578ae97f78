"""Which sequence a tile of packed rows belongs to."""

from typing import Annotated

import numpy as np
import pytest

import pykittens as pk
from pykittens import Tensor, i32, warp


@pk.kernel(warps=1, grid=1)
def owners(offsets: Annotated[Tensor, i32, "S"], out: Annotated[Tensor, i32, "T"]) -> None:
    for tile in pk.range(out.cols):
        warp.set(out, (tile,), pk.packed(offsets).find(tile, 64))


@pytest.mark.parametrize("count", [1, 2, 8, 9, 66])
def test_the_sequence_of_a_tile(count: int) -> None:
    """As many as a step of the search looks at, one more, and several steps' worth; many of them empty."""
    rng = np.random.default_rng(count)
    lengths = rng.integers(0, 130, count) * (rng.random(count) < 0.5)
    offsets = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
    found = np.full(offsets[-1] // 64 + count, -1, np.int32)
    owners(offsets, found)
    first = offsets[:-1] // 64 + np.arange(count)
    assert (found == np.searchsorted(first, np.arange(len(found)), side="right") - 1).all()
