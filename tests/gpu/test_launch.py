"""Launching: what the driver receives, in which bytes; refusals; threads; the cost on Python's side."""

import re
import struct
import threading
import time

import pytest

from pykittens.gpu import driver
from pykittens.gpu.launch import Launcher
from pykittens.gpu.libcuda import CudaError
from pykittens.gpu.tensormap import encode
from tests.gpu.fake_driver import CONTEXT, FakeDriver

FUNCTION = driver.LoadedKernel(0x7000_0000_0000_2000, CONTEXT, 0, "attend")
KINDS = ("tensor", "tensor", "i32", "i64", "f32", "bool", "tensormap", "tensormap")


@pytest.fixture(autouse=True)
def ready(fake: FakeDriver) -> FakeDriver:
    fake.parameter_sizes = [56, 56, 4, 8, 4, 1, 128, 128]
    fake.current.context = CONTEXT
    return fake


def launcher(**more: object) -> Launcher:
    return Launcher(FUNCTION, KINDS, (4, 3, 2), (384, 1, 1), shared_bytes=200_000, **more)  # type: ignore[arg-type]


def test_every_argument_arrives(fake: FakeDriver) -> None:
    ready = launcher()
    ready.set_tensor(0, 0x7F00_1234_5670, (2, 3, 1000, 128), (384_000, 128, 384, 1))
    ready.set_tensor(1, 0x10, (7, 64), (2**40, 1))
    ready.set_scalar(2, -5)
    ready.set_scalar(3, 2**40)
    ready.set_scalar(4, 0.125)
    ready.set_scalar(5, True)
    one = encode(0x1000, "bf16", (64, 64), (128,), (64, 64), 128)
    two = encode(0x2000, "bf16", (64, 64), (128,), (64, 64), 128)
    ready.set_tensormap(6, one)
    ready.set_tensormap(7, two)
    ready.launch(0x5000_0000_0000_0099)
    (seen,) = fake.launches
    assert (seen.function, seen.stream) == (FUNCTION.handle, 0x5000_0000_0000_0099)
    assert (seen.grid, seen.block, seen.shared_bytes) == ([4, 3, 2], [384, 1, 1], 200_000)
    assert seen.attributes == {}
    assert seen.arguments == [
        struct.pack("<Q4i4q", 0x7F00_1234_5670, 2, 3, 1000, 128, 384_000, 128, 384, 1),
        struct.pack("<Q4i4q", 0x10, 1, 1, 7, 64, 0, 0, 2**40, 1),
        struct.pack("<i", -5),
        struct.pack("<q", 2**40),
        struct.pack("<f", 0.125),
        b"\1",
        bytes(one),
        bytes(two),
    ]
    assert [address % 64 for address in seen.addresses] == [0] * 8


def test_arguments_change_between_launches(fake: FakeDriver) -> None:
    ready = launcher()
    ready.set_tensor(0, 0x100, (64, 64), (64, 1))
    ready.set_tensormap(6, encode(0x1000, "bf16", (64, 64), (128,), (64, 64), 128))
    ready.launch()
    ready.set_pointer(0, 0x200)
    ready.move_tensormap(6, 0x3000)
    ready.set_grid((1, 1, 1))
    ready.launch()
    first, second = fake.launches
    assert second.arguments[0] == (0x200).to_bytes(8, "little") + first.arguments[0][8:]
    assert second.arguments[6] == (0x3000).to_bytes(8, "little") + first.arguments[6][8:]
    assert second.grid == [1, 1, 1]


def test_clusters_and_programmatic_launch(fake: FakeDriver) -> None:
    Launcher(FUNCTION, KINDS, (4, 2, 1), (128, 1, 1), (2, 2, 1), pdl=True).launch()
    assert fake.launches[0].attributes == {4: [2, 2, 1], 6: [1, 0, 0]}
    assert not [call for call in fake.calls if call[0] == "cuFuncSetAttribute"]
    Launcher(FUNCTION, KINDS, (16, 1, 1), (128, 1, 1), (16, 1, 1)).launch()
    assert fake.launches[1].attributes == {4: [16, 1, 1]}
    assert ("cuFuncSetAttribute", FUNCTION.handle, 14, 1) in fake.calls


def test_a_cooperative_launch(fake: FakeDriver) -> None:
    Launcher(FUNCTION, KINDS, (4, 1, 1), (128, 1, 1), cooperative=True).launch()
    assert fake.launches[0].attributes == {2: [1, 0, 0]}
    fake.launch_status = 720
    with pytest.raises(CudaError, match="fewer blocks"):
        Launcher(FUNCTION, KINDS, (4000, 1, 1), (128, 1, 1), cooperative=True).launch()


def test_a_kernel_without_arguments(fake: FakeDriver) -> None:
    fake.parameter_sizes = []
    Launcher(FUNCTION, (), (1, 1, 1), (32, 1, 1)).launch()
    assert fake.launches[0].arguments == []


@pytest.mark.parametrize(
    ("grid", "cluster", "message"),
    [
        ((2**31, 1, 1), (1, 1, 1), "a grid of 2147483648 blocks along x; 0 to 2147483647 are possible"),
        ((1, 65536, 1), (1, 1, 1), "a grid of 65536 blocks along y; 0 to 65535 are possible"),
        ((1, 1, -1), (1, 1, 1), "a grid of -1 blocks along z"),
        ((5, 1, 1), (2, 1, 1), "a grid of 5 blocks along x, in clusters of 2: not a multiple"),
        ((32, 1, 1), (32, 1, 1), "at most 1024 and 16 fit"),
    ],
)
def test_impossible_dimensions(grid: tuple[int, int, int], cluster: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Launcher(FUNCTION, (), grid, (128, 1, 1), cluster)


@pytest.mark.parametrize("threads", [0, 1025])
def test_impossible_blocks(threads: int) -> None:
    with pytest.raises(ValueError, match="at most 1024 and 16 fit"):
        Launcher(FUNCTION, (), (1, 1, 1), (threads, 1, 1))


def test_nothing_to_do_is_not_an_error(fake: FakeDriver) -> None:
    Launcher(FUNCTION, (), (0, 4, 1), (128, 1, 1)).launch()
    assert fake.launches == []


@pytest.mark.parametrize(("index", "value"), [(2, 2**31), (3, -(2**63) - 1), (2, 0.5), (4, 1e39), (3, "7")])
def test_scalars_that_do_not_fit(index: int, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"parameter {index} cannot be {value!r}: ")):
        launcher().set_scalar(index, value)  # type: ignore[arg-type]


def test_tensors_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"a tensor of shape \(2147483648, 1\) .* does not fit"):
        launcher().set_tensor(0, 0, (2**31, 1), (1, 1))
    with pytest.raises(ValueError, match="does not fit"):
        launcher().set_tensor(0, 0, (1, 2, 3, 4, 5), (1, 1, 1, 1, 1))


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match="parameter 2 is not a tensor"):
        launcher().set_pointer(2, 0)
    with pytest.raises(TypeError, match="parameter 0 is not a scalar"):
        launcher().set_scalar(0, 1)
    with pytest.raises(TypeError, match="parameter 1 is not a tensor map"):
        launcher().move_tensormap(1, 0)
    with pytest.raises(ValueError, match="a parameter of kind 'i4'"):
        Launcher(FUNCTION, ("i4",), (1, 1, 1), (1, 1, 1))


def test_a_thread_without_a_context_can_launch(fake: FakeDriver) -> None:
    thread = threading.Thread(target=launcher().launch)
    thread.start()
    thread.join()
    assert len(fake.launches) == 1


def test_refusals_are_said_in_words(fake: FakeDriver) -> None:
    fake.launch_status = 701
    with pytest.raises(CudaError, match=r"launching `attend`: launch out of resources .*; the kernel wants more"):
        launcher().launch()


def test_cost_in_python() -> None:
    ready = launcher()
    ready.calls[0x5000] = lambda: 0  # type: ignore[assignment]  # what the driver takes is not ours
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            ready.set_pointer(0, 0x7F00_0000_0000)
            ready.set_pointer(1, 0x7F00_0000_0000)
            ready.launch(0x5000)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 20e-6  # about 0.7 us here; the bound only catches disasters
