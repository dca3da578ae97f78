"""Which tiles hold rows of any head dimension: what they have more is filled with zeros, by TMA or masked copies."""

from __future__ import annotations


def widths(d: int, dv: int) -> tuple[int, int]:
    """Columns of the tiles of queries and keys, and of those of values, for rows of d and dv elements (dv at most d).

    Panels of shared memory are whole, and values have the same panels as queries, whose place the output takes.
    """
    step = 32 if d == dv else 64
    return -(-d // step) * step, -(-dv // step) * step


def backward_width(d: int, dv: int) -> int:
    """Columns of all tiles of the backward pass, whose work is cut for these three."""
    return 64 if max(d, dv) <= 64 else 128 if max(d, dv) <= 128 else 256
