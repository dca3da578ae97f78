"""Random programs of a warpgroup that multiplies what other warps hand to it, while its products are under way.

Warp 0 stands for the warpgroup, the others load or write. Statements: ("multiply", accumulator, cell), ("await",
accumulator), ("use", accumulator), ("load", cell, barrier), ("write", cell), ("arrive", barrier), ("wait", barrier,
parity).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pykittens as pk
from pykittens import bf16, f32, warp, warpgroup

from .interleavings import Action, Story

Statement = tuple[Any, ...]
Code = tuple[tuple[Statement, ...], ...]
SIDE = 64  # of a tile
CELLS = ACCUMULATORS = 2
BARRIERS = 2 * CELLS  # of each cell: full, empty


def kernel(code: Code) -> pk.Kernel:
    """The program in words of the language."""

    @pk.kernel(warps=3 + len(code))
    def multiplied(x: pk.gl(bf16, SIDE, SIDE)) -> None:  # type: ignore[valid-type]
        tiles = [pk.shared(pk.st(bf16, SIDE, SIDE), name=f"cell {i}") for i in range(CELLS)]
        barriers = [pk.barrier(1) for _ in range(BARRIERS)]
        with pk.role("multiplies", warpgroups=1):
            sums = [warpgroup.zeros(f32, SIDE, SIDE) for _ in range(ACCUMULATORS)]
            for word, *at in code[0]:
                if word == "multiply":
                    warpgroup.mma_ABt(sums[at[0]], tiles[at[1]], tiles[at[1]])
                elif word == "await":
                    warpgroup.wait(sums[at[0]])
                elif word == "use":
                    sums[at[0]] + 1.0
                else:
                    _say((word, *at), tiles, barriers, x)
        for number, own in enumerate(code[1:]):
            with pk.role(f"warp {number}", warps=1):
                for statement in own:
                    _say(statement, tiles, barriers, x)

    return multiplied


def _say(statement: Statement, tiles: Any, barriers: Any, x: Any) -> None:
    word, *at = statement
    if word == "arrive":
        pk.arrive(barriers[at[0]])
    elif word == "wait":
        pk.wait(barriers[at[0]], at[1])
    elif word == "load":
        pk.tma.expect(barriers[at[1]], tiles[at[0]])
        pk.tma.load(tiles[at[0]], x, (0, 0), barriers[at[1]])
    elif word == "write":
        warp.store(tiles[at[0]], warp.ones(bf16, SIDE, SIDE))
        warp.sync()
    else:
        raise AssertionError(word)


def story(code: Code) -> Story:
    """The same for the judge. The warpgroup is two threads, its elected warp and another. A product is a phase of a
    barrier of its own: both threads issue their halves of it, and it is done when both halves are.
    """
    products = sum(word == "multiply" for word, *_ in code[0])
    threads = [_multiplies(code[0], elected) for elected in (True, False)]
    threads += [tuple(a for s in own for a in _actions(s)) for own in code[1:]]
    sums = frozenset(range(CELLS, CELLS + 2 * ACCUMULATORS))
    return Story(threads, [1] * BARRIERS + [2] * products, written=sums)


def _multiplies(code: tuple[Statement, ...], elected: bool) -> tuple[Action, ...]:
    actions: list[Action] = []
    issued: list[int] = []  # the accumulators of the products
    awaited = 0
    for word, *at in code:
        if word in ("multiply", "use"):
            mine = frozenset({CELLS + 2 * at[0] + elected})
        if word == "multiply":
            own = BARRIERS + len(issued)
            issued.append(at[0])
            reads = frozenset({at[1]})
            actions += [Action("arrive", own, 1), Action("issue", own, 0, reads, mine, in_order=True)]
        elif word == "await":
            last = _last(issued, at[0])
            actions += [Action("wait", BARRIERS + i, 0) for i in range(awaited, last + 1)]
            awaited = last + 1
        elif word == "use":
            actions.append(Action("touch", reads=mine))
        elif word == "wait" or elected:
            actions += _actions((word, *at))
    return tuple(actions)


def _last(issued: list[int], accumulator: int) -> int:
    """The number of the last product into an accumulator; -1: none."""
    return max((i for i, a in enumerate(issued) if a == accumulator), default=-1)


def _actions(statement: Statement) -> list[Action]:
    word, *at = statement
    if word == "arrive":
        return [Action("arrive", at[0])]
    if word == "wait":
        return [Action("wait", at[0], at[1])]
    cell = frozenset({at[0]})
    if word == "write":
        return [Action("touch", writes=cell)]
    return [Action("arrive", at[1], 1), Action("issue", at[1], 0, writes=cell)]


def right(chance: random.Random) -> Code:
    """Cells go round: filled, multiplied, given back once the product is known to be done."""
    fillers = chance.choice((1, 1, 2))
    code: list[list[Statement]] = [[] for _ in range(1 + fillers)]
    uses = [0] * CELLS
    held: list[tuple[int, int]] = []  # (cell, accumulator) of products that have not been waited for

    def give_back(count: int) -> None:
        while len(held) > count:
            cell, accumulator = held.pop(0)
            code[0] += [("await", accumulator), ("arrive", 2 * cell + 1)]
            if not _awaits_what_flies(code[0]):
                del code[0][-2]

    for i in range(chance.choice((1, 2, 2, 3))):
        cell, accumulator = i % CELLS, chance.randrange(ACCUMULATORS)
        give_back(1 if any(c != cell for c, _ in held) and chance.random() < 0.6 else 0)
        if any(c == cell for c, _ in held):
            give_back(0)
        filler = code[1 + cell % fillers]
        if uses[cell]:
            filler.append(("wait", 2 * cell + 1, (uses[cell] - 1) & 1))
        how = chance.random() < 0.7
        filler += [("load", cell, 2 * cell)] if how else [("write", cell), ("arrive", 2 * cell)]
        code[0] += [("wait", 2 * cell, uses[cell] & 1), ("multiply", accumulator, cell)]
        uses[cell] += 1
        held.append((cell, accumulator))
        if chance.random() < 0.3:
            give_back(0)
            code[0].append(("use", accumulator))
    give_back(0)
    return tuple(map(tuple, code))


def sayable(code: Code) -> bool:
    """Whether the language has words for it: numbers of what there is, each statement where its warps can do it."""
    if not _awaits_what_flies(code[0]):
        return False
    for warp_number, own in enumerate(code):
        for word, *at in own:
            multiplies = word in ("multiply", "await", "use")
            if multiplies != (warp_number == 0) and word not in ("arrive", "wait"):
                return False
            if word in ("arrive", "wait") and at[0] >= BARRIERS:
                return False
            if word in ("multiply", "await", "use") and at[0] >= ACCUMULATORS:
                return False
            if word in ("load", "write") and at[0] >= CELLS:
                return False
            if (word == "multiply" and at[1] >= CELLS) or (word == "load" and at[1] >= BARRIERS):
                return False
    return True


def _awaits_what_flies(code: Iterable[Statement]) -> bool:
    """Whether each accumulator that is waited for has a product that may be under way."""
    issued: list[int] = []
    awaited = 0
    for word, *at in code:
        if word == "multiply":
            issued.append(at[0])
        elif word == "await":
            last = _last(issued, at[0])
            if last < awaited:
                return False
            awaited = last + 1
    return True


__all__ = ["kernel", "right", "sayable", "story"]
