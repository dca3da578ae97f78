"""Devices, contexts, loading, and errors in words, on a driver without a GPU."""

import dataclasses
import threading

import pytest

from pykittens.architectures import ARCHITECTURES
from pykittens.gpu import driver
from pykittens.gpu.compiler import Cubin
from pykittens.gpu.libcuda import CudaError, aligned
from tests.gpu.fake_driver import ATTRIBUTES, CONTEXT, FakeDriver

CUBIN = Cubin(b"\x7fELF\0image", "attend", "sm_90a", "", 168, 0, 0, 0, 1024, (), "NVRTC 13.5", 0.5)


def test_without_a_driver(no_driver: None) -> None:
    assert not driver.available()
    with pytest.raises(CudaError, match=r"there is no CUDA driver here \(libcuda.so.1: cannot open"):
        driver.device_count()


def test_an_old_driver(fake: FakeDriver) -> None:
    """One from before CUDA 11.8 and 12."""
    for name in ("cuLaunchKernelEx", "cuTensorMapEncodeTiled"):
        delattr(fake.library, name)
    assert not driver.available()
    with pytest.raises(CudaError, match="too old: it has no cuLaunchKernelEx, cuTensorMapEncodeTiled; update it"):
        driver.device_count()


def test_device(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver.available()
    assert driver.driver_version() == (13, 1)
    assert driver.capability() == (9, 0)
    assert (driver.shared_limit(), driver.multiprocessors()) == (232448, 132)
    with pytest.raises(CudaError, match=r"looking for device 3: invalid device \(CUDA_ERROR_INVALID_DEVICE, 101\)"):
        driver.capability(3)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        *[(row.capability, name) for name, row in ARCHITECTURES.items() if f"{name}a" not in ARCHITECTURES],
        ((8, 8), "sm_87"),  # what there is no row for runs what is older, but for targets with a suffix
        ((10, 7), "sm_103"),
        ((12, 3), "sm_121"),
    ],
)
def test_architecture(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], arch: str
) -> None:
    monkeypatch.setitem(ATTRIBUTES, 75, capability[0])
    monkeypatch.setitem(ATTRIBUTES, 76, capability[1])
    assert driver.architecture().name == arch


@pytest.mark.parametrize("capability", [(7, 5), (7, 0), (13, 0)])
def test_architectures_we_have_no_code_for(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setitem(ATTRIBUTES, 75, capability[0])
    monkeypatch.setitem(ATTRIBUTES, 76, capability[1])
    with pytest.raises(CudaError, match=r"compute capability \d+\.\d, and runs none of sm_80"):
        driver.architecture()


def test_loads_once_and_grants_the_most_shared_memory(fake: FakeDriver) -> None:
    one = driver.load(CUBIN, 0, 1000)
    two = driver.load(dataclasses.replace(CUBIN, image=bytes(bytearray(CUBIN.image))), 0, 200_000)
    three = driver.load(CUBIN, 0, 5000)
    assert one == two == three
    assert (one.context, one.device, one.name) == (CONTEXT, 0, "attend")
    assert [call[0] for call in fake.calls].count("cuModuleLoadData") == 1
    granted = [call[3] for call in fake.calls if call[0] == "cuFuncSetAttribute" and call[2] == 8]
    assert granted == [1000, 200_000]


def test_too_much_shared_memory(fake: FakeDriver) -> None:
    with pytest.raises(CudaError, match=r"`attend` wants 232,449 bytes of shared memory for a block; .* 232,448"):
        driver.load(CUBIN, 0, 232449 - 1024)


def test_contexts_are_restored(fake: FakeDriver) -> None:
    fake.current.context = 77
    with driver.using(CONTEXT):
        assert driver.current_context() == CONTEXT
    assert driver.current_context() == 77


def test_a_thread_without_a_context_keeps_the_first(fake: FakeDriver) -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(driver.current_context())
        driver.synchronize()
        seen.append(driver.current_context())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0, CONTEXT]


@pytest.mark.parametrize("alignment", [16, 64, 128])
def test_aligned_memory(alignment: int) -> None:
    import ctypes

    buffers = [aligned(size, alignment) for size in (1, 100, 128, 129)]
    assert [ctypes.addressof(buffer) % alignment for buffer in buffers] == [0] * 4
    assert [ctypes.sizeof(buffer) for buffer in buffers] == [1, 100, 128, 129]
    assert not any(any(bytes(buffer)) for buffer in buffers)


def test_where_an_address_lies(fake: FakeDriver) -> None:
    assert driver.device_of(0x7F00_0000_0000) == 0
    assert [call[2:] for call in fake.calls if call[0] == "cuPointerGetAttribute"] == [(9, 0x7F00_0000_0000)]
