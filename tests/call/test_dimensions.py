"""Grids, clusters and warps: whole numbers that a GPU can launch, or an error that says so on both back ends."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.errors import ArgumentError

X = np.zeros((16, 16), np.float32)


def kernel(**options: Any) -> pk.Kernel:
    @pk.kernel(**{"warps": 1, **options})
    def fill(x: pk.gl(f32, 16, 16)) -> None:
        with pk.when(pk.block_index.x == 0):
            warp.store(x, warp.full(f32, 16, 16, 1.0), (0, 0))

    return fill


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"grid": 1.5}, "grid is 1.5, a float"),
        ({"grid": lambda x, **_: x.rows / 16}, "grid is 1.0, a float"),
        ({"grid": (1, 2.0)}, r"grid is 2.0 in \(1, 2.0\), a float"),
        ({"grid": "4"}, "grid is '4', a str"),
        ({"grid": (1, 1, 1, 3)}, "of 4 dimensions"),
        ({"grid": 0}, "at least 1"),
        ({"grid": (1, -2)}, "at least 1"),
        ({"grid": (1, 65536)}, "65,536 blocks along y"),
        ({"grid": (1, 1, 70000)}, "70,000 blocks along z"),
        ({"grid": 2**31}, "blocks along x"),
        ({"cluster": 1.0}, "cluster is 1.0, a float"),
        ({"warps": 2.5}, "warps is 2.5, a float"),
        ({"warps": "4"}, "warps is '4', a str"),
        ({"warps": 33}, "warps is 33"),
        ({"warps": 0}, "warps is 0"),
        ({"blocks_per_sm": 0}, "blocks_per_sm is 0"),
        ({"blocks_per_sm": 1.5}, "blocks_per_sm is 1.5, a float"),
        ({"registers": 256}, "registers is 256"),
        ({"registers": -1}, "registers is -1"),
        ({"pdl": 1}, "pdl is 1, a int"),
        ({"cooperative": lambda **_: "no"}, "cooperative is 'no', a str"),
    ],
)
def test_refused(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(ArgumentError, match=fact) as error:
        kernel(**options)(X.copy())
    assert error.value.fix


@pytest.mark.parametrize("grid", [1, (1,), [1, 1], (1, 1, 1), np.int64(2), (np.int32(1), True)])
def test_taken(grid: Any) -> None:
    x = X.copy()
    kernel(grid=grid)(x)
    assert (x == 1).all()
