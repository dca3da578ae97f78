"""Bank conflicts of an access to shared memory: counted once from the addresses that its instructions ask for."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..layouts import bank_conflicts, shared_offset
from ..thread_map import ThreadMap
from ..types import SharedTile, SharedVector


@lru_cache(maxsize=1024)
def extra_passes(shared: SharedTile | SharedVector, threads: ThreadMap, warps: int) -> int:
    """Extra passes when one unit of `warps` warps touches a whole tile or vector. A tile's swizzle repeats every
    1024 bytes.
    """
    first, width = threads.moves(shared.shape, warps)
    size, total = shared.dtype.size, 0
    for lanes in first.reshape(-1, 32):
        asked = lanes[lanes >= 0]
        if not len(asked):
            continue
        if isinstance(shared, SharedTile):
            at = np.asarray(shared_offset(shared, asked // shared.cols, asked % shared.cols))
        else:
            at = asked * size
        total += bank_conflicts(at, width * size)
    return total


__all__ = ["extra_passes"]
