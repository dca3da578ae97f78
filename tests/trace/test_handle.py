"""Traced values where Python wants to know more than a trace can tell; arrays where an operand is meant."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, warp
from pykittens.trace.handle import AUGMENTED
from tests.expecting import X, line_of, refused, says, x

# Python that only looks as if it ran in the kernel ----------------------------------------------------------


def test_if_on_a_traced_value() -> None:
    def k(x: X):
        if x.rows > 3:  #!
            pass

    says(
        refused(k),
        "a Python condition on x.rows > 3, which is known only when the kernel runs",
        "with pk.when(condition)",
    )


@pytest.mark.parametrize("what", ["while", "and", "assert", "in", "chain", "ternary", "any"])
def test_other_conditions(what: str) -> None:
    def k(x: X):
        n = x.rows
        conditions[what](n)  #!

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

    conditions = {"while": loop, "and": conjunction, "assert": claim, "in": member, "chain": chain}
    conditions |= {"ternary": ternary, "any": some}
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

    says(
        refused(k),
        "i is known only when the kernel runs, so it cannot index a Python sequence",
        "keep tiles in shared memory to index them",
    )


def test_python_range_of_a_traced_value() -> None:
    def k(x: X):
        for _ in range(x.rows):  #!
            pass

    says(refused(k), "x.rows is known only when the kernel runs", "pk.range")


@pytest.mark.parametrize(
    ("make", "text"),
    [
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
    ],
)
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

    for kernel, what, shape in (
        (closure, "the kernel captures 'weights',", "(4, 4)"),
        (a_global, "the kernel captures 'table',", "(16,)"),
        (in_a_list, "the kernel captures 'tables[0]',", "(4,)"),
        (default, "the static value 't' is", "(4, 4)"),
    ):
        with pytest.raises(pk.TraceError) as caught:
            kernel.program(x)
        says(
            caught.value,
            f"{what} an array of shape {shape}",
            "pass it to the kernel as an operand",
        )
        assert caught.value.location


def test_numpys_numbers_and_pythons_functions() -> None:
    """On the left of an operator too, and whatever of Python's and math's has a meaning for every element."""
    x = np.linspace(-2.6, 2.6, 256, dtype=np.float32).reshape(16, 16)
    out = np.zeros((8, 16, 16), np.float32)

    @pk.kernel(warps=1)
    def kernel(x: pk.gl(f32, 16, 16), out: pk.gl(f32, 8, 16, 16), n: pk.i32) -> None:
        tile = warp.load(x, (0, 0), rows=16)
        whole, rest = divmod(tile, 2.0)
        less = pk.where(np.bool_(True), pk.where(np.float32(0.5) < tile, 1.0, 0.0), tile)
        power = np.float64(2) ** pk.cast(np.int64(5) - n, f32)
        found = [
            np.float32(3) - tile,
            +tile,
            whole,
            rest,
            less,
            round(tile),
            math.floor(tile),
            math.trunc(tile) * power,
        ]
        for i, value in enumerate(found):
            warp.store(out, value, (i, 0, 0))

    kernel(x, out, 3)
    whole, rest = np.divmod(x, np.float32(2))
    want = [3 - x, x, whole, rest, np.float32(0.5) < x, np.round(x), np.floor(x), np.trunc(x) * 4]
    for got, expected in zip(out, want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_kernel_inside_another() -> None:
    """It is refused, and its function is traced into the other."""

    @pk.kernel(warps=1)
    def double(x: pk.gl(f32, "N", 64), y: pk.gl(f32, "N", 64)) -> None:
        warp.store(y, warp.load(x, (0, 0), rows=16) * 2.0, (0, 0))

    @pk.kernel(warps=1)
    def outer(x: pk.gl(f32, "N", 64), y: pk.gl(f32, "N", 64), *, call: Any) -> None:
        call(x, y)

    x, y = np.ones((16, 64), np.float32), np.zeros((16, 64), np.float32)
    for call in (double, lambda x, y: pk.softmax(x)):
        with pytest.raises(pk.ArgumentError, match="belongs to the kernel that is being traced"):
            outer(x, y, call=call)
    outer(x, y, call=double.function)
    assert (y == 2).all()


# Augmented assignments, and Python's words for rounding ------------------------------------------------------

NUMBERS = np.arange(-128, 128, dtype=np.int32).reshape(16, 16)


@pytest.mark.parametrize("dtype", [i32, f32])
def test_augmented_assignments_change_what_other_names_mean(dtype: Any) -> None:
    """`u = t; u //= 3` is seen under the name t, in loops and branches too, as NumPy has it."""
    other = ("and", "or", "xor", "lshift", "rshift") if dtype is f32 else ("truediv",)
    names = [name for name in AUGMENTED if name not in other]

    @pk.kernel(warps=1)
    def k(x: pk.gl(dtype, 16, 16), y: pk.gl(dtype, "N", 16), z: pk.gl(dtype, 32)) -> None:
        for n, name in enumerate(names):
            change = getattr(operator, f"i{name}")
            t, v = warp.load(x, (0, 0), rows=16), pk.var(dtype, 7)
            u, w = t, v
            for i in pk.range(2):
                with pk.when(i > 0):
                    u = change(u, 3)
                    w = change(w, 3)
            warp.store(y, t, (n, 0))
            warp.set(z, n, v)

    x = NUMBERS.astype(np.int32 if dtype is i32 else np.float32)
    y, z = np.zeros((16 * len(names), 16), x.dtype), np.zeros(32, x.dtype)
    k(x, y, z)
    for n, name in enumerate(names):
        change = getattr(operator, f"i{name}")
        np.testing.assert_array_equal(y[16 * n : 16 * n + 16], change(x.copy(), x.dtype.type(3)), err_msg=name)
        assert z[n] == change(np.full(1, 7, x.dtype), x.dtype.type(3))[0], name


@pytest.mark.parametrize("name", AUGMENTED)
def test_memory_is_stored_into(name: str) -> None:
    def k(x: pk.gl(f32, 16, 16), *, shared: bool) -> None:
        memory = pk.shared(pk.st(f32, 16, 16)) if shared else x
        getattr(operator, f"i{name}")(memory, 1)

    for shared in (False, True):
        with pytest.raises(pk.TypeRuleError, match="is in memory, and no operator changes it there"):
            pk.kernel(k).program(pk.spec(f32, (16, 16)), shared=shared)


def test_pythons_words_for_rounding() -> None:
    values = np.array([-2.5, -0.5, 0.5, 1.5, 2.25, -7.75, 3, 8], np.float32)
    words = (round, math.floor, math.ceil, math.trunc)

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 8), y: pk.gl(f32, 64), n: i32) -> None:
        for j, word in enumerate(words):
            for i in range(8):
                warp.set(y, 8 * j + i, word(x[i]))
            warp.set(y, 32 + j, pk.cast(word(n), f32))

    y = np.zeros(64, np.float32)
    k(values, y, -9)
    for j, word in enumerate((np.round, np.floor, np.ceil, np.trunc)):
        np.testing.assert_array_equal(y[8 * j : 8 * j + 8], word(values))
    assert (y[32:36] == -9).all()
