"""What the recording of a kernel refuses: swallowed errors, open regions, values outside of theirs."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import pykittens as pk
from pykittens import bf16, block, f32, warp
from tests.expecting import X, refused, says, x

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
    def k(x: X):
        region = pk.when(x.rows > 3)
        region.__enter__()  #!
        others.append(region)

    others: list[Any] = []
    says(refused(k), "a pk.when begun here is still open at the end of the kernel")


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


@pytest.mark.parametrize(
    "make", [lambda x: warp.zeros(f32, 16, 64), lambda x: pk.shared(pk.st(f32, 16, 64)), lambda x: x, lambda x: x.rows]
)
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
    with pytest.raises(
        pk.TraceError, match="was made while another kernel was traced, or this one for other arguments"
    ) as caught:
        pk.kernel(using).program(x)
    assert "it was made at" in caught.value.also


# Lines ------------------------------------------------------------------------------------------------------


def test_operands_are_shown_with_the_lines_that_made_them() -> None:
    def k(x: X):
        scores = warp.zeros(f32, 16, 64)
        weights = warp.zeros(bf16, 16, 64)
        scores + weights  #!

    text = str(refused(k))
    assert re.search(r"scores is rt<f32, 16x64>, made at .*test_recorder.py:\d+ in k\n +scores = warp.zeros", text), (
        text
    )
    assert "weights is rt<bf16, 16x64>, made at" in text


def test_an_error_in_a_helper_names_both_lines() -> None:
    def helper(t):
        return t + warp.zeros(f32, 32, 64)

    @pk.kernel
    def k(x: X):
        helper(warp.zeros(f32, 16, 64))

    with pytest.raises(pk.TypeRuleError) as caught:
        k.program(x)
    assert [f.function for f in caught.value.location[:2]] == ["helper", "k"]
    assert "called from" in str(caught.value)
