"""Sequences of several lengths in the rows of one tensor: where each begins, and which tile of rows is whose.

    packed = pk.packed(offsets)       # offsets: pk.gl(i32, "S"); sequence i has rows offsets[i] to offsets[i + 1] - 1
    i = packed.find(tile, 128)        # tile: 0 to packed.tiles(rows, 128) - 1
    rows = packed[i]
    pk.tma.load(slot, q, **rows.tile(0, head, tile - packed.first(i, 128), 128))

Tiles are numbered so that nobody needs a sum over lengths: those of sequence i begin at offsets[i] // height + i, which
leaves room for all of them, and for one or two that do not exist (FlashAttention pads its sums of dq so).
"""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..program import Operand
from ..types import i32
from .elementwise import maximum, where
from .flow import break_if, loop, otherwise, when
from .handle import number
from .memory import Tensor, at
from .scalar import var


class Stretch:
    """The rows of a tensor from `start` to `end`: all of them, where they are not given."""

    def __init__(self, rows: Operand, start: Operand | None = None, end: Operand | None = None):
        self.rows, self.start, self.end = rows, start, end

    def tile(
        self, batch: Operand, depth: Operand, tile: Operand, height: int, col: Operand = 0, width: int = 0
    ) -> dict[str, Any]:
        """Options of a load or store, `coordinate=` and `within=`: one tile of `height` rows after another.

        col: which tile of the columns, of `width` elements each.
        """
        if self.start is None:
            return {"coordinate": (batch, depth, tile, col)}
        return {
            "coordinate": at(batch, depth, self.start + tile * height, col * width),
            "within": (self.start, self.end),
        }

    def run(self, batch: Operand, depth: Operand, tile: Operand, length: int) -> dict[str, Any]:
        """The same of runs of `length` elements, in a tensor that has one for each row."""
        if self.start is None:
            return {"coordinate": (batch, depth, tile)}
        return {"coordinate": at(batch, depth, self.start + tile * length), "within": (self.start, self.end)}


class Packed:
    """Made by `pk.packed`."""

    def __init__(self, offsets: Any):
        if not isinstance(offsets, Tensor) or offsets.type.dtype is not i32:
            raise TypeRuleError(
                f"pk.packed of {getattr(offsets, 'type', offsets)}",
                fix="pass a tensor of 32-bit integers, one more than sequences: offsets: pk.gl(pk.i32, 'S')",
            )
        self.offsets, self.count = offsets, offsets.cols - 1

    def __getitem__(self, index: Operand) -> Stretch:
        """The rows of a sequence."""
        start, end = maximum(self.offsets[index], 0), self.offsets[index + 1]
        return Stretch(end - start, start, end)

    def covering(self, index: Operand, rows: Operand) -> Stretch:
        """The rows of a sequence and, behind the last one, those that are nobody's in a tensor of so many `rows`."""
        own = self[index]
        end = where(index == self.count - 1, rows, own.end)
        return Stretch(end - own.start, own.start, end)

    def tiles(self, rows: Operand, height: int) -> Any:
        """How many numbers of tiles there are, for a tensor of so many rows."""
        return rows // height + self.count

    def first(self, index: Operand, height: int) -> Any:
        """The number of a sequence's first tile."""
        return maximum(self.offsets[index], 0) // height + index

    def padded(self, index: Operand, height: int, unit: int = 128) -> Any:
        """The number of a sequence's first tile of `height` rows where each begins at a multiple of `unit` rows."""
        return self.first(index, unit) * (unit // height)

    def owner(self, tile: Operand, height: int, owners: Tensor | None) -> Any:
        """The same as `find`, looked up where `owners` of all tiles were found before."""
        return self.find(tile, height) if owners is None else owners[tile]

    def find(self, tile: Operand, height: int) -> Any:
        """Which sequence a tile belongs to: the last that begins at its number or before."""
        low, high = var(i32, 0), var(i32, number(self.count))
        for _ in loop():
            break_if(high - low <= 1)
            middle = (low + high) // 2
            with when(self.first(middle, height) <= tile):
                low.set(middle)
            with otherwise():
                high.set(middle)
        return low + 0


def stretch(rows: Tensor | Operand) -> Stretch:
    """All `rows`, of a tensor or a number of them, as `pk.packed(...)[i]` is those of one sequence."""
    return Stretch(rows.rows if isinstance(rows, Tensor) else rows)


def packed(offsets: Any) -> Packed:
    """Sequences that lie one after another in the rows of tensors: sequence i has those from offsets[i] to
    offsets[i + 1] - 1.

    `offsets`: 32-bit integers, one more than sequences, not decreasing from 0 on.
    """
    return Packed(offsets)
