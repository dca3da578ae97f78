"""Random programs of the blocks of a cluster: each block is one warp, with cells and mbarriers that the others reach.

Statements: ("write", cell, rank), ("read", cell, rank), ("arrive", barrier, rank), ("wait", barrier, parity),
("expect", barrier, cell), ("load", cell, barrier, mask: one bit for each block), and ("sync",), which all blocks have
equally often. Lanes are left to `sync_programs.py`: those of a warp meet after every read and write.
"""

from __future__ import annotations

import random
from typing import Any

import pykittens as pk
from pykittens import f32, warp

from .interleavings import Action, Story

Statement = tuple[Any, ...]
Code = tuple[tuple[Statement, ...], ...]
SIDE = 16  # a cell is a tile of so many rows and columns
BARRIERS = 4


def kernel(code: Code, cells: int) -> pk.Kernel:
    """The program in words of the language."""
    blocks = len(code)

    @pk.kernel(warps=1, grid=(blocks, 1, 1), cluster=(blocks, 1, 1))
    def clustered(x: pk.gl(f32, SIDE, SIDE)) -> None:  # type: ignore[valid-type]
        tiles = [pk.shared(pk.st(f32, SIDE, SIDE), name=f"cell {i}") for i in range(cells)]
        barriers = [pk.barrier(1) for _ in range(BARRIERS)]
        for number, parts in enumerate(zip(*map(_between_syncs, code), strict=True)):
            if number:
                pk.cluster.sync()
            for rank, part in enumerate(parts):
                with pk.when(pk.cluster.rank == rank):
                    for statement in part:
                        _say(statement, rank, tiles, barriers, x)

    return clustered


def _between_syncs(code: tuple[Statement, ...]) -> list[list[Statement]]:
    parts: list[list[Statement]] = [[]]
    for statement in code:
        if statement == ("sync",):
            parts.append([])
        else:
            parts[-1].append(statement)
    return parts


def _say(statement: Statement, me: int, tiles: Any, barriers: Any, x: Any) -> None:
    word, *at = statement
    if word == "write":
        ones = warp.ones(f32, SIDE, SIDE)
        if at[1] == me:
            warp.store(tiles[at[0]], ones)
        else:
            warp.store(tiles[at[0]], ones, rank=at[1])
        warp.sync()
    elif word == "read":
        if at[1] == me:
            warp.load(tiles[at[0]])
        else:
            pk.cluster.load(tiles[at[0]], at[1], scope=warp)
        warp.sync()
    elif word == "arrive":
        if at[1] == me:
            pk.arrive(barriers[at[0]])
        else:
            pk.arrive(barriers[at[0]], rank=at[1])
    elif word == "wait":
        pk.wait(barriers[at[0]], at[1])
    elif word == "expect":
        pk.tma.expect(barriers[at[0]], tiles[at[1]])
    elif word == "load":
        pk.tma.load(tiles[at[0]], x, (0, 0), barriers[at[1]], multicast=at[2])
    else:
        raise AssertionError(word)


def story(code: Code, cells: int) -> Story:
    """The same for the judge: cell c of block r is number r * cells + c, barriers alike."""

    def touch(word: str, cell: int, rank: int) -> Action:
        place, none = frozenset({rank * cells + cell}), frozenset[int]()
        reads, writes = (place, none) if word == "read" else (none, place)
        return Action("touch", reads=reads, writes=writes, home=rank)

    def action(me: int, statement: Statement) -> Action:
        word, *at = statement
        if word in ("read", "write"):
            return touch(word, at[0], at[1])
        if word == "arrive":
            return Action("arrive", at[1] * BARRIERS + at[0], home=at[1])
        if word == "expect":
            return Action("arrive", me * BARRIERS + at[0], 1)
        if word == "wait":
            return Action("wait", me * BARRIERS + at[0], at[1])
        if word == "sync":
            return Action("meet", 0)
        parts = [
            Action("issue", r * BARRIERS + at[1], 0, writes=frozenset({r * cells + at[0]}), home=r)
            for r in range(len(code))
            if at[2] >> r & 1
        ]
        return parts[0]._replace(more=tuple(parts[1:]))

    threads = [tuple(action(me, s) for s in own) for me, own in enumerate(code)]
    return Story(threads, [1] * BARRIERS * len(code), [len(code)])


def right(chance: random.Random) -> tuple[Code, int]:
    """A program that hands cells over, by arrivals, loads for several blocks and barriers of the cluster."""
    blocks, cells = chance.choice((2, 2, 3)), chance.choice((1, 2))
    code: list[list[Statement]] = [[] for _ in range(blocks)]
    uses = [[0] * BARRIERS for _ in range(blocks)]

    def waits(rank: int, barrier: int) -> Statement:
        uses[rank][barrier] += 1
        return ("wait", barrier, (uses[rank][barrier] - 1) & 1)

    def all_meet() -> None:
        for own in code:
            own.append(("sync",))

    for _ in range(chance.choice((1, 2, 2))):
        cell, (giver, taker) = chance.randrange(cells), chance.sample(range(blocks), 2)
        how, home = chance.choice(("arrive", "arrive", "sync", "load")), chance.choice((giver, taker))
        if how == "load":
            for rank in range(blocks):
                code[rank].append(("expect", 0, cell))
            code[giver].append(("load", cell, 0, (1 << blocks) - 1))
            for rank in range(blocks):
                code[rank] += [waits(rank, 0), ("read", cell, rank)]
        else:
            code[giver].append(("write", cell, home))
            if how == "sync":
                all_meet()
            else:
                code[giver].append(("arrive", 1, taker))
                code[taker].append(waits(taker, 1))
            code[taker].append(("read", cell, home))
        if how == "arrive" and chance.random() < 0.5:  # and back
            code[taker].append(("arrive", 2, giver))
            code[giver].append(waits(giver, 2))
        else:
            all_meet()
    if code[0] and code[0][-1] != ("sync",):
        all_meet()
    return tuple(map(tuple, code)), cells


def sayable(code: Code, cells: int) -> bool:
    """Whether the language has words for it."""
    if len({own.count(("sync",)) for own in code}) > 1:
        return False
    for own in code:
        for word, *at in own:
            if word in ("read", "write") and not (at[0] < cells and at[1] < len(code)):
                return False
            if word == "arrive" and not (at[0] < BARRIERS and at[1] < len(code)):
                return False
            if word in ("wait", "expect") and at[0] >= BARRIERS:
                return False
            if word == "expect" and at[1] >= cells:
                return False
            if word == "load" and not (at[0] < cells and at[1] < BARRIERS and 0 < at[2] < 1 << len(code)):
                return False
    return True


__all__ = ["kernel", "right", "sayable", "story"]
