"""The probe's kernels run, checked, on the simulated GPU; what they time is only there on a real one."""

from typing import Any

import numpy as np
import pytest

from pykittens import bf16, e4m3, f32, i8
from pykittens.bench import probe
from pykittens.bench import probe_copies as copies
from pykittens.bench import probe_kernels as kernels
from pykittens.gpu import sass
from pykittens.types import DType

TICKS, SINK = np.zeros(1, np.int32), np.zeros(1, np.float32)


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("kernel", "settings", "opcode", "least"),
    [
        (kernels.wgmma_rate, {"dtype": bf16, "n": 64}, "HGMMA", 8),
        (kernels.wgmma_rate, {"dtype": e4m3, "n": 64}, "QGMMA", 8),
        (kernels.mma_rate, {"dtype": bf16, "registers": True}, "HMMA", 32),
        (kernels.mma_rate, {"dtype": i8}, "IMMA", 32),
        (kernels.mma_rate, {"dtype": f32}, "HMMA", 32),
        (kernels.shared_rate, {"stride": 2}, "LDS", 32),
        (kernels.shared_latency, {}, "LDS", 1),
        (kernels.exp2_rate, {}, "MUFU", 16),
        (copies.matrix_rate, {"store": False}, "LDSM", 4),
        (copies.matrix_rate, {"store": True}, "STSM", 4),
    ],
)
def test_what_is_measured_is_in_the_code(kernel: Any, settings: dict[str, DType], opcode: str, least: int) -> None:
    """A compiler leaves out whatever it can, such as products of zeros, or what nobody reads."""
    kernel(TICKS, 2, SINK, 0.0, **settings)
    cubin = kernel.compile(TICKS, 2, SINK, 0.0, **settings, arch="sm_90a")
    assert sass.opcodes_of([cubin])[0][opcode] >= least and cubin.spill_store_bytes == 0


def test_latency_barriers_and_reading() -> None:
    kernels.memory_latency(np.array([1, 0], np.int32), TICKS, 3, SINK, 0.0)
    assert SINK[0] == 1.0, "three steps along a chain of two"
    kernels.barrier_cost(TICKS, 2, warps=4)
    x, y = np.arange(64 * 256, dtype=np.float32).reshape(64, 256) % 7, np.zeros((4, 256), np.float32)
    kernels.read_rate(x, y, 1, 1)
    assert y.sum() == 4 * x[:8].sum(), "the first warp of each of four blocks has the first eight rows"


@pytest.mark.parametrize(("way", "opcode"), [*zip(copies.WAYS, ("LDG", "LDGSTS", "UTMALDG"), strict=True)])
def test_copies(way: str, opcode: str) -> None:
    x, y = np.random.default_rng(0).standard_normal((128 * 9, 64)).astype(bf16.numpy), np.zeros(2, np.float32)
    copies.copy_rate(x, y, 1, 2, way=way)
    copies.copy_cost(x, TICKS, 3, way=way)
    cubins = [
        copies.copy_rate.compile(x, y, 1, 2, way=way, arch="sm_90a"),
        copies.copy_cost.compile(x, TICKS, 3, way=way, arch="sm_90a"),
    ]
    assert all(found[opcode] for found in sass.opcodes_of(cubins))
    assert not any(cubin.spill_store_bytes for cubin in cubins)


def test_barriers_and_clusters() -> None:
    two, found = np.zeros(2, np.int32), np.zeros(2, np.float32)
    copies.mbarrier_cost(TICKS, 3)
    copies.cluster_cost(two, 3)
    for own in (False, True):
        copies.remote_rate(two, 2, found, 1.0, own=own)
        assert (found == 3.0).all(), "ones, added twice to ones"
    copies.line_latency(np.zeros(32 * 8, np.int32), np.zeros(8, np.int32), 3)
    copies.nothing(TICKS)


def test_a_measurement_says_what_was_promised() -> None:
    assert str(probe.Found("exp2", 8.0, "a clock", 16.0)) == "exp2: 8 a clock (50% of 16)"
    assert str(probe.Found("latency", 23.4, "clocks")) == "latency: 23.4 clocks"
