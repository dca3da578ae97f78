"""The right numbers come out of every way to reach memory, and of every kind of control flow."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, warp, warpgroup

BF16 = ml_dtypes.bfloat16


def numbers(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-8, 9, shape).astype(np.float32).astype(dtype)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("rows, cols", [(64, 64), (50, 64), (64, 40), (33, 19)])
def test_registers_shared_and_global(rows: int, cols: int, strided: bool) -> None:
    """Global to shared to registers to shared to global; past the end nothing is read or written."""

    @pk.kernel(warps=4)
    def copy(x: pk.gl(f32, "N", "M"), y: pk.gl(f32, "N", "M")) -> None:
        first, second = pk.shared(pk.st(f32, 64, 64)), pk.shared(pk.st(f32, 64, 64))
        pk.block.load_into(first, x, (0, 0))
        pk.block.sync()
        pk.block.store(second, pk.block.load(first))
        pk.block.sync()
        pk.block.store(y, second, (0, 0))

    store = numbers(rows, 2 * cols)
    x = store[:, :cols] if strided else numbers(rows, cols)
    y = np.full((rows, cols), 7, np.float32)
    report = copy.simulate(x, y)
    assert np.array_equal(x, y)
    assert report.written["global"] == rows * cols * 4


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzles_and_parts(swizzle: int) -> None:
    """A part of a tile is the same elements, also where it begins inside a panel."""

    @pk.kernel(warps=1)
    def parts(x: pk.gl(bf16, 64, 128), y: pk.gl(bf16, 32, 32)) -> None:
        tile = pk.shared(pk.st(bf16, 64, 128, swizzle))
        warp.load_into(tile, x, (0, 0))
        warp.sync()
        warp.store(y, warp.load(tile.part(24, 48, 32, 32)), (0, 0))

    x, y = numbers(64, 128, dtype=BF16), np.zeros((32, 32), BF16)
    parts.simulate(x, y)
    assert np.array_equal(x[24:56, 48:80], y)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_parts_begin_at_any_row(swizzle: int) -> None:
    """Whatever moves them: matrices, pairs, runs, copies, products, elements at indices."""

    @pk.kernel(warps=1)
    def parts(x: pk.gl(bf16, 64, 64), y: pk.gl(bf16, 4, 16, 32), z: pk.gl(f32, 16, 16), row: pk.i32) -> None:
        tile = pk.shared(pk.st(bf16, 64, 64, swizzle))
        warp.load_into(tile, x, (0, 0))
        warp.sync()
        part = tile.part(row, 16, 16, 32)
        for i, layout in enumerate(("row", "col", pk.coalesced(4, 8))):
            warp.store(y, warp.load(part, layout=layout), (i, 0, 0))
        warp.store(y, part[warp.iota_col(16), warp.iota_row(32)].to(bf16), (3, 0, 0))
        product = warp.zeros(f32, 16, 16)
        warp.mma_ABt(product, part, tile.part(row + 2, 32, 16, 32))
        warp.store(z, product, (0, 0))
        warp.store(tile.part(row + 1, 16, 16, 32), warp.load(part))
        warp.load_into(tile.part(1, 0, 8, 16), x, (0, 0))
        warp.sync()
        warp.store(x, tile, (0, 0))

    x, y, z = numbers(64, 64, dtype=BF16), np.zeros((4, 16, 32), BF16), np.zeros((16, 16), np.float32)
    moved = x.copy()
    moved[12:28, 16:48], moved[1:9, :16] = x[11:27, 16:48], x[:8, :16]
    kept = x.copy()
    parts.simulate(x, y, z, 11)
    assert all(np.array_equal(got, kept[11:27, 16:48]) for got in y)
    wide = kept.astype(np.float64)
    assert np.allclose(z, wide[11:27, 16:48] @ wide[13:29, 32:64].T, atol=1e-3)
    assert np.array_equal(x, moved)


def test_vectors_and_elements() -> None:
    """Vectors through shared memory, single elements of shared and global memory."""

    @pk.kernel(warps=2)
    def sums(x: pk.gl(f32, 32, 64), y: pk.gl(f32, 1, 32), total: pk.gl(f32, 1, 1), where: pk.gl(i32, 1, 2)) -> None:
        sums, parts = pk.shared(pk.sv(f32, 32)), pk.shared(pk.sv(f32, 2))
        mine = warp.load(x, (warp.index, 0), rows=16).row_sum()
        warp.set(parts, where[0, warp.index], mine.sum())
        pk.block.store(sums, pk.block.load(x, (0, 0), rows=32).row_sum())
        pk.block.sync()
        with pk.when(warp.index == 0):
            warp.store(y, warp.load_vec(sums), (0, 0))
            warp.set(total, (0, 0), parts[0] + parts[1])

    x, y, total = numbers(32, 64), np.zeros((1, 32), np.float32), np.zeros((1, 1), np.float32)
    sums.simulate(x, y, total, np.array([[1, 0]], np.int32))
    assert np.array_equal(y[0], x.sum(1)) and total[0, 0] == x.sum()


def test_elements() -> None:
    @pk.kernel(warps=4)
    def scatter(x: pk.gl(i32, 1, 4), y: pk.gl(i32, 1, 8)) -> None:
        boxes = pk.shared(pk.sv(i32, 4))
        warp.set(boxes, x[0, warp.index], warp.index * 10)
        pk.block.sync()
        warp.set(y, (0, warp.index * 2), boxes[warp.index] + 1)

    y = np.zeros((1, 8), np.int32)
    scatter.simulate(np.array([[2, 0, 3, 1]], np.int32), y)
    assert y.tolist() == [[11, 0, 31, 0, 1, 0, 21, 0]]


def test_grid_and_coordinates() -> None:
    """Blocks in three dimensions, batch and depth, a grid larger than needed."""

    @pk.kernel(warps=2, grid=lambda x, **_: (pk.cdiv(x.rows, 32), x.depth, x.batch))
    def double(x: pk.gl(f32, "B", "H", "N", 16), y: pk.gl(f32, "B", "H", "N", 16)) -> None:
        at = (pk.block_index.z, pk.block_index.y, pk.block_index.x * 2 + warp.index, 0)
        warp.store(y, warp.load(x, at, rows=16) * 2.0, at)

    x = numbers(2, 3, 70, 16)
    y = np.zeros_like(x)
    double.simulate(x, y)
    assert np.array_equal(2 * x, y)


def test_products() -> None:
    @pk.kernel(warps=4)
    def product(a: pk.gl(bf16, 64, 32), b: pk.gl(bf16, 32, 48), c: pk.gl(f32, 64, 48)) -> None:
        left, right = pk.shared(pk.st(bf16, 64, 32)), pk.shared(pk.st(bf16, 32, 48))
        pk.block.load_into(left, a, (0, 0))
        pk.block.load_into(right, b, (0, 0))
        pk.block.sync()
        out = warp.zeros(f32, 16, 48)
        warp.mma_AB(out, warp.load(left.part(warp.index * 16, 0, 16, 32)), right)
        warp.store(c, out, (warp.index, 0))

    a, b, c = numbers(64, 32, dtype=BF16), numbers(32, 48, dtype=BF16), np.zeros((64, 48), np.float32)
    report = product.simulate(a, b, c)
    assert np.array_equal(a.astype(np.float32) @ b.astype(np.float32), c)
    assert report.flops == 2 * 64 * 32 * 48


def test_divergent_loops_and_branches() -> None:
    """Warps of one gang take different branches and turns; what the others hold stays."""

    @pk.kernel(warps=4)
    def diverge(y: pk.gl(f32, 64, 16)) -> None:
        tile, turns = warp.zeros(f32, 16, 16), pk.var(i32, 0)
        for i in pk.range(warp.index):
            with pk.when(i < 2):
                tile += 1.0
            with pk.otherwise():
                tile += 100.0
        for _ in pk.loop():
            pk.break_if(turns >= warp.index * 2)
            turns.set(turns + 1)
        tile += pk.cast(turns, f32) * 1000.0
        warp.store(y, tile, (warp.index, 0))

    y = np.zeros((64, 16), np.float32)
    diverge.simulate(y)
    assert y[::16, 0].tolist() == [0, 2001, 4002, 6102]


def test_roles_share_and_change_what_was_made_before() -> None:
    @pk.kernel(warps=4)
    def roles(y: pk.gl(f32, 64, 16)) -> None:
        tile, count = warp.full(f32, 16, 16, 1), pk.var(i32, 5)
        with pk.role("one", warps=1):
            tile += 1.0
            count.set(6)
        with pk.role("rest", warps=3) as me:
            tile += pk.cast(me, f32) * 10.0
        warp.store(y, tile + pk.cast(count, f32) * 100.0, (warp.index, 0))

    y = np.zeros((64, 16), np.float32)
    roles.simulate(y)
    assert y[::16, 0].tolist() == [602, 501, 511, 521]


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_tma_ring_and_wgmma(seed: int | None) -> None:
    """A loading role, a ring, products on two warpgroups, a bulk store: any legal order gives the same."""

    @pk.kernel(warps=12)
    def matmul(a: pk.gl(bf16, 128, "K"), b: pk.gl(bf16, 64, "K"), c: pk.gl(f32, 128, 64)) -> None:
        ring = pk.ring(2, a=pk.st(bf16, 128, 64), b=pk.st(bf16, 64, 64))
        result = pk.shared(pk.st(f32, 64, 64), count=2)
        with pk.role("load", warps=4):
            for k in pk.range(a.cols // 64):
                with ring.fill() as slot:
                    pk.tma.load(slot.a, a, (0, k))
                    pk.tma.load(slot.b, b, (0, k))
        with pk.role("multiply", warpgroups=2) as me:
            out = warpgroup.zeros(f32, 64, 64)
            for _ in pk.range(a.cols // 64):
                slot = ring.read()
                warpgroup.mma_ABt(out, slot.a.part(me * 64, 0, 64, 64), slot.b)
                warpgroup.wait(out)
                ring.release()
            warpgroup.store(result[me], out)
            warpgroup.sync()
            warpgroup.tma.store(c, result[me], (me, 0))
            warpgroup.tma.commit()
            warpgroup.tma.wait(read=True)

    a, b, c = numbers(128, 320, dtype=BF16), numbers(64, 320, dtype=BF16), np.zeros((128, 64), np.float32)
    report = matmul.simulate(a, b, c, seed=seed)
    assert np.array_equal(a.astype(np.float32) @ b.astype(np.float32).T, c)
    assert report.clean


def test_multicast_in_a_cluster() -> None:
    """One block loads for both; each tells the other when it has read."""

    @pk.kernel(warps=1, grid=(4, 1, 1), cluster=(2, 1, 1))
    def spread(x: pk.gl(f32, 16, "M"), y: pk.gl(f32, 64, "M")) -> None:
        tile, full, empty = pk.shared(pk.st(f32, 16, 16)), pk.barrier(), pk.barrier(2)
        for k in pk.range(x.cols // 16):
            pk.tma.expect(full, tile)
            with pk.when(pk.cluster.rank == 0):
                pk.wait(empty, (k + 1) & 1)
                pk.tma.load(tile, x, (0, k), full, multicast=3)
            pk.wait(full, k & 1)
            warp.store(y, warp.load(tile), (pk.block_index.x, k))
            pk.arrive(empty, rank=0)
        pk.cluster.sync()

    x, y = numbers(16, 64), np.zeros((64, 64), np.float32)
    spread.simulate(x, y)
    assert np.array_equal(np.tile(x, (4, 1)), y)


def test_print_and_assert() -> None:
    @pk.kernel(warps=2)
    def speak(x: pk.gl(f32, 16, 16), limit: i32) -> None:
        pk.print("warp is", warp.index)
        pk.assert_(warp.index < limit, "too many warps")

    x = np.zeros((16, 16), np.float32)
    assert [line.split("] ")[1] for line in speak.simulate(x, 2).lines] == ["warp is 0", "warp is 1"]
    with pytest.raises(pk.KernelAssertionError, match="too many warps"):
        speak.simulate(x, 1)


def test_a_user_s_operation_that_fails() -> None:
    """An error inside a NumPy meaning names the line of the kernel."""

    @pk.kernel(warps=1)
    def broken() -> None:
        tile = warp.zeros(f32, 16, 16)
        pk.cuda("{x}[0] = 1.0f;", writes={"x": tile}, numpy=lambda x: x[:, 20, 20])

    with pytest.raises(pk.Diagnosis, match="fails on the CPU: IndexError"):
        broken.simulate()


def test_integers_wrap() -> None:
    @pk.kernel(warps=1)
    def overflow(y: pk.gl(i32, 1, 4), n: i32) -> None:
        warp.set(y, (0, 0), n * n)

    y = np.zeros((1, 4), np.int32)
    for n in (1000, 100000, -(2**31)):
        overflow.simulate(y, n)
        assert y[0, 0] == np.asarray(n * n % 2**32, np.uint32).view(np.int32)


def test_what_is_counted_with_has_not_wrapped() -> None:
    """A quotient, a coordinate, an index, a loop's bound of a signed scalar that has wrapped is another one."""

    @pk.kernel(warps=2)
    def use(x: pk.gl(i32, "N", 1), y: pk.gl(i32, 1, 4), n: i32, *, how: str) -> None:
        shared = pk.shared(pk.sv(i32, 4))
        m = (n + warp.index) * 65536
        if how == "quotient":
            warp.set(y, (0, warp.index), m // 65536)
        elif how == "in i64":
            warp.set(y, (0, warp.index), pk.cast((pk.cast(n, pk.i64) + warp.index) * 65536 // 65536, i32))
        elif how == "remainder":
            warp.set(y, (0, warp.index), (m + 1) % 10)
        elif how == "in u32":
            warp.set(y, (0, warp.index), pk.cast((pk.cast(n, pk.u32) * 65536 + 1) % 10, i32))
        elif how == "coordinate":
            warp.set(y, (0, warp.index), x[(n << 17) + (n << 15), 0])
        elif how == "index":
            warp.set(shared, pk.where(warp.index == 0, n * n * 4, 0), 1)
        elif how == "bound":
            last = pk.var(i32, 3)
            last.set(n * n)
            for i in pk.range(last):
                warp.set(y, (0, warp.index), i)
        else:  # bits, and what is compared or stored
            warp.set(y, (0, warp.index), pk.where(m < 0, m ^ 1, (m * 5) & 255))

    x, y = np.zeros((64, 1), np.int32), np.zeros((1, 4), np.int32)
    for how in ("quotient", "remainder", "coordinate", "index", "bound"):
        with pytest.raises(pk.Diagnosis, match=r"wraps to .* in i32.*: warp [01] of block 0,0,0") as caught:
            use.simulate(x, y, 2**16, how=how)
        assert "in i64" in caught.value.fix and caught.value.also
    for how in ("in i64", "in u32", "value"):
        use.simulate(x, y, 2**16 - 1, how=how)
    use.simulate(x, y, 2**16, how="in i64")
    assert y[0, :2].tolist() == [2**16, 2**16 + 1]


def test_division_by_zero_is_an_error() -> None:
    @pk.kernel(warps=1)
    def divide(y: pk.gl(i32, 1, 4), n: i32, d: i32) -> None:
        warp.set(y, (0, 0), n // d)

    y = np.zeros((1, 4), np.int32)
    divide.simulate(y, -7, 2)
    assert y[0, 0] == -4
    with pytest.raises(pk.Diagnosis, match="n // d divides by 0"):
        divide.simulate(y, 1, 0)


def test_a_scalar_that_is_no_number_is_the_same_for_all_warps() -> None:
    @pk.kernel(warps=4)
    def total(x: pk.gl(f32, 64, 16), y: pk.gl(f32, 1)) -> None:
        pk.block.set(y, (0,), warpgroup.load(x, (0, 0), rows=64).sum())

    x, y = np.zeros((64, 16), np.float32), np.zeros(1, np.float32)
    x[3, 4] = np.nan
    total(x, y)
    assert np.isnan(y[0])
