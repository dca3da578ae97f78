"""Arrays in a GPU's memory, and its clock, without a framework."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.cli import demo, inputs
from pykittens.gpu import driver, memory
from pykittens.interop.arrays import describe
from pykittens.kernels import attention_ada
from tests.gpu.fake_driver import CONTEXT, FakeDriver


def test_there_and_back(fake: FakeDriver) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 12)[:, ::3].astype(ml_dtypes.bfloat16)
    there = memory.DeviceArray(array)
    assert np.array_equal(there.numpy(), array)
    assert describe(there)[1:4] == ((2, 4), (4, 1), "bf16")


def test_freed_with_the_object(fake: FakeDriver) -> None:
    there = memory.DeviceArray(np.zeros(3))
    pointer = there.pointer
    del there
    assert ("cuMemFree_v2", pointer) in fake.calls


def test_the_clock(fake: FakeDriver) -> None:
    fake.current.context = CONTEXT
    done: list[int] = []
    assert memory.seconds(lambda: done.append(1), repeats=4) == pytest.approx(0.0025)
    assert len(done) == 5


def test_the_demo_launches(fake: FakeDriver) -> None:
    arrays = inputs.random_inputs(1, 2, 100, 64, seed=0)
    run = demo.on_gpu(attention_ada.attend, arrays, 0.125, True)
    assert run.device.endswith("(sm_90a)") and run.seconds == pytest.approx(0.0025)
    assert [launch.grid for launch in fake.launches] == [[1, 2, 1]] * len(fake.launches)
    assert run.out.shape == (1, 2, 100, 64) and not run.out.any()  # this driver computes nothing


@pytest.mark.gpu
def test_a_kernel_on_a_real_gpu() -> None:
    @pk.kernel(warps=1)
    def double(x: pk.gl(f32, 16, 64), y: pk.gl(f32, 16, 64)) -> Any:  # type: ignore[valid-type]
        warp.store(y, warp.load(x, (0, 0), rows=16) * 2, (0, 0))

    array = np.random.default_rng(0).standard_normal((16, 64), dtype=np.float32)
    x, y = memory.DeviceArray(array), memory.DeviceArray(np.zeros_like(array))
    launch = double.bind(x, y)
    launch()
    assert np.array_equal(y.numpy(), 2 * array)
    assert 0 < memory.seconds(launch) < 1
    assert driver.available()
