"""Debug builds: every wait is bounded and says who waited for what, prints and assertions work, a hang ends in a
sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pykittens as pk
from pykittens.gpu import cache, driver
from pykittens.kernels.catalog import Shipped
from pykittens.kernels.registry import KERNELS
from tests import thin

X = pk.spec(pk.f32, (16, 16))

# The kernel of the GPU test, in a file of its own: a kernel that traps takes its process's context with it.
SCRIPT = """
import sys
import torch
import pykittens as pk

@pk.kernel(warps=2, grid=(2, 1, 1), debug=True)
def forgetful(x: pk.gl(pk.f32, 16, 16), n: pk.i32):
    gates = pk.barrier(1, 2, name="gates")
    with pk.role("idle", warps=1):
        pk.assert_(n < 3, "n is small")
    with pk.role("patient", warps=1):
        pk.wait(gates[1], 0)  # nobody arrives

forgetful(torch.zeros(16, 16, device="cuda"), int(sys.argv[1]))
"""


@pk.kernel(warps=2, debug=True)
def forgetful(x: pk.gl(pk.f32, 16, 16)) -> None:
    gates = pk.barrier(1, 2, name="gates")
    with pk.role("patient", warps=2):
        pk.wait(gates[1], 0)


ONE_ROW_EACH = {next(iter(row.configurations()))[1].kernel: row for row in KERNELS.values()}  # of each kernel


@pytest.mark.parametrize("row", ONE_ROW_EACH.values(), ids=lambda row: row.name)
def test_every_kernel_in_debug_builds(
    row: Shipped, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A kernel that debug builds leave as it is, is compiled elsewhere; of the others CI compiles a part."""
    found = row.make(**row.default())
    assert found is not None
    arch = row.targets(found)[-1]
    monkeypatch.setenv("PYKITTENS_DEBUG", "1")
    debug, threads = found.cuda(arch), found.program().threads
    monkeypatch.setenv("PYKITTENS_DEBUG", "0")
    text = found.cuda(arch)
    assert "printf" not in text and "nanoseconds" not in text
    if debug != text and (request.config.getoption("whole") or thin.runs(row.name, 6)):
        assert cache.load_or_compile(debug, arch).registers * threads <= 65536


def test_some_kernels_wait() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYKITTENS_DEBUG", "1")
        for name in ("attention_hopper", "gemm", "linear_attention", "based"):
            assert "nanoseconds" in KERNELS[name].make(**KERNELS[name].default()).cuda("sm_90a"), name


def test_a_wait_says_who_waits_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKITTENS_PATIENCE", "0.5")
    text = forgetful.cuda(X)
    place = re.escape(f"{__file__}:{forgetful.function.__code__.co_firstlineno + 4} in forgetful")
    assert re.search(rf"\"gates\", \((v_\d+) - v_\d+\) / 8, 0u?, \"role 'patient' of forgetful\", \"{place}\"", text), (
        text
    )
    assert "> 500000000ull" in text and "has waited 0.5 s for" in text


@pytest.mark.parametrize("patience", ["soon", "0", "-1", "inf"])
def test_patience_is_a_number_of_seconds(patience: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKITTENS_PATIENCE", patience)
    with pytest.raises(pk.ResourceError, match=f"PYKITTENS_PATIENCE is '{patience}'"):
        forgetful.cuda(X)


def test_loops_that_only_look_are_bounded() -> None:
    @pk.kernel(warps=1, debug=True)
    def look(x: pk.gl(pk.i32, 1, 16)) -> None:
        for _ in pk.loop():
            pk.break_if(x[0, 0] != 0)

    @pk.kernel(warps=1, debug=True)
    def work(x: pk.gl(pk.i32, 1, 16)) -> None:
        for _ in pk.loop():
            pk.warp.sync()
            pk.break_if(x[0, 0] != 0)

    x = pk.spec(pk.i32, (1, 16))
    assert '"a loop to be left"' in look.cuda(x)
    assert "nanoseconds" not in work.cuda(x)
    assert look.compile(x).registers


def test_prints_and_assertions_compile() -> None:
    @pk.kernel(warps=4, debug=True)
    def tell(x: pk.gl(pk.f32, 16, 16), n: pk.i32) -> None:
        tile = pk.warp.load(x, (0, 0), rows=16)
        pk.print("100 % of", n, tile, tile.row_sum())
        pk.assert_(n > 3, 'n is "large"')

    for arch in ("sm_80", "sm_90a"):
        assert tell.compile(X, 3, arch=arch).registers


def run(script: Path, *arguments: str) -> Any:
    environment = {**os.environ, "PYKITTENS_PATIENCE": "0.5", "PYTHONPATH": str(Path(pk.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.gpu
def test_a_hang_ends_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    if driver.capability() < (9, 0):
        pytest.skip("such barriers began with Hopper")
    script = tmp_path / "hang.py"
    script.write_text(SCRIPT)
    hung, failed = run(script, "1"), run(script, "7")
    said = hung.stdout + hung.stderr
    assert (
        "warp 1, role 'patient' of forgetful has waited 0.5 s for the phase with parity 0 of gates[1] to end, at "
        in said
    ), said
    assert "hang.py:12 in forgetful" in said, said
    assert hung.returncode and "CudaError: waiting for the GPU" in hung.stderr, hung.stderr
    assert (
        "assertion failed in block (" in failed.stdout + failed.stderr and "n is small" in failed.stdout + failed.stderr
    )
