"""What a run reports: bytes, operations, FLOPs, bank conflicts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warp
from pykittens.sim.banks import extra_passes
from pykittens.sim.report import Conflicts, Report
from pykittens.thread_map import InTurn, Matrices, Registers
from pykittens.types import RegisterTile, SharedTile


def test_bytes_and_operations() -> None:
    @pk.kernel(warps=2, grid=(2, 1, 1))
    def move(x: pk.gl(bf16, 64, 64), y: pk.gl(bf16, 60, 64)) -> None:
        tile = pk.shared(pk.st(bf16, 32, 64))
        pk.block.load_into(tile, x, (pk.block_index.x, 0))
        pk.block.sync()
        warp.load(tile)  # each of two warps reads the whole tile
        pk.block.store(y, tile, (pk.block_index.x, 0))

    report = move.simulate(np.zeros((64, 64), ml_dtypes.bfloat16), np.zeros((60, 64), ml_dtypes.bfloat16))
    assert report.blocks == 2
    assert report.read == {"global": 64 * 128, "shared": 3 * 64 * 128}
    assert report.written == {"shared": 64 * 128, "global": 60 * 128}
    assert report.operations["copyin"] == 2 and report.operations["load"] == 4
    assert report.flops == 0 and report.clean
    assert "8192 bytes read" in str(report)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzled_tiles_have_no_conflicts(swizzle: int) -> None:
    for layout in ("row", "col"):
        assert extra_passes(SharedTile(bf16, 64, 64, swizzle), Matrices(RegisterTile(bf16, 64, 64, layout)), 1) == 0
    assert extra_passes(SharedTile(bf16, 64, 64), Matrices(RegisterTile(bf16, 64, 64, "row", 4)), 4) == 0
    assert extra_passes(SharedTile(bf16, 64, 64), InTurn(8), 4) == 0


def test_conflicts_are_counted_for_each_access() -> None:
    """Pairs of float32 take two of the eight chunks of a row: the swizzle cannot keep four rows apart."""

    @pk.kernel(warps=2)
    def wide(x: pk.gl(f32, 32, 32), y: pk.gl(f32, 32, 32)) -> None:
        tile = pk.shared(pk.st(f32, 32, 32), name="tile")
        pk.block.load_into(tile, x, (0, 0))
        pk.block.sync()
        for _ in pk.range(3):
            warp.store(y, warp.load(tile.part(warp.index * 16, 0, 16, 32)), (warp.index, 0))

    report = wide.simulate(np.zeros((32, 32), np.float32), np.zeros((32, 32), np.float32))
    once = extra_passes(SharedTile(f32, 16, 32, pitch=32), Registers(RegisterTile(f32, 16, 32), 2), 1)
    assert once > 0
    assert [(c.operation, c.tile, c.passes) for c in report.conflicts] == [("load", "tile part", 2 * 3 * once)]
    assert report.bank_conflicts == 6 * once
    assert "test_report.py" in str(report.conflicts[0])


def test_product_flops() -> None:
    @pk.kernel(warps=4)
    def square(x: pk.gl(bf16, 64, 64)) -> None:
        tile = pk.shared(pk.st(bf16, 64, 64))
        pk.warpgroup.load_into(tile, x, (0, 0))
        pk.warpgroup.sync()
        out = pk.warpgroup.zeros(f32, 64, 64)
        pk.warpgroup.mma_ABt(out, tile, tile)
        pk.warpgroup.wait(out)

    assert square.simulate(np.zeros((64, 64), ml_dtypes.bfloat16)).flops == 2 * 64**3


def test_a_notebook_shows_a_table() -> None:
    report = Report(blocks=2, conflicts=[Conflicts("load", "st<f32, 16x64>", (), 3)])
    report.read["global"] = 4096
    text = report._repr_html_()
    assert "<th>bytes read, global memory</th><td>4,096</td>" in text
    assert "load of st&lt;f32, 16x64&gt;" in text and "3 extra passes" in text
