"""The simulated GPU's memory is free when a run has ended, not when Python next looks for circles."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.sim.engines import Flight
from pykittens.sim.grid_state import GridState
from pykittens.sim.memory import SharedMemory


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pk.kernel(warps=2, grid=(3, 1, 1))
def handed_over(x: pk.gl(f32, 48, 64), y: pk.gl(f32, 48, 64), *, waits: bool) -> None:
    t, landed = pk.shared(pk.st(f32, 16, 64)), pk.barrier(1)
    with pk.role("load", warps=1):
        pk.tma.expect(landed, t)
        pk.tma.load(t, x, (pk.block_index.x, 0), barrier=landed)
    with pk.role("store", warps=1):
        if waits:
            pk.wait(landed, 0)
        warp.store(y, warp.load(t), (pk.block_index.x, 0))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("seed", [None, 1])
def test_nothing_of_a_run_is_left(without_collector: None, waits: bool, seed: int | None) -> None:
    x, y = np.ones((48, 64), np.float32), np.zeros((48, 64), np.float32)
    try:
        handed_over.simulate(x, y, waits=waits, seed=seed)
        assert waits and (y == 1).all()
    except pk.Diagnosis:
        assert not waits
    assert not [x for x in gc.get_objects() if isinstance(x, (GridState, SharedMemory, Flight))]
