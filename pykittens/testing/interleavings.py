"""An independent judge of synchronisation: every interleaving of a small program is explored, without any clock.

A program is as many threads as there are warps, times the lanes that matter; what an engine does (a copy, a TMA load)
is a thread of one action, which begins when it is issued. A program is wrong when in some interleaving two conflicting
actions can come next (a race), nothing can go on (a deadlock), what is read has not been written, the end comes while
an engine works, or an arrival or a wait belongs to another phase than in another interleaving.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Action(NamedTuple):
    """What a thread does in one step.

    kind: "touch" (cells are read or written), "arrive" (at mbarrier `at`, promising `number` loads), "wait", "come",
    "meet" (named barrier `at`: to be counted, and to wait too), "issue" (an engine's touch begins: of the thread's open
    group, or paying `at`), `number` is -1 for the former), "commit", "join" (all but `number` groups have landed),
    "add" (to counter `at`), "until" (counter `at` is `number`). `home`: the thread of the block whose memory this is,
    which must not have ended. `more`: further touches of an engine that begin with this one. `in_order`: the engine
    finishes a thread's touches one after another.
    """

    kind: str
    at: int = 0
    number: int = 0
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    home: int = -1
    more: tuple[Any, ...] = ()
    in_order: bool = False


Thread = tuple[Action, ...]


@dataclass
class Story:
    """Threads, how many arrivals each mbarrier counts, how many threads each named barrier, whether cells need a write
    first, and which have one at the beginning.
    """

    threads: list[Thread]
    arrivals: list[int] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    counters: int = 0
    fresh: bool = True
    written: frozenset[int] = frozenset()


class State(NamedTuple):
    """Where everything stands; hashable, so that nothing is explored twice."""

    places: tuple[int, ...]  # the next action of each thread
    waiting: tuple[int, ...]  # the phase of a named barrier in which a thread has been counted and waits; -1
    flying: tuple[tuple[int, Action, int], ...]  # (thread, touch, group, or minus the phase - 1) of what engines do
    groups: tuple[int, ...]  # the open group of each thread
    barriers: tuple[tuple[int, int, int], ...]  # (phase, missing arrivals, missing loads)
    named: tuple[tuple[int, int], ...]  # (phase, threads that have come)
    counters: tuple[int, ...]
    written: frozenset[int]


class Judge:
    """Explores a story: `wrong` says what can go wrong in it, or is empty."""

    def __init__(self, story: Story):
        self.story, self.seen = story, set[State]()
        self.phases: dict[tuple[int, Any], int] = {}  # by action: the phase that it belongs to
        n = len(story.threads)
        start = State(
            (0,) * n,
            (-1,) * n,
            (),
            (0,) * n,
            tuple((0, count, 0) for count in story.arrivals),
            ((0, 0),) * len(story.named),
            (0,) * story.counters,
            story.written,
        )
        self.wrong = self._explore(start)

    def _explore(self, start: State) -> str:
        todo = [start]
        while todo:
            state = todo.pop()
            if state in self.seen:
                continue
            self.seen.add(state)
            enabled = [t for t in range(len(state.places)) if self._can(state, t)]
            next_ones = [(t, self._next(state, t), False) for t in enabled]
            works = [(t, action, True) for t, action, _ in state.flying]
            for _, a, _ in next_ones + works:
                if a.home >= 0 and state.places[a.home] == len(self.story.threads[a.home]):
                    return "a block that has ended"
            touching = [x for x in next_ones if x[1].kind == "touch"] + works
            for i, (t, a, late) in enumerate(touching):
                if self.story.fresh and a.reads - state.written - a.writes:
                    return "unwritten"
                for other, b, also in touching[:i]:
                    if t == other and late and also and a.in_order and b.in_order:
                        continue
                    if a.writes & (b.reads | b.writes) or b.writes & a.reads:
                        return "race"
            if not enabled and not state.flying:
                if all(place == len(code) for place, code in zip(state.places, self.story.threads, strict=True)):
                    continue
                return "deadlock"
            if state.flying and all(
                place == len(code) for place, code in zip(state.places, self.story.threads, strict=True)
            ):
                return "in flight at the end"
            for t in enabled:
                after = self._step(state, t)
                if isinstance(after, str):
                    return after
                todo.append(after)
            for flight in state.flying:
                after = self._land(state, flight)
                if isinstance(after, str):
                    return after
                todo.append(after)
        return ""

    def _next(self, state: State, t: int) -> Action:
        return self.story.threads[t][state.places[t]]

    def _can(self, state: State, t: int) -> bool:
        """Whether the next action of a thread may come now."""
        if state.places[t] == len(self.story.threads[t]):
            return False
        action = self._next(state, t)
        if action.kind == "wait":
            return state.barriers[action.at][0] & 1 != action.number
        if action.kind == "meet" and state.waiting[t] >= 0:
            return state.named[action.at][0] > state.waiting[t]
        if action.kind == "join":
            done = state.groups[t] - action.number
            return not any(owner == t and 0 <= group < done for owner, _, group in state.flying)
        if action.kind == "until":
            return state.counters[action.at] >= action.number
        return True

    def _belongs(self, t: int, place: Any, phase: int) -> bool:
        return self.phases.setdefault((t, place), phase) == phase

    def _step(self, state: State, t: int) -> State | str:
        action, place = self._next(state, t), state.places[t]
        on = state._replace(places=_with(state.places, t, place + 1))
        if action.kind == "touch":
            return on._replace(written=state.written | action.writes)
        if action.kind == "arrive":
            phase, missing, loads = state.barriers[action.at]
            if not self._belongs(t, place, phase):
                return "an arrival in several phases"
            if not missing:
                return "too many arrivals"
            return on._replace(barriers=self._ended(state, action.at, phase, missing - 1, loads + action.number))
        if action.kind == "wait":
            # `_can` holds, so the phase before the open one is waited for; the wait may have come when it was open.
            return on if self._belongs(t, place, state.barriers[action.at][0] - 1) else "a wait for several phases"
        if action.kind in ("come", "meet"):
            if state.waiting[t] >= 0:
                return on._replace(waiting=_with(state.waiting, t, -1))
            phase, come = state.named[action.at]
            if not self._belongs(t, place, phase):
                return "counted in several phases"
            whole = come + 1 == self.story.named[action.at]
            named = _with(state.named, action.at, (phase + whole, 0 if whole else come + 1))
            if action.kind == "come":
                return on._replace(named=named)
            return state._replace(named=named, waiting=_with(state.waiting, t, phase))
        if action.kind == "issue":
            if action.number < 0:  # in the open group
                return on._replace(flying=(*state.flying, (t, action, state.groups[t])))
            for part in (action, *action.more):
                phase = state.barriers[part.at][0]
                if not self._belongs(t, (place, part.at), phase):
                    return "a load in several phases"
                on = on._replace(flying=(*on.flying, (t, part, -1 - phase)))
            return on
        if action.kind == "commit":
            return on._replace(groups=_with(state.groups, t, state.groups[t] + 1))
        if action.kind == "add":
            return on._replace(counters=_with(state.counters, action.at, state.counters[action.at] + action.number))
        return on

    def _land(self, state: State, flight: tuple[int, Action, int]) -> State | str:
        _, action, group = flight
        state = state._replace(
            flying=tuple(f for f in state.flying if f is not flight), written=state.written | action.writes
        )
        if group >= 0:
            return state
        phase, missing, loads = state.barriers[action.at]
        if phase != -1 - group:
            return "a load lands in another phase"
        return state._replace(barriers=self._ended(state, action.at, phase, missing, loads - 1))

    def _ended(self, state: State, at: int, phase: int, missing: int, loads: int) -> tuple[tuple[int, int, int], ...]:
        new = (phase, missing, loads) if missing or loads else (phase + 1, self.story.arrivals[at], 0)
        return _with(state.barriers, at, new)


def _with(items: tuple[Any, ...], at: int, new: Any) -> tuple[Any, ...]:
    """The items with another one in place `at`."""
    return (*items[:at], new, *items[at + 1 :])


__all__ = ["Action", "Judge", "Story"]
