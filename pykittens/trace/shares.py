"""Stream-K: work of any lengths in one line, of which every block has an equal share, wherever that cuts it.

    shares = pk.shares(ends, batch, heads)        # ends: a shared vector; sequence i has units up to ends[i]
    walk = shares.walk()
    for _ in pk.loop():
        pk.break_if(walk.done)
        part = walk.take()                        # units of one item: part.group, part.item, part.begin, part.taken
        ...
        # where shares.pieces(part) > 1, the item lies in several blocks' shares: scratch memory shares.slot(part, i)

Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU" (2023).
A group is of as many items as all groups are (the heads of a sequence), which are equally long; groups are not. With
`single` each unit is a part of its own, and where an item is cut does not depend on the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import TypeRuleError
from ..program import Operand
from ..types import SharedVector, i32
from .elementwise import maximum, minimum, where
from .flow import break_if, loop
from .memory import Shared
from .scalar import block_index, cdiv, grid_size, var


class Part(NamedTuple):
    """Units of one item that one block has: `taken` of its `units`, from its unit `begin` on. `start` is where in the
    line the item begins."""

    group: Any
    item: Any
    units: Any
    start: Any
    begin: Any
    taken: Any


class Walk:
    """Goes through the share of its block. `unit`: the next one in the line."""

    def __init__(self, shares: Shares):
        self.shares, self.unit, self.group = shares, var(i32, shares.first), var(i32, 0)

    @property
    def done(self) -> Any:
        """Whether nothing of the share is left."""
        return self.unit >= self.shares.last

    def take(self) -> Part:
        """The next part."""
        s, unit, group = self.shares, self.unit, self.group
        for _ in loop():
            break_if(unit < s.ends[group])
            group.set(group + 1)
        low = where(group > 0, s.ends[maximum(group - 1, 0)], 0)
        units = (s.ends[group] - low) // s.items
        item = (unit - low) // units
        start = low + item * units
        begin = unit - start
        taken = 1 if s.single else minimum(units - begin, s.last - unit)
        unit.set(unit + taken)
        return Part(group + 0, item, units, start, begin, taken)


class Shares:
    """Made by `pk.shares`."""

    def __init__(self, ends: Any, groups: Operand, items: Operand, least: Operand, single: bool):
        if not isinstance(ends, Shared) or not isinstance(ends.type, SharedVector) or ends.type.dtype is not i32:
            raise TypeRuleError(
                f"pk.shares of {getattr(ends, 'type', ends)}",
                fix="pass a shared vector of 32-bit integers: ends = pk.shared(pk.sv(pk.i32, 128))",
            )
        self.ends, self.items, self.single = ends, items, single
        line = ends[groups - 1]
        self.share = maximum(cdiv(line, grid_size.x), least)
        self.first = minimum(block_index.x * self.share, line)
        self.last = minimum(self.first + self.share, line)

    def walk(self) -> Walk:
        """One way through the share of this block; whoever runs ahead of others has one of its own."""
        return Walk(self)

    def pieces(self, part: Part) -> Any:
        """How many parts the item has in all."""
        if self.single:
            return part.units
        return (part.start + part.units - 1) // self.share - part.start // self.share + 1

    def number(self, part: Part) -> Any:
        """Which of the item's parts this one is."""
        return part.begin if self.single else block_index.x - part.start // self.share

    def slot(self, part: Part, number: Operand) -> Any:
        """A place in scratch memory for one part of the item, which no other part has: of two for each block of the
        grid, or (`single`) of one for each unit.
        """
        if self.single:
            return part.start + number
        return 2 * (part.start // self.share + number) + where(number == 0, 1, 0)


def shares(ends: Any, groups: Operand, items: Operand = 1, *, least: Operand = 1, single: bool = False) -> Shares:
    """Equal shares for the blocks of a grid (x) of work in units: group i of `groups` has `items` equal items, which
    together end before unit ends[i].

    `ends`: a shared vector of int32, not decreasing; block 0 has the first share, of at least `least` units. `single`:
    each unit is a part of its own.
    """
    return Shares(ends, groups, items, least, single)
