"""Random programs of blocks that hand over through global memory, and a judge of them that knows nothing of the
simulator.

    for program in random_programs(seed=1, count=200):
        assert verdict(program) == simulated(program)

A program has a list of statements for each block, on two elements of data and two flags. The judge plays every
interleaving of them, draws each as a graph of what comes before what (PTX ISA, memory consistency model: program order,
and from release patterns to the acquire patterns that read them), and looks for two accesses that clash with no path
between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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

# What, which element or flag, and of atomics whose result decides: what must be found there, for what to be done.
Statement = tuple[Any, ...]
Blocks = tuple[tuple[Statement, ...], ...]

READS, WRITES = "read", "write"  # ordinary accesses to data
STORES = ("release", "relaxed store")
WAITS = ("wait", "relaxed wait")
# Atomics whose result nobody uses, by what they leave; then those whose result is used. To add is to add 1, the greater
# is that of 1, bit 1 is set, exchanged is for 1, and swapped are 0 for 1.
REDUCTIONS = {"signal": "add", "add": "add", "signal the block": "add", "max": "max", "or": "or", "unlock": "exch"}
USED = {
    **{"ticket": "add", "relaxed ticket": "add", "swap": "cas", "relaxed swap": "cas", "lock": "cas"},
    **{"exchange": "exch", "relaxed exchange": "exch"},
    **{"try": "cas", "lock again": "cas"},  # a lock's attempt that fails, and those after it
}
RELEASES = ("signal", "signal the block", "ticket", "release", "swap", "exchange", "unlock")
ACQUIRES = ("wait", "ticket", "swap", "exchange", "lock", "try", "lock again")
# What an access leaves, where two of different kinds leave what chance decides.
COMBINES = {**REDUCTIONS, **dict.fromkeys(STORES, "exch")}
KINDS = (READS, WRITES, *STORES, *WAITS, "fence", *REDUCTIONS, *USED)
KINDS = tuple(k for k in KINDS if k not in ("unlock", "try", "lock again"))
LEAVES: dict[Any, Callable[[int], int]] = {
    "add": lambda found: found + 1,
    "max": lambda found: max(found, 1),
    "or": lambda found: found | 2,
    "cas": lambda found: 1 if found == 0 else found,
}


def random_programs(seed: int, count: int) -> Iterator[Blocks]:
    """Programs of two blocks with up to four statements, or of three with up to three: some by chance alone, some
    right by construction and then, mostly, changed.
    """
    chance = random.Random(seed)
    for _ in range(count):
        yield _by_chance(chance) if chance.random() < 0.5 else _changed(_right(chance), chance)


def _by_chance(chance: random.Random) -> Blocks:
    blocks, longest = chance.choice(((2, 4), (3, 3)))
    return tuple(tuple(_any(chance) for _ in range(chance.randint(1, longest))) for _ in range(blocks))


def _any(chance: random.Random) -> Statement:
    kind, which = chance.choice(KINDS), chance.randrange(2)
    if kind in USED and kind != "lock" and chance.random() < 0.6:
        return kind, which, chance.randrange(3), ((chance.choice((READS, WRITES)), chance.randrange(2)),)
    return kind, which


def _right(chance: random.Random) -> Blocks:
    """The last one to come does it, a lock, one winner, one after another, reductions of one kind."""
    n = chance.choice((2, 3))
    how = chance.choice(("last", "lock", "winner", "turns", "reductions"))
    if how == "last":
        return tuple(((WRITES, b % 2) if b < 2 else ("add", 1), ("ticket", 0, n - 1, ((READS, 0),))) for b in range(n))
    if how == "lock":
        return tuple((("lock", 0), (chance.choice((READS, WRITES)), 0), ("unlock", 0)) for _ in range(n))
    if how == "winner":
        return tuple(((chance.choice(("swap", "relaxed swap")), 0, 0, ((WRITES, 0),)),) for _ in range(n))
    if how == "turns":
        return tuple(
            (("exchange", 0, 1 if b else 0, ((WRITES, 0),)), ("signal", 1)) if b < 2 else (("wait", 1), ("add", 0))
            for b in range(n)
        )
    kind = chance.choice(("add", "max", "or"))
    return tuple(((kind, 0), (kind, 1), ("signal", 0) if kind == "add" else (kind, 0)) for _ in range(n))


def _changed(blocks: Blocks, chance: random.Random) -> Blocks:
    """The program with one statement out, twice, elsewhere, another, or of another number."""
    code = [list(own) for own in blocks]
    mine = chance.choice(code)
    i = chance.randrange(len(mine))
    how = chance.choice(("not", "out", "twice", "move", "another", "number", "weaker"))
    if how == "out" and len(mine) > 1:
        del mine[i]
    elif how == "twice":
        mine.insert(i, mine[i])
    elif how == "move":
        mine.insert(chance.randrange(len(mine)), mine.pop(i))
    elif how == "another":
        mine[i] = _any(chance)
    elif how == "number" and len(mine[i]) > 2:
        mine[i] = (*mine[i][:2], chance.randrange(3), mine[i][3])
    elif how == "weaker":
        weaker = {"signal": "add", "release": "relaxed store", "unlock": "relaxed store"}
        mine[i] = (weaker.get(mine[i][0], f"relaxed {mine[i][0]}"), *mine[i][1:])
        if mine[i][0] not in KINDS:
            return blocks
    return tuple(map(tuple, code))


@dataclass(frozen=True)
class BlockProgram:
    """A random program, as `sync_programs.SyncProgram` is one."""

    blocks: Blocks
    kind = "atomics"

    def simulated(self, orders: tuple[int | None, ...] = (None, 1)) -> list[str]:
        """What the simulator finds under each seed: "hang", "race", or nothing."""
        return [simulated(self.blocks, seed).replace("fine", "") for seed in orders]

    def judged(self) -> str:
        """What the judge finds."""
        return verdict(self.blocks).replace("fine", "")


def random_program(seed: int) -> BlockProgram:
    """The first program of a seed."""
    return BlockProgram(next(random_programs(seed, 1)))


# The judge --------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """A statement that has been done: by which block, what, where, whether it has written, what was found that the
    block keeps, and what is left in the flag.
    """

    block: int
    kind: str
    which: int
    wrote: bool = True
    kept: int = -1
    left: int = 0


def verdict(blocks: Blocks) -> str:
    """ "hang" where some interleaving is stuck, else "race" where some has one, else "fine"."""
    found = "fine"
    for trace in _interleavings(blocks, (0, 0), ()):
        if trace is None:
            return "hang"
        if found == "fine" and _races(trace):
            found = "race"
    return found


def outcomes(blocks: Blocks) -> set[tuple[int, ...]]:
    """What flags, data and results (of each block) may be at the end of a program that is fine."""
    found = set()
    for trace in _interleavings(blocks, (0, 0), ()):
        assert trace is not None
        flags, data, out = [0, 0], [0, 0], [0] * len(blocks)
        for block, kind, which, _, kept, _ in trace:
            flags[which] = _left(kind, flags[which])
            if kind == WRITES:
                data[which] = 1
            elif kind == READS or kept >= 0:
                out[block] = data[which] if kind == READS else kept
        found.add((*flags, *data, *out))
    return found


def _left(kind: str, found: int) -> int:
    """What a statement leaves in a flag."""
    leaves = REDUCTIONS.get(kind) or USED.get(kind)
    if kind in STORES or leaves == "exch":
        return 0 if kind == "unlock" else 1
    return LEAVES[leaves](found) if leaves in LEAVES else found


def _interleavings(
    left: Blocks, flags: tuple[int, int], trace: tuple[Event, ...]
) -> Iterator[tuple[Event, ...] | None]:
    """Every complete order of the statements that are left; None for one in which nobody can go on."""
    stuck = True
    for block, own in enumerate(left):
        if not own:
            continue
        kind, which, *decides = own[0]
        found = flags[which]
        if (kind in WAITS and found < 1) or (kind == "lock again" and found):
            continue
        stuck = False
        if kind == "lock" and found:  # seen to be locked, once; then again when it is free
            tries = (*left[:block], (("lock again", which), *own[1:]), *left[block + 1 :])
            yield from _interleavings(tries, flags, (*trace, Event(block, "try", which, False, left=found)))
            continue
        value = _left(kind, found)
        then = decides[1] if decides and found == decides[0] else ()
        kept = found if kind in USED and "lock" not in kind and not decides else -1
        event = Event(block, kind, which, USED.get(kind) != "cas" or found == 0, kept, value)
        after = (value, flags[1]) if which == 0 else (flags[0], value)
        rest = (*left[:block], (*then, *own[1:]), *left[block + 1 :])
        yield from _interleavings(rest, after, (*trace, event))
    if stuck:
        yield trace if not any(left) else None


def _races(trace: tuple[Event, ...]) -> bool:
    """Whether two accesses of an interleaving clash, and no path leads from one to the other."""
    before = _paths(trace)
    for late, b in enumerate(trace):
        for early, a in enumerate(trace[:late]):
            if a.block != b.block and _clash(a, b) and not before[late] >> early & 1:
                if not _follows(trace, early, late):
                    return True
    return False


def _clash(a: Event, b: Event) -> bool:
    """Whether two accesses of different blocks are a mistake where nothing orders them."""
    data = (a.kind in (READS, WRITES), b.kind in (READS, WRITES))
    if "fence" in (a.kind, b.kind) or data[0] != data[1] or a.which != b.which:
        return False
    if data[0]:
        return WRITES in (a.kind, b.kind)
    if a.kind in WAITS and b.kind in WAITS:
        return False
    if "signal the block" in (a.kind, b.kind):  # of a scope that does not hold the other block
        return True
    one, other = COMBINES.get(a.kind), COMBINES.get(b.kind)
    return one is not None and other is not None and one != other  # what is left depends on which comes last


def _follows(trace: tuple[Event, ...], early: int, late: int) -> bool:
    """Whether an atomic of the late one's block has found the early one in the order of the flag's values."""
    if trace[early].kind not in USED:
        return False
    mine = [e for e in trace[early + 1 : late] if e.block == trace[late].block]
    return any(e.kind in USED and e.which == trace[early].which for e in mine)


def _paths(trace: tuple[Event, ...]) -> list[int]:
    """What comes before each event, as bits."""
    before: list[int] = []
    last: dict[int, int] = {}
    # By flag: events whose past its value tells, to all or to the block.
    heads: dict[int, list[tuple[int, bool]]] = {0: [], 1: []}
    fenced: dict[int, int] = {}  # by block: its last fence
    heard: dict[int, list[tuple[int, bool]]] = {}  # by block: what a fence would acquire
    values: dict[int, list[tuple[int, list[tuple[int, bool]]]]] = {
        0: [(0, [])],
        1: [(0, [])],
    }  # by flag, with its heads
    for number, (block, kind, flag, wrote, _, left) in enumerate(trace):
        sources = [(last[block], True)] if block in last else []
        tells = heads[flag]
        if (
            kind in WAITS
        ):  # it may have seen any value since the flag was last too small, and know what all of them tell
            for value, told in reversed(values[flag]):
                if value < 1:
                    break
                tells = [head for head in tells if head in told]
        if kind in ACQUIRES:
            sources += tells
        elif kind in (*WAITS, *USED):
            heard.setdefault(block, []).extend(tells)
        elif kind == "fence":
            sources += heard.get(block, [])
        known = 0
        for source, everybody in sources:
            if everybody or trace[source].block == block:
                known |= before[source] | 1 << source
        before.append(known)
        last[block] = number
        everybody = kind != "signal the block"
        if kind in STORES:
            heads[flag] = []
        if kind in RELEASES and wrote:
            heads[flag] = [*heads[flag], (number, everybody)]
        if kind in (*REDUCTIONS, *USED, *STORES) and wrote and block in fenced:
            heads[flag] = [*heads[flag], (fenced[block], everybody)]
        if kind == "fence":
            fenced[block] = number
        if kind in (*REDUCTIONS, *USED, *STORES) and wrote:
            values[flag].append((left, heads[flag]))
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
    element: Any = memory_order.element
    for kind, which, *decides in statements:
        if kind == READS:
            warp.set(out, block, data[which])
        elif kind == WRITES:
            warp.set(data, which, 1)
        elif kind in ("signal", "signal the block"):
            memory_order.signal(flags, which, scope="gpu" if kind == "signal" else "cta")
        elif kind == "add":
            memory_order.atomic_add(flags, which, 1)
        elif kind == "max":
            memory_order.atomic_max(flags, which, 1)
        elif kind == "or":
            memory_order.atomic_or(flags, which, 2)
        elif kind == "lock":
            for _ in flow.loop():
                flow.break_if(memory_order.atomic_cas(flags, which, 0, 1, order="acquire") == 0)
        elif kind == "unlock":
            memory_order.atomic_exch(flags, which, 0, order="release")
        elif kind in USED:
            found = _used(kind, flags, which)
            if decides:
                with flow.when(found == decides[0]):
                    _statements(decides[1], flags, data, out, block)
            else:
                warp.set(out, block, found)
        elif kind in STORES:
            warp.set(flags, which, 1, order="release" if kind == "release" else "relaxed")
        elif kind == "wait":
            memory_order.wait_for(flags, which)
        elif kind == "relaxed wait":
            record(words.WaitFor(memory_order.WARP, element(flags, which), 1, "gpu", "relaxed"))
        else:
            memory_order.fence()


def _used(kind: str, flags: Tensor, which: int) -> Any:
    """What an atomic finds."""
    order: Any = "relaxed" if kind.startswith("relaxed") else "acq_rel"
    if USED[kind] == "cas":
        return memory_order.atomic_cas(flags, which, 0, 1, order=order)
    if USED[kind] == "exch":
        return memory_order.atomic_exch(flags, which, 1, order=order)
    return memory_order.atomic_add(flags, which, 1, order=order)
