"""What a barrier of the cluster hands over: nothing at the end of a kernel whose threads stay in their own block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp


def nothing(tile: Any, bell: Any) -> None:
    pass


def stores(tile: Any, bell: Any) -> None:
    warp.store(tile, warp.zeros(f32, 16, 64), rank=1 - pk.cluster.rank)


def reads(tile: Any, bell: Any) -> None:
    warp.store(tile, pk.cluster.load(tile, 1 - pk.cluster.rank, scope=warp))


def arrives(tile: Any, bell: Any) -> None:
    pk.arrive(bell, rank=1 - pk.cluster.rank)


def meets_again(tile: Any, bell: Any) -> None:
    pk.cluster.sync()
    warp.store(tile, warp.zeros(f32, 16, 64))


@pytest.mark.parametrize(
    ("does", "last"),
    [(nothing, "relaxed"), (stores, "release"), (reads, "release"), (arrives, "release"), (meets_again, "release")],
)
def test_what_the_last_barrier_of_a_cluster_releases(does: Any, last: str) -> None:
    @pk.kernel(warps=1, grid=2, cluster=2)
    def kernel(x: pk.gl(f32, 16, 64)) -> None:
        tile, bell = pk.shared(pk.st(f32, 16, 64)), pk.barrier()
        warp.store(tile, warp.load(x, (0, 0), rows=16))
        pk.cluster.sync()
        does(tile, bell)
        if does is not meets_again:
            pk.cluster.sync()

    text = kernel.cuda(np.zeros((16, 64), np.float32), arch="sm_90a")
    assert [
        line.split("arrive.")[1].split(";")[0] for line in text.splitlines() if "barrier.cluster.arrive" in line
    ] == [
        "relaxed.aligned",
        "release",
        last,
    ]
