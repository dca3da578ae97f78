"""Sums of a tile that several blocks make, each of a part of k, handed over in memory to the block of the last part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pykittens as pk
from pykittens import warpgroup


class PartialSums(NamedTuple):
    """Those of one warpgroup's rows of a tile. `memory` has a row for each piece of them, in the order of registers."""

    memory: Any
    flags: Any
    unit: Any  # which flag counts the parts that are there
    part: Any
    of: Any  # how many parts
    pieces: int

    def _row(self, part: Any, piece: int) -> Any:
        return ((self.unit * (self.of - 1) + part) * self.pieces + piece, 0)

    def send(self, pieces: Sequence[Any]) -> None:
        """This part's sums are there for the last part."""
        for i, tile in enumerate(pieces):
            warpgroup.store(self.memory, tile.registers(), self._row(self.part, i))
        pk.signal(self.flags, (self.unit,), by=warpgroup)

    def wait(self) -> None:
        """All others are there."""
        with pk.when(self.of > 1):
            pk.wait_for(self.flags, (self.unit,), self.of - 1)

    def add(self, tile: Any, piece: int) -> None:
        """Adds the others' sums to the last part's `tile`, in the order of parts."""
        rows, cols = tile.type.rows, tile.type.cols
        for part in pk.range(self.of - 1, unroll=4 if rows * cols * self.pieces <= 8192 else 2):
            other = warpgroup.load_vec(self.memory, self._row(part, piece), length=rows * cols)
            tile[:] = tile + other.tile(rows, cols)
