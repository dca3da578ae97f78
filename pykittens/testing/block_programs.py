"""Random programs of blocks that hand over through global memory, and a judge of them that knows nothing of the
simulator.

    for program in random_programs(seed=1, count=200):
        assert verdict(program) == simulated(program)

A program has a list of statements for each block, on two elements of data and two flags. The judge plays every
interleaving
of them, draws each as a graph of what comes before what (PTX ISA, memory consistency model: program order, and from
release patterns to the acquire patterns that read them), and looks for two accesses that clash with no path between
them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..call.kernel import Kernel, kernel
from ..errors import DeadlockError, RaceError
from ..ops import memory_order as words
from ..trace import flow, memory_order, scalar
from ..trace.memory import Tensor
from ..trace.recorder import record
from ..trace.scopes import warp
from ..trace.signature import gl
from ..types import i32

Statement = tuple[str, int]  # what, and which element or flag
Blocks = tuple[tuple[Statement, ...], ...]

READS, WRITES = "read", "write"  # ordinary accesses to data
ADDS = ("signal", "add", "signal the block", "ticket", "relaxed ticket")  # to flags
STORES = ("release", "relaxed store")
WAITS = ("wait", "relaxed wait")
RELEASES = ("signal", "signal the block", "ticket", "release")
ACQUIRES = ("wait", "ticket")
USED = ("ticket", "relaxed ticket")  # atomics whose result is used
KINDS = (READS, WRITES, *ADDS, *STORES, *WAITS, "fence")


def random_programs(seed: int, count: int) -> Iterator[Blocks]:
    """Programs of two blocks with up to four statements, or of three with up to three."""
    chance = random.Random(seed)
    for _ in range(count):
        blocks, longest = chance.choice(((2, 4), (3, 3)))
        yield tuple(
            tuple((chance.choice(KINDS), chance.randrange(2)) for _ in range(chance.randint(1, longest)))
            for _ in range(blocks)
        )


# The judge --------------------------------------------------------------------------------------------------

Event = tuple[int, int]  # block, and number of the statement


def verdict(blocks: Blocks) -> str:
    """ "hang" where some interleaving is stuck, else "race" where some has one, else "fine"."""
    found = "fine"
    for trace in _interleavings(blocks, (0,) * len(blocks), (0, 0), ()):
        if trace is None:
            return "hang"
        if found == "fine" and _races(blocks, trace):
            found = "race"
    return found


def _interleavings(
    blocks: Blocks, at: tuple[int, ...], flags: tuple[int, int], trace: tuple[Event, ...]
) -> Iterator[tuple[Event, ...] | None]:
    """Every complete order of the statements; None for one in which nobody can go on."""
    stuck = True
    for block, program in enumerate(blocks):
        if at[block] == len(program):
            continue
        kind, which = program[at[block]]
        if kind in WAITS and flags[which] < 1:
            continue
        stuck = False
        value = 1 if kind in STORES else flags[which] + (kind in ADDS)
        after = (value, flags[1]) if which == 0 else (flags[0], value)
        moved = (*at[:block], at[block] + 1, *at[block + 1 :])
        yield from _interleavings(blocks, moved, after, (*trace, (block, at[block])))
    if stuck:
        yield trace if all(n == len(p) for n, p in zip(at, blocks, strict=True)) else None


def _races(blocks: Blocks, trace: tuple[Event, ...]) -> bool:
    """Whether two accesses of an interleaving clash, and no path leads from one to the other."""
    before = _paths(blocks, trace)
    for late, (block, n) in enumerate(trace):
        for early, (other, k) in enumerate(trace[:late]):
            a, b = blocks[other][k], blocks[block][n]
            if block != other and _clash(a, b) and not before[late] >> early & 1:
                if not _follows(blocks, trace, early, late):
                    return True
    return False


def _clash(a: Statement, b: Statement) -> bool:
    """Whether two statements of different blocks are a mistake where nothing orders them."""
    data = (a[0] in (READS, WRITES), b[0] in (READS, WRITES))
    if "fence" in (a[0], b[0]) or data[0] != data[1] or a[1] != b[1]:
        return False
    if data[0]:
        return WRITES in (a[0], b[0])
    if a[0] in WAITS and b[0] in WAITS:
        return False
    if "signal the block" in (a[0], b[0]):  # of a scope that does not hold the other block
        return True
    plain_adds = [x for x in (a[0], b[0]) if x in ADDS and x not in USED]
    return len(plain_adds) == 1 and (a[0] in STORES or b[0] in STORES)  # what is left depends on which comes last


def _follows(blocks: Blocks, trace: tuple[Event, ...], early: int, late: int) -> bool:
    """Whether an atomic of the late one's block has found the early one in the order of the flag's values."""
    (other, k), (block, _) = trace[early], trace[late]
    kind, flag = blocks[other][k]
    if kind not in USED:
        return False
    between = [blocks[b][n] for b, n in trace[early + 1 : late] if b == block]
    return any(found in USED and which == flag for found, which in between)


def _paths(blocks: Blocks, trace: tuple[Event, ...]) -> list[int]:
    """What comes before each event, as bits."""
    before: list[int] = []
    last: dict[int, int] = {}
    heads: dict[int, list[tuple[int, bool]]] = {
        0: [],
        1: [],
    }  # by flag: events whose past its value tells, to all or to the block
    fenced: dict[int, int] = {}  # by block: its last fence
    heard: dict[int, list[tuple[int, bool]]] = {}  # by block: what a fence would acquire
    for event, (block, n) in enumerate(trace):
        kind, flag = blocks[block][n]
        sources = [(last[block], True)] if block in last else []
        if kind in ACQUIRES:
            sources += heads[flag]
        elif kind in (*WAITS, *USED):
            heard.setdefault(block, []).extend(heads[flag])
        elif kind == "fence":
            sources += heard.get(block, [])
        known = 0
        for source, everybody in sources:
            if everybody or trace[source][0] == block:
                known |= before[source] | 1 << source
        before.append(known)
        last[block] = event
        everybody = kind != "signal the block"
        if kind in STORES:
            heads[flag] = []
        if kind in RELEASES:
            heads[flag] = [*heads[flag], (event, everybody)]
        if kind in (*ADDS, *STORES) and block in fenced:
            heads[flag] = [*heads[flag], (fenced[block], everybody)]
        if kind == "fence":
            fenced[block] = event
    return before


# The simulator ----------------------------------------------------------------------------------------------


def simulated(blocks: Blocks, seed: int | None = None) -> str:
    """What the simulator finds."""
    try:
        program_kernel(blocks).simulate(*(np.zeros(n, np.int32) for n in (2, 2, 8)), seed=seed)
    except DeadlockError:
        return "hang"
    except RaceError:
        return "race"
    return "fine"


def program_kernel(blocks: Blocks) -> Kernel:
    """A program as a kernel, all of whose blocks run at once."""

    def program(flags: gl(i32, 2), data: gl(i32, 2), out: gl(i32, 8)) -> None:  # type: ignore[valid-type]
        for block, statements in enumerate(blocks):
            with flow.when(scalar.block_index.x == block):
                _statements(statements, flags, data, out, block)

    return kernel(program, warps=1, grid=(len(blocks), 1, 1), cooperative=True)  # type: ignore[call-overload]


def _statements(statements: tuple[Statement, ...], flags: Tensor, data: Tensor, out: Tensor, block: int) -> None:
    element: Any = memory_order._element
    for kind, which in statements:
        if kind == READS:
            warp.set(out, block, data[which])
        elif kind == WRITES:
            warp.set(data, which, 1)
        elif kind in ("signal", "signal the block"):
            memory_order.signal(flags, which, scope="gpu" if kind == "signal" else "cta")
        elif kind == "add":
            memory_order.atomic_add(flags, which, 1)
        elif kind in USED:
            warp.set(
                out, block, memory_order.atomic_add(flags, which, 1, order="acq_rel" if kind == "ticket" else "relaxed")
            )
        elif kind in STORES:
            warp.set(flags, which, 1, order="release" if kind == "release" else "relaxed")
        elif kind == "wait":
            memory_order.wait_for(flags, which)
        elif kind == "relaxed wait":
            record(words.WaitFor(memory_order.WARP, element(flags, which), 1, "gpu", "relaxed"))
        else:
            memory_order.fence()
