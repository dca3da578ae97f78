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
from ..types import SharedVector, i32, i64, u32
from .elementwise import maximum, minimum, where
from .flow import break_if, loop, otherwise, when
from .functions import assert_
from .memory import Shared, Tensor, shared
from .memory_order import atomic_add, atomic_cas, atomic_exch
from .scalar import block_index, cast, cdiv, grid_size, var
from .scopes import block, warp

PATIENCE = 64  # looks at what has arrived, of which each takes 0.7 us on an H200
_NONE = 1 << 30  # of a piece of work: there is none
_TAG = 0x3A9D4F6E35C1  # of 46 bits


class _Counter(NamedTuple):
    """How a word of 64 bits counts parts: the low `bits` are their number, and whether somebody has not waited; those
    above are a tag while it counts, which other memory holds by chance once in 2**(64 - bits) times."""

    bits: int

    @property
    def nothing(self) -> int:
        return _TAG >> self.bits - 16 << self.bits

    @property
    def left(self) -> int:
        return 1 << self.bits - 1

    def closed(self, word: Any) -> Any:
        """Whether it does not count: all parts have come, or it has not begun."""
        return word >> self.bits != _TAG >> self.bits - 16

    def counted(self, word: Any) -> Any:
        return cast(word & (self.left - 1), i32)


OF_BLOCK, OF_ITEM = _Counter(16), _Counter(32)  # of an item there are more parts than blocks


def open_counter(arrived: Tensor, who: int) -> None:
    """Lets the counter of this block begin, whatever its memory holds: warp `who` does it. All warps call it, as early
    as they like."""
    with when(warp.index == who):
        _open(arrived, block_index.x)


def _open(arrived: Tensor, at: Operand) -> None:
    found = arrived.load(at, order="relaxed")
    with when(OF_BLOCK.closed(found)):
        atomic_cas(arrived, at, found, OF_BLOCK.nothing, by=warp)


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
        item = _over(self.first - before, maximum(units[low], 1))
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

    def counter(self, part: SharePart) -> Any:
        """Where the parts of the item are counted: with the block whose share it begins in, as no other that is cut.
        (`single`: by itself.)"""
        return part.group * self.items + part.item if self.single else part.start // self.share

    def deal(self, part: SharePart, arrived: Tensor) -> tuple[Any, Any]:
        """What this block has left of its part of an item, in global memory, is known to others from here on; which of
        the pieces of work that remain, when all parts are there, this block has: the first one's number, and how much
        more the next one's is. Where it has none the first number is 2**30.

        arrived: a tensor of int64, of any numbers, one for each block, which has called `open_counter`; or (`single`)
        one for each item, which are `OF_ITEM.nothing`. The item's `helpers` wait for all parts, if it does not take too
        long; if one has not waited, or there are none, whoever comes last has all pieces. So nothing depends on how
        many blocks run at a time. All warps of the block call it.
        """
        (rank, helpers), word = self.helpers(part), OF_ITEM if self.single else OF_BLOCK
        at, count, found = self.counter(part), self.pieces(part), shared(SharedVector(i32, 4), name="dealt")
        block.sync()
        with when(warp.index == 0):
            seen = var(i64, 0)
            for _ in loop():
                seen.set(atomic_add(arrived, at, 1, order="acq_rel", by=warp) + 1)
                break_if(True if self.single else ~word.closed(seen))
                if not self.single:  # the block whose counter it is has not begun: who comes first opens it
                    _open(arrived, at)
            last, looks, waits = word.counted(seen) == count, var(i32, 0), var(i32, where(rank < helpers, 1, 0))
            for _ in loop():
                there = word.counted(seen) == count
                break_if((there if self.single else there | word.closed(seen)) | (waits == 0))
                with when(looks < PATIENCE):
                    seen.set(arrived.load(at))
                    looks.set(looks + 1)
                with otherwise():  # says so in one step, unless somebody has come since: then it looks again
                    said = atomic_cas(arrived, at, seen, seen | word.left, by=warp) == seen
                    waits.set(where(said, 0, 1))
                    looks.set(0)
            alone = ((seen & word.left) != 0) | (helpers == 0)
            if not self.single:
                with when(where(alone, last, (waits == 1) & (rank == 0))):  # for who uses this memory next
                    atomic_exch(arrived, at, seen & word.left, by=warp)
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


def _over(a: Any, b: Any) -> Any:
    """a // b of what is not negative: in half of the instructions that signs take."""
    return cast(cast(a, u32) // cast(b, u32), i32)


def _meeting(each: Any, line: Any, units: Any, count: Operand) -> Any:
    """A share of a line of `count` items, of `each` units or a sixteenth more: where all items have as many units as
    the first, it may end where items do, and fewer are cut."""
    units = maximum(units, 1)
    whole = each > units
    pieces = maximum(_over(units, maximum(each, 1)), 1)
    found = _over(where(whole, each + units - 1, units), where(whole, units, pieces))  # items of a share, or its units
    longer = where(whole, found * units, found)
    meets = (line == units * count) & (whole | (found * pieces == units)) & (longer * 16 <= each * 17)
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
