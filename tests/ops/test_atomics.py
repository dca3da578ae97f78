"""The text of atomics: who takes no result waits for none."""

from __future__ import annotations

from typing import Annotated

import pykittens as pk
from pykittens import Tensor, i32


@pk.kernel(warps=1)
def count(x: Annotated[Tensor, i32, "N"], *, told: bool) -> None:
    """Adds 1 to the first element, and says in the second what it was."""
    before = pk.atomic_add(x, 0, 1, by=pk.warp)
    if told:
        pk.warp.set(x, 1, before)


def test_lanes_are_told_what_somebody_takes() -> None:
    texts = [count.cuda(pk.spec(i32, (2,)), told=told, arch="sm_90a") for told in (False, True)]
    assert all("atom.relaxed.gpu" in text for text in texts)
    assert ["__shfl_sync(0xffffffffu, old" in text for text in texts] == [False, True]
