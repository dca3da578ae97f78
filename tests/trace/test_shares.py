"""Equal shares of a line of work: every unit is taken once, blocks have as many, slots are nobody else's, and who ends
in an item is one of its helpers."""

from __future__ import annotations

import numpy as np
import pytest

import pykittens as pk
from pykittens import i32
from pykittens.errors import TypeRuleError

UNITS = np.array([3, 1, 0, 7, 2], np.int32)  # of an item, by group
ITEMS, BLOCKS = 2, 5


@pk.kernel(warps=1, grid=lambda blocks, **_: blocks)
def owners(
    units: pk.gl(i32, 5),
    ends: pk.gl(i32, 5),
    taken: pk.gl(i32, "N"),
    slots: pk.gl(i32, "S"),
    helping: pk.gl(i32, "N"),
    *,
    single: bool = False,
    least: int = 1,
    blocks: int = BLOCKS,
) -> None:
    """How often each unit is taken, by item; how many parts have each slot; how many blocks are which of an item's
    helpers."""
    line, each = (pk.shared(pk.sv(i32, 32), name=name) for name in ("line", "each"))
    pk.warp.store(line, pk.warp.load_vec(ends, pk.at(0), length=32))
    pk.warp.store(each, pk.warp.load_vec(units, pk.at(0), length=32))
    pk.warp.sync()
    shares = pk.shares(each, line, 5, ITEMS, least=least, single=single)
    walk = shares.walk()
    for _ in pk.loop():
        pk.break_if(walk.done)
        part = walk.take()
        pk.assert_(shares.number(part) < shares.pieces(part), "there are as many parts")
        pk.assert_((part.item >= 0) & (part.item < ITEMS), "an item of the group")
        with pk.when(shares.pieces(part) > 1):
            pk.atomic_add(slots, shares.slot(part, shares.number(part)), 1)
            rank, helpers = shares.helpers(part)
            pk.assert_((rank >= helpers) | walk.done, "who helps has nothing else to do")
            with pk.when(rank < helpers):
                pk.atomic_add(helping, part.start + rank, 1)
        for i in pk.range(part.taken):
            pk.atomic_add(taken, part.start + part.begin + i, 1 + 100 * shares.pieces(part))


@pytest.mark.parametrize(("single", "least"), ((False, 1), (True, 1), (False, 6), (False, 100)))
def test_every_unit_is_taken_once(single: bool, least: int) -> None:
    ends = np.cumsum(UNITS * ITEMS).astype(np.int32)
    taken, slots = np.zeros(ends[-1], np.int32), np.zeros(max(2 * BLOCKS, ends[-1]), np.int32)
    helping, expected = np.zeros_like(taken), np.zeros_like(taken)
    owners.simulate(UNITS, ends, taken, slots, helping, single=single, least=least)
    assert (taken % 100 == 1).all() and slots.max() <= 1
    share = max(-(-int(ends[-1]) // BLOCKS), least)
    pieces, start = [], 0
    for units in UNITS.repeat(ITEMS):
        if units:
            cuts = units if single else (start + units - 1) // share - start // share + 1
            pieces += [cuts] * units
            expected[start : start + ((start + units) // share - start // share) * (cuts > 1)] = 1
        start += units
    assert (taken // 100 == pieces).all() and (helping == expected).all()


@pytest.mark.parametrize(("units", "blocks", "pieces"), ((64, 21, 2), (64, 10, 1), (63, 21, 3), (5, 21, 3)))
def test_items_that_are_alike(units: int, blocks: int, pieces: int) -> None:
    """They are cut as seldom as may be where shares are hardly longer for it: 31 units become 32, but 30 not 31.5."""
    each, ends = np.full(5, units, np.int32), np.arange(1, 6, dtype=np.int32) * units * ITEMS
    taken, slots = np.zeros(ends[-1], np.int32), np.zeros(2 * blocks, np.int32)
    owners.simulate(each, ends, taken, slots, np.zeros_like(taken), blocks=blocks)
    assert (taken % 100 == 1).all() and slots.max() <= 1 and (taken // 100).max() == pieces


def test_of_what() -> None:
    @pk.kernel(warps=1)
    def wrong(x: pk.gl(i32, 5)) -> None:
        pk.shares(x, x, 5)

    with pytest.raises(TypeRuleError, match="pk.shares of"):
        wrong.simulate(np.zeros(5, np.int32))
