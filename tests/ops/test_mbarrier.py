"""What stands between the loads of a ring's slot and the arrival that gives it back."""

import re

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
