"""Python state that run-time control flow would freeze."""

import array as arrays
import collections
import contextvars
import ctypes
import functools
import io
import itertools
import logging
import queue
import random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, warp
from pykittens.testing.sync_programs import KINDS, random_program
from pykittens.trace import consistency
from pykittens.trace.snapshot import Snapshot
from tests.expecting import X, line_of, refused, says, x

# Python state that changes in run-time loops ----------------------------------------------------------------


def rebind_tile(x: X):
    t = warp.zeros(f32, 16, 64)
    for _ in pk.range(4):
        t = t + 1  #!
    warp.store(x, t, (0, 0))


def rebind_scalar(x: X):
    n = x.rows
    for _ in pk.range(4):
        n = n + 1  #!


def rebind_in_inner_loop(x: X):
    t = warp.zeros(f32, 16, 64)
    for _ in pk.range(4):
        for _ in pk.range(4):
            t = t * 2.0  #!


def rebind_in_while(x: X):
    t = warp.zeros(f32, 16, 64)
    for _ in pk.loop():
        t = t + 1  #!
        pk.break_if(x.rows > 3)


@pytest.mark.parametrize(
    ("kernel", "name", "fix"),
    [
        (rebind_tile, "t", "t[:] = ..."),
        (rebind_scalar, "n", "n = pk.var(pk.i32, ...)"),
        (rebind_in_inner_loop, "t", "t[:] = ..."),
        (rebind_in_while, "t", "t[:] = ..."),
    ],
)
def test_rebinding_in_a_loop(kernel: Callable[..., Any], name: str, fix: str) -> None:
    error = refused(kernel)
    says(error, f"{name} is rebound in this loop", fix)
    assert "it is made at" in error.also


class Pair:
    def __init__(self, a: Any, b: Any):
        self.a, self.b = a, b


def phase_bit(x: X):
    phase = 0
    for i in pk.range(4):
        warp.store(x, warp.full(f32, 16, 64, phase), (i, 0))  #!
        phase ^= 1


def phase_bit_unused(x: X):
    phase = 0
    for _ in pk.range(3):  #!
        phase ^= 1
    warp.store(x, warp.full(f32, 16, 64, phase), (0, 0))


def counter(x: X):
    count = 0
    for _ in pk.range(4):  #!
        count += 1
    warp.store(x, warp.full(f32, 16, 64, count), (0, 0))


def first_time_flag(x: X):
    first = True
    for i in pk.range(4):
        if first:
            warp.store(x, warp.zeros(f32, 16, 64), (i, 0))  #!
            first = False


def list_append(x: X):
    parts = []
    for _ in pk.range(4):  #!
        parts.append(1)
    warp.store(x, warp.full(f32, 16, 64, len(parts)), (0, 0))


def list_reverse(x: X):
    tiles = [warp.zeros(f32, 16, 64), warp.ones(f32, 16, 64)]
    for _ in pk.range(4):
        tiles[0] += tiles[1]  #!
        tiles.reverse()


def swap_names(x: X):
    a, b = warp.zeros(f32, 16, 64), warp.ones(f32, 16, 64)
    for _ in pk.range(4):
        a += b  #!
        a, b = b, a


def swap_names_unused(x: X):
    a, b = warp.zeros(f32, 16, 64), warp.ones(f32, 16, 64)
    for _ in pk.range(3):  #!
        a, b = b, a
    warp.store(x, a, (0, 0))


def best_so_far(x: X):
    a, b = warp.zeros(f32, 16, 64), warp.ones(f32, 16, 64)
    best = a
    for _ in pk.range(x.rows):  #!
        best = b
    warp.store(x, best, (0, 0))


def swap_attributes(x: X):
    pair = Pair(warp.zeros(f32, 16, 64), warp.ones(f32, 16, 64))
    for i in pk.range(4):
        warp.store(x, pair.a, (i, 0))  #!
        pair.a, pair.b = pair.b, pair.a


def dictionary(x: X):
    cache = {"n": 0}
    for _ in pk.range(4):  #!
        cache["n"] += 1
    warp.store(x, warp.full(f32, 16, 64, cache["n"]), (0, 0))


def nonlocal_state(x: X):
    turn = 0

    def step():
        nonlocal turn
        turn = 1 - turn

    for i in pk.range(4):
        warp.store(x, warp.full(f32, 16, 64, turn), (i, 0))  #!
        step()


def growing(x: X):
    width = 16
    for i in pk.range(4):
        warp.store(x, warp.zeros(f32, 16, width), (i, 0))  #!
        width += 16


@pytest.mark.parametrize(
    ("kernel", "fact"),
    [
        (phase_bit, "'phase' changes from one pass of this loop to the next, from 0 to 1"),
        (phase_bit_unused, "'phase' changes"),
        (counter, "'count' changes from one pass of this loop to the next, from 0 to 1"),
        (first_time_flag, "'first' changes"),
        (list_append, "'parts' changes from one pass of this loop to the next, from [] to [1]"),
        (list_reverse, "'tiles' changes"),
        (swap_names, "'a' changes from one pass of this loop to the next, from the rt<f32, 16x64> made at line"),
        (swap_names_unused, "'a' changes"),
        (best_so_far, "'best' changes"),
        (swap_attributes, "'pair' changes"),
        (dictionary, "'cache' changes"),
        (nonlocal_state, "'turn' changes"),
        (growing, "'width' changes from one pass of this loop to the next, from 16 to 32"),
    ],
)
def test_state_that_changes_in_a_loop(kernel: Callable[..., Any], fact: str) -> None:
    error = refused(kernel)
    says(error, fact)
    assert "the compiled loop would keep the first" in error.fact
    assert re.search(r"pk\.var\(|\[:\] = |keep \w+ as it is", error.fix) is not None


def test_hidden_state_is_found_by_what_it_does() -> None:
    def k(x: X):
        file = io.BytesIO()
        for i in pk.range(4):
            warp.store(x, warp.full(f32, 16, 64, file.tell()), (i, 0))  #!
            file.write(b"x")

    says(refused(k), "operand 'value' of fill is 0 in the first pass, 1 in the second")


COUNT, HELD = 0, Pair(0, 0)
HERE = sys.modules[__name__]


class Slotted:
    __slots__ = ("n",)
    shared = 0

    def __init__(self):
        self.n = 0

    def step(self):
        self.n += 1

    def __call__(self):
        self.step()


def counting(start=0):
    while True:
        yield start
        start += 1


def add_global():
    global COUNT
    COUNT += 1


def add_to_default(seen=[]):  # noqa: B006
    seen.append(1)


def add_to_attribute():
    add_to_attribute.n = getattr(add_to_attribute, "n", 0) + 1


def add_to_class():
    Slotted.shared += 1


def add_to_module():
    HERE.COUNT += 1


def add_to_held():
    HELD.a += 1


def array():
    values = np.zeros(3)

    def step():
        values[0] += 1

    return step


def cell():
    n = 0

    def step():
        nonlocal n
        n += 1

    return step


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: add_global, lambda: add_to_default, lambda: add_to_attribute, lambda: add_to_class),
        *(lambda: add_to_module, lambda: add_to_held, array, cell, Slotted, lambda: Slotted().step),
        lambda: functools.partial(next, iter(range(1000))),
        lambda: functools.partial(next, iter([1] * 99)),
        lambda: functools.partial(next, enumerate([1] * 99)),
        lambda: functools.partial(next, itertools.count()),
        lambda: functools.partial(collections.deque([1]).append, 1),
        lambda: functools.partial(bytearray(1).append, 1),
        lambda: counting().__next__,
    ],
)
def test_state_is_found_wherever_the_authors_code_keeps_it(make: Any) -> None:
    """Names of functions that a kernel calls, and of those that these call; whatever is changed, and by what."""

    def loop(x: X):
        step = make()
        through = lambda: step()  # noqa: E731
        for _ in pk.range(3):  #!
            through()

    def branch(x: X):
        step = make()
        through = lambda: step()  # noqa: E731
        with pk.when(x.rows > 3):  #!
            through()

    says(refused(loop), "changes from one pass of this loop to the next")
    says(refused(branch), "changes inside pk.when")


def test_what_helpers_remember_may_grow_once() -> None:
    table: dict[int, int] = {}

    def power(n: int) -> int:
        return table.setdefault(n, n**2)

    class Settings:
        @functools.cached_property
        def width(self) -> int:
            return 64

    log, settings = logging.getLogger("kernels"), Settings()

    @pk.kernel
    def k(x: X):
        for i in pk.range(4):
            with pk.when(i > 1):
                log.debug("traced")
                warp.store(x, warp.full(f32, 16, settings.width, power(3)), (i, 0))

    k.program(x)


def test_what_may_change_in_a_loop() -> None:
    @pk.kernel
    def k(x: X):
        n, c, memo = pk.var(i32, 0), 99, {}
        total = warp.zeros(f32, 16, 64)
        for i in pk.range(x.rows):
            for c in range(4):  # a Python loop's variable, the same after every pass
                memo[c] = c * 16
                value = warp.load(x, (i, 0), rows=16) * memo[c]
                total += value
            n += 1
            scratch = pk.shared(pk.st(f32, 16, 64))
            warp.store(scratch, total)
            inner = [warp.full(f32, 16, 64, float("nan")) for _ in range(2)]
            for j in pk.range(n):
                first = i + j
                total[:] = inner[0] * first
        for i in pk.range(3):
            value = total + 1.0
            warp.store(x, value, (0, 0))

    program = k.program(x)
    assert len(program.buffers) == 1


def test_a_loop_that_may_not_run_changes_nothing_of_pythons() -> None:
    """What Python would hold after it would be what one pass leaves."""

    def found(x: X):
        seen = False
        for _ in pk.range(x.rows):  #!
            seen = True
        warp.store(x, warp.full(f32, 16, 64, float(seen)), (0, 0))

    def changed(x: X):
        held = [0]
        for _ in pk.range(x.rows):  #!
            held[:] = [5]
        warp.store(x, warp.full(f32, 16, 64, held[0]), (0, 0))

    def in_a_loop(x: X):
        seen = False
        for _ in pk.loop():  #!
            pk.break_if(x.rows > 3)
            seen = True
        warp.store(x, warp.full(f32, 16, 64, float(seen)), (0, 0))

    for kernel in (found, changed, in_a_loop):
        says(refused(kernel), "also where the loop ran no time", "pk.var")

    @pk.kernel
    def surely(x: X):
        seen = False
        for _ in pk.range(3):
            seen = True
        warp.store(x, warp.full(f32, 16, 64, float(seen)), (0, 0))

    surely.program(x)


def test_unrolling_lets_state_alternate() -> None:
    @pk.kernel
    def k(x: X):
        a, b = warp.zeros(f32, 16, 64), warp.ones(f32, 16, 64)
        phase = 0
        for i in pk.range(x.rows, unroll=2):
            warp.store(x, a + phase, (i, 0))
            a, b, phase = b, a, 1 - phase
        assert phase == 0
        for i in pk.range(5, unroll=2):
            warp.store(x, a, (i, 0))
            a, b, phase = b, a, 1 - phase
        assert phase == 1  # five phases: known while tracing

    k.program(x)


# Python state that changes in branches ----------------------------------------------------------------------


def branch_int(x: X):
    n = 1
    with pk.when(x.rows > 3):  #!
        n = 2
    warp.store(x, warp.full(f32, 16, 64, n), (0, 0))


def branch_tile(x: X):
    t = warp.zeros(f32, 16, 64)
    with pk.when(x.rows > 3):  #!
        t = t + 1
    warp.store(x, t, (0, 0))


def branch_list(x: X):
    parts = []
    with pk.when(x.rows > 3):  #!
        parts.append(3)


def branch_attribute(x: X):
    pair = Pair(1, 2)
    with pk.when(x.rows > 3):  #!
        pair.a = 3


def branch_otherwise(x: X):
    n = 1
    with pk.when(x.rows > 3):
        pass
    with pk.otherwise():  #!
        n = 2
    warp.store(x, warp.full(f32, 16, 64, n), (0, 0))


def branch_through_a_helper(x: X):
    n = 1

    def helper():
        nonlocal n
        with pk.when(x.rows > 3):
            n = 2

    helper()  #!
    warp.store(x, warp.full(f32, 16, 64, n), (0, 0))


@pytest.mark.parametrize(
    ("kernel", "fact", "fix"),
    [
        (branch_int, "'n' changes inside pk.when, from 1 to 2", "n = pk.var(pk.i32, 1)"),
        (branch_tile, "'t' changes inside pk.when, from the rt<f32, 16x64> made at line", "t[:] = ..."),
        (branch_list, "'parts' changes inside pk.when, from [] to [3]", "keep parts as it is"),
        (branch_attribute, "'pair' changes inside pk.when, from Pair(a=1, b=2) to Pair(a=3, b=2)", ""),
        (branch_otherwise, "'n' changes inside pk.otherwise, from 1 to 2", "pk.var"),
    ],
)
def test_state_that_changes_in_a_branch(kernel: Callable[..., Any], fact: str, fix: str) -> None:
    error = refused(kernel)
    says(error, fact, fix)
    assert "Python would keep the new value whether or not it ran" in error.fact


def test_state_that_changes_in_a_branch_of_a_helper() -> None:
    with pytest.raises(pk.TraceError, match="'n' changes inside pk.when, from 1 to 2") as caught:
        pk.kernel(branch_through_a_helper).program(x)
    assert line_of(branch_through_a_helper) in str(caught.value)


def test_what_calls_a_kernel_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of our own kernels no frame is the author's: who calls them is, and may hold anything."""
    made: list[list[Any]] = []

    class Seen(Snapshot):
        def __init__(self, frames: list[Any]) -> None:
            made.append(frames)
            super().__init__(frames)

    monkeypatch.setattr(consistency, "Snapshot", Seen)
    random_program(KINDS.index("rings")).simulated((None,))
    assert made and not any(made)


# What state may be, and where: made, changed, and read again.
HIDDEN: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a large dictionary": (lambda: {i: 0 for i in range(100)}, lambda d: d.update({99: 5})),
    "a list in a large list": (lambda: [[0] for _ in range(100)], lambda d: d[99].append(5)),
    "a deep list": (lambda: [[[[[[[0]]]]]]], lambda d: d[0][0][0][0][0][0].append(5)),
    "a large array": (lambda: np.zeros(300_000), lambda d: d.fill(5)),
    "an object of many attributes": (
        lambda: types.SimpleNamespace(**{f"a{i}": 0 for i in range(100)}),
        lambda d: setattr(d, "a99", 5),
    ),
    "an object within objects": (
        lambda: functools.reduce(lambda held, _: types.SimpleNamespace(held=held), range(8), [0]),
        lambda d: d.held.held.held.held.held.held.held.held.append(5),
    ),
    "a counter": (lambda: collections.Counter(range(100)), lambda d: d.update([99])),
    "a dictionary of a class": (lambda: collections.UserDict(a=0), lambda d: d.update(a=5)),
    "a chain of dictionaries": (lambda: collections.ChainMap({"a": 0}), lambda d: d.update(a=5)),
    "an array of Python": (lambda: arrays.array("f", [0.0]), lambda d: d.append(5)),
    "a view of memory": (lambda: memoryview(bytearray(4)), lambda d: d.__setitem__(2, 5)),
    "memory of C": (lambda: (ctypes.c_int * 3)(), lambda d: d.__setitem__(2, 5)),
    "a context variable": (lambda: contextvars.ContextVar("held", default=0), lambda d: d.set(5)),
    "a thread's own": (threading.local, lambda d: setattr(d, "a", 5)),
    "random numbers": (lambda: random.Random(0), lambda d: d.random()),
    "NumPy's random numbers": (lambda: np.random.default_rng(0), lambda d: d.random()),
    "a queue": (queue.Queue, lambda d: d.put(5)),
    "weak references": (weakref.WeakValueDictionary, lambda d: d.update(a=HERE)),
    "an endless iterator": (lambda: itertools.cycle([0, 5]), next),
    "a part of an iterator": (lambda: itertools.islice([0, 5], 2), next),
    "a circle": (lambda: circle(), lambda d: d[0].append(5)),
}


def circle() -> list[Any]:
    held: list[Any] = [[]]
    held.append(held)
    return held


@pytest.mark.parametrize("name", HIDDEN)
def test_what_holds_state(name: str) -> None:
    make, change = HIDDEN[name]

    def k(x: X):
        state = make()
        with pk.when(x.rows > 3):  #!
            change(state)

    says(refused(k), "'state' changes inside pk.when", "")


@pytest.mark.parametrize("name", HIDDEN)
def test_state_that_stays(name: str) -> None:
    make, _ = HIDDEN[name]

    @pk.kernel
    def k(x: X):
        state = make()
        again = state
        with pk.when(x.rows > 3):
            mine = [state]
        for _ in pk.range(x.rows):
            mine = [again]
        assert mine

    k.program(x)
