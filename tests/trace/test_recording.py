"""Python functions become programs: loops, branches, roles, variables, helpers, whatever Python wraps around them."""

import contextlib
import functools
import io
import itertools
import linecache
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import block, f32, i32, i64, warp
from pykittens.ops import control
from pykittens.program import Program
from tests.expecting import X, x


def names(program: Program) -> list[str]:
    return [op.name for op in program.walk()]


def run(kernel: Any, rows: int = 16, start: Any = 0, **fixed: Any) -> np.ndarray:
    """What a kernel of one tensor leaves in it."""
    out = np.full((rows, 64), start, np.float32)
    kernel(out, **fixed)
    return out


def put(x: Any, value: Any, row: Any = 0) -> None:
    """Writes a number into a row."""
    warp.set(x, (row, 0), value)


# Loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(7,), (2, 9), (3, 20, 4), (0,), (5, 2), (9, 0, -2), (1, 2), (-4, 3), (0, 7, 3)])
@pytest.mark.parametrize("unroll", [1, 2, 3])
@pytest.mark.parametrize("static", [True, False])
def test_a_range_is_pythons(bounds: tuple[int, ...], unroll: int, static: bool) -> None:
    @pk.kernel(warps=1)
    def k(x: X, start: i32, stop: i32, *, static: bool, step: int, unroll: int):
        count = pk.var(i32, 0)
        first, last = ends if static else (start, stop)
        for i in pk.range(first, last, step, unroll=unroll):
            warp.set(x, (count, 1), pk.cast(i, f32))
            count += 1
        put(x, pk.cast(count, f32))

    start, stop, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    ends = (start, stop)
    out = np.zeros((16, 64), np.float32)
    k(out, start, stop, static=static, step=step, unroll=unroll)
    want = list(range(start, stop, step))
    assert out[0, 0] == len(want) and out[: len(want), 1].tolist() == want


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("unroll", [2, 3])
def test_phases_have_their_own_python_state(n: int, unroll: int) -> None:
    @pk.kernel(warps=1)
    def k(x: X, n: i32, *, unroll: int):
        totals = [pk.var(f32, 0.0) for _ in range(unroll)]
        for i in pk.range(n, unroll=unroll):
            totals[0] += pk.cast(i, f32) + 1.0
            totals.append(totals.pop(0))
        for place, total in enumerate(totals):
            warp.set(x, (0, place), total)

    out = np.zeros((16, 64), np.float32)
    k(out, n, unroll=unroll)
    want = [sum(i + 1 for i in range(n) if i % unroll == phase) for phase in range(unroll)]
    assert out[0, :unroll].tolist() == want


def test_a_loop_is_recorded_once() -> None:
    @pk.kernel
    def k(x: X):
        seen = io.BytesIO()  # which no snapshot looks into
        for _ in pk.range(x.rows):
            for _ in pk.range(3):
                seen.write(b"x")
                warp.zeros(f32, 16, 16)
        warp.store(x, warp.full(f32, 16, 64, seen.tell()), (0, 0))

    program = k.program(x)
    assert names(program).count("range") == 2
    _, calls = (op.value for op in program.walk() if op.name == "fill")
    assert calls == 3  # the body of the inner loop: twice in the first pass of the outer, once in the second


def test_loops_nest_and_indices_are_64_bits_where_their_bounds_are() -> None:
    @pk.kernel
    def k(x: X, n: i64):
        for _ in pk.range(n):
            pass
        for _ in pk.range(5):
            pass

    ranges = [op for op in k.program(x, 3).walk() if isinstance(op, control.Range)]
    assert [op.index.type.dtype for op in ranges] == [i64, i32]


def test_parts_begin_where_loops_step() -> None:
    @pk.kernel(warps=1)
    def k(x: X):
        tile = pk.shared(pk.st(f32, 64, 64))
        block.load_into(tile, x, (0, 0))
        block.sync()
        for row in pk.range(0, x.rows, 16):
            for col in pk.range(0, 64, 16, unroll=2):
                part = warp.load(tile.part(row, pk.minimum(col, 48), 16, 16))
                warp.store(x, part * 2.0, pk.at(row, col))

    out = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    k(out)
    assert (out == 2 * np.arange(64 * 64).reshape(64, 64)).all()


@pytest.mark.parametrize(
    "through",
    [
        lambda n: list(pk.range(n)),
        lambda n: [0 for _ in pk.range(n)],  # one item for each recording
        lambda n: {i: 0 for i in pk.persistent(n)},
        lambda n: sum(1 for _ in pk.range(n)),
        lambda n: [*handed(n)],
        lambda n: list(Handed(n)),
        lambda n: list(zip(pk.range(n), [5, 5], strict=False)),  # two passes by zip, n by the kernel
        lambda n: list(itertools.islice(pk.range(n), 2)),
        lambda n: max(pk.loop()),
        lambda n: next(pk.range(n)),
    ],
)
def test_a_loop_of_the_kernel_is_no_sequence(through: Callable[[int], object]) -> None:
    @pk.kernel(warps=1)
    def k(x: X):
        through(4)

    with pytest.raises(pk.TraceError, match=r"(?s)test_recording.*as a statement"):
        k.program(x)


def handed(n: int) -> Iterator[Any]:
    yield from pk.range(n)


class Handed:
    def __init__(self, n: int) -> None:
        self.loop = pk.range(n)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.loop)


@pytest.mark.parametrize("through", [handed, Handed, pk.persistent])
def test_a_loop_may_be_handed_on(through: Callable[[int], Any]) -> None:
    @pk.kernel(warps=1)
    def k(x: X):
        for i in through(4):
            warp.set(x, (i, 0), pk.cast(i * 5, f32))

    assert run(k)[:4, 0].tolist() == [0, 5, 10, 15]


def test_while() -> None:
    @pk.kernel(warps=1)
    def k(x: X, n: i32):
        i, seen = pk.var(i32, 0), pk.var(i32, 0)
        for _ in pk.loop():
            pk.break_if(i >= n)
            with pk.when(i % 3 == 1):
                seen += 1
            i += 1
        put(x, pk.cast(i, f32))
        put(x, pk.cast(seen, f32), 1)

    out = np.zeros((16, 64), np.float32)
    k(out, 8)
    assert out[:2, 0].tolist() == [8, 3]
    k(out, -1)
    assert out[:2, 0].tolist() == [0, 0]


# Branches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 3, 5])
def test_branches(value: int) -> None:
    @pk.kernel(warps=1)
    def k(x: X, n: i32):
        v = pk.var(i32, 0)
        with pk.when(n > 2):
            v[:] = 1
            with pk.when(n > 4):
                v += 10
            with pk.otherwise():
                v += 20
        with pk.otherwise():
            v[:] = 2
        put(x, pk.cast(v, f32))

    out = np.zeros((16, 64), np.float32)
    k(out, value)
    assert out[0, 0] == (2 if value <= 2 else 11 if value > 4 else 21)


def test_a_condition_may_be_known() -> None:
    @pk.kernel(warps=1)
    def k(x: X):
        with pk.when(False):
            put(x, 1.0)
        with pk.otherwise():
            put(x, 2.0)

    assert run(k)[0, 0] == 2


@pytest.mark.parametrize("between", [lambda x: warp.zeros(f32, 16, 16), lambda x: pk.when(x.rows > 1).__enter__()])
def test_otherwise_follows_its_when(between: Callable[[Any], Any]) -> None:
    @pk.kernel
    def k(x: X):
        with pk.when(x.rows > 3):
            pass
        between(x)
        with pk.otherwise():
            pass

    with pytest.raises(pk.TraceError, match=r"pk.otherwise without a pk.when just before it"):
        k.program(x)


def test_otherwise_only_once() -> None:
    @pk.kernel
    def k(x: X):
        with pk.when(x.rows > 3):
            pass
        with pk.otherwise():
            warp.zeros(f32, 16, 16)
        with pk.otherwise():
            warp.zeros(f32, 16, 16)

    with pytest.raises(pk.TraceError, match=r"pk.otherwise without"):
        k.program(x)


# Roles ------------------------------------------------------------------------------------------------------


def test_roles_have_their_own_warps() -> None:
    @pk.kernel(warps=8)
    def k(x: X):
        assert (warp.count, block.warps, block.index, pk.group(4).count) == (8, 8, 0, 2)
        with pk.role("one", warps=2) as me:
            assert block.warps == 2 and warp.count == 2
            warp.set(x, (me, 0), pk.cast(me + 10, f32))
        with pk.role("two", warps=2):
            with pk.role("inner", warps=1):
                assert warp.index == 0 and block.warps == 1
                put(x, 20.0, 2)
            with pk.role("inner too", warps=1):
                put(x, 21.0, 3)
        with pk.role("three", warpgroups=1) as me:
            assert me == 0 and pk.group(4).count == 1
            warp.set(x, (4 + warp.index, 0), pk.cast(warp.index + 30, f32))

    program = k.program(x)
    roles = [op for op in program.walk() if isinstance(op, control.Role)]
    assert [(op.label, op.first, op.scope.warps) for op in roles] == [
        ("one", 0, 2),
        ("two", 2, 2),
        ("inner", 2, 1),
        ("inner too", 3, 1),
        ("three", 4, 4),
    ]
    assert run(k)[:8, 0].tolist() == [10, 11, 20, 21, 30, 31, 32, 33]


# Python around kernels --------------------------------------------------------------------------------------


def build(factor: float) -> Any:
    @pk.kernel(warps=1)
    def k(x: X):
        put(x, factor)

    return k


class Scale:
    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, t: Any) -> Any:
        return t * self.factor

    @staticmethod
    def load(x: Any) -> Any:
        return warp.load(x, (0, 0), rows=16)


def test_closures_classes_comprehensions_and_helpers() -> None:
    assert run(build(3.0))[0, 0] == 3 and run(build(4.0))[0, 0] == 4
    scale = Scale(2.0)

    @pk.kernel(warps=1)
    def k(x: X):
        tiles = [scale(Scale.load(x)) for _ in range(3)]
        total = functools.reduce(lambda a, b: a + b, tiles)
        with contextlib.ExitStack() as stack:
            stack.enter_context(pk.when(x.rows > 3))
            warp.store(x, functools.partial(pk.maximum, total)(sum(tiles) * 0.0), (0, 0))

    assert (run(k, start=1) == 6).all()


SOURCE = """
import pykittens as pk
@pk.kernel(warps=1)
def made(x: pk.gl(pk.f32, "N", 64)):
    for i in pk.range(3):
        with pk.when(i > 0):
            pk.warp.set(x, (i, 0), 7.0)
@pk.kernel(warps=1)
def bad(x: pk.gl(pk.f32, "N", 64)):
    with pk.when(x.rows > 3):
        return
    pk.warp.set(x, (0, 0), 7.0)
"""


@pytest.mark.parametrize("filename", ["<string>", "<ipython-input-3-abc>", "/tmp/ipykernel_1/23.py", "<stdin>"])
def test_kernels_without_a_file(filename: str) -> None:
    space: dict[str, Any] = {}
    exec(compile(SOURCE, filename, "exec"), space)
    assert run(space["made"])[:3, 0].tolist() == [0, 7, 7]
    with pytest.raises(pk.TraceError, match="was left by return, break or continue") as caught:
        space["bad"].program(x)
    assert str(caught.value.location[0]) == f"{filename}:11"


def test_a_notebooks_cell_shows_its_source() -> None:
    filename = "<ipython-input-9-def>"
    linecache.cache[filename] = (len(SOURCE), None, SOURCE.splitlines(True), filename)
    space: dict[str, Any] = {}
    exec(compile(SOURCE, filename, "exec"), space)
    with pytest.raises(pk.TraceError) as caught:
        space["bad"].program(x)
    assert "\n      return" in str(caught.value)


def test_postponed_annotations() -> None:
    space: dict[str, Any] = {}
    exec(compile("from __future__ import annotations" + SOURCE, "<string>", "exec"), space)
    assert run(space["made"])[2, 0] == 7

    def make() -> Any:
        inner = pk.gl(f32, "N", 64)
        code = "from __future__ import annotations\ndef k(x: inner): pass\n"
        local: dict[str, Any] = {"inner": inner}
        exec(code, local)
        return pk.kernel(local["k"])

    make().program(x)


def test_statements_know_their_lines() -> None:
    def helper(t: Any) -> Any:
        return t * 2.0

    @pk.kernel
    def k(x: X):
        t = warp.load(x, (0, 0), rows=16)
        helper(t)

    program = k.program(x)
    load, product = (op for op in program.walk() if op.name in ("load", "binary"))
    assert load.location[0].text == "t = warp.load(x, (0, 0), rows=16)" and load.location[0].function == "k"
    assert [f.function for f in product.location[:2]] == ["helper", "k"] and product.location[1].text == "helper(t)"
    assert all(op.location and op.location[0].file == __file__ for op in program.walk())


def test_values_are_called_what_the_user_calls_them() -> None:
    @pk.kernel
    def k(x: X):
        keys = pk.shared(pk.st(f32, 16, 64), count=2, name="keys")
        for row in pk.range(x.rows):
            score = warp.load(keys[row % 2])
            score += 1.0

    text = str(k.program(x))
    assert "score: rt<f32, 16x64> = warp.load(" in text and "row: i32" not in text
    assert re.search(r"thread.range\(index=row, start=0, stop=x.rows, step=1\)", text)
    assert "shared keys: 2 x st<f32, 16x64>  # bytes 0 to 8192" in text


def test_the_text_of_a_program() -> None:
    @pk.kernel(warps=2)
    def k(x: X, n: i32):
        with pk.when(n > 3):
            t = warp.load(x, (n, 0), rows=16)
            warp.store(x, t, (0, 0))
        with pk.otherwise():
            block.sync()

    lines = [re.sub(r"  # \d+$", "", line) for line in str(k.program(x, 4)).splitlines()]
    lines = [re.sub(r", hint=[^,)]*", "", line) for line in lines]
    assert lines == [
        "kernel k(x: gl<f32, N x 64>, n: i32)  # 2 warps, 0 bytes shared",
        "  v2: bool = thread.scalarbinary(kind=gt, a=n, b=3)",
        "  thread.when(condition=v2)",
        "  {",
        "    v3: i32 = thread.scalarbinary(kind=mul, a=n, b=16)",
        "    t: rt<f32, 16x64> = warp.load(source=x[0, 0, v3, 0; 16x64], type=rt<f32, 16x64>)",
        "    warp.barrier()",
        "    warp.store(target=x[0, 0, 0, 0; 16x64], source=t)",
        "  }",
        "  {",
        "    block.barrier()",
        "  }",
    ]


def test_kernels_trace_in_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    kernels = [build(float(n)) for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert [out[0, 0] for out in pool.map(run, kernels)] == list(range(8))


def test_a_kernel_inside_a_kernel_is_its_own() -> None:
    inner = build(1.0)

    @pk.kernel
    def k(x: X):
        assert names(inner.program(pk.spec(f32, (16, 64)))) == ["storescalar"]
        put(x, 2.0)

    assert names(k.program(x)) == ["storescalar"]


# Signatures -------------------------------------------------------------------------------------------------


def test_static_dimensions_and_values() -> None:
    seen = []

    @pk.kernel(warps=lambda a, wide, **_: 8 if wide else 4)
    def k(
        a: pk.gl((pk.bf16, f32), "B", "N", pk.static("D")),
        b: pk.gl(f32, "N", 4),
        n: i32 = 3,
        *,
        wide: bool = False,
        name: str = "x",
    ):
        seen.append((a.cols, type(a.rows).__name__, b.cols, a.dtype, a.batch, wide, name, warp.count))

    k.program(pk.spec(f32, (2, 5, 48)), pk.spec(f32, (5, 4)), 1)
    k.program(pk.spec(pk.bf16, (2, 5, 64)), b=pk.spec(f32, (5, 4)), n=2, wide=True, name="y")
    assert seen == [(48, "Scalar", 4, f32, 1, False, "x", 4), (64, "Scalar", 4, pk.bf16, 1, True, "y", 8)]


def test_missing_leading_dimensions_are_one() -> None:
    @pk.kernel(warps=1)
    def k(a: pk.gl(f32, "N"), b: pk.gl(f32, "A", "B", "C", 64)):
        assert (a.batch, a.depth, a.rows) == (1, 1, 1)
        warp.set(b, (1, 2, 3, 4), a[5])

    a, b = np.arange(8, dtype=np.float32), np.zeros((2, 3, 4, 64), np.float32)
    k(a, b)
    assert b[1, 2, 3, 4] == 5 and b.sum() == 5


def test_programs_are_kept_by_what_they_depend_on() -> None:
    @pk.kernel
    def k(a: pk.gl((pk.bf16, f32), "N", pk.static("D")), *, flag: Any = 1):
        warp.full(f32, 16, 16, flag)

    one = k.program(pk.spec(f32, (5, 48)))
    assert k.program(pk.spec(f32, (7, 48))) is one
    assert k.program(pk.spec(f32, (5, 64))) is not one
    assert k.program(pk.spec(pk.bf16, (5, 48))) is not one
    assert k.program(pk.spec(f32, (5, 48), align=4)) is not one
    assert k.program(pk.spec(f32, (5, 48)), flag=2) is not one
    assert k.program(pk.spec(f32, (5, 48)), flag=1.0) is not one
    assert k.program(pk.spec(f32, (5, 48)), flag=True) is not one


# What a kernel refers to ------------------------------------------------------------------------------------

SCALE: Any = 2.0
TABLE = [1.0, 2.0]
SETTINGS = {"factor": 1.0}


def scaled(t: Any) -> Any:
    return t * SCALE


@pk.kernel(warps=1)
def refers(x: X):
    def inner() -> Any:
        return TABLE[1] * SETTINGS["factor"]

    put(x, scaled(inner() + x[0, 1]))


def test_a_changed_global_retraces(monkeypatch: pytest.MonkeyPatch) -> None:
    one = refers.program(x)
    assert refers.program(x) is one
    monkeypatch.setitem(globals(), "SCALE", 3.0)  # used by a helper
    two = refers.program(x)
    assert two is not one
    TABLE[1] = 5.0  # used by an inner function
    three = refers.program(x)
    assert three is not two
    SETTINGS["factor"] = 2.0
    assert refers.program(x) is not three
    TABLE[1], SETTINGS["factor"] = 2.0, 1.0
    assert refers.program(x) is two
    assert run(refers)[0, 0] == 6


def test_the_type_of_a_global_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCALE", 1)
    one = refers.program(x)
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    assert refers.program(x) is not one


def test_a_changed_helper_retraces(monkeypatch: pytest.MonkeyPatch) -> None:
    one = refers.program(x)
    monkeypatch.setitem(globals(), "scaled", lambda t: t)
    assert refers.program(x) is not one


def test_a_changed_cell_retraces() -> None:
    factor = 2.0

    @pk.kernel(warps=1)
    def k(x: X):
        put(x, factor)

    assert run(k)[0, 0] == 2
    factor = 3.0
    assert run(k)[0, 0] == 3
