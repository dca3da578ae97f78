"""A proxy fence stands between every way to write shared memory and every access of TMA or wgmma, after the write is
done."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warpgroup
from pykittens.ops.tma import ProxyFence
from pykittens.program import Block, Program

BF16 = np.dtype(ml_dtypes.bfloat16)


def stored(t, x):
    warpgroup.store(t, warpgroup.load(x, (pk.cluster.rank, 0), rows=64))


def copied(t, x):
    warpgroup.load_into(t, x, (pk.cluster.rank, 0))


def copied_async(t, x):
    warpgroup.load_async(t, x, (pk.cluster.rank, 0))
    warpgroup.commit()
    warpgroup.wait_loads(0)


def copied_in_stages(t, x):
    """The first of two groups is waited for; the second is about other memory."""
    other = pk.shared(pk.st(bf16, 64, 64))
    for tile in (t, other):
        warpgroup.load_async(tile, x, (pk.cluster.rank, 0))
        warpgroup.commit()
    warpgroup.wait_loads(1)


def stored_by_a_peer(t, x):
    part = warpgroup.load(x, (1 - pk.cluster.rank, 0), rows=64)
    pk.cluster.sync()
    warpgroup.store(t, part, rank=1 - pk.cluster.rank)


def written_by_inline_text(t, x):
    part = warpgroup.load(x, (pk.cluster.rank, 0), rows=64)
    pk.cuda("// {t} {part}", writes={"t": t}, reads={"part": part}, numpy=lambda t, part: part, scope=warpgroup)


def multiplied(t, y):
    out = warpgroup.zeros(f32, 64, 64)
    warpgroup.mma_ABt(out, t, t)
    warpgroup.wait(out)
    warpgroup.store(y, out, (pk.cluster.rank, 0))


def stored_by_tma(t, y):
    warpgroup.tma.store(y, t, (pk.cluster.rank, 0))
    warpgroup.tma.commit()
    warpgroup.tma.wait()


def blocks(block: Block):
    yield block
    for op in block:
        for inner in op.blocks():
            yield from blocks(inner)


def without_fences(program: Program) -> int:
    """Removes them, and says how many there were."""
    count = 0
    for block in blocks(program.body):
        count += sum(isinstance(op, ProxyFence) for op in block.ops)
        block.ops = [op for op in block.ops if not isinstance(op, ProxyFence)]
    return count


@pytest.mark.parametrize("use", [multiplied, stored_by_tma])
@pytest.mark.parametrize(
    "write", [stored, copied, copied_async, copied_in_stages, stored_by_a_peer, written_by_inline_text]
)
def test_what_is_written_is_fenced(write: Callable[..., None], use: Callable[..., None]) -> None:
    def make() -> pk.Kernel:
        dtype = f32 if use is multiplied else bf16

        @pk.kernel(warps=4, grid=2, cluster=2)
        def k(x: pk.gl(bf16, 128, 64), y: pk.gl(dtype, 128, 64)) -> None:
            t = pk.shared(pk.st(bf16, 64, 64))
            write(t, x)
            pk.cluster.sync()
            use(t, y)
            warpgroup.wait_loads(0)

        return k

    x = np.random.default_rng(0).integers(-2, 3, (128, 64)).astype(BF16)
    y = np.zeros((128, 64), np.float32 if use is multiplied else BF16)
    for seed in (None, 1, 2):
        make().simulate(x, y, seed=seed)
        halves = x.astype(np.float32).reshape(2, 64, 64)
        want = halves @ halves.swapaxes(1, 2) if use is multiplied else halves
        assert np.array_equal(y.astype(np.float32).reshape(2, 64, 64), want)
    text = make().cuda(x, y, arch="sm_90a")
    space = "shared::cluster" if write is stored_by_a_peer else "shared::cta"
    assert f"fence.proxy.async.{space};" in text
    bare = make()
    assert without_fences(bare.program(x, y)) >= 1
    with pytest.raises(pk.RaceError, match="missing proxy fence"):
        bare.simulate(x, y)


def test_a_fence_comes_before_an_access_without_a_barrier() -> None:
    """What one thread writes and then stores with TMA is ordered by the thread alone; the fence still stands
    between."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)) -> None:
        t = pk.shared(pk.st(f32, 16, 16))
        pk.warp.store(t, pk.warp.load(x, (0, 0), rows=16))
        pk.tma.store(y, t, (0, 0))

    names = [op.name for op in k.program(pk.spec(f32, (16, 16)), pk.spec(f32, (16, 16))).body]
    assert names.index("store") < names.index("proxyfence") < names.index("tmastore")


def test_global_memory_is_fenced_for_tma() -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 16)) -> None:
        t, landed = pk.shared(pk.st(f32, 16, 16)), pk.barrier(1)
        pk.warp.store(x, pk.warp.full(f32, 16, 16, 1.0), (0, 0))
        pk.warp.sync()
        pk.tma.expect(landed, t)
        pk.tma.load(t, x, (0, 0), landed)
        pk.wait(landed, 0)

    assert 'asm volatile("fence.proxy.async;"' in k.cuda(pk.spec(f32, (16, 16)), arch="sm_90a")


def test_waits_acquire_what_other_blocks_released() -> None:
    """An arrival from another block, terms sent by one, and neither: three sorts of wait in one kernel."""

    @pk.kernel(warps=4, grid=2, cluster=2)
    def k(x: pk.gl(f32, 8, 1024), y: pk.gl(f32, 8, 1024)) -> None:
        from_peer, own, t = pk.barrier(1), pk.barrier(1), pk.shared(pk.st(f32, 8, 512))
        with pk.role("rows", warps=4):
            pk.tma.expect(own, t)
            pk.tma.load(t, x, (0, pk.cluster.rank), own)
            pk.wait(own, 0)
            rows = warpgroup.load(t, layout=pk.coalesced(128, 4))
            warpgroup.store(y, rows - rows.row_sum(cluster=True), (0, pk.cluster.rank))
            pk.arrive(from_peer, rank=1 - pk.cluster.rank)
            pk.wait(from_peer, 0)
        pk.cluster.sync()

    x = np.random.default_rng(0).integers(-8, 9, (8, 1024)).astype(np.float32)
    y = np.zeros_like(x)
    k.simulate(x, y)
    assert np.array_equal(y, x - x.sum(1, keepdims=True))
    waits = [line for line in k.cuda(x, y, arch="sm_90a").splitlines() if line.strip().startswith("pk_mbarrier_wait_")]
    assert [line.split("wait_")[1].split("(")[0] for line in waits] == ["cta", "terms", "cluster"]
