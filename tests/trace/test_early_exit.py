"""Regions of run-time control flow that are left early."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

import pykittens as pk
from pykittens import f32, warp
from tests.expecting import X, refused, says, x


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


@pytest.mark.parametrize(
    "kernel",
    [
        leave_range_by_break,
        leave_range_by_return,
        leave_inner_range,
        leave_loop_by_break,
        leave_unrolled_range,
        swallow_in_a_range,
    ],
)
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


def return_out_of_a_stack(x: X):
    with ExitStack() as stack:
        stack.enter_context(pk.when(x.rows > 3))
        return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def break_out_of_a_stack_that_a_helper_fills(x: X):
    for _ in range(2):
        with ExitStack() as stack:
            fill(stack, x.rows > 3)
            break  #!
        warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


def fill(stack: ExitStack, condition: Any) -> None:
    stack.enter_context(pk.when(condition))


class UsersOwn:
    def __init__(self, condition: Any) -> None:
        self.inner = pk.when(condition)

    def __enter__(self) -> None:
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)


def return_out_of_a_class_of_the_users(x: X):
    with UsersOwn(x.rows > 3):
        return  #!
    warp.store(x, warp.zeros(f32, 16, 64), (0, 0))


@pytest.mark.parametrize(
    "kernel",
    [
        return_out_of_a_stack,
        break_out_of_a_stack_that_a_helper_fills,
        return_out_of_a_class_of_the_users,
        when_return,
        when_return_first,
        when_return_under_if,
        when_continue,
        when_break,
        when_break_of_a_while,
        when_continue_in_a_run_time_loop,
        otherwise_return,
        role_return,
        nested_when_return,
        when_return_in_except,
        return_through_a_context_manager_of_the_users,
    ],
)
def test_leaving_a_with_region(kernel: Callable[..., Any]) -> None:
    says(refused(kernel), "was left by return, break or continue", "let the region end")


def test_leaving_in_a_helper_names_the_helpers_line() -> None:
    with pytest.raises(pk.TraceError, match="was left by return, break or continue") as caught:
        pk.kernel(when_return_value).program(x)
    assert caught.value.location[0].function == "helper" and "return warp.zeros" in caught.value.location[0].text


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
            fill(stack, x.rows > 8)
            with UsersOwn(x.rows > 9):
                warp.load(x, (0, 0), rows=16)
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

            inner()

    def helper(x):
        with pk.when(x.rows > 3):
            warp.load(x, (0, 0), rows=16)
        return False

    k.program(x)
    k.program(x, skip=True)
