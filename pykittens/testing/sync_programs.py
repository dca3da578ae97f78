"""Random programs that synchronise, as kernels and as stories for the judge: right by construction, then changed by
chance.

    program = random_program(seed)
    found = program.simulated(), program.judged()      # what each says is wrong, or nothing

Each is a few warps (or blocks, or the two lanes that matter of a warp) of a few statements. A hand-over is made right;
then, in more than half of the programs, a statement or two are taken out, doubled, moved, or given another number.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import pykittens as pk
from pykittens import bf16, f32, i32, warp

from . import cluster_programs, product_programs
from .interleavings import Action, Judge, Story, Thread

KINDS = (
    *("mbarriers", "named barriers", "copies", "loads", "bulk stores", "rings", "lanes", "blocks"),
    *("products", "clusters"),
)
Statement = tuple[Any, ...]
LANES = 64  # elements of a cell: two a lane


@dataclass(frozen=True)
class SyncProgram:
    """`code`: the statements of each warp (of a block of its own where kind is "blocks"); `counts`: what each
    barrier counts.
    """

    kind: str
    code: tuple[tuple[Statement, ...], ...]
    cells: int
    counts: tuple[int, ...] = ()
    stages: int = 1

    def kernel(self) -> pk.Kernel:
        """The program in words of the language."""
        if self.kind == "products":
            return product_programs.kernel(self.code)
        if self.kind == "clusters":
            return cluster_programs.kernel(self.code, self.cells)
        made = _blocks if self.kind == "blocks" else _warps
        return made(self)

    def operands(self) -> list[np.ndarray]:
        """Arrays to run on."""
        if self.kind in ("products", "clusters"):
            side, dtype = (64, bf16.numpy) if self.kind == "products" else (16, np.float32)
            return [np.zeros((side, side), dtype)]
        return [np.zeros((32, LANES), np.float32), np.zeros(8, np.int32)]

    def simulated(self, orders: tuple[int | None, ...] = (None, 1, 2)) -> list[str]:
        """What the simulator finds in each order: the name of the error, or nothing."""
        kernel, found = self.kernel(), []
        for seed in orders:
            try:
                kernel.simulate(*self.operands(), seed=seed)
                found.append("")
            except pk.KernelError as error:
                found.append(type(error).__name__)
        return found

    def judged(self) -> str:
        """What the judge finds."""
        return Judge(story(self)).wrong


def _warps(program: SyncProgram) -> pk.Kernel:
    @pk.kernel(warps=len(program.code))
    def synchronised(x: pk.gl(f32, 32, LANES), flags: pk.gl(i32, 8)) -> None:  # type: ignore[valid-type]
        shape, rows = pk.sv(f32, LANES), itertools.count()  # a row for each bulk store
        ring = pk.ring(program.stages, shape) if program.kind == "rings" else None
        cells = [pk.shared(shape, name=f"cell {i}") for i in range(program.cells)]
        named = program.kind == "named barriers"
        barriers = [pk.named_barrier(warps=n) if named else pk.barrier(n) for n in program.counts]
        for number, code in enumerate(program.code):
            with pk.role(f"warp {number}", warps=1):
                slot = None
                for statement in code:
                    slot = _say(statement, cells, barriers, ring, slot, x, flags, rows)

    return synchronised


def _blocks(program: SyncProgram) -> pk.Kernel:
    @pk.kernel(warps=1, grid=(len(program.code), 1, 1))
    def synchronised(x: pk.gl(f32, 32, LANES), flags: pk.gl(i32, 8)) -> None:  # type: ignore[valid-type]
        rows = itertools.count()
        for number, code in enumerate(program.code):
            with pk.when(pk.block_index.x == number):
                for statement in code:
                    _say(statement, [], [], None, None, x, flags, rows)

    return synchronised


def _say(statement: Statement, cells: Any, barriers: Any, ring: Any, slot: Any, x: Any, flags: Any, rows: Any) -> Any:
    """Writes one statement; the slot of a ring that is held from here on."""
    word, *at = statement
    if word == "read":
        cells[at[0]][0]
    elif word == "write":
        warp.store(cells[at[0]], warp.full_vec(f32, LANES, 1.0))
    elif word == "arrive":
        pk.arrive(barriers[at[0]])
    elif word == "wait":
        pk.wait(barriers[at[0]], at[1])
    elif word == "come":
        warp.arrive_at(barriers[at[0]])
    elif word == "meet":
        warp.sync_at(barriers[at[0]])
    elif word == "copy":
        warp.sync()  # of the lanes that have read it
        warp.load_async(cells[at[0]], x, (0, 0))
    elif word == "commit":
        warp.commit()
    elif word == "join":
        warp.wait_loads(at[0])
    elif word == "load":
        pk.tma.expect(barriers[at[1]], cells[at[0]])
        pk.tma.load(cells[at[0]], x, (0, 0), barriers[at[1]])
    elif word == "store":
        warp.sync()  # of the lanes that have written it
        pk.tma.store(x, cells[at[0]], (next(rows), 0))
        pk.tma.commit()
    elif word == "stored":
        pk.tma.wait(at[0], read=True)
    elif word == "fill":
        with ring.fill() as to:
            pk.tma.load(to, x, (0, 0))
    elif word == "take":
        return ring.read()
    elif word == "use":
        slot[0]
    elif word == "give":
        ring.release()
    elif word == "sync":
        warp.sync()
    elif word == "lanes copy":  # four neighbours a lane
        warp.load_into(cells[at[0]], x, (0, 0))
    elif word == "lanes read":
        warp.load_vec(cells[at[0]])
    elif word == "global read":
        x[at[0], 0]
    elif word == "global write":
        warp.set(x, (at[0], 0), 1.0)
    elif word == "signal":
        pk.signal(flags, at[0])
    elif word == "wait for":
        pk.wait_for(flags, at[0], at[1])
    else:
        raise AssertionError(word)
    return slot


# The same for the judge ---------------------------------------------------------------------------------------


def story(program: SyncProgram) -> Story:
    """The program as threads of actions."""
    if program.kind == "lanes":
        return _lanes(program)
    if program.kind == "rings":
        return _ring(program)
    if program.kind == "products":
        return product_programs.story(program.code)
    if program.kind == "clusters":
        return cluster_programs.story(program.code, program.cells)
    threads = [tuple(a for s in code for a in _actions(s)) for code in program.code]
    named = program.kind == "named barriers"
    return Story(
        threads,
        [] if named else list(program.counts),
        list(program.counts) if named else [],
        counters=8,
        fresh=program.kind != "blocks",
    )


def _actions(statement: Statement) -> list[Action]:
    word, *at = statement
    cell = frozenset(at[:1])
    if word in ("read", "global read"):
        return [Action("touch", reads=cell)]
    if word in ("write", "global write"):
        return [Action("touch", writes=cell)]
    if word in ("arrive", "come", "meet"):
        return [Action(word, at[0])]
    if word == "wait":
        return [Action("wait", at[0], at[1])]
    if word == "copy":
        return [Action("issue", 0, -1, writes=cell)]
    if word == "commit":
        return [Action("commit")]
    if word == "store":
        return [Action("issue", 0, -1, reads=cell), Action("commit")]
    if word in ("join", "stored"):
        return [Action("join", 0, at[0])]
    if word == "load":
        return [Action("arrive", at[1], 1), Action("issue", at[1], 0, writes=cell)]
    if word == "signal":
        return [Action("add", at[0], 1)]
    if word == "wait for":
        return [Action("until", at[0], at[1])]
    raise AssertionError(word)


def _ring(program: SyncProgram) -> Story:
    """A ring of `stages` slots, its full barriers first; the cursors of fills, takes and gives go round."""
    threads, readers = [], sum(any(s[0] == "give" for s in code) for code in program.code)
    for code in program.code:
        at = {"fill": 0, "take": 0, "give": 0}
        actions: list[Action] = []
        for word, *_ in code:
            if word == "use":
                actions.append(Action("touch", reads=frozenset({(at["take"] - 1) % program.stages})))
                continue
            slot, turn = at[word] % program.stages, at[word] // program.stages
            at[word] += 1
            full, empty = slot, program.stages + slot
            if word == "fill":
                load = Action("issue", full, 0, writes=frozenset({slot}))
                actions += [Action("wait", empty, (turn + 1) & 1), Action("arrive", full, 1), load]
            elif word == "take":
                actions.append(Action("wait", full, turn & 1))
            else:
                actions.append(Action("arrive", empty))
        threads.append(tuple(actions))
    return Story(threads, [1] * program.stages + [max(1, readers)] * program.stages)


def _lanes(program: SyncProgram) -> Story:
    """Two lanes of each warp, that hold other elements of a cell: 2 * cell and 2 * cell + 1. A warp barrier is one
    of two.
    """
    threads: list[Thread] = []
    for number, code in enumerate(program.code):
        for lane in (0, 1):
            actions: list[Action] = []
            read = False  # since the lanes met: then the compiler lets them meet before one of them arrives
            for word, *at in code:
                if word == "arrive" and read:
                    actions.append(Action("meet", number))
                read = word.endswith("read") or (read and word not in ("sync", "arrive"))
                both = frozenset({2 * c + i for c in at[:1] for i in (0, 1)})
                mine = frozenset(2 * c + lane for c in at[:1])
                if word == "sync":
                    actions.append(Action("meet", number))
                elif word == "lanes copy":
                    actions.append(Action("touch", writes=mine))
                elif word == "lanes read":
                    actions.append(Action("touch", reads=mine))
                elif word == "read":  # element 0, by all lanes
                    actions.append(Action("touch", reads=both & frozenset({2 * at[0]})))
                elif word == "wait":
                    actions.append(Action("wait", at[0], at[1]))
                elif word == "arrive" and lane == 0:
                    actions.append(Action("arrive", at[0]))
            threads.append(tuple(actions))
    return Story(threads, list(program.counts), [2] * len(program.code))


# Chance -------------------------------------------------------------------------------------------------------


def random_program(seed: int) -> SyncProgram:
    """A program of a kind that goes round with the seed."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    program = _right(kind, chance)
    changed = program
    for likely in (0.6, 0.15):
        if chance.random() < likely:
            changed = _changed(changed, chance)
    if not _sayable([list(c) for c in changed.code], changed):
        return random_program(seed + 1_000_003 * len(KINDS))  # of the same kind
    return changed


def _right(kind: str, chance: random.Random) -> SyncProgram:
    if kind == "products":
        return SyncProgram(kind, product_programs.right(chance), 0)
    if kind == "clusters":
        return SyncProgram(kind, *cluster_programs.right(chance))
    warps, cells = chance.choice((2, 2, 3)), chance.choice((1, 2))
    code: list[list[Statement]] = [[] for _ in range(warps)]
    if kind == "rings":
        stages, laps = chance.choice((1, 2)), chance.choice((1, 2, 3))
        code[0] = [("fill",)] * laps
        for reader in code[1:]:
            reader += [("take",), ("use",), ("give",)] * laps
        return SyncProgram(kind, _tuples(code), 0, stages=stages)
    if kind == "lanes":
        code = code[:2]
    uses = [0] * 3
    counts = [1, 2, 1] if kind != "named barriers" else [2, 2, 2]
    for _ in range(chance.choice((1, 2, 2, 3))):
        cell, at = chance.randrange(cells), chance.choice((0, 2))
        giver, taker = chance.sample(range(len(code)), 2)
        parity = uses[at] & 1
        uses[at] += 1
        if kind == "named barriers":
            code[giver] += [("write", cell), (chance.choice(("come", "meet")), at)]
            code[taker] += [("meet", at), ("read", cell)]
        elif kind == "blocks":
            giver, taker = sorted((giver, taker))  # a block may wait for one that began before it
            code[giver] += [("global write", cell), ("signal", at)]
            code[taker] += [("wait for", at, uses[at]), ("global read", cell)]
        elif kind == "loads":
            code[giver] += [("load", cell, at)]
            code[taker] += [("wait", at, parity), ("read", cell)]
        elif kind == "lanes":
            code[giver] += [("lanes copy", cell), ("sync",), ("arrive", at)]
            code[taker] += [("wait", at, parity), chance.choice((("lanes read", cell), ("read", cell)))]
        else:
            write: list[Statement] = [("write", cell)]
            if kind == "copies":
                write = [("copy", cell), ("commit",), ("join", 0)]
            code[giver] += [*write, ("arrive", at)]
            code[taker] += [("wait", at, parity), ("read", cell)]
            if kind == "bulk stores":
                code[taker] += [("store", cell), ("stored", 0)]
        if chance.random() < 0.7:  # and back: the taker gives leave to write again
            back = 1 if kind != "blocks" else 3
            if kind == "named barriers":
                code[taker].append(("come", back))
                code[giver].append(("meet", back))
            elif kind == "blocks":
                pass  # a lower block must not wait for a higher one
            elif kind == "lanes":
                code[taker] += [("sync",), ("arrive", back)]
                counts[back], parity = 1, uses[back] & 1
                code[giver].append(("wait", back, parity))
                uses[back] += 1
            else:
                counts[back], parity = 1, uses[back] & 1
                code[taker].append(("arrive", back))
                code[giver].append(("wait", back, parity))
                uses[back] += 1
    return SyncProgram(kind, _tuples(code), cells, () if kind == "blocks" else tuple(counts))


def _changed(program: SyncProgram, chance: random.Random) -> SyncProgram:
    """The program with one statement taken out, doubled, moved, or with another number."""
    code = [list(c) for c in program.code]
    mine = chance.choice([c for c in code if c] or code)
    if not mine:
        return program
    i = chance.randrange(len(mine))
    how = chance.choice(("out", "twice", "move", "number"))
    if program.kind == "rings" and mine[i][0] in ("take", "fill"):
        how = "out" if how == "number" else how
    if program.kind == "clusters" and mine[i] == ("sync",):  # of all blocks: out, in each of them
        which = mine[:i].count(("sync",))
        for c in code:
            del c[[j for j, s in enumerate(c) if s == ("sync",)][which]]
    elif how == "out":
        del mine[i]
    elif how == "twice":
        mine.insert(i, mine[i])
    elif how == "move":
        mine.insert(chance.randrange(len(mine)), mine.pop(i))
    elif len(mine[i]) > 1:
        which = chance.randrange(1, len(mine[i]))
        low = 1 if mine[i][0] == "wait for" and which == 2 else 0
        mine[i] = (*mine[i][:which], max(low, mine[i][which] ^ 1), *mine[i][which + 1 :])
    return replace(program, code=_tuples(code)) if _sayable(code, program) else program


def _sayable(code: list[list[Statement]], program: SyncProgram) -> bool:
    """Whether the language has words for it: it names what there is, and a ring's slots are taken before they are
    used.
    """
    if program.kind == "products":
        return product_programs.sayable(_tuples(code))
    if program.kind == "clusters":
        return cluster_programs.sayable(_tuples(code), program.cells)
    for c in code:
        held, waited = 0, False
        if program.kind == "lanes" and {s[1] for s in c if s[0] == "wait"} & {s[1] for s in c if s[0] == "arrive"}:
            return False  # nor to wait for a phase that another of them may not have let end
        for word, *at in c:
            # The lanes of a warp are taken to leave a wait before one of them goes on to an arrival.
            if program.kind == "lanes" and word == "arrive" and waited:
                return False
            waited = word == "wait" or (waited and word != "sync" and not word.endswith("read"))
            held += {"take": 1, "give": -1}.get(word, 0)
            if held < 0 or (word == "use" and held < 1):
                return False
            number = {"arrive": 0, "come": 0, "meet": 0, "wait": 0, "load": 1}.get(word)
            if number is not None and at[number] >= len(program.counts):
                return False
            if (
                word in ("read", "write", "copy", "load", "store", "lanes copy", "lanes read")
                and at[0] >= program.cells
            ):
                return False
    return True


def _tuples(code: list[list[Statement]]) -> tuple[tuple[Statement, ...], ...]:
    return tuple(tuple(c) for c in code)


__all__ = ["KINDS", "SyncProgram", "random_program", "story"]
