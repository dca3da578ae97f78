"""Which lanes of a warp touch the bytes of a cell, as small numbers that shadow memory can hold and compare."""

from __future__ import annotations

import numpy as np

SEVERAL = -1  # of what lanes have done in more than one way since they met, or at indices: it agrees with nothing
TOGETHER = -2  # of what a warp has read by ldmatrix, which no lane is past before all are: it agrees with everything


class LanePatterns:
    """Numbers for patterns: for each byte of a cell a mask of the lanes that touch it (none: 0)."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.number: dict[bytes, int] = {}
        self.agreed: dict[tuple[int, int], bool] = {}

    def intern(self, masks: np.ndarray) -> np.ndarray:
        """The numbers of patterns, one a row of `masks` (cells, bytes)."""
        if not len(masks):
            return np.zeros(0, np.int32)
        if (masks == masks[0]).all():
            return np.full(len(masks), self._one(masks[0]), np.int32)
        rows = np.ascontiguousarray(masks)
        unique, inverse = np.unique(rows.view(np.dtype((np.void, rows.strides[0]))).ravel(), return_inverse=True)
        numbers = [self._one(np.frombuffer(u.tobytes(), np.uint32)) for u in unique]
        return np.array(numbers, np.int32)[inverse.ravel()]

    def _one(self, row: np.ndarray) -> int:
        key = row.tobytes()
        if key not in self.number:
            self.number[key] = len(self.rows)
            self.rows.append(np.array(row))
        return self.number[key]

    def disagree(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Where a lane of the second access touches a byte that another lane touches in the first."""
        several, together = (first == SEVERAL) | (second == SEVERAL), first == TOGETHER
        several &= ~together
        if (several | together).all():
            return several
        first = np.where(several | together, 0, first)
        pairs = first.astype(np.int64) << 32 | second
        unique, inverse = np.unique(pairs, return_inverse=True)
        apart = np.array([not self.agree(int(p >> 32), int(p & 0xFFFFFFFF)) for p in unique], bool)
        return several | (apart[inverse.ravel()] & ~together)

    def agree(self, first: int, second: int) -> bool:
        """Whether every byte that both touch is touched by one lane, the same."""
        key = (first, second)
        if key not in self.agreed:
            a, b = self.rows[first], self.rows[second]
            same = (a == 0) | (b == 0) | ((a == b) & (a & (a - np.uint32(1)) == 0)) if len(a) == len(b) else np.False_
            self.agreed[key] = bool(same.all())
        return self.agreed[key]

    def leads(self, numbers: np.ndarray) -> np.ndarray:
        """Where only the first lane touches anything, or all lanes at once."""
        unique, inverse = np.unique(numbers, return_inverse=True)
        known = [n == TOGETHER or (n >= 0 and bool((self.rows[n] <= 1).all())) for n in unique]
        return np.array(known, bool)[inverse.ravel()]


PATTERNS = LanePatterns()
