"""Stream-K: work of any lengths in one line, of which every block has an equal share, wherever that cuts it.

    shares = pk.shares(units, ends, batch, heads)  # shared vectors: of a head of each sequence; of all up to it
    walk = shares.walk()
    for _ in pk.loop():
        pk.break_if(walk.done)
        part = walk.take()                        # units of one item: part.group, part.item, part.begin, part.taken
        ...
        # where shares.pieces(part) > 1, the item lies in several blocks' shares: each stores what it has in scratch
        # memory, shares.slot(part, shares.number(part)), and shares.deal(...) says who does what remains

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
from .flow import break_if, loop, otherwise, when
from .functions import assert_
from .memory import Shared, Tensor, shared
from .memory_order import atomic_add, atomic_cas
from .scalar import block_index, cdiv, grid_size, var
from .scopes import block, warp

PATIENCE = 64  # looks at what has arrived, of which each takes 0.7 us on an H200
_LEFT = _NONE = 1 << 30  # of a number of parts: somebody has not waited; of a piece of work: there is none


class SharePart(NamedTuple):
    """Units of one item that one block has: `taken` of its `units`, from its unit `begin` on. `start` is where in the
    line the item begins."""

    group: Any
    item: Any
    units: Any
    start: Any
    begin: Any
    taken: Any


class ShareWalk:
    """Goes through the share of its block. `unit`: the next one in the line, at first in the item found for all."""

    def __init__(self, shares: Shares):
        self.shares = shares
        group, item, start = shares.found
        self.unit, self.group, self.item = var(i32, shares.first), var(i32, group), var(i32, item)
        self.start, self.units = var(i32, start), var(i32, shares.units[group])

    @property
    def done(self) -> Any:
        """Whether nothing of the share is left."""
        return self.unit >= self.shares.last

    def take(self) -> SharePart:
        """The next part."""
        s, unit, group, item, start, units = self.shares, self.unit, self.group, self.item, self.start, self.units
        with when(unit >= start + units):
            start.set(start + units)
            item.set(item + 1)
            with when(item == s.items):
                item.set(0)
                for _ in loop():
                    group.set(group + 1)
                    break_if(s.units[group] > 0)
                units.set(s.units[group])
        begin = unit - start
        taken = minimum(1 if s.single else units - begin, s.last - unit)
        unit.set(unit + taken)
        return SharePart(group + 0, item + 0, units + 0, start + 0, begin, taken)


class Shares:
    """Made by `pk.shares`."""

    def __init__(
        self, units: Any, ends: Any, groups: Operand, items: Operand, least: Operand, single: bool, blocks: int | None
    ):
        for x in (units, ends):
            if not isinstance(x, Shared) or not isinstance(x.type, SharedVector) or x.type.dtype is not i32:
                raise TypeRuleError(
                    f"pk.shares of {getattr(x, 'type', x)}",
                    fix="pass shared vectors of 32-bit integers: units = pk.shared(pk.sv(pk.i32, 128))",
                )
        self.units, self.items, self.single = units, items, single
        if blocks is not None:
            assert_(grid_size.x == blocks, "the grid has other blocks than pk.shares was told of")
        line = ends[groups - 1]
        each = maximum(cdiv(line, blocks or grid_size.x), least)
        self.share = each if single else _meeting(each, line, units[0], groups * items)
        self.first = minimum(block_index.x * self.share, line)
        self.last = minimum(self.first + self.share, line)
        low, high = var(i32, 0), var(i32, groups - 1)  # the first group that ends behind the first unit
        for _ in loop():
            break_if(low >= high)
            middle = (low + high) // 2
            with when(ends[middle] <= self.first):
                low.set(middle + 1)
            with otherwise():
                high.set(middle)
        before = where(low > 0, ends[maximum(low - 1, 0)], 0)
        item = (self.first - before) // maximum(units[low], 1)
        self.found = low + 0, item, before + item * units[low]

    def walk(self) -> ShareWalk:
        """One way through the share of this block; whoever runs ahead of others has one of its own."""
        return ShareWalk(self)

    def pieces(self, part: SharePart) -> Any:
        """How many parts the item has in all."""
        if self.single:
            return part.units
        return (part.start + part.units - 1) // self.share - part.start // self.share + 1

    def number(self, part: SharePart) -> Any:
        """Which of the item's parts this one is."""
        return part.begin if self.single else block_index.x - part.start // self.share

    def helpers(self, part: SharePart) -> tuple[Any, Any]:
        """Which of the blocks whose shares end in the item this block is, and how many they are: those that have
        nothing else to do when their last part of it is there. Others, and earlier parts of them, are none of these.
        """
        before = part.start // self.share
        count = (part.start + part.units) // self.share - before
        ends = part.start + part.begin + part.taken == self.first + self.share
        return where(ends, block_index.x - before, count), count

    def deal(self, part: SharePart, arrived: Tensor, at: Operand) -> tuple[Any, Any]:
        """What this block has left of its part of an item, in global memory, is known to others from here on; which of
        the pieces of work that remain, when all parts are there, this block has: the first one's number, and how much
        more the next one's is. Where it has none the first number is 2**30.

        arrived: a tensor of int32; `at`: an element that is 0 before the launch and used for this item alone. The
        item's `helpers` wait for all parts, if it does not take too long; if one has not waited, or there are none,
        whoever comes last has all pieces. So nothing depends on how many blocks run at a time. All warps of the block
        call it.
        """
        rank, helpers = self.helpers(part)
        count, found = self.pieces(part), shared(SharedVector(i32, 4), name="dealt")
        block.sync()
        with when(warp.index == 0):
            seen = var(i32, atomic_add(arrived, at, 1, order="acq_rel", by=warp) + 1)
            last, looks, waits = seen % _LEFT == count, var(i32, 0), var(i32, where(rank < helpers, 1, 0))
            for _ in loop():
                break_if((seen % _LEFT == count) | (waits == 0))
                with when(looks < PATIENCE):
                    seen.set(arrived.load(at))
                    looks.set(looks + 1)
                with otherwise():  # says so in one step, unless somebody has come since: then it looks again
                    said = atomic_cas(arrived, at, seen, seen | _LEFT, by=warp) == seen
                    waits.set(where(said, 0, 1))
                    looks.set(0)
            alone = (seen >= _LEFT) | (helpers == 0)
            warp.set(found, 0, where(where(alone, last, waits == 1), where(alone, 0, rank), _NONE))
            warp.set(found, 1, where(alone, 1, helpers))
        block.sync()
        return found[0], found[1]

    def slot(self, part: SharePart, number: Operand) -> Any:
        """A place in scratch memory for one part of the item, which no other part has; those of an item lie one after
        another. They are of two for each block of the grid, or (`single`) of one for each unit.
        """
        # An item that is cut has two parts or more, and no two such items begin in one share.
        return number + (part.start if self.single else 2 * (part.start // self.share))


def _meeting(each: Any, line: Any, units: Any, count: Operand) -> Any:
    """A share of a line of `count` items, of `each` units or a sixteenth more: where all items have as many units as
    the first, it may end where items do, and fewer are cut."""
    pieces = maximum(units // maximum(each, 1), 1)
    longer = where(each > units, cdiv(each, maximum(units, 1)) * units, units // pieces)
    meets = (units > 0) & (line == units * count) & (units % pieces == 0) & (longer * 16 <= each * 17)
    return where(meets, longer, each)


def shares(
    units: Any,
    ends: Any,
    groups: Operand,
    items: Operand = 1,
    *,
    least: Operand = 1,
    single: bool = False,
    blocks: int | None = None,
) -> Shares:
    """Equal shares for the blocks of a grid (x) of work in units: each of the `items` items of group i of `groups` has
    units[i] of them, and all up to that group's end before unit ends[i].

    `units`, `ends`: shared vectors of int32, of which `ends` are the sums of `units` times `items`. Block 0 has the
    first share, of at least `least` units; where all items are alike, shares may be a sixteenth longer to end where
    items do. `single`: each unit is a part of its own. `blocks`: how many the grid has, where that is known: no
    division by a number that is not.
    """
    return Shares(units, ends, groups, items, least, single, blocks)
