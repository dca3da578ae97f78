"""What the launcher must build for a kernel that copies by TMA."""

from __future__ import annotations

from ..loading import dataclass


@dataclass(frozen=True)
class TensorMapSpec:
    """A tensor map the launcher must build: which tensor, the box (rows, cols), and the swizzle in bytes (0: a vector).

    `panels`: the map has a dimension that counts panels of `swizzle` bytes, of a vector 256 elements, see `ops/tma.py`.
    """

    tensor: str
    box: tuple[int, int]
    swizzle: int
    panels: bool
    ended: bool = False  # copies say which row is the first past the end
