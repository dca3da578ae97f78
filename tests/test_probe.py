"""The probe's kernels run, checked, on the simulated GPU; what they time is only there on a real one."""

from typing import Any

import numpy as np
import pytest

from pykittens import bf16, e4m3, f32, i8
from pykittens.bench import probe
from pykittens.gpu import sass
from pykittens.types import DType

TICKS, SINK = np.zeros(1, np.int32), np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("kernel", "settings", "opcode", "least"),
    [
        (probe.wgmma_rate, {"dtype": bf16, "n": 64}, "HGMMA", 8),
        (probe.wgmma_rate, {"dtype": e4m3, "n": 64}, "QGMMA", 8),
        (probe.mma_rate, {"dtype": bf16, "registers": True}, "HMMA", 32),
        (probe.mma_rate, {"dtype": i8}, "IMMA", 32),
        (probe.mma_rate, {"dtype": f32}, "HMMA", 32),
        (probe.shared_rate, {"stride": 2}, "LDS", 32),
        (probe.shared_latency, {}, "LDS", 1),
        (probe.exp2_rate, {}, "MUFU", 16),
    ],
)
def test_what_is_measured_is_in_the_code(kernel: Any, settings: dict[str, DType], opcode: str, least: int) -> None:
    """A compiler leaves out whatever it can, such as products of zeros, or what nobody reads."""
    kernel(TICKS, 2, SINK, 0.0, **settings)
    cubin = kernel.compile(TICKS, 2, SINK, 0.0, **settings, arch="sm_90a")
    assert sass.opcodes(sass.disassemble(cubin))[opcode] >= least and cubin.spill_store_bytes == 0


def test_latency_barriers_and_reading() -> None:
    probe.memory_latency(np.array([1, 0], np.int32), TICKS, 3, SINK, 0.0)
    assert SINK[0] == 1.0, "three steps along a chain of two"
    probe.barrier_cost(TICKS, 2, warps=4)
    x, y = np.arange(64 * 256, dtype=np.float32).reshape(64, 256) % 7, np.zeros((4, 256), np.float32)
    probe.read_rate(x, y, 1, 1)
    assert y.sum() == 4 * x[:8].sum(), "the first warp of each of four blocks has the first eight rows"


def test_a_measurement_says_what_was_promised() -> None:
    assert str(probe.Found("exp2", 8.0, "a clock", 16.0)) == "exp2: 8 a clock (50% of 16)"
    assert str(probe.Found("latency", 23.4, "clocks")) == "latency: 23.4 clocks"
