"""Which waits at named barriers are "bar.sync"."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warpgroup


@pytest.mark.parametrize(("places", "aligned"), (((0, 1), True), ((0, 0), False)), ids=("one role each", "both roles"))
def test_roles_that_wait_for_one_phase(places: tuple[int, int], aligned: bool) -> None:
    @pk.kernel(warps=8)
    def meet(x: pk.gl(f32, 1, 2)) -> None:
        met = pk.named_barrier(4 if aligned else 8, count=2)
        for i, place in enumerate(places):
            with pk.role(f"role {i}", warpgroups=1):
                warpgroup.sync_at(met, place)
                warpgroup.set(x, (0, i), 1.0)

    x = np.zeros((1, 2), np.float32)
    assert meet.simulate(x).clean and (x == 1).all()
    text = meet.cuda(x)
    assert (text.count('"bar.sync'), text.count('"barrier.sync')) == ((2, 0) if aligned else (0, 2))
