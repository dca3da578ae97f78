"""Where agents wait for one another: mbarriers, named barriers, and meetings of all warps of a scope."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BarrierError, Frame
from .clocks import CAUSED, MET, SEEN, Clocks


class MBarrier:
    """An mbarrier: a phase ends when `pending` arrivals are down to zero and all promised bytes have landed.

    `agent` is the engine of the loads that complete on it; `loads` those in flight; `block` the label of its block.
    """

    def __init__(self, name: str, count: int, agent: int, clocks: Clocks, block: str = ""):
        self.where = f" (block {block})"
        self.name, self.count, self.agent, self.clocks = name, count, agent, clocks
        self.phase, self.pending, self.bytes = 0, count, 0
        self.known = clocks.blank()  # what the ended phases tell a waiter
        self.gathered = clocks.blank()  # what the arrivals of this phase have told
        self.loads: list[Any] = []  # in flight
        self.landed: list[tuple[int, Any]] = []  # (phase, load) that nobody has waited for
        self.waits: list[
            tuple[int, np.ndarray, np.ndarray, tuple[Frame, ...]]
        ] = []  # (phase, warps, their times, line)
        self.visitors: list[tuple[int, int, tuple[Frame, ...]]] = []  # arrivals from other blocks: (warp, time, line)
        # By phase, for the open one and those before: who arrived, and when.
        self.parts: dict[int, list[tuple[int, int, tuple[Frame, ...]]]] = {0: []}
        self.loaded: set[int] = set()  # the phases in which loads landed

    def passed(self, parity: int) -> bool:
        """Whether a wait for the phase with this parity goes on."""
        return self.phase & 1 != parity

    def arrive(self, agent: int, count: int, bytes: int, location: tuple[Frame, ...]) -> None:
        """`count` arrivals by one lane of a warp, which first adds `bytes` to what the phase waits for."""
        self.take_part(np.array([agent]), "arrival", location)
        self.parts[self.phase].append((agent, int(self.clocks.of[CAUSED, agent, agent]), location))
        self.gathered = np.maximum(self.gathered, self.clocks.release_alone(agent, location))
        self.bytes += bytes
        self.pending -= count
        if self.pending < 0:
            raise BarrierError(
                f"{self.name} is made for {self.count} arrivals a phase; phase {self.phase} gets "
                f"{self.count - self.pending}",
                fix="count one arrival for each thread or warp that arrives in a phase, or let fewer arrive",
                location=location,
            )
        self._end(location)

    def take_part(self, agents: np.ndarray, what: str, location: tuple[Frame, ...]) -> None:
        """These warps arrive, or issue a load, in the open phase: it must be certain that the phase before has ended,
        or they could be counted there. So what each phase consists of is the same in every order."""
        if found := self._unknown(agents, self.phase - 1):
            who, other, line = found
            raise BarrierError(
                f"an {what} of {who} at {self.name} is counted in phase {self.phase}, and nothing tells it that phase "
                f"{self.phase - 1} has ended: it could be counted there, and end that phase in place of {other}",
                fix=f"let whoever arrives at {self.name} wait first for what the phase before hands over, or count it "
                "in the barrier's arrivals",
                location=location,
                also={f"phase {self.phase - 1} also has what {other} does at": line},
            )

    def _unknown(self, agents: np.ndarray, phase: int) -> tuple[str, str, tuple[Frame, ...]] | None:
        """A part of an ended phase that some of these warps do not know of: which warp, whose part, and its line."""
        known = self.clocks.of[CAUSED, agents]
        for agent, time, line in self.parts.get(phase, ()):
            if (ignorant := known[:, agent] < time).any():
                return self.clocks.label(int(agents[ignorant.argmax()])), self.clocks.label(agent), line
        if phase in self.loaded:
            ignorant = known[:, self.agent] < self.clocks.time(phase + 1)
            if ignorant.any():
                who, other = int(agents[ignorant.argmax()]), self.agent
                return self.clocks.label(who), self.clocks.label(other), self.parts[phase][-1][2]
        return None

    def expect(self, agents: np.ndarray, parity: int, location: tuple[Frame, ...]) -> None:
        """These warps begin to wait for the phase with this parity. They must know that the one before it has ended:
        else the wait could come a phase earlier, and go on at once."""
        phase = self.phase - self.passed(parity)
        self._check_wait(agents, phase, location)

    def _check_wait(self, agents: np.ndarray, phase: int, location: tuple[Frame, ...]) -> None:
        if found := self._unknown(agents, phase - 1):
            who, other, line = found
            raise BarrierError(
                f"a wait of {who} for phase {phase} of {self.name}: nothing tells it that phase {phase - 1} has ended, "
                f"and it could come before that, take phase {phase - 2} for the one it waits for, and go on at once",
                fix=f"wait for the phases of {self.name} one after another",
                location=location,
                also={f"phase {phase - 1} has what {other} does at": line},
            )

    def pay(self, bytes: int, phase: int, known: np.ndarray, location: tuple[Frame, ...]) -> None:
        """`bytes` of a load, issued in `phase`, have landed, which tells waiters what is `known`."""
        if self.phase != phase:
            raise BarrierError(
                f"phase {phase} of {self.name} ended before {self.clocks.label(self.agent)}, issued in it, had landed: "
                f"fewer bytes were promised than its loads bring{self.where}",
                fix=f"promise the bytes of all loads that complete on {self.name}",
                location=location,
            )
        self.bytes -= bytes
        views = [SEEN, CAUSED, MET]
        self.gathered[views, self.agent] = np.maximum(self.gathered[views, self.agent], self.clocks.time(phase + 1))
        self.loaded.add(phase)
        self.gathered = np.maximum(self.gathered, known)
        if self.pending == 0 and self.bytes < 0:
            raise BarrierError(
                f"phase {phase} of {self.name} was promised {-self.bytes} bytes less than its loads bring{self.where}",
                fix=f"promise the bytes of all loads that complete on {self.name}",
                location=location,
            )
        self._end(location)

    def _end(self, location: tuple[Frame, ...]) -> None:
        if self.pending or self.bytes:
            return
        self.known = np.maximum(self.known, self.gathered)
        for phase, agents, times, line in self.waits:
            unseen = self.known[CAUSED, agents] < times
            if phase == self.phase - 1 and unseen.any():
                who = self.clocks.label(int(agents[unseen.argmax()]))
                raise BarrierError(
                    f"phase {self.phase} of {self.name} can end before {who} has seen phase {phase} end: it would miss "
                    "the phase, and hang or run a lap behind",
                    fix=f"let every warp that waits for {self.name} arrive (or meet one that does) before the phase "
                    "after it can end",
                    location=line,
                    also={f"phase {self.phase} ended at": location},
                )
        self.waits = [w for w in self.waits if w[0] >= self.phase]
        self.phase += 1
        self.pending = self.count
        self.parts[self.phase] = []
        self.parts.pop(self.phase - 4, None)
        self.loaded.discard(self.phase - 4)

    def acquire(self, agents: np.ndarray, location: tuple[Frame, ...]) -> None:
        """These warps go on: they know what the ended phases tell."""
        self._check_wait(agents, self.phase - 1, location)
        self.clocks.acquire(agents, self.known)
        self.waits.append((self.phase - 1, agents, self.clocks.of[CAUSED, agents, agents], location))
        self.landed = [(phase, load) for phase, load in self.landed if phase >= self.phase]

    def state(self) -> str:
        """What its phase still waits for, in words."""
        arrivals = f"{self.pending} of {self.count} arrivals" if self.pending else ""
        promised = f"{self.bytes} promised bytes that nothing in flight brings" if self.bytes > 0 else ""
        surplus = f"the promise of {-self.bytes} bytes that have landed" if self.bytes < 0 else ""
        return f"{self.name}, phase {self.phase}: misses " + " and ".join(x for x in (arrivals, promised, surplus) if x)


class NamedBarrierState:
    """A hardware barrier: a phase ends when `warps` warps have come, waiting or not."""

    def __init__(self, name: str, warps: int, clocks: Clocks):
        self.name, self.warps, self.clocks = name, warps, clocks
        self.phase, self.come = 0, 0
        self.gathered = clocks.blank()
        self.waiting: list[np.ndarray] = []
        self.counted: list[
            tuple[np.ndarray, np.ndarray, tuple[Frame, ...]]
        ] = []  # of this phase: (warps, their times, line)
        self.before: list[tuple[np.ndarray, np.ndarray, tuple[Frame, ...]]] = []  # of the phase before

    def come_by(self, agents: np.ndarray, wait: bool, location: tuple[Frame, ...]) -> None:
        """These warps are counted; those that wait learn what all told when the phase ends."""
        self._check_phase(agents, location)
        self.counted.append((agents, self.clocks.of[CAUSED, agents, agents], location))
        self.come += len(agents)
        if self.come > self.warps:
            raise BarrierError(
                f"{self.name} is made for {self.warps} warps; phase {self.phase} gets {self.come}",
                fix="make it for all warps that arrive and wait in one phase",
                location=location,
            )
        self.gathered = np.maximum(self.gathered, self.clocks.release(agents))
        if wait:
            self.waiting.append(agents)
        if self.come == self.warps:
            for group in self.waiting:
                self.clocks.acquire(group, self.gathered)
                self.clocks.meet(group[:, None])
            self.phase, self.come, self.waiting, self.gathered = self.phase + 1, 0, [], self.clocks.blank()
            self.before, self.counted = self.counted, []

    def _check_phase(self, agents: np.ndarray, location: tuple[Frame, ...]) -> None:
        """Who comes must know that the phase before has ended, or it may be counted there."""
        for others, _, line in self.counted:
            if (twice := np.isin(agents, others)).any():
                raise BarrierError(
                    f"{self.clocks.label(int(agents[twice.argmax()]))} is counted twice in phase {self.phase} of "
                    f"{self.name}",
                    fix="let a phase end (its other warps arrive or wait) before the same warps come again",
                    location=location,
                    also={"it was counted at": line},
                )
        for others, times, line in self.before:
            unknown = self.clocks.of[CAUSED][np.ix_(agents, others)] < times
            if unknown.any():
                who, other = (int(x[i]) for x, i in zip((agents, others), np.argwhere(unknown)[0], strict=True))
                raise BarrierError(
                    f"{self.clocks.label(who)} comes to phase {self.phase} of {self.name}, and nothing tells it that "
                    f"phase {self.phase - 1}, of {self.clocks.label(other)}, has ended: it may be counted there",
                    fix="let it wait for that phase, or for a warp that did",
                    location=location,
                    also={"a warp of the phase before comes at": line},
                )

    def state(self) -> str:
        return f"{self.name}, phase {self.phase}: {self.come} of {self.warps} warps have come"


class Meeting:
    """A barrier of all warps of a scope that run in several gangs, or of all blocks of a cluster."""

    def __init__(self, name: str, warps: int, clocks: Clocks):
        self.name, self.warps, self.clocks = name, warps, clocks
        self.phase = 0
        self.come: list[np.ndarray] = []

    def come_by(self, agents: np.ndarray) -> None:
        self.come.append(agents)
        if sum(map(len, self.come)) == self.warps:
            self.clocks.meet(np.concatenate(self.come)[None])
            self.phase, self.come = self.phase + 1, []

    def state(self) -> str:
        return f"{self.name}: {sum(map(len, self.come))} of {self.warps} warps have come"
