"""What does not fit: shared memory, warps, barriers."""

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.architectures import ARCHITECTURES
from tests.expecting import X, x


@pytest.mark.parametrize(("arch", "limit"), [(row.name, row.shared_bytes // 1024) for row in ARCHITECTURES.values()])
def test_shared_memory_that_does_not_fit(arch: str, limit: int) -> None:
    rows = limit + 1 + -(limit + 1) % 8

    @pk.kernel
    def fits(x: X):
        pk.shared(pk.st(f32, limit // 8 * 8, 256), name="big")

    @pk.kernel
    def too_big(x: X):
        pk.shared(pk.st(f32, rows, 256), name="big")
        pk.shared(pk.sv(f32, 4), count=2, name="small")

    fits.cuda(x, arch=arch)
    with pytest.raises(pk.ResourceError) as caught:
        too_big.cuda(x, arch=arch)
    text = str(caught.value)
    assert (
        f"kernel 'too_big' wants {rows * 1024 + 256} bytes of shared memory; a block on {arch} has {limit * 1024}"
        in text
    )
    assert f"big: st<f32, {rows}x256> = {rows * 1024} bytes" in text and "small: 2 x sv<f32, 4> = 256 bytes" in text
    assert "too_big" in text and "fix: use smaller tiles or fewer stages" in text


def test_the_simulator_refuses_what_no_gpu_has() -> None:
    @pk.kernel
    def too_big(x: X):
        pk.shared(pk.st(f32, 256, 256))

    with pytest.raises(pk.ResourceError, match="262144 bytes of shared memory; a block on sm_90a has 232448"):
        too_big(np.zeros((64, 64), np.float32))


@pytest.mark.parametrize("warps", [0, 33])
def test_blocks_have_1_to_32_warps(warps: int) -> None:
    @pk.kernel(warps=warps)
    def k(x: X):
        pass

    with pytest.raises(pk.ArgumentError, match=f"warps is {warps}"):
        k.program(x)


def test_named_barriers_run_out() -> None:
    @pk.kernel
    def k(x: X):
        for _ in range(16):
            warp.sync_at(pk.named_barrier(warps=1))

    with pytest.raises(pk.ResourceError, match="a block has 16 hardware barriers"):
        k.cuda(x)
