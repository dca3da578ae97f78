"""Rings: slots of shared memory that one role fills and others read, with the barriers that hand them over.

    kv = pk.ring(2, k=pk.st(bf16, 128, 64), v=pk.st(bf16, 128, 64))     # a slot is a record of tiles
    with kv.fill() as slot:                                             # the filling role: waits until it is empty,
        pk.tma.load(slot.k, k, where); pk.tma.load(slot.v, v, where)    # and arms the full barrier with these bytes
    slot = kv.read(); ...; kv.release()                                 # a reading role: waits until it is full
    with kv.put() as slot: warpgroup.store(slot.k, tile)                # or filled by ordinary stores instead of loads

Each role has its own cursors (index and phase), which begin at slot 0. A full barrier counts one arrival and the bytes
of the loads; an empty barrier counts one arrival for each warpgroup that reads with wgmma alone, and one for each warp
of a role that also reads with ordinary loads, since its warps finish apart.

Where a fill loads with `multicast=pk.cluster.everyone`, every block of the cluster fills the same slots at the same
time, each with its share: a full barrier waits for the bytes from all blocks, and a reader's release goes to the empty
barriers of all blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import TraceError
from ..ops import atomics, control, mbarrier, tma, variables, views
from ..ops.bulk_copy import BulkSend
from ..ops.element import LoadScalar
from ..ops.scalars import THREAD
from ..program import Access, Block, Op, Operand, Program, Scope, Value
from ..types import BarrierType, ScalarType, SharedTile, SharedVector, i32, u32
from . import recorder
from .handle import no_context
from .memory import Shared, shared
from .recorder import current, here, record, region, result


class Slot:
    """One slot of a ring: its tiles by name."""

    def __init__(self, tiles: dict[str, Shared], full: Value):
        self.__dict__.update(tiles)
        self._tiles, self._full = tiles, full

    def __enter__(self) -> NoReturn:
        no_context("a slot of a ring")

    def __exit__(self, *error: object) -> None:
        """Never reached: Python asks for it first."""

    def __getattr__(self, name: str) -> Any:
        raise TraceError(f"a slot of this ring has no tile {name!r}", fix=f"it has {', '.join(self._tiles)}")


class Cursor:
    """A role's place in a ring: slot index and phase, variables made where the role begins."""

    def __init__(self, name: str, stages: int, first_phase: int | None):
        r = current()
        self.role, self.block = r.role_block(), r.role_block()
        self.warps, self.warpgroups, self.label = r.warps, r.role_warpgroups, r.role or "the kernel"
        self.index = self._variable(name, i32, 0)
        self.phase = None if first_phase is None else self._variable(f"{name}_phase", u32, first_phase)
        self.stages = stages
        self.releases: list[mbarrier.Arrive] = []
        self.held: list[
            tuple[Block, Value]
        ] = []  # slots read and not yet released: where, and the barrier that gives them back
        self.known: (
            dict[mbarrier.Arrive, Value] | None
        ) = {}  # the same barrier for each release; None once one is not known while tracing
        self.walk: list[Op] = []  # what finds the oldest slot in the kernel
        self.slots: list[Value] = []  # every tile that this role got, to find out how it reads them

    def _variable(self, name: str, dtype: Any, initial: int) -> Value:
        """A variable defined at the beginning of the role, wherever the trace stands now."""
        op = variables.DeclareVariable(THREAD, dtype, initial)
        op.location = here()
        op.results = (recorder.make_value(op.types()[0]),)
        value = op.results[0]
        value.name, value.location, value.block, value.producer = name, op.location, self.block, op
        self.block.ops.insert(0, op)
        return value

    def advance(self) -> Op:
        """Goes on to the next slot, in the kernel."""
        op = mbarrier.Advance(THREAD, self.index, self.phase, self.stages)
        record(op)
        return op

    def forget(self) -> None:
        """Takes the cursor out of the kernel again."""
        gone = {*self.walk, self.index.producer}

        def clean(block: Block) -> None:
            block.ops = [op for op in block.ops if op not in gone]
            for op in block.ops:
                for inner in op.blocks():
                    clean(inner)

        clean(self.block)


class Ring:
    """Slots of shared memory that one role fills and another reads: made by `pk.ring`.

    `fill` (or `put`, `hand`) and `read`/`release` are called by different roles; phases, expected bytes and arrival
    counts are the compiler's.
    """

    def __init__(self, stages: int, tiles: dict[str, SharedTile | SharedVector], name: str, single: bool):
        if not isinstance(stages, int) or stages < 1 or not tiles:
            raise TraceError(
                f"pk.ring of {stages!r} slots with {len(tiles)} tiles",
                fix="pk.ring(stages, k=pk.st(...), v=pk.st(...)) with at least one of each",
            )
        self.stages, self.name, self.single = stages, name, single
        self.tiles = {key: shared(type, stages, f"{name}_{key}" if key else name) for key, type in tiles.items()}
        self.full, self.empty = barrier(1, stages, f"{name}_full"), barrier(1, stages, f"{name}_empty")
        self.cursors: dict[tuple[int, str], Cursor] = {}
        self.filling: tuple[Block, int] | None = None
        self.multicast = False  # whether a fill writes to all blocks of the cluster
        current().finish.append(self._finish)

    def _cursor(self, what: str, first_phase: int | None) -> Cursor:
        key = (id(current().role_block()), what)
        if key not in self.cursors:
            self.cursors[key] = Cursor(f"{self.name}_{what}", self.stages, first_phase)
        return self.cursors[key]

    def _item(self, array: Shared, index: Value) -> Shared:
        if array.count == 1:
            return array
        item: Any = record(views.Item(THREAD, array, index, array.count, array.stride)).results[0]
        item.name = array.name
        return item

    def _slot(self, cursor: Cursor, index: Any = None) -> tuple[Slot | Shared, list[Shared], Value]:
        index = cursor.index if index is None else index
        tiles = {key: self._item(array, index) for key, array in self.tiles.items()}
        full = self._item(self.full, index)
        if self.single:
            (tile,) = tiles.values()
            tile.landing = full
            return tile, [tile], full
        for tile in tiles.values():
            tile.landing = full
        return Slot(tiles, full), list(tiles.values()), full

    @region("ring.fill")
    def fill(self) -> Iterator[Any]:
        """The next slot, once it is empty; the loads inside pay their bytes to its full barrier.

        Raises `TraceError` for a fill inside a fill, one that loads nothing, and a load inside a branch of it.
        """
        r = current()
        if self.filling is not None:
            raise TraceError(f"ring {self.name}: a fill inside a fill", fix="end the first `with ring.fill()`")
        cursor = self._cursor(
            "fill", 1
        )  # the first pass finds every slot empty: the phase before the first counts as ended
        scope = Scope("role", r.warps)
        record(mbarrier.Wait(scope, self._item(self.empty, cursor.index), cursor.phase))
        slot, _, full = self._slot(cursor)
        arrive = mbarrier.Arrive(scope, full)
        record(arrive)
        loads: list[tma.TmaLoad | BulkSend] = []
        self.filling = r.block, 0

        def seen(op: Op) -> None:
            if isinstance(op, (tma.TmaLoad, BulkSend)) and op.barrier is full:
                if r.block is not block:
                    raise TraceError(
                        f"ring {self.name}: a load inside a branch of its fill: its bytes are promised whether or not "
                        "it runs",
                        fix="put the whole fill inside the branch",
                    )
                loads.append(op)

        block = r.block
        r.hooks.append(seen)
        try:
            yield slot
        finally:
            r.hooks.remove(seen)
            self.filling = None
        arrive.bytes = sum(op.bytes * self._senders(op) for op in loads)
        if not loads:
            raise TraceError(
                f"ring {self.name}: nothing is loaded in this fill",
                fix="load the slot's tiles with pk.tma.load inside it",
            )
        cursor.advance()

    def drain(self) -> None:
        """Waits until every slot that the filling role has filled is given back: its last word, where blocks of a
        cluster fill each other's slots. The others then have nothing more to do with this block, which may end.

        Raises `TraceError` in a role that fills none.
        """
        r = current()
        what = next((x for x in ("fill", "put") if (id(r.role_block()), x) in self.cursors), None)
        if what is None:
            raise TraceError(
                f"ring {self.name}: this role has filled no slot that it could wait for",
                fix="drain the ring in the role that fills it, after its last fill",
            )
        cursor, alone = self._cursor(what, 1), what == "put" and r.role_warpgroups
        scope = Scope("warpgroup", 4) if alone else Scope("role", r.warps)
        turn = recorder.make_value(ScalarType(i32))
        with r.region("ring.drain") as each:
            record(mbarrier.Wait(scope, self._item(self.empty, cursor.index), cursor.phase))
            cursor.advance()
        turn.block = each
        record(control.Range(THREAD, turn, 0, self.stages, 1, each))

    @region("ring.put")
    def put(self) -> Iterator[Any]:
        """The next slot, once it is empty, for this role to write with ordinary stores; each warp hands over what it
        wrote.
        """
        r = current()
        cursor = self._cursor("put", 1)
        record(
            mbarrier.Wait(
                Scope("warpgroup", 4) if r.role_warpgroups else Scope("role", r.warps),
                self._item(self.empty, cursor.index),
                cursor.phase,
            )
        )
        slot, _, full = self._slot(cursor)
        yield slot
        record(mbarrier.Arrive(Scope("warp", 1), full, lanes_ordered=True))
        cursor.advance()

    def hand(self, value: Operand) -> None:
        """The next slot of a ring of vectors, once it is empty, gets the scalar `value` as its first element from one
        thread of this role.

        Raises `TraceError` unless a slot of the ring is one vector.
        """
        self._of_vectors("hand")
        r = current()
        cursor, scope = self._cursor("fill", 1), Scope("role", r.warps)
        record(mbarrier.Wait(scope, self._item(self.empty, cursor.index), cursor.phase))
        _, (tile,), full = self._slot(cursor)
        record(atomics.StoreOne(scope, tile, value))
        record(mbarrier.Arrive(scope, full, lanes_ordered=True))
        cursor.advance()

    def receive(self) -> Any:
        """The scalar that `hand` has put in the next slot, once it is full; the slot is given back.

        The thread of a warp that arrives for it is the one that reads: racecheck knows that an arrival is behind what
        its own thread has read, and not that `__syncwarp` puts it behind what the other lanes have.

        Raises `TraceError` unless a slot of the ring is one vector.
        """
        self._of_vectors("receive")
        value = result(LoadScalar(THREAD, self.read(), 0, by_one=True))
        self.release()
        return value

    def _of_vectors(self, word: str) -> None:
        """A slot can carry a scalar."""
        if not self.single or not all(isinstance(x.type, SharedVector) for x in self.tiles.values()):
            fix = "hand scalars over in a ring of vectors: pk.ring(2, pk.sv(i32, 4))"
            raise TraceError(f"ring {self.name}: {word} where a slot is no vector", fix=fix)

    def _senders(self, load: tma.TmaLoad | BulkSend) -> int:
        """How many blocks send what this load, done by all of them, sends: each block receives as much from each."""
        if load.mask is None:
            return 1
        if isinstance(load, BulkSend):
            self.multicast = True
            return load.count - 1
        x, y, z = current().program.cluster
        if load.mask != (1 << x * y * z) - 1:
            raise TraceError(
                f"ring {self.name}: a multicast to some blocks of the cluster",
                fix="multicast=pk.cluster.everyone inside a fill; other masks with barriers of your own",
            )
        self.multicast = True
        return x * y * z

    def read(self) -> Any:
        """The next slot, once it is full. `release` gives it back when it has been read."""
        r = current()
        cursor = self._cursor("read", 0)
        slot, tiles, full = self._slot(cursor)  # before the wait: the way from there to the first product is short
        record(
            mbarrier.Wait(
                Scope("role", r.warps) if not r.role_warpgroups else Scope("warpgroup", 4), full, cursor.phase
            )
        )
        held = self._cursor("release", None)
        held.slots += tiles
        held.held.append((r.block, self._item(self.empty, cursor.index)))
        cursor.advance()
        return slot

    def held(self, place: int = 0) -> Any:
        """The oldest slot that this role has read and not given back (or the one `place` after it), without a wait.

        For a slot that an earlier pass of a loop has read: what it returned is that pass's own.

        Raises `TraceError` where no slot is held.
        """
        cursor = self._cursor("release", None)
        if not cursor.slots:
            raise TraceError(f"ring {self.name}: no slot is held here", fix="read one first: slot = ring.read()")
        cursor.known = None  # the release finds its slot with the cursor, which is kept
        index: Any = cursor.index
        if place and self.stages > 1:
            index = (index + place) % self.stages
        return self._slot(cursor, index)[0]

    def release(self, *, after: Value | None = None) -> None:
        """Gives the oldest slot that this role still holds back to the filling role; not before the vector `after`
        has been computed.
        """
        cursor = self._cursor("release", None)
        r = current()
        barrier = self._item(self.empty, cursor.index)
        op = mbarrier.Arrive(
            Scope("warpgroup", 4) if r.role_warpgroups else Scope("warp", 1),
            barrier,
            after=after,
            lanes_ordered=True,
            gives=tuple(self.tiles.values()),
        )
        cursor.releases.append(op)
        record(op)
        cursor.walk += [cursor.advance(), *([barrier.producer] if isinstance(barrier.producer, views.Item) else [])]
        block, known = cursor.held.pop(0) if cursor.held else (None, barrier)
        if block is not r.block:
            cursor.known = None
        elif cursor.known is not None:
            cursor.known[op] = known

    @region("ring.reading")
    def reading(self) -> Iterator[Any]:
        """`with ring.reading() as slot:` reads and releases."""
        yield self.read()
        self.release()

    def _finish(self, program: Program) -> None:
        """Sets what the empty barriers count, now that it is known who reads and how, and whether blocks fill each
        other's slots.
        """
        x, y, z = program.cluster
        arrivals, blocks = 0, x * y * z if self.multicast else 1
        for (_, what), cursor in self.cursors.items():
            if what != "release":
                continue
            per_warp = not cursor.warpgroups or self._reads_plainly(program)
            if per_warp:
                for op in cursor.block.walk():
                    if isinstance(op, mbarrier.Arrive) and _root(op.barrier) is self.empty:
                        op.scope = Scope("warp", 1)
            arrivals += (cursor.warps if per_warp else cursor.warps // 4) * blocks
            for op in cursor.releases:
                op.spread = blocks if blocks > 1 else 0
            if (
                cursor.known is not None
            ):  # every slot is released where it is read: its barrier is known, and no cursor has to find it
                for op, known in cursor.known.items():
                    op.barrier = known
                cursor.forget()
        self.empty.type = BarrierType(max(1, arrivals))
        putting = sum(cursor.warps for (_, what), cursor in self.cursors.items() if what == "put")
        if putting and any(what == "fill" for _, what in self.cursors):
            raise TraceError(f"ring {self.name}: slots filled both by loads and by stores", fix="use a ring for each")
        self.full.type = BarrierType(max(1, putting))

    def _reads_plainly(self, program: Program) -> bool:
        """Whether an ordinary load reads any tile of this ring."""
        arrays = set(self.tiles.values())
        for op in program.walk():
            for effect in op.effects() if not op.blocks() else ():
                if isinstance(effect, Access) and effect.mode == "read" and effect.proxy == "generic":
                    if isinstance(effect.target, Value) and _root(effect.target) in arrays:
                        return True
        return False


def _root(value: Value) -> Value:
    """The buffer that a view is of."""
    while isinstance(value.producer, (views.Item, views.Part)):
        value = value.producer.array if isinstance(value.producer, views.Item) else value.producer.tile
    return value


def barrier(count: int = 1, n: int = 1, name: str = "") -> Shared:
    """`n` mbarriers whose phases end after `count` arrivals and the bytes promised; index the array when n > 1.

    `name` is for reports and errors.

    Raises `TraceError` for numbers of barriers and arrivals that there cannot be (PTX "mbarrier.init": 1 to 2^20 - 1).
    """
    for what, number, most in (("arrivals", count, 2**20 - 1), ("barriers", n, 2**16)):
        if type(number) is not int or not 1 <= number <= most:
            raise TraceError(f"pk.barrier of {number} {what}", fix=f"pass a Python int from 1 to {most}")
    handle = current().buffer(BarrierType(count), n, 8, name or "barrier")
    assert isinstance(handle, Shared)
    handle.count, handle.stride = n, 8
    return handle


def ring(
    stages: int,
    tile: SharedTile | SharedVector | None = None,
    /,
    name: str = "ring",
    **tiles: SharedTile | SharedVector,
) -> Ring:
    """A ring of `stages` slots: of one `tile` (a type, `pk.st(...)` or `pk.sv(...)`), or of a record of named `tiles`.

    `name` is for reports and errors.

    Raises `TraceError` unless there is either one `tile`, or `tiles` by name.
    """
    if (tile is None) == (not tiles):
        raise TraceError(
            "pk.ring takes one tile, or tiles by name",
            fix="pk.ring(2, pk.st(...)) or pk.ring(2, k=pk.st(...), v=pk.st(...))",
        )
    return Ring(stages, {"": tile} if tile is not None else tiles, name, tile is not None)


__all__ = ["Ring", "Slot", "barrier", "ring"]
