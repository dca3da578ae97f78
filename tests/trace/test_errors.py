"""Bad kernels: each gives one exception with the user's line, the values, and what to write instead."""

import re
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, block, f16, f32, i32, warp
from tests.trace.expecting import BF, X, line_of, refused, x

half = pk.spec(bf16, (64, 64))


def says(error: pk.KernelError, fact: str, fix: str = "") -> None:
    assert fact in error.fact, error.fact
    assert fix in error.fix, error.fix


# Python that only looks as if it ran in the kernel ---------------------------------------------------------


def test_if_on_a_traced_value() -> None:
    def k(x: X):
        if x.rows > 3:  #!
            pass

    says(refused(k), "a Python condition on x.rows > 3, which is known only when the kernel runs", "with pk.when(condition)")


@pytest.mark.parametrize("what", ["while", "and", "assert", "in", "chain", "ternary", "any"])
def test_other_conditions(what: str) -> None:
    def k(x: X):
        n = x.rows
        {"while": loop, "and": conjunction, "assert": claim, "in": member, "chain": chain, "ternary": ternary, "any": some}[what](n)  #!

    def loop(n: Any) -> None:
        while n:
            pass

    def conjunction(n: Any) -> Any:
        return n > 1 and n < 5

    def claim(n: Any) -> None:
        assert n == 3

    def member(n: Any) -> bool:
        return n in [1, 2, 3]

    def chain(n: Any) -> bool:
        return bool(1 < n < 5)

    def ternary(n: Any) -> int:
        return 1 if n > 3 else 2

    def some(n: Any) -> bool:
        return any([n > 3])

    with pytest.raises(pk.TraceError) as caught:
        pk.kernel(k).program(x)
    assert "a Python condition on x.rows" in caught.value.fact and f"called from {line_of(k)}" in str(caught.value)


def test_a_tile_has_no_truth_value() -> None:
    def k(x: X):
        t = warp.load(x, (0, 0), rows=16)
        if t > 0:  #!
            pass

    says(refused(k), "a Python condition on rt<bool, 16x64>")


def test_indexing_python_by_a_traced_value() -> None:
    def k(x: X):
        tiles = [warp.zeros(f32, 16, 64) for _ in range(2)]
        for i in pk.range(2):
            warp.store(x, tiles[i], (i, 0))  #!

    says(refused(k), "i is known only when the kernel runs, so it cannot index a Python sequence", "keep tiles in shared memory to index them")


def test_python_range_of_a_traced_value() -> None:
    def k(x: X):
        for _ in range(x.rows):  #!
            pass

    says(refused(k), "x.rows is known only when the kernel runs", "pk.range")


@pytest.mark.parametrize(("make", "text"), [
    (lambda n, t: float(n), "n is known only when the kernel runs"),
    (lambda n, t: int(n), "n is known only when the kernel runs"),
    (lambda n, t: len(t), "t: rt<f32, 16x64> has no Python length"),
    (lambda n, t: list(t), "t: rt<f32, 16x64> cannot be iterated"),
    (lambda n, t: t[0, 1], "a register tile has no elements to index"),
    (lambda n, t: t.__setitem__((0, 1), 3), "a register tile is assigned as a whole"),
    (lambda n, t: t + np.ones((16, 64), np.float32), "an array of shape (16, 64) is captured by the kernel"),
    (lambda n, t: np.ones((16, 64), np.float32) + t, "an array of shape (16, 64) is captured by the kernel"),
    (lambda n, t: warp.store(np.ones((16, 64)), t, (0, 0)), "is not a tile or tensor"),
    (lambda n, t: pk.exp("a"), "pk.exp does not take 'a'"),
    (lambda n, t: pk.where("a", t, 0), "pk.where chooses by 'a'"),
    (lambda n, t: pk.assert_(False, "no"), "pk.assert_ failed while tracing: no"),
    (lambda n, t: pk.var(bf16, 0), "a variable of bf16"),
    (lambda n, t: pk.shared(pk.rt(f32, 16, 16)), "pk.shared of"),
    (lambda n, t: pk.shared(pk.st(f32, 16, 16), count=0), "pk.shared with count=0"),
    (lambda n, t: pk.when(n).__enter__(), "a condition is a bool, not i32"),
    (lambda n, t: next(pk.range(1.5)), "a loop bound is 1.5: f32"),
    (lambda n, t: next(pk.range(0, 5, 0)), "pk.range with step 0"),
    (lambda n, t: next(pk.range(0, 5, n)), "pk.range with step"),
    (lambda n, t: next(pk.range(5, unroll=0)), "pk.range with unroll=0"),
    (lambda n, t: next(pk.range()), "pk.range with 0 bounds"),
    (lambda n, t: pk.break_if(n > 3), "pk.break_if outside of pk.loop()"),
    (lambda n, t: pk.otherwise().__enter__(), "pk.otherwise without a pk.when just before it"),
])  # fmt: skip
def test_misuse(make: Callable[..., Any], text: str) -> None:
    def k(x: X):
        n, t = x.rows, warp.load(x, (0, 0), rows=16)
        n.name, t.name = "n", "t"
        make(n, t)  #!

    with pytest.raises(pk.KernelError) as caught:
        pk.kernel(k).program(x)
    assert text in caught.value.fact and line_of(k) in str(caught.value) and caught.value.fix


def test_outside_of_a_kernel() -> None:
    with pytest.raises(pk.TraceError, match="tile operations run inside a kernel"):
        warp.zeros(f32, 16, 16)
    with pytest.raises(pk.TraceError, match="tile operations run inside a kernel"):
        next(pk.range(3))


def test_a_kernel_returns_nothing() -> None:
    @pk.kernel
    def k(x: X):
        return 3

    with pytest.raises(pk.TraceError, match="kernel 'k' returns 3"):
        k.program(x)


def test_break_if_inside_a_range() -> None:
    def k(x: X):
        for _ in pk.loop():
            for i in pk.range(4):
                pk.break_if(i == x.rows)  #!

    says(refused(k), "pk.break_if inside a pk.range", "right around it")


# Leaving a region ------------------------------------------------------------------------------------------


def leave_range_by_break(x: X):
    for i in pk.range(4):
        warp.load(x, (i, 0), rows=16)
        break  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def leave_range_by_return(x: X):
    for i in pk.range(4):
        warp.load(x, (i, 0), rows=16)
        return  #!


def leave_inner_range(x: X):
    for i in pk.range(4):
        for j in pk.range(4):
            if i is not j:
                break  #!


def leave_loop_by_break(x: X):
    for _ in pk.loop():
        break  #!


def leave_unrolled_range(x: X):
    for _ in pk.range(x.rows, unroll=2):
        break  #!


def swallow_in_a_range(x: X):
    with suppress(ValueError):
        for _ in pk.range(3):
            warp.store(x, warp.zeros(f32, 16, 64), (0, 0))
            raise ValueError  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


@pytest.mark.parametrize("kernel", [
    leave_range_by_break, leave_range_by_return, leave_inner_range, leave_loop_by_break, leave_unrolled_range, swallow_in_a_range,
])  # fmt: skip
def test_leaving_a_loop(kernel: Callable[..., Any]) -> None:
    says(refused(kernel), "was left by break, return or an exception", "pk.break_if(condition) in pk.loop()")


def when_return(x: X):
    with pk.when(x.rows > 3):
        warp.load(x, (0, 0), rows=16)
        return  #!


def when_return_first(x: X):
    with pk.when(x.rows > 3):
        return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def when_return_value(x: X):
    def helper():
        with pk.when(x.rows > 3):
            return warp.zeros(f32, 16, 64)
        return warp.ones(f32, 16, 64)

    warp.store(x, helper(), (0, 0))  #!


def when_return_under_if(x: X):
    with pk.when(x.rows > 3):
        if x.cols == 64:
            return  #!
        warp.load(x, (0, 0), rows=16)
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def when_continue(x: X):
    for i in range(3):
        with pk.when(x.rows > i):
            warp.load(x, (0, 0), rows=16)
            continue  #!
        warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def when_break(x: X):
    for i in range(3):
        with pk.when(x.rows > i):
            break  #!


def when_break_of_a_while(x: X):
    n = 0
    while True:
        n += 1
        with pk.when(x.rows > 1):
            warp.load(x, (0, 0), rows=16)
            if n == 3:
                break  #!
        warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def when_continue_in_a_run_time_loop(x: X):
    for i in pk.range(3):
        with pk.when(i > 1):
            continue  #!
        warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def otherwise_return(x: X):
    with pk.when(x.rows > 3):
        pass
    with pk.otherwise():
        warp.load(x, (0, 0), rows=16)
        return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def role_return(x: X):
    with pk.role("a", warps=1):
        warp.load(x, (0, 0), rows=16)
        return  #!
    with pk.role("b", warps=1):
        warp.load(x, (0, 0), rows=16)


def nested_when_return(x: X):
    with pk.when(x.rows > 3), pk.when(x.rows < 7):
        warp.load(x, (0, 0), rows=16)
        return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def when_return_in_except(x: X):
    with pk.when(x.rows > 3):
        try:
            int("a")
        except ValueError:
            return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


@contextmanager
def users_own(condition):
    with pk.when(condition):
        yield


def return_through_a_context_manager_of_the_users(x: X):
    with users_own(x.rows > 3):
        warp.load(x, (0, 0), rows=16)
        return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


@pytest.mark.parametrize("kernel", [
    when_return, when_return_first, when_return_under_if, when_continue, when_break, when_break_of_a_while, when_continue_in_a_run_time_loop,
    otherwise_return, role_return, nested_when_return, when_return_in_except, return_through_a_context_manager_of_the_users,
])  # fmt: skip
def test_leaving_a_with_region(kernel: Callable[..., Any]) -> None:
    says(refused(kernel), "was left by return, break or continue", "let the region end")


def test_leaving_in_a_helper_names_the_helpers_line() -> None:
    with pytest.raises(pk.TraceError, match="was left by return, break or continue") as caught:
        pk.kernel(when_return_value).program(x)
    assert caught.value.where[0].function == "helper" and "return warp.zeros" in caught.value.where[0].text


def test_what_is_no_early_exit() -> None:
    @pk.kernel
    def k(x: X, *, skip: bool = False):
        for i in range(3):
            with pk.when(x.rows > i):
                if i == 1:
                    warp.load(x, (0, 0), rows=16)
                else:
                    pass
        with pk.when(x.rows > 3), users_own(x.rows < 5), ExitStack() as stack:
            stack.enter_context(pk.when(x.rows > 7))
            for j in range(3):
                if j == 1:
                    break
            try:
                int("a")
            except ValueError:
                pass
        while True:
            with pk.when(x.rows > 3):
                warp.load(x, (0, 0), rows=16)
            if True:
                break
        for i in pk.range(4):
            if skip:
                continue
            with pk.when(i > 2):
                ...
        if helper(x):
            return
        with pk.when(x.rows > 3):

            def inner():
                return 3

            inner()  # fmt: skip

    def helper(x):
        with pk.when(x.rows > 3):
            warp.load(x, (0, 0), rows=16)
        return False

    k.program(x)
    k.program(x, skip=True)


# Exceptions that the user swallowed -------------------------------------------------------------------------


def swallow_in_a_when(x: X):
    with suppress(ValueError), pk.when(x.rows > 3):  #!
        raise ValueError("mine")
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def swallow_at_the_end(x: X):
    try:
        with pk.role("a", warps=1):
            raise ValueError("mine")
    except ValueError:  #!
        pass


def test_an_exception_swallowed_outside_its_region() -> None:
    says(refused(swallow_in_a_when), "ValueError('mine') left a pk.when and was caught outside of it")
    with pytest.raises(pk.TraceError, match=r"ValueError\('mine'\) left a pk.role and was caught outside of it"):
        pk.kernel(swallow_at_the_end).program(x)


def test_a_kernel_error_swallowed() -> None:
    def k(x: X):
        with suppress(TypeError):
            warp.zeros(f32, 16, 64) + warp.zeros(f32, 32, 64)  #!
        warp.store(x, warp.zeros(f32, 16, 64), (0, 0))

    says(refused(k), "add: rt<f32, 32x64> does not fit rt<f32, 16x64>")


def test_a_condition_swallowed() -> None:
    def k(x: X):
        try:
            n = 1 if x.rows > 3 else 2  #!
        except Exception:
            n = 3
        warp.store(x, warp.full(f32, 16, 64, n), (0, 0))

    says(refused(k), "a Python condition on x.rows > 3")


def test_the_users_own_exceptions_pass_through() -> None:
    @pk.kernel
    def k(x: X):
        for i in pk.range(4):
            with pk.when(i > 2):
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        k.program(x)


def test_what_is_caught_inside_its_region_is_pythons_business() -> None:
    @pk.kernel
    def k(x: X):
        for i in pk.range(4):
            with pk.when(i > 2), suppress(KeyError):
                raise KeyError("mine")

    k.program(x)


# Regions left open ------------------------------------------------------------------------------------------


def test_a_region_left_open() -> None:
    def a(x: X):
        it = pk.range(4)  # kept alive: its frame has not ended
        next(it)  #!
        opened.append(it)

    def b(x: X):
        region = pk.when(x.rows > 3)
        region.__enter__()  #!
        opened.append(region)

    opened: list[Any] = []
    says(refused(a), "a pk.range begun here is still open at the end of the kernel")
    says(refused(b), "a pk.when begun here is still open at the end of the kernel")


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


@pytest.mark.parametrize(("kernel", "name", "fix"), [
    (rebind_tile, "t", "t[:] = ..."), (rebind_scalar, "n", "n = pk.var(pk.i32, ...)"),
    (rebind_in_inner_loop, "t", "t[:] = ..."), (rebind_in_while, "t", "t[:] = ..."),
])  # fmt: skip
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


@pytest.mark.parametrize(("kernel", "fact"), [
    (phase_bit, "'phase' changes from one pass of this loop to the next, from 0 to 1"), (phase_bit_unused, "'phase' changes"),
    (counter, "'count' changes from one pass of this loop to the next, from 0 to 1"), (first_time_flag, "'first' changes"),
    (list_append, "'parts' changes from one pass of this loop to the next, from [] to [1]"), (list_reverse, "'tiles' changes"),
    (swap_names, "'a' changes from one pass of this loop to the next, from the rt<f32, 16x64> made at line"), (swap_names_unused, "'a' changes"),
    (best_so_far, "'best' changes"), (swap_attributes, "'pair' changes"), (dictionary, "'cache' changes"), (nonlocal_state, "'turn' changes"),
    (growing, "'width' changes from one pass of this loop to the next, from 16 to 32"),
])  # fmt: skip
def test_state_that_changes_in_a_loop(kernel: Callable[..., Any], fact: str) -> None:
    error = refused(kernel)
    says(error, fact)
    assert "the compiled loop would keep the first" in error.fact
    assert re.search(r"pk\.var\(|\[:\] = |keep \w+ as it is", error.fix) is not None


def test_hidden_state_is_found_by_what_it_does() -> None:
    turns = iter(range(100))

    def k(x: X):
        for i in pk.range(4):
            warp.store(x, warp.full(f32, 16, 64, next(turns)), (i, 0))  #!

    says(refused(k), "operand 'value' of fill is 0 in the first pass, 1 in the second")


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


@pytest.mark.parametrize(("kernel", "fact", "fix"), [
    (branch_int, "'n' changes inside pk.when, from 1 to 2", "n = pk.var(pk.i32, 1)"),
    (branch_tile, "'t' changes inside pk.when, from the rt<f32, 16x64> made at line", "t[:] = ..."),
    (branch_list, "'parts' changes inside pk.when, from [] to [3]", "keep parts as it is"),
    (branch_attribute, "'pair' changes inside pk.when, from Pair(a=1, b=2) to Pair(a=3, b=2)", ""),
    (branch_otherwise, "'n' changes inside pk.otherwise, from 1 to 2", "pk.var"),
])  # fmt: skip
def test_state_that_changes_in_a_branch(kernel: Callable[..., Any], fact: str, fix: str) -> None:
    error = refused(kernel)
    says(error, fact, fix)
    assert "Python would keep the new value whether or not it ran" in error.fact


def test_state_that_changes_in_a_branch_of_a_helper() -> None:
    with pytest.raises(pk.TraceError, match="'n' changes inside pk.when, from 1 to 2") as caught:
        pk.kernel(branch_through_a_helper).program(x)
    assert line_of(branch_through_a_helper) in str(caught.value)


# Values outside of their region -----------------------------------------------------------------------------


def outside_range(x: X):
    for _ in pk.range(4):
        t = warp.zeros(f32, 16, 64)
    warp.store(x, t, (0, 0))  #!


def outside_when(x: X):
    with pk.when(x.rows > 3):
        t = warp.zeros(f32, 16, 64)
    warp.store(x, t, (0, 0))  #!


def outside_otherwise(x: X):
    with pk.when(x.rows > 3):
        t = warp.zeros(f32, 16, 64)
    with pk.otherwise():
        warp.store(x, t, (0, 0))  #!


def outside_role(x: X):
    with pk.role("a", warps=1):
        t = warp.zeros(f32, 16, 64)
    with pk.role("b", warps=1):
        warp.store(x, t, (0, 0))  #!


def index_after_its_loop(x: X):
    for t in pk.range(4):
        pass
    warp.store(x, warp.zeros(f32, 16, 64), (t, 0))  #!


@pytest.mark.parametrize("kernel", [outside_range, outside_when, outside_otherwise, outside_role, index_after_its_loop])
def test_a_value_outside_of_its_region(kernel: Callable[..., Any]) -> None:
    error = refused(kernel)
    says(error, "t is used outside the region that made it", "make it before the loop or branch")
    assert "t = " in str(error) or "for t in" in str(error)


kept: dict[str, Any] = {}


@pytest.mark.parametrize("make", [lambda x: warp.zeros(f32, 16, 64), lambda x: pk.shared(pk.st(f32, 16, 64)), lambda x: x, lambda x: x.rows])
def test_a_value_of_another_trace(make: Callable[[Any], Any]) -> None:
    def keeping(x: X):
        kept["it"] = make(x)

    def using(x: X):
        value = kept["it"]
        with pk.when(x.rows > 3):
            if isinstance(value.type, pk.types.ScalarType):
                warp.set(x, (0, 0), pk.cast(value, f32))  #!
            elif isinstance(value.type, pk.types.SharedTile):
                block.store(x, value, (0, 0))
            else:
                warp.store(x, value if isinstance(value.type, pk.rt) else warp.load(value, (0, 0), rows=16), (0, 0))

    pk.kernel(keeping).program(x)
    with pytest.raises(pk.TraceError, match="was made while another kernel was traced, or this one for other arguments") as caught:
        pk.kernel(using).program(x)
    assert "it was made at" in caught.value.also


# Captured arrays --------------------------------------------------------------------------------------------

table = np.arange(16.0)
tables = [np.arange(4), {"a": np.arange(3)}]


def test_captured_arrays() -> None:
    weights = np.ones((4, 4), np.float32)

    @pk.kernel
    def closure(x: X):
        warp.store(x, warp.full(f32, 16, 64, weights[0, 0]), (0, 0))

    @pk.kernel
    def a_global(x: X):
        warp.store(x, warp.full(f32, 16, 64, table[3]), (0, 0))

    @pk.kernel
    def in_a_list(x: X):
        warp.store(x, warp.full(f32, 16, 64, tables[0][1]), (0, 0))

    @pk.kernel
    def default(x: X, *, t=weights):
        pass

    for kernel, name, shape in ((closure, "weights", "(4, 4)"), (a_global, "table", "(16,)"), (in_a_list, "tables", "(4,)"), (default, "defaults", "(4, 4)")):
        with pytest.raises(pk.TraceError) as caught:
            kernel.program(x)
        says(caught.value, f"the kernel captures '{name}', an array of shape {shape}", "pass it to the kernel as an operand")
        assert caught.value.where


# Collectives under divergent branches -----------------------------------------------------------------------


def sync_under_warp(x: X):
    with pk.when(warp.index == 0):
        block.sync()  #!


def sync_under_variable(x: X):
    v = pk.var(i32, 0)
    with pk.when(warp.index == 1):
        v[:] = 1
    with pk.when(v == 1):
        pk.group(2).sync()  #!


def tile_in_a_divergent_loop(x: X):
    for _ in pk.range(warp.index):
        block.zeros(f32, 64, 64)  #!


def sync_in_a_divergent_while(x: X):
    v = pk.var(i32, 0)
    for _ in pk.loop():
        block.sync()  #!
        v += warp.index
        pk.break_if(v > 6)


def sync_under_a_break_under_a_branch(x: X):
    v = pk.var(i32, 0)
    for _ in pk.loop():
        block.sync()  #!
        v += 1
        with pk.when(warp.index == 1):
            pk.break_if(v > 6)
        pk.break_if(v > 9)


def sync_under_what_a_warp_found(x: X):
    peak = warp.load(x, (warp.index, 0), rows=16).row_max().max()
    with pk.when(peak > 1.0):
        block.sync()  #!


def sync_under_a_loaded_number(x: X):
    n = x[warp.index, 3]
    with pk.when(n > 1.0):
        block.load_into(pk.shared(pk.st(f32, 16, 64)), x, (0, 0))  #!


def sync_in_a_role(x: X):
    with pk.role("a", warps=4), pk.when(warp.index == 1):
        block.sync()  #!


def sync_misaligned(x: X):
    with pk.when(pk.group(2).index == 0):
        block.sync()  #!


@pytest.mark.parametrize("kernel", [
    sync_under_warp, sync_under_variable, tile_in_a_divergent_loop, sync_in_a_divergent_while, sync_under_a_break_under_a_branch,
    sync_under_what_a_warp_found, sync_under_a_loaded_number, sync_in_a_role, sync_misaligned,
])  # fmt: skip
def test_collectives_under_a_divergent_branch(kernel: Callable[..., Any]) -> None:
    error = refused(kernel)
    says(error, "which may differ between the warps of a", "move it out of there")
    assert "the condition is at" in error.also and error.also["the condition is at"]


def test_the_cluster_meets_in_all_of_its_blocks() -> None:
    def k(x: X):
        with pk.when(pk.block_index.x == 0):
            pk.cluster.sync()  #!

    says(refused(k), "inside a branch on block_index.x == 0, which may differ between the blocks of its cluster")


def test_collectives_where_all_come() -> None:
    @pk.kernel(warps=8)
    def k(x: X, n: i32):
        v, total = pk.var(i32, 0), pk.var(f32, 0.0)
        with pk.when(pk.block_index.x * 3 + x.rows > n):
            block.sync()
        with pk.when(pk.group(4).index == 1):
            pk.group(4).sync()
            pk.group(2).sync()
        for i in pk.range(n):
            v += i
            total += warp.load(x, (i, 0), rows=16).row_max().max()  # every warp loads the same
        with pk.when(v > 4):
            block.sync()
        with pk.when(total > 4.0):
            block.sync()
        with pk.when(x[0, n] > 4.0):
            block.sync()
        for _ in pk.loop():
            block.sync()
            v += 1
            pk.break_if(v > n)
        with pk.when(warp.index == 0):
            warp.sync()
            v[:] = 0  # from here on it differs

    k.program(x, 3)


def test_collectives_in_roles() -> None:
    @pk.kernel(warps=8)
    def k(x: X):
        with pk.role("a", warps=2):
            block.sync()
        with pk.role("b", warps=6):
            with pk.when(pk.group(2).index == 0):
                pk.group(2).sync()
            with pk.when(pk.group(3).index == 0):
                pk.group(3).sync()
            with pk.when(pk.group(6).index == 0):  # the whole role: always 0
                block.sync()

    k.program(x)


# Shared memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "limit"), [("sm_80", 163), ("sm_86", 99), ("sm_89", 99), ("sm_90a", 227)])
def test_shared_memory_that_does_not_fit(arch: str, limit: int) -> None:
    rows = limit + 1 + -(limit + 1) % 8

    @pk.kernel
    def fits(x: X):
        pk.shared(pk.st(f32, limit // 8 * 8, 256), name="big")

    @pk.kernel
    def too_big(x: X):
        pk.shared(pk.st(f32, rows, 256), name="big")
        pk.shared(pk.sv(f32, 4), count=2, name="small")

    fits.cuda(x, arch=arch)
    with pytest.raises(pk.ResourceError) as caught:
        too_big.cuda(x, arch=arch)
    text = str(caught.value)
    assert f"kernel 'too_big' wants {rows * 1024 + 256} bytes of shared memory; a block on {arch[:5]} has {limit * 1024}" in text
    assert f"big: st<f32, {rows}x256> = {rows * 1024} bytes" in text and "small: 2 x sv<f32, 4> = 256 bytes" in text
    assert "too_big" in text and "fix: use smaller tiles or fewer stages" in text


def test_the_simulator_refuses_what_no_gpu_has() -> None:
    @pk.kernel
    def too_big(x: X):
        pk.shared(pk.st(f32, 256, 256))

    with pytest.raises(pk.ResourceError, match="262144 bytes of shared memory; a block on sm_90 has 232448"):
        too_big(np.zeros((64, 64), np.float32))


@pytest.mark.parametrize("warps", [0, 33])
def test_blocks_have_1_to_32_warps(warps: int) -> None:
    @pk.kernel(warps=warps)
    def k(x: X):
        pass

    with pytest.raises(pk.ResourceError, match=f"a block of {warps} warps"):
        k.program(x)


def test_named_barriers_run_out() -> None:
    @pk.kernel
    def k(x: X):
        for _ in range(16):
            warp.sync_at(pk.named_barrier(warps=1))

    with pytest.raises(pk.ResourceError, match="a block has 16 hardware barriers"):
        k.cuda(x)


# Arguments --------------------------------------------------------------------------------------------------


@pk.kernel
def taking(a: pk.gl((bf16, f16), "N", 64), b: pk.gl((bf16, f16), "N", pk.static("D")), n: i32 = 3, *, m: int = 4):
    s = pk.shared(pk.st(a.dtype, 16, 64))
    warp.load_async(s, a, (0, 0))


def zeros(*shape: int, dtype: Any = np.float16) -> Any:
    return np.zeros(shape, dtype)


BAD_ARGUMENTS: list[tuple[str, Callable[[], Any], str, str]] = [
    ("dtype", lambda: taking(zeros(32, 64, dtype=np.float32), zeros(32, 8), 1), "taking: operand 'a' is f32", "it takes bf16 or f16"),
    ("odd dtype", lambda: taking(zeros(32, 64, dtype=np.complex64), zeros(32, 8), 1), "operand 'a'", ""),
    ("rank", lambda: taking(zeros(1, 32, 64), zeros(32, 8), 1), "taking: operand 'a' has shape (1, 32, 64)", "it takes 2 dimensions: gl<bf16 or f16, N x 64>"),
    ("static", lambda: taking(zeros(32, 65), zeros(32, 8), 1), "taking: operand 'a' has shape (32, 65)", "it takes gl<bf16 or f16, N x 64>"),
    ("names", lambda: taking(zeros(32, 64), zeros(33, 8), 1), "operand 'b' has N = 33, operand 'a' has N = 32", "dimension N must agree"),
    ("empty", lambda: taking(zeros(0, 64), zeros(0, 8), 1), "taking: operand 'a' is empty: shape (0, 64)", "every dimension is at least 1"),
    ("empty static", lambda: taking(zeros(3, 64), zeros(3, 0), 1), "taking: operand 'b' is empty: shape (3, 0)", ""),
    ("last stride", lambda: taking(zeros(64, 32).T, zeros(32, 8), 1), "operand 'a' has strides (1, 32) for shape (32, 64)", "must be contiguous"),
    ("every second", lambda: taking(zeros(32, 128)[:, ::2], zeros(32, 8), 1), "has strides (128, 2) for shape (32, 64)", "must be contiguous"),
    ("backwards", lambda: taking(zeros(32, 64)[::-1], zeros(32, 8), 1), "operand 'a' has negative strides (-64, 1)", "pass a copy"),
    ("missing", lambda: taking(zeros(32, 64), n=1), "taking misses 'b'", "pass every operand"),
    ("too many", lambda: taking(zeros(32, 64), zeros(32, 8), 1, 4), "taking takes 3 operands (a, b, n), not 4", "pass static values by name"),
    ("twice", lambda: taking(zeros(32, 64), zeros(32, 8), 1, a=1), "taking got 'a' twice", ""),
    ("unknown", lambda: taking(zeros(32, 64), zeros(32, 8), 1, q=1), "taking has no parameter 'q'", "it takes a, b, n, m"),
    ("no array", lambda: taking("a", zeros(32, 8), 1), "taking: operand 'a' is str", "pass a NumPy, torch, CuPy or JAX array"),
    ("list", lambda: taking([[1.0] * 64], zeros(32, 8), 1), "taking: operand 'a' is list", ""),
    ("no int", lambda: taking(zeros(32, 64), zeros(32, 8), 1.5), "taking: 'n' is 1.5, where i32 is needed", "pass a Python int"),
    ("too large", lambda: taking(zeros(32, 64), zeros(32, 8), 2**31), "taking: 'n' is 2147483648, which i32 cannot hold", ""),
    ("spec", lambda: taking(pk.spec(f16, (32, 64)), zeros(32, 8), 1), "a pk.spec has no elements to run on", ".program, .cuda or .compile"),
    ("cp.async", lambda: taking(zeros(32, 65)[:, :64], zeros(32, 8), 1), "cp.async moves 4, 8 or 16 bytes; a has pointer and strides that are multiples of 2 bytes only", "16 bytes"),
    ("huge", lambda: taking.program(pk.spec(f16, (2**31, 64)), pk.spec(f16, (2**31, 8)), 1), "dimension of 2147483648", "2**31"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "fact", "fix"), [case[1:] for case in BAD_ARGUMENTS], ids=[case[0] for case in BAD_ARGUMENTS])
def test_arguments(call: Callable[[], Any], fact: str, fix: str) -> None:
    with pytest.raises(pk.KernelError) as caught:
        call()
    says(caught.value, fact, fix)
    assert any(frame.file == __file__ for frame in caught.value.where), str(caught.value)


def test_mixed_devices(monkeypatch: pytest.MonkeyPatch) -> None:

    module = sys.modules["pykittens.kernel"]

    real, devices = module.describe, iter((0, 1))
    monkeypatch.setattr(module, "describe", lambda a, *rest: real(a, *rest)._replace(device=next(devices)))
    with pytest.raises(pk.ArgumentError) as caught:
        taking(zeros(32, 64), zeros(32, 8), 1)
    says(caught.value, "taking: operands lie on different devices: a on GPU 0, b on GPU 1", "move them to one device")
    devices = iter((None, 1))
    with pytest.raises(pk.ArgumentError, match="a on the CPU, b on GPU 1"):
        taking(zeros(32, 64), zeros(32, 8), 1)


def test_a_grid_of_nothing() -> None:
    @pk.kernel(grid=lambda x, n: (n,))
    def k(x: X, n: i32):
        pass

    with pytest.raises(pk.ArgumentError, match=r"k: grid is \(0, 1, 1\)"):
        k(np.zeros((4, 64), np.float32), 0)


def test_decorations() -> None:
    with pytest.raises(pk.TraceError, match="@pk.kernel has no option wraps"):
        pk.kernel(wraps=3)
    with pytest.raises(pk.TraceError, match="parameter 'a' of kernel 'untyped' has no type") as caught:

        @pk.kernel
        def untyped(a):
            pass

    assert caught.value.where[0].file == __file__
    with pytest.raises(pk.TraceError, match="pk.gl with 5 dimensions"):
        pk.gl(f32, 1, 2, 3, 4, 5)
    with pytest.raises(pk.KernelError, match="pk.gl of 'f32'"):
        pk.gl("f32", 1, 2)
    with pytest.raises(pk.KernelError, match=r"pk.gl with dimension 1.5"):
        pk.gl(f32, 1.5)


# Types of operands ------------------------------------------------------------------------------------------


def store_wrong_shape(x: X):
    warp.store(x, warp.zeros(f32, 16, 64), None)  #!


def store_of_a_number(x: X):
    warp.store(x, 3.0, (0, 0))  #!


def store_shared_to_shared(x: X):
    a, b = pk.shared(pk.st(f32, 16, 64)), pk.shared(pk.st(f32, 16, 64))
    warp.store(a, b)  #!


def store_misfit(x: X):
    s = pk.shared(pk.st(f32, 32, 64))
    warp.store(s, warp.zeros(f32, 16, 64))  #!


def store_array_of_tiles(x: X):
    tiles = pk.shared(pk.st(f32, 16, 64), count=2)
    warp.store(tiles, warp.zeros(f32, 16, 64))  #!


def store_to_registers(x: X):
    warp.store(warp.zeros(f32, 16, 64), warp.zeros(f32, 16, 64))  #!


def store_partial(x: X):
    warp.store(x, warp.zeros_col(f32, 64, partial=True), (0, 0))  #!


def store_swapped(x: X):
    warp.store(warp.zeros(f32, 16, 64), x, (0, 0))  #!


def load_without_rows(x: X):
    warp.load(x, (0, 0))  #!


def load_without_coordinate(x: X):
    warp.load(x, rows=16)  #!


def load_with_three_coordinates(x: X):
    warp.load(x, (0, 0, 0), rows=16)  #!


def load_with_float_coordinate(x: X):
    warp.load(x, (0.5, 0), rows=16)  #!


def load_past_the_columns(x: X):
    warp.load(x, (0, 1), rows=16)  #!


def load_into_registers(x: X):
    block.load_into(warp.zeros(f32, 16, 64), x, (0, 0))  #!


def load_into_wrong_dtype(x: X):
    block.load_into(pk.shared(pk.st(bf16, 16, 64)), x, (0, 0))  #!


def load_odd_rows(x: X):
    warp.load(x, (0, 0), rows=20)  #!


def load_a_vector_as_tile(x: X):
    warp.load(pk.shared(pk.sv(f32, 64)))  #!


def load_vector_of_a_tile(x: X):
    warp.load_vec(pk.shared(pk.st(f32, 16, 64)))  #!


def index_past_the_end(x: X):
    pk.shared(pk.st(f32, 16, 64), count=2)[2]  #!


def index_one_tile(x: X):
    pk.shared(pk.st(f32, 16, 64))[0]  #!


def slice_an_array(x: X):
    pk.shared(pk.st(f32, 16, 64), count=2)[0:1]  #!


def part_past_the_end(x: X):
    pk.shared(pk.st(f32, 16, 64))[0:16, 32:96].part(0, 48, 16, 32)  #!


def part_off_the_grid(x: X):
    pk.shared(pk.st(f32, 32, 64)).part(x.rows, 0, 16, 64)  #!


def part_inside_a_vector(x: X):
    pk.shared(pk.st(bf16, 32, 64)).part(0, x.rows * 4, 16, 16)  #!


def mixed_dtypes(x: X):
    warp.zeros(f32, 16, 64) + warp.zeros(bf16, 16, 64)  #!


def mixed_shapes(x: X):
    warp.zeros(f32, 16, 64) + warp.zeros(f32, 16, 32)  #!


def mixed_layouts(x: X):
    warp.zeros(f32, 16, 64) + warp.zeros(f32, 16, 64, layout="col")  #!


def mixed_scopes(x: X):
    pk.group(2).zeros(f32, 32, 64) + warp.zeros(f32, 32, 64)  #!


def mixed_scopes_mma(x: X):
    a = pk.group(2).zeros(bf16, 32, 64)
    warp.mma_ABt(warp.zeros(f32, 32, 16), a, pk.shared(pk.st(bf16, 16, 64)))  #!


def accumulator_of_another_scope(x: X):
    acc = pk.group(2).zeros(f32, 32, 16)
    warp.mma_ABt(acc, pk.shared(pk.st(bf16, 32, 64)), pk.shared(pk.st(bf16, 16, 64)))  #!


def vector_of_the_wrong_length(x: X):
    warp.zeros(f32, 16, 64) * warp.zeros_col(f32, 32)  #!


def vector_of_the_wrong_layout(x: X):
    warp.zeros(f32, 16, 64) * warp.zeros_col(f32, 16, layout="col")  #!


def partial_in_a_product(x: X):
    warp.zeros(f32, 16, 64) * warp.zeros_col(f32, 16, partial=True)  #!


def exp_of_a_partial(x: X):
    pk.exp(warp.zeros_col(f32, 16, partial=True))  #!


def exp_of_integers(x: X):
    pk.exp(warp.zeros(i32, 16, 64))  #!


def divide_integers(x: X):
    warp.zeros(i32, 16, 64) / 2  #!


def float_with_integers(x: X):
    warp.zeros(i32, 16, 64) + 0.5  #!


def shift_floats(x: X):
    warp.zeros(f32, 16, 64) << 2  #!


def assign_misfit(x: X):
    t = warp.zeros(f32, 16, 64)
    t[:] = warp.zeros(f32, 32, 64)  #!


def assign_dtype(x: X):
    t = warp.zeros(bf16, 16, 64)
    t[:] = warp.zeros(f32, 16, 64)  #!


def choose_by_numbers(x: X):
    t = warp.zeros(f32, 16, 64)
    pk.where(t, t, 0.0)  #!


def mma_of_floats(x: X):
    t = warp.zeros(f32, 16, 64)
    warp.mma_ABt(warp.zeros(f32, 16, 16), t, t)  #!


def mma_layout(x: X):
    t = warp.zeros(bf16, 16, 64)
    warp.mma_AB(warp.zeros(f32, 16, 64), warp.zeros(bf16, 16, 16), t)  #!


def mma_shapes(x: X):
    warp.mma_ABt(warp.zeros(f32, 16, 16), warp.zeros(bf16, 16, 64), pk.shared(pk.st(bf16, 32, 64)))  #!


def mma_accumulator(x: X):
    warp.mma_ABt(warp.zeros(bf16, 16, 16), warp.zeros(bf16, 16, 64), pk.shared(pk.st(bf16, 16, 64)))  #!


def reduce_a_vector_by_rows(x: X):
    warp.zeros_col(f32, 16).row_sum()  #!


def columns_across_warps(x: X):
    block.zeros(f32, 64, 64).col_sum()  #!


def total_of_a_whole(x: X):
    warp.zeros_col(f32, 16).total()  #!


def swap_floats(x: X):
    warp.zeros(f32, 16, 16).swap_layout()  #!


def convert_to_fp8(x: X):
    warp.zeros(f32, 16, 16).to(pk.e4m3)  #!


def scope_that_does_not_divide(x: X):
    pk.group(3).zeros(f32, 48, 16)  #!


def role_that_does_not_fit(x: X):
    with pk.role("a", warps=5):  #!
        pass


def role_in_a_branch(x: X):
    with pk.when(x.rows > 3), pk.role("a", warps=1):  #!
        pass


def budget_of_a_warp(x: X):
    with pk.role("a", warps=1, registers=40):  #!
        pass


def print_shared(x: X):
    pk.print(pk.shared(pk.st(f32, 16, 64)))  #!


def wait_for_a_traced_count(x: X):
    warp.wait_loads(x.rows)  #!


def float_into_an_integer_variable(x: X):
    v = pk.var(i32, 0)
    v[:] = 1.5  #!


def bits_of_a_float(x: X):
    n = x[0, 0]
    n & 3  #!


def floor_division_of_a_float(x: X):
    n = x[0, 0]
    n // 3  #!


def inline_unknown(x: X):
    pk.cuda("{a} = {b};", writes={"a": pk.var(i32, 0)})  #!


def inline_number(x: X):
    pk.cuda("{a} = 3;", writes={"a": 4})  #!


def barrier_that_is_none(x: X):
    warp.sync_at(pk.shared(pk.st(f32, 16, 64)))  #!


@pytest.mark.parametrize(("kernel", "fact", "fix"), [
    (store_wrong_shape, "where in x: gl<f32, N x 64>?", "give a coordinate"),
    (store_of_a_number, "store of 3.0", "takes a register or shared tile"),
    (store_shared_to_shared, "a store from b to a, both in shared memory", "load, then store"),
    (store_misfit, "store: a rt<f32, 16x64> does not fit 32 x 64 elements in memory", "shapes must agree"),
    (store_array_of_tiles, "store: tiles is an array of 2 st<f32, 16x64>", "index one: tiles[i]"),
    (store_to_registers, "store: rt<f32, 16x64> is rt<f32, 16x64>, not memory", ""),
    (store_partial, "store: a partial vector has no values yet", "x.total()"),
    (store_swapped, "store: rt<f32, 16x64> is rt<f32, 16x64>, not memory", "store(target, source)"),
    (load_without_rows, "load of x: gl<f32, N x 64> needs the size of the tile", "rows=16"),
    (load_without_coordinate, "where in x: gl<f32, N x 64>?", "coordinate"),
    (load_with_three_coordinates, "3 coordinates for x: gl<f32, N x 64>", "give 2"),
    (load_with_float_coordinate, "load: a coordinate is f32", "integers"),
    (load_past_the_columns, "load: column 64 is past the 64 columns of x", "coordinates count tiles"),
    (load_into_registers, "not memory", ""),
    (load_into_wrong_dtype, "load: st<bf16, 16x64> and x: gl<f32, N x 64> differ in dtype", "copies do not convert"),
    (load_odd_rows, "a register tile of 20 x 64 f32 does not divide over 1 warps", "multiple of 16"),
    (load_a_vector_as_tile, "load makes a tile", "load_vec"),
    (load_vector_of_a_tile, "a vector is not loaded from st<f32, 16x64>", ""),
    (index_past_the_end, "index 2 of 2 items", "use 0 to 1"),
    (index_one_tile, "is one st<f32, 16x64>", "tile[row:row + 16, 0:64]"),
    (slice_an_array, "is 2 items", "index one first"),
    (part_past_the_end, "columns 48 to 80 of st<f32, 16x32>", "stay within its 32 columns"),
    (part_off_the_grid, "begins at a row that may not be a multiple of 8", "multiples of 8"),
    (part_inside_a_vector, "begins at a column that may not be a multiple of 8", "16 bytes"),
    (mixed_dtypes, "add mixes bf16 and f32", "x.to(pk.f32)"),
    (mixed_shapes, "add: rt<f32, 16x32> does not fit rt<f32, 16x64>", "shapes must agree"),
    (mixed_layouts, "add: rt<f32, 16x64, col> does not fit rt<f32, 16x64>", "swap_layout"),
    (mixed_scopes, "add mixes scopes: rt<f32, 32x64> over 2 warps and rt<f32, 32x64>", "the same scope"),
    (mixed_scopes_mma, "mma_ABt mixes scopes: rt<bf16, 32x64> over 2 warps and rt<f32, 32x16>", "the same scope"),
    (accumulator_of_another_scope, "the accumulator rt<f32, 32x16> over 2 warps is not of this warp", "warp.zeros"),
    (vector_of_the_wrong_length, "mul: rv<f32, 32, col_vec> does not fit rt<f32, 16x64>", "one value per row"),
    (vector_of_the_wrong_layout, "mul: rv<f32, 16, col_vec, col> does not fit rt<f32, 16x64>", "layout"),
    (partial_in_a_product, "mul: rv<f32, 16, col_vec, partial> does not fit rt<f32, 16x64>", "x.total()"),
    (exp_of_a_partial, "exp of a partial vector would not be exp of its sum", "x.total()"),
    (exp_of_integers, "exp takes floats, not rt<i32, 16x64>", "x.to(pk.f32)"),
    (divide_integers, "/ takes floats, not i32", "x.to(pk.f32)"),
    (float_with_integers, "add mixes a i32 tile with the float 0.5", "x.to(pk.f32)"),
    (shift_floats, "shl takes integers and masks, not f32", ""),
    (assign_misfit, "x[:] = ...: rt<f32, 32x64> does not fit rt<f32, 16x64>", ""),
    (assign_dtype, "a rt<f32, 16x64> cannot be stored into a rt<bf16, 16x64>", "value.to(pk.bf16)"),
    (choose_by_numbers, "where chooses by a bool mask, not rt<f32, 16x64>", "compare first"),
    (mma_of_floats, "mma_ABt multiplies bf16 by bf16 or f16 by f16", "x.to(pk.bf16)"),
    (mma_layout, "in row layout, where the fragment is col layout", "layout='col'"),
    (mma_shapes, "shapes do not multiply: accumulator 16 x 16, A 16 x 64, B 64 x 32 (transposed)", "A is m x k"),
    (mma_accumulator, "accumulates into a row-layout float32 register tile, not rt<bf16, 16x16>", "warp.zeros(pk.f32, m, n)"),
    (reduce_a_vector_by_rows, "row and column reductions take a tile, not rv<f32, 16, col_vec>", "v.sum()"),
    (columns_across_warps, "a column reduction of rt<f32, 64x64> over 4 warps crosses warps", "reduce on the warp"),
    (total_of_a_whole, "total takes a partial vector, not rv<f32, 16, col_vec>", "complete already"),
    (swap_floats, "swap_layout moves 16-bit floats, not f32", "convert first"),
    (convert_to_fp8, "registers cannot hold e4m3", "store the float32 tile"),
    (scope_that_does_not_divide, "a group(3) has 3 warps, the current role 4", "multiple of 3"),
    (role_that_does_not_fit, "role 'a' wants warps 0 to 4 of 4", "more warps"),
    (role_in_a_branch, "role 'a' begins inside a pk.when", "roles are static"),
    (budget_of_a_warp, "role 'a': 40 registers a thread for 1 warps", "whole warpgroups"),
    (print_shared, "pk.print shows scalars and register tiles, not st<f32, 16x64>", "load it"),
    (wait_for_a_traced_count, "cannot wait for", "Python int"),
    (float_into_an_integer_variable, "v is i32, the new value f32", "pk.cast"),
    (bits_of_a_float, "and takes integers, not f32", "pk.cast"),
    (floor_division_of_a_float, "// and % take integers", "divide with /"),
    (inline_unknown, "pk.cuda: no operand is called b", "operands here: a"),
    (inline_number, "pk.cuda writes a, which is the number 4", "pk.var"),
    (barrier_that_is_none, "not a named barrier", "pk.named_barrier"),
])  # fmt: skip
def test_operands(kernel: Callable[..., Any], fact: str, fix: str) -> None:
    says(refused(kernel), fact, fix)


def test_operands_are_shown_with_the_lines_that_made_them() -> None:
    def k(x: X):
        scores = warp.zeros(f32, 16, 64)
        weights = warp.zeros(bf16, 16, 64)
        scores + weights  #!

    text = str(refused(k))
    assert re.search(r"scores is rt<f32, 16x64>, made at .*test_errors.py:\d+ in k\n +scores = warp.zeros", text), text
    assert "weights is rt<bf16, 16x64>, made at" in text


def test_an_error_in_a_helper_names_both_lines() -> None:
    def helper(t):
        return t + warp.zeros(f32, 32, 64)

    @pk.kernel
    def k(x: X):
        helper(warp.zeros(f32, 16, 64))

    with pytest.raises(pk.TypeRuleError) as caught:
        k.program(x)
    assert [f.function for f in caught.value.where[:2]] == ["helper", "k"]
    assert "called from" in str(caught.value)


def test_strides_that_cp_async_cannot_take_are_fine_for_others() -> None:
    @pk.kernel
    def k(a: BF):
        s = pk.shared(pk.st(bf16, 16, 64))
        warp.load_into(s, a, (0, 0))

    k.cuda(pk.spec(bf16, (32, 64), strides=(65, 1), align=2))


REGISTER_DTYPES = [bf16, f16, f32, i32, pk.u32, pk.bool_]
MEMORY_DTYPES = [*REGISTER_DTYPES, pk.e4m3, pk.e5m2, pk.i8, pk.u8, pk.f64, pk.i64]


@pytest.mark.parametrize("dtype", MEMORY_DTYPES, ids=str)
def test_dtypes_that_registers_hold(dtype: pk.types.DType) -> None:
    @pk.kernel
    def k(x: X):
        warp.zeros(dtype, 16, 32)

    if dtype in REGISTER_DTYPES:
        k.program(x)
    else:
        with pytest.raises(pk.TypeRuleError, match=f"a register tile cannot hold {dtype}"):
            k.program(x)


UNARY = ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "rcp", "relu", "tanh", "sigmoid", "erf", "sin", "cos"]


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [i32, pk.u32, pk.bool_], ids=str)
def test_maps_of_floats_refuse_the_rest(name: str, dtype: pk.types.DType) -> None:
    def k(x: X):
        getattr(pk, name)(warp.zeros(dtype, 16, 32))  #!

    says(refused(k), f"{name} takes floats, not rt<{dtype}, 16x32>", "x.to(pk.f32)")


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b, "eq": lambda a, b: a == b, "max": pk.maximum, "min": pk.minimum, "and": lambda a, b: a & b, "shl": lambda a, b: a << b,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("make", "text"), [
    (lambda: (warp.zeros(f32, 16, 64), warp.zeros(f32, 32, 64)), "{}: rt<f32, 32x64> does not fit rt<f32, 16x64>"),
    (lambda: (warp.zeros(f32, 32, 64), pk.group(2).zeros(f32, 32, 64)), "{} mixes scopes: rt<f32, 32x64> and rt<f32, 32x64> over 2 warps"),
    (lambda: (warp.zeros(f32, 16, 64), warp.zeros(i32, 16, 64)), "{} mixes f32 and i32"),
    (lambda: (warp.zeros(f32, 16, 64), "a"), "{} takes a register tile or vector, not 'a'"),
    (lambda: (warp.zeros(f32, 16, 64), pk.shared(pk.st(f32, 16, 64))), "{} takes a register tile or vector, not st<f32, 16x64>"),
])  # fmt: skip
def test_pairs_that_do_not_go_together(name: str, make: Callable[[], Any], text: str) -> None:
    def k(x: X):
        a, b = make()
        OPERATORS[name](a, b)

    with pytest.raises(pk.TypeRuleError) as caught:
        pk.kernel(k).program(x)
    assert text.format(name) in caught.value.fact
