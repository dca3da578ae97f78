"""Which warp touches which bytes is what the layouts say: hand-overs between other owners are found, a warp's own are
not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp

ORDERS = [None, 1, 2]


def run(kernel: pk.Kernel, *arrays: np.ndarray) -> pk.RaceError | None:
    """What every order finds (the same in all, or nothing)."""
    found: list[pk.RaceError | None] = []
    for seed in ORDERS:
        try:
            kernel.simulate(*(x.copy() for x in arrays), seed=seed)
            found.append(None)
        except pk.RaceError as error:
            found.append(error)
    assert len({error is None for error in found}) == 1
    return found[0]


def hand_over(write: Any, read: Any, sync: bool) -> pk.Kernel:
    """A block writes a tile of 16 x 512 by one map and reads it by another."""

    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 16, 512), y: pk.gl(f32, 16, 512)) -> None:
        tile = pk.shared(pk.st(f32, 16, 512), name="tile")
        write(tile, x)
        if sync:
            pk.block.sync()
        else:
            warp.sync()
        read(tile, y)

    return kernel


def coalesced(width: int) -> tuple[Any, Any]:
    layout = pk.coalesced(128, width)
    return (
        lambda tile, x: pk.block.store(tile, pk.block.load(x, (0, 0), rows=16, layout=layout)),
        lambda tile, y: pk.block.store(y, pk.block.load(tile, layout=layout), (0, 0)),
    )


WRITES = {width: coalesced(width)[0] for width in (1, 2, 4)} | {
    "copy": lambda tile, x: pk.block.load_into(tile, x, (0, 0))
}
READS = {width: coalesced(width)[1] for width in (1, 2, 4)} | {"copy": lambda tile, y: pk.block.store(y, tile, (0, 0))}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
def test_only_the_same_owners_need_no_barrier(write: Any, read: Any) -> None:
    """Runs of 4 floats are what a copy moves: 16 bytes a thread."""
    x, y = np.zeros((16, 512), np.float32), np.zeros((16, 512), np.float32)
    same = write == read or {write, read} == {4, "copy"}
    found = run(hand_over(WRITES[write], READS[read], False), x, y)
    assert (found is None) == same
    if found is not None:
        assert "tile" in str(found) and "pk.block.sync()" in str(found) and len(found.also) == 1
    assert run(hand_over(WRITES[write], READS[read], True), x, y) is None


def test_a_narrower_copy_has_other_owners() -> None:
    """Rows of 65 floats move 4 bytes a thread."""

    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 64, 64), y: pk.gl(f32, 64, "M")) -> None:
        tile = pk.shared(pk.st(f32, 64, 64))
        pk.block.load_into(tile, x, (0, 0))
        warp.sync()
        pk.block.store(y, tile, (0, 0))

    x = np.zeros((64, 64), np.float32)
    assert run(kernel, x, np.zeros((64, 64), np.float32)) is None
    assert run(kernel, x, np.zeros((64, 65), np.float32)) is not None


@pytest.mark.parametrize("width", [1, 2, 4])
def test_vectors_belong_to_the_threads_of_their_width(width: int) -> None:
    @pk.kernel(warps=4)
    def kernel(y: pk.gl(f32, 1, 512)) -> None:
        v = pk.shared(pk.sv(f32, 512))
        pk.block.store(v, pk.block.full_vec(f32, 512, 1.0, width=width))
        warp.sync()
        pk.block.store(y, pk.block.load_vec(v), (0, 0))  # four floats a thread

    assert (run(kernel, np.zeros((1, 512), np.float32)) is None) == (width == 4)


def test_a_row_vector_over_warps_is_written_by_all_of_them() -> None:
    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 1, 512), y: pk.gl(f32, 1, 512)) -> None:
        v = pk.shared(pk.sv(f32, 512))
        pk.block.store(v, pk.block.load_row(x, (0, 0), layout=pk.coalesced(128, 4)))
        with pk.when(warp.index == 0):
            warp.store(y, warp.load_vec(v), (0, 0))

    assert run(kernel, np.zeros((1, 512), np.float32), np.zeros((1, 512), np.float32)) is not None


def test_a_warp_reads_its_own_columns() -> None:
    @pk.kernel(warps=4)
    def kernel(x: pk.gl(f32, 16, 128), y: pk.gl(f32, 16, 128)) -> None:
        tile = pk.shared(pk.st(f32, 16, 128))
        pk.block.store(tile, pk.block.load(x, (0, 0), rows=16, layout=pk.coalesced(128, 1)))
        warp.sync()
        warp.store(y, warp.load(tile.part(0, warp.index * 32, 16, 32)), (0, warp.index))

    x, y = np.arange(2048, dtype=np.float32).reshape(16, 128), np.zeros((16, 128), np.float32)
    assert run(kernel, x, y) is None
    kernel.simulate(x, y)
    assert np.array_equal(x, y)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("declared", [False, True])
def test_inline_cuda_touches_everything_unless_it_says_what(sync: bool, declared: bool) -> None:
    """Thread 127 writes the whole vector; or each thread the four floats that it stores afterwards, and says so."""
    text = (
        "if (threadIdx.x == 127) for (int i = 0; i < 512; i++) *(float*)__cvta_shared_to_generic({v} + 4 * i) = 1.0f;"
    )

    @pk.kernel(warps=4)
    def kernel(y: pk.gl(f32, 1, 512)) -> None:
        v = pk.shared(pk.sv(f32, 512))
        touches = {"v": lambda i: i // 4} if declared else {}
        pk.cuda(text, writes={"v": v}, numpy=lambda v: np.ones_like(v), scope=pk.block, touches=touches)
        if sync:
            pk.block.sync()
        pk.block.store(y, pk.block.load_vec(v), (0, 0))

    found = run(kernel, np.zeros((1, 512), np.float32))
    assert (found is None) == (sync or declared)
    if found is not None:
        assert "pk.block.sync()" in found.fix or "warp.sync()" in found.fix
