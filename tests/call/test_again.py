"""Kernels called on tensors of a GPU that is not there: what is launched, what is made again, what a call costs
Python."""

import ctypes
import struct
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, warp
from pykittens.call.kernel import Kernel
from pykittens.errors import ArgumentError
from pykittens.gpu import tensormap
from pykittens.interop import frameworks
from tests.gpu.fake_driver import CONTEXT, FakeDriver

torch = pytest.importorskip("torch")
FACTOR = 2.0


@pytest.fixture(autouse=True)
def gpu(uncompiled: None, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Tensors on the CPU pass for tensors on GPU 0."""
    real = frameworks.Torch.describe
    monkeypatch.setattr(frameworks.Torch, "describe", lambda self, x: real(self, x)._replace(device=0))
    monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: 0x77)
    fake.parameter_sizes = [56, 56, 4]
    fake.current.context = CONTEXT
    yield fake


def tensors(rows: int = 64, cols: int = 64) -> list[Any]:
    return [torch.zeros(rows, cols, dtype=torch.bfloat16) for _ in range(2)]


def scale(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64), by: f32, *, twice: bool = False) -> None:  # type: ignore[valid-type]
    tile = warp.load(x, (pk.block_index.x, 0), rows=16)
    warp.store(y, (tile.to(f32) * (by * FACTOR) * (2 if twice else 1)).to(bf16), (pk.block_index.x, 0))


def kernel(**options: Any) -> Kernel:
    return pk.kernel(warps=1, **{"grid": lambda x, **_: x.rows // 16, **options})(scale)  # type: ignore[no-any-return]


def pointers(launch: Any) -> list[int]:
    return [struct.unpack("<Q", launch.arguments[i][:8])[0] for i in range(2)]


def test_again(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call launches with its own pointers and numbers, and describes nothing."""
    run = kernel()
    run(*tensors(), 0.5)
    monkeypatch.setattr("pykittens.call.kernel.specialise", None)
    x, y = tensors()
    run(x, y, 0.25)
    run(y, x, 3.0)
    first, second, third = fake.launches
    assert (second.stream, second.grid, second.block) == (0x77, [4, 1, 1], [32, 1, 1])
    assert pointers(second) == [x.data_ptr(), y.data_ptr()]
    assert pointers(third) == [y.data_ptr(), x.data_ptr()]
    assert [struct.unpack("<f", launch.arguments[2])[0] for launch in fake.launches] == [0.5, 0.25, 3.0]
    assert first.arguments[0][8:] == second.arguments[0][8:]


def test_what_differs_is_seen(fake: FakeDriver) -> None:
    """Shape, strides, dtype, static values: each finds its own call, also the second time."""
    run = kernel()
    x, y = tensors()
    wide = torch.zeros(64, 128, dtype=torch.bfloat16)
    for _ in range(2):
        run(x, y, 1.0)
        run(*tensors(128), 1.0)
        run(wide[:, :64], wide[:, 64:], 1.0)
        run(x, y, 1.0, twice=True)
        run(x=x, by=1.0, y=y)
        with pytest.raises(ArgumentError, match="operand 'x' is f16"):
            run(x.half(), y, 1.0)
        with pytest.raises(ArgumentError, match="N = 64, operand 'x' has N = 128"):
            run(tensors(128)[0], y, 1.0)
        with pytest.raises(ArgumentError, match="'by' is 'a'|'by' is str"):
            run(x, y, "a")
    assert [launch.grid[0] for launch in fake.launches] == [4, 8, 4, 4, 4] * 2
    assert [launch.arguments for launch in fake.launches[:1]] == [launch.arguments for launch in fake.launches[5:6]]
    strides = [struct.unpack("<4q", launch.arguments[0][24:56])[2] for launch in fake.launches[:5]]
    assert strides == [64, 64, 128, 64, 64]
    assert len(run.memory.built) == 2


def test_misaligned_pointers_go_the_long_way(fake: FakeDriver) -> None:
    run = kernel()
    x, y = tensors()
    memory = torch.zeros(64 * 64 + 8, dtype=torch.bfloat16)
    odd = memory[1 : 64 * 64 + 1].view(64, 64)
    run(x, y, 1.0)
    for _ in range(2):
        run(odd, y, 1.0)
        run(x, y, 1.0)
    assert len(run.memory.built) == 2
    assert [pointers(launch)[0] for launch in fake.launches] == [x.data_ptr(), *[odd.data_ptr(), x.data_ptr()] * 2]


def test_a_global_that_changes(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebound global, a helper's too, and new code are traced anew; a list is read at every call."""
    run = kernel()
    x, y = tensors()
    for factor in (2.0, 3.0, 3.0, 2.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        run(x, y, 1.0)
    assert len(run.memory.built) == 2
    changed = kernel()
    changed(x, y, 1.0)
    old = scale.__code__
    try:
        scale.__code__ = old.replace(
            co_consts=tuple(32 if c == 16 else c for c in old.co_consts)
        )  # what autoreload does
        changed(x, y, 1.0)
    finally:
        scale.__code__ = old
    assert len(changed.memory.built) == 2

    factors = [2.0]

    def listed(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64)) -> None:  # type: ignore[valid-type]
        warp.store(y, (warp.load(x, (0, 0), rows=16).to(f32) * factors[0]).to(bf16), (0, 0))

    fake.parameter_sizes = [56, 56]
    reads = pk.kernel(warps=1)(listed)
    for factors[0] in (2.0, 3.0, 3.0):
        reads(x, y)
    assert len(reads.memory.built) == 2


def test_static_functions(fake: FakeDriver) -> None:
    """A static function counts by what it does: made anew for each call, it is not traced anew."""

    def applied(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64), *, function: Any) -> None:  # type: ignore[valid-type]
        warp.store(y, function(warp.load(x, (0, 0), rows=16).to(f32)).to(bf16), (0, 0))

    fake.parameter_sizes = [56, 56]
    run = pk.kernel(warps=1)(applied)
    x, y = tensors()
    for factor in (2.0, 2.0, 3.0):
        run(x, y, function=lambda tile, factor=factor: tile * factor)
    assert len(run.memory.built) == 2
    assert len(fake.launches) == 3


def test_grids_of_numbers(fake: FakeDriver) -> None:
    """A grid that depends on a number is computed anew when it changes."""

    def count(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64), n: i32) -> None:  # type: ignore[valid-type]
        warp.store(y, warp.load(x, (0, 0), rows=16), (0, 0))

    x, y = tensors()
    for grid in (lambda n, **_: n, lambda **given: given["n"]):
        run = pk.kernel(warps=1, grid=grid)(count)
        for n in (1, 2, 1, 2):
            run(x, y, n)
        assert run.by_value == {"n"}
        assert [launch.grid[0] for launch in fake.launches[-4:]] == [1, 2, 1, 2]
    assert not kernel().by_value

    def perhaps(
        x: pk.gl(bf16, "N", 64),  # type: ignore[valid-type]
        y: pk.gl(bf16, "N", 64),  # type: ignore[valid-type]
        by: f32,  # type: ignore[valid-type]
        n: Annotated[pk.Scalar, i32] | None = None,
    ) -> None:
        warp.store(y, warp.load(x, (0, 0), rows=16), (0, 0))

    fake.parameter_sizes = [56, 56, 4]
    run = pk.kernel(warps=1, grid=lambda x, n=None, **_: x.rows // 16 if n is None else n)(perhaps)
    for by in (1.0, 2.0):
        run(x, y, by)
    assert called(partial(run, x, y, 3.0)) == REPEATED  # a number that is not given decides nothing
    fake.parameter_sizes = [56, 56, 4, 4]
    for n in (3, 3, 5, True, 3):
        run(x, y, 1.0, n)
        assert fake.launches[-1].grid[0] == n
    fake.parameter_sizes = [56, 56, 4]
    with pytest.raises(ArgumentError, match="i32 cannot hold"):
        run(x, y, 1.0, 2**31)


@pytest.mark.parametrize("first", [True, False])
def test_tensor_maps_move(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """By a write where this driver keeps addresses, else by the driver."""
    monkeypatch.setattr(tensormap, "address_first", lambda *_: first)

    @pk.kernel(warps=4)
    def copy(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64)) -> None:  # type: ignore[valid-type]
        tile, ready = pk.shared(pk.st(bf16, 64, 64)), pk.barrier()
        pk.tma.expect(ready, tile)
        pk.tma.load(tile, x, (0, 0), ready)
        pk.wait(ready, 0)
        pk.warpgroup.tma.store(y, tile, (0, 0))
        pk.warpgroup.tma.commit()
        pk.warpgroup.tma.wait()

    fake.parameter_sizes = [56, 56, 128, 128]
    for _ in range(3):
        x, y = tensors()
        copy(x, y)
        here = [struct.unpack("<Q", argument[:8])[0] for argument in fake.launches[-1].arguments]
        assert here == [
            x.data_ptr(),
            y.data_ptr(),
            *(
                (x.data_ptr(), y.data_ptr())
                if "x" in copy.program(x, y).maps[0].tensor
                else (y.data_ptr(), x.data_ptr())
            ),
        ]


def test_where_descriptors_keep_addresses(fake: FakeDriver) -> None:
    encoded = tensormap.encode(0x7F00_1000, "bf16", (64, 64), (128,), (64, 64), 128)
    before = bytes(encoded)
    assert tensormap.address_first(encoded, 0x7F00_1000)
    assert bytes(encoded) == before
    assert not tensormap.address_first(encoded, 0x7F00_2000)


def test_bound(fake: FakeDriver) -> None:
    x, y = tensors()
    launch = kernel().bind(x, y, 0.5)
    launch()
    launch()
    assert [pointers(seen) for seen in fake.launches] == [[x.data_ptr(), y.data_ptr()]] * 2
    with pytest.raises(ArgumentError, match="pass CUDA arrays"):
        kernel().bind(pk.spec(bf16, (64, 64)), pk.spec(bf16, (64, 64)), 0.5)


@pytest.mark.parametrize("quick", [True, False])
def test_what_repeats_is_seen_to_differ(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    """The quick test of a call like the last one misses nothing, nor does the look-up: each of these follows a call
    that it resembles."""
    if not quick:
        monkeypatch.setattr(frameworks.Torch, "alike", lambda self, arrays: None)

    def add(
        x: pk.gl(bf16, "N", 64), bias: pk.gl(f32, "N"), y: pk.gl(bf16, "N", 64), by: f32, *, times: Any = 1
    ) -> None:  # type: ignore[valid-type]
        tile = warp.load(x, (pk.block_index.x, 0), rows=16).to(f32) * (by * times)
        warp.store(
            y,
            (tile if bias is None else tile + warp.load_col(bias, (0, 0, 0, pk.block_index.x), length=16)).to(bf16),
            (pk.block_index.x, 0),
        )

    run = pk.kernel(warps=1, grid=lambda x, **_: x.rows // 16)(add)
    x, y = tensors()
    bias, wide, memory = (
        torch.zeros(64),
        torch.zeros(64, 128, dtype=torch.bfloat16),
        torch.zeros(64 * 64 + 8, dtype=torch.bfloat16),
    )
    programs = 0
    for arguments, named, new in (
        ((x, None, y, 1.0), {}, True),
        ((x, bias, y, 1.0), {}, True),  # an array where there was none
        ((wide[:, 64:], None, y, 1.0), {}, False),  # other strides
        ((memory[1 : 64 * 64 + 1].view(64, 64), None, y, 1.0), {}, True),  # not aligned
        ((x, None, y, 1), {}, False),
        ((x, None, y, True), {}, False),
        ((x, None, x, 1.0), {}, False),  # the same array twice
        ((x, None, y, 1.0), {"times": 1}, False),
        ((x, None, y, 1.0), {"times": 1.0}, True),  # equal, not the same
        ((x, None, y, 1.0), {"times": True}, True),
        ((torch.nn.Parameter(x), None, y, 1.0), {}, False),
    ):
        programs += new
        for repeated in ((x, None, y, 0.5), arguments, (x, None, y, 0.5)):
            fake.parameter_sizes = [56] * (3 if repeated[1] is not None else 2) + [4]
            for _ in range(2):
                with torch.no_grad():
                    run(*repeated, **(named if repeated is arguments else {}))
                given = [a for a in repeated[:3] if a is not None]
                launch = fake.launches[-1]
                assert [struct.unpack("<Q", launch.arguments[i][:8])[0] for i in range(len(given))] == [
                    a.data_ptr() for a in given
                ]
                assert [
                    struct.unpack("<4q", launch.arguments[i][24:56])[2] for i in range(len(given)) if given[i].ndim == 2
                ] == [a.stride(0) for a in given if a.ndim == 2]
                assert struct.unpack("<f", launch.arguments[-1])[0] == repeated[3]
        assert len(run.memory.built) == programs
    for other in (
        (x.half(), None, y, 1.0),
        (x, None, y, "1"),
        (x, None, y, torch.ones(1)),
        (x, None, tensors(32)[1], 1.0),
        (x, None, y),
    ):
        launched = len(fake.launches)
        for _ in range(2):
            with pytest.raises(ArgumentError):
                run(*other)
        assert len(fake.launches) == launched
        run(x, None, y, 0.5)


def test_numbers_that_do_not_fit(fake: FakeDriver) -> None:
    run = kernel()
    for _ in range(2):
        run(*tensors(), 1.0)
        launched = len(fake.launches)
        with pytest.raises(ArgumentError, match="larger than any f32"):
            run(*tensors(), 1e300)
        assert len(fake.launches) == launched


def test_several_threads(fake: FakeDriver) -> None:
    """Each launch has the pointers and the number of one call."""
    run, wrong = kernel(), []
    run(*tensors(), 0.0)
    operands = {float(i): tensors() for i in range(1, 9)}

    def call(number: float) -> None:
        for _ in range(50):
            run(*operands[number], number)

    threads = [threading.Thread(target=call, args=(number,)) for number in operands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.launches) == 1 + 8 * 50
    for launch in fake.launches[1:]:
        x, y = operands[struct.unpack("<f", launch.arguments[2])[0]]
        if pointers(launch) != [x.data_ptr(), y.data_ptr()]:
            wrong.append(launch)
    assert not wrong


def test_a_changed_global_costs_one_call(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was traced anew is called again as quickly as before."""
    run, (x, y) = kernel(), tensors()
    run(x, y, 1.0)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    run(x, y, 1.0)
    assert called(partial(run, x, y, 1.0)) == REPEATED


# The functions of a call like the last one, in order. What is added here is paid at every call.
REPEATED = ["__call__", "repeat", "unchanged", "<lambda>"]


def called(function: Any) -> list[str]:
    """The Python functions that a call runs through before the driver's."""
    names: list[str] = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names[: names.index("cuLaunchKernelEx")]


def test_what_a_call_runs_through(fake: FakeDriver) -> None:
    run, (x, y), (x2, y2) = kernel(), tensors(), tensors()
    run(x, y, 1.0)
    for operands in ((x, y, 1.0), (x2, y2, 2.0), (y, x, 1.0)):
        assert called(partial(run, *operands)) == REPEATED


def test_a_bound_call_goes_to_the_stream_of_its_time(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams in turn, and more than calls are kept ready for; a plain call of the same kernel beside it."""
    now = [0]
    monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: now[0])
    run, (x, y) = kernel(), tensors()
    launch = run.bind(x, y, 0.5)
    order = [1, 2, 1, 0, *range(3, 140), 2, 1]
    for now[0] in order:
        launch()
        run(x, y, 0.25)
    assert [one.stream for one in fake.launches] == [stream for stream in order for _ in range(2)]
    assert {struct.unpack("<f", one.arguments[2])[0] for one in fake.launches[::2]} == {0.5}


def test_cost_in_python(fake: FakeDriver) -> None:
    """Over the bare driver call: about 3 us a call and 0.2 us a bound one here. The bounds only catch disasters."""
    call, bound = costs()
    assert call < 40e-6
    assert bound < 5e-6


def costs() -> tuple[float, float]:
    """Seconds over a prepared call of a C function that does nothing."""
    from pykittens.gpu import libcuda

    nothing = ctypes.CDLL(None).pthread_equal
    nothing.argtypes = [ctypes.c_void_p] * 4
    libcuda.library().cuLaunchKernelEx = nothing
    run, operands = kernel(), [tensors() for _ in range(2)]
    for pair in operands:
        run(*pair, 0.5)
    (call,) = run.memory.launchers.values()

    def moving() -> None:
        run(*operands[0], 0.5)
        run(*operands[1], 0.5)

    bare = least(call.launcher.prepare(0x77))
    return least(moving) / 2 - bare, least(run.bind(*operands[0], 0.5)) - bare


def least(function: Any) -> float:
    """Seconds of a call, by the fastest of some batches."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(200):
            function()
        times.append((time.perf_counter() - start) / 200)
    return min(times)


def test_a_number_that_is_left_out_is_its_default(fake: FakeDriver) -> None:
    """Whatever the call before gave in its place: both launch from the same storage."""

    @pk.kernel(warps=1, grid=lambda x, **_: x.rows // 16)
    def plain(x: pk.gl(bf16, "N", 64), y: pk.gl(bf16, "N", 64), by: f32 = 0.5, n: i32 = 3) -> None:  # type: ignore[valid-type, assignment]
        tile = warp.load(x, (pk.block_index.x, 0), rows=16)
        warp.store(y, (tile.to(f32) * by * n).to(bf16), (pk.block_index.x, 0))

    fake.parameter_sizes = [56, 56, 4, 4]
    x, y = tensors()
    given: list[tuple[tuple[Any, ...], dict[str, Any], float, int]] = [
        ((), {}, 0.5, 3),
        ((2.0,), {}, 2.0, 3),
        ((2.0, 7), {}, 2.0, 7),
        ((), {"n": 5}, 0.5, 5),
        ((), {"by": 4.0}, 4.0, 3),
        ((np.float32(1.5),), {}, 1.5, 3),
        ((np.float64(1.5), np.int64(2)), {}, 1.5, 2),
        ((True,), {"n": True}, 1.0, 1),
    ]
    for _ in range(3):
        for args, named, by, n in given * 2:
            plain(x, y, *args, **named)
            assert struct.unpack("<f", fake.launches[-1].arguments[2]) == (by,)
            assert struct.unpack("<i", fake.launches[-1].arguments[3]) == (n,)
        given.reverse()
