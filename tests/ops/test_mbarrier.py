"""What stands between the loads of a ring's slot and the arrival that gives it back."""

import re

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warp


def test_a_slot_is_given_back_when_its_loads_have_been_performed() -> None:
    """An arrival alone passes loads that are still on their way: TMA then fills the slot under them."""

    @pk.kernel(warps=8)
    def scale(x: pk.gl(bf16, "M", 256), y: pk.gl(f32, "N", 256)) -> None:
        ring = pk.ring(2, row=pk.sv(bf16, 256))
        with pk.role("load", warps=4):
            for i in pk.range(x.rows):
                with ring.fill() as slot:
                    pk.tma.load(slot.row, x, (i, 0))
        with pk.role("work", warps=4):
            for i in pk.range(x.rows):
                slot = ring.read()
                row = warp.load_vec(slot.row, dtype=f32)
                ring.release()
                warp.store(y, row * 2.0, (i * 4 + warp.index, 0))

    text = scale.cuda(pk.spec(bf16, (9, 256)), pk.spec(f32, (36, 256)), arch="sm_90a")
    body = text[text.index("role work") :]
    words = r"pk_ld_shared<", r"fence\.proxy\.async", r"pk_mbarrier_arrive\("
    load, fence, arrival = (re.search(word, body) for word in words)
    assert load and fence and arrival and load.start() < fence.start() < arrival.start()


def test_a_barrier_of_ones_own_gives_back_what_has_been_read() -> None:
    @pk.kernel(warps=2)
    def copy(x: pk.gl(f32, "N", 16), y: pk.gl(f32, "N", 16)) -> None:
        tile, full, empty = pk.shared(pk.st(f32, 16, 16)), pk.barrier(1), pk.barrier(1)
        with pk.role("load", warps=1):
            for i in pk.range(x.rows // 16):
                pk.wait(empty, (i + 1) & 1)
                pk.tma.expect(full, tile)
                pk.tma.load(tile, x, (i, 0), full)
        with pk.role("work", warps=1):
            for i in pk.range(x.rows // 16):
                pk.wait(full, i & 1)
                values = warp.load(tile)
                pk.arrive(empty)
                warp.store(y, values, (i, 0))

    text = copy.cuda(pk.spec(f32, (64, 16)), pk.spec(f32, (64, 16)), arch="sm_90a")
    body = text[text.index("role work") :]
    words = r"pk_ld|ld_shared|load", r"fence\.proxy\.async", r"pk_mbarrier_arrive\("
    load, fence, arrival = (re.search(word, body) for word in words)
    assert load and fence and arrival and load.start() < fence.start() < arrival.start()


@pytest.mark.parametrize("stored", [False, True])
def test_the_fence_stands_where_it_costs_least(stored: bool) -> None:
    """Before a wait for products that follows the loads; none where what was written since has been fenced anyway."""

    @pk.kernel(warps=8)
    def product(x: pk.gl(bf16, "N", 64), y: pk.gl(f32, "N", 64)) -> None:
        ring, copy = pk.ring(2, rows=pk.st(bf16, 64, 64)), pk.shared(pk.st(bf16, 64, 64))
        with pk.role("load", warpgroups=1):
            for i in pk.range(x.rows // 64):
                with ring.fill() as slot:
                    pk.tma.load(slot.rows, x, (i, 0))
        with pk.role("work", warpgroups=1):
            for i in pk.range(x.rows // 64):
                slot = ring.read()
                out = pk.warpgroup.zeros(f32, 64, 64)
                own = pk.warpgroup.load(slot.rows)
                if stored:
                    pk.warpgroup.store(copy, own)
                    pk.warpgroup.sync()
                pk.warpgroup.mma_ABt(out, own, copy if stored else slot.rows)
                pk.warpgroup.wait()
                ring.release()
                pk.warpgroup.store(y, out, (i, 0))

    x = np.random.default_rng(0).standard_normal((128, 64)).astype(bf16.numpy)
    y = np.zeros((128, 64), np.float32)
    product(x, y)
    for tile in (slice(64), slice(64, 128)):
        assert np.allclose(y[tile], x[tile].astype(np.float64) @ x[tile].T.astype(np.float64), atol=1e-2)
    text = product.cuda(x, y, arch="sm_90a")
    body = text[text.index("role work") :]
    order = re.findall(r"ldmatrix_x4\(|fence\.proxy\.async|pk_wgmma_wait|pk_mbarrier_arrive\(", body)
    order = [word for i, word in enumerate(order) if word != order[i - 1]]
    assert order[-3:] == ["fence.proxy.async", "pk_wgmma_wait", "pk_mbarrier_arrive("], order
    assert order.count("fence.proxy.async") == 1
