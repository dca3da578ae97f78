"""Who runs when: clusters begin in the order of their indices, and the gangs of those that run take turns."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from ..errors import DeadlockError, Diagnosis, Frame, KernelError
from .block import ClusterState
from .gang import Blocked, Crowd, Gang, split
from .grid_state import GridState
from .machine import Machine
from .orders import RunOrder


class Running:
    """A cluster with its gangs."""

    def __init__(self, grid_state: GridState, number: int, chance: random.Random | None, interleave: bool):
        self.cluster, self.crowd = ClusterState(grid_state, number), Crowd(chance, interleave)
        for block in self.cluster.blocks:
            whole = Machine(block, 0, block.warps, 0, block.values())
            split(whole, grid_state.plan.body, 0, block.warps, 0, self.crowd)

    def end(self) -> None:
        """All gangs have ended: so does what is still on its way."""
        for flight in self.cluster.flights:
            flight.complete()
        for block in self.cluster.blocks:
            block.finish()
        self.forget()

    def forget(self) -> None:
        """Memory of the cluster is free at once: what knows it knows one another, and would live until Python looks for
        circles, which counts objects and not their bytes.
        """
        for gang in self.crowd.gangs:
            gang.coroutine.close()
        for known in (*self.cluster.blocks, *self.cluster.flights):
            vars(known).clear()

    def land(self) -> bool:
        """What is on its way to global memory finishes, because nobody could do anything else. Whether there was
        any.
        """
        waiting = [f for f in self.cluster.flights if not f.done]
        for flight in waiting:
            flight.complete()
        return bool(waiting)


class Scheduler:
    """Runs all clusters of a grid in one order. A seed shuffles gangs and engines within a cluster."""

    def __init__(self, grid_state: GridState, order: RunOrder, chance: random.Random | None):
        self.grid_state, self.order, self.chance, self.turns = grid_state, order, chance, order.turns()
        x, y, z = grid_state.grid
        self.clusters = x * y * z // grid_state.blocks
        self.begun = 0
        self.running: list[Running] = []

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """`progress` is told how many clusters have ended."""
        try:
            self._run(progress)
        finally:
            for left in self.running:
                left.forget()

    def _run(self, progress: Callable[[int], None] | None) -> None:
        while self.begun < self.clusters or self.running:
            while self.begun < self.clusters and len(self.running) < self.order.resident:
                self.running.append(Running(self.grid_state, self.begun, self.chance, self.order.interleave))
                self.begun += 1
            if not self._turn() and not any([r.land() for r in self.running]):
                self._hang()
            for ended in [r for r in self.running if not r.crowd.gangs]:
                ended.end()
                self.running.remove(ended)
            if progress:
                progress(self.begun - len(self.running))
        self.turns.end()

    def _turn(self) -> bool:
        """Every gang that can goes on until it must wait, or lets others go. Whether any could."""
        if self.order.interleave:
            pairs = [(r, gang) for r in self.running for gang in r.crowd.gangs]
            if self.order.shuffle is None:
                return any([self._step(r, gang) for r, gang in self.turns(pairs)])
            ready = [(r, gang) for r, gang in pairs if gang.blocked is None or gang.blocked.ready()]
            if ready:  # whoever is drawn, as far as it can go on, and then anybody again
                self._step(*self.turns.lot({x: (x[0].cluster.number, *x[1].place) for x in ready}))
            return bool(ready)
        moved = False
        for r in self.turns(self.running):
            gangs = list(r.crowd.gangs)
            if self.chance is not None:
                self.chance.shuffle(gangs)
            went = [gang for gang in gangs if self._step(r, gang)]
            moved = moved or bool(went)
            if any(gang.blocked is None or not gang.blocked.polls for gang in went):
                return True  # the first cluster that can goes on, until it must wait for others
        return moved

    def _step(self, r: Running, gang: Gang) -> bool:
        """A gang goes on, if it can."""
        if self.chance is not None:
            self._finish_some(r, self.chance)
        if gang.blocked is not None and not gang.blocked.ready():
            return False
        gang.chosen = True
        try:
            gang.blocked = next(gang.coroutine)
        except StopIteration:
            r.crowd.gangs.remove(gang)
            gang.blocked = None
        except Diagnosis as error:
            if not re.search(
                r"block \d+,\d", error.fact
            ):  # of which is said who it was by those who know more than this gang
                error.fact += f" ({gang.acting}, block {gang.m.block.label})"
            raise
        except KernelError:
            raise
        except Exception as error:  # in the NumPy face of an operation, perhaps the user's own
            op = gang.m.step.op
            raise Diagnosis(f"{op.spelled} fails on the CPU: {error!r}", location=op.location) from error
        return True

    def _finish_some(self, r: Running, chance: random.Random) -> None:
        """Some engines finish early."""
        waiting = [f for f in r.cluster.flights if not f.done]
        if waiting and chance.random() < 0.5:
            chance.choice(waiting).complete()

    def _hang(self) -> None:
        """Nobody can go on."""
        waits = [(r, gang, b) for r in self.running for gang in r.crowd.gangs if (b := gang.blocked) and b.state()]
        for_memory = [b for _, _, b in waits if b.for_memory]
        if for_memory and self.begun < self.clusters:
            self._never_begins(waits)
        rows = [f"    {self._who(r, gang)}{_at(b)}: {b.state()}" for r, gang, b in waits]
        block = self.running[0].cluster.blocks[0].label
        fix = (
            "let the missing arrivals, bytes or warps come, or do not wait for them; check the parity that is waited "
            "for"
        )
        if for_memory:
            fix = "let a warp that goes on set what they look at, or leave the loop by another condition"
        raise DeadlockError(
            f"deadlock in block {block}: every warp that has not ended waits for something that cannot happen any "
            f"more:\n" + "\n".join(rows),
            fix=fix,
            location=waits[0][2].location,
            also={f"{self._who(r, gang)} at": b.location for r, gang, b in waits[1:]},
        )

    def _never_begins(self, waits: list[tuple[Running, Gang, Blocked]]) -> None:
        rows = [f"    {self._who(r, gang)}{_at(b)}: {b.state()}" for r, gang, b in waits]
        last = ",".join(map(str, self.grid_state.block_index(self.begun, 0)))
        raise DeadlockError(
            f"deadlock: blocks from {last} on may begin only when an earlier one has ended, and every warp of those "
            "that run "
            "waits for something that none of them does:\n" + "\n".join(rows),
            fix="wait only for blocks of a lower index, or for lower tickets of an atomic counter; or declare that all "
            "blocks "
            "run at once: @pk.kernel(cooperative=True)",
            location=waits[0][2].location,
            also={f"{self._who(r, gang)} at": b.location for r, gang, b in waits[1:]},
        )

    def _who(self, r: Running, gang: Gang) -> str:
        """A gang in words; its block too, where several are about."""
        label = gang.label
        return f"{label} (block {gang.m.block.label})" if len(self.running) > 1 else label


def _at(blocked: Blocked) -> str:
    where: tuple[Frame, ...] = blocked.location
    return f", at {where[0]}" if where else ""
