"""Bank conflicts of an access to a shared tile: computed once from its addresses, which repeat every 1024 bytes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..layouts import bank_conflicts, shared_offset
from ..types import SharedTile
from .memory import CHUNK, chunk_offsets


@lru_cache(maxsize=1024)
def extra_passes(tile: SharedTile, split: str, warps: int) -> int:
    """Extra passes when one unit of `warps` warps touches a whole tile.

    "threads": each lane takes 16-byte vectors in turn. Otherwise 16-bit elements move as 8 x 8 matrices (ldmatrix,
    stmatrix: eight rows of 16 bytes a pass), wider and narrower ones as the pairs of a register fragment.
    """
    if split == "threads":
        lines = chunk_offsets(tile).ravel()
        return sum(bank_conflicts(lines[i : i + 32], CHUNK) for i in range(0, len(lines), 32))
    times = warps if split == "all" else 1
    if tile.dtype.bits == 16:
        groups = chunk_offsets(tile).reshape(-1, 8, tile.cols * 2 // CHUNK).swapaxes(1, 2).reshape(-1, 8)
        return times * sum(bank_conflicts(group, CHUNK) for group in groups)
    lane = np.arange(32)
    total = 0
    for row in range(0, tile.rows, 8):
        for col in range(0, tile.cols, 8):
            total += bank_conflicts(
                np.asarray(shared_offset(tile, row + lane // 4, col + lane % 4 * 2)), 2 * tile.dtype.size
            )
    return times * total


__all__ = ["extra_passes"]
