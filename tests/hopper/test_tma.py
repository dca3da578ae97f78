"""The copy engine: every kind of store, vectors, hints, strided tensors, ragged edges; and what it cannot do, in
words."""

import re
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, e4m3, f16, f32, i32, u8, warp
from pykittens.call.launch import before_tensor, map_geometry
from pykittens.gpu import driver
from pykittens.interop.arrays import describe
from pykittens.types import DType

REDUCTIONS: dict[str, Any] = {
    "store": lambda new, old: new,
    "store_add": np.add,
    "store_min": np.minimum,
    "store_max": np.maximum,
}


def copier(dtype: DType, cols: int, tile: tuple[int, int], kind: str = "store", hint: str | None = None) -> pk.Kernel:
    """y = kind(y, x), tile by tile through a ring of two slots; a block for each matrix."""

    @pk.kernel(warps=1, grid=lambda x, **_: (x.depth, x.batch))
    def copy(x: pk.gl(dtype, "B", "D", "R", cols), y: pk.gl(dtype, "B", "D", "R", cols)) -> None:
        ring, d, b = pk.ring(2, pk.st(dtype, *tile)), pk.block_index.x, pk.block_index.y
        for i in pk.range(pk.cdiv(x.rows, tile[0])):
            for j in pk.range(pk.cdiv(x.cols, tile[1])):
                with ring.fill() as slot:
                    pk.tma.prefetch(x, (b, d, i, j), slot)
                    pk.tma.load(slot, x, (b, d, i, j), hint=hint)
                getattr(pk.tma, kind)(y, ring.read(), (b, d, i, j))
                pk.tma.commit()
                pk.tma.wait(read=True)
                ring.release()

    return copy


def operands(dtype: DType, cols: int) -> tuple[Any, Any]:
    """A transposed view of small integers, and an array like it."""
    rng, low = np.random.default_rng(0), 0 if dtype.kind == "u" else -8
    return rng.integers(low, 9, (2, 70, 3, cols)).astype(dtype.numpy).transpose(0, 2, 1, 3), rng.integers(
        low, 9, (2, 3, 70, cols)
    ).astype(dtype.numpy)


@pytest.mark.thin
@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("dtype", [bf16, f16, f32, i32, e4m3, u8], ids=str)
def test_stores(dtype: DType, kind: str) -> None:
    x, y = operands(dtype, 64)
    kernel = copier(dtype, 64, (32, 64), kind)
    takes = {"store": (bf16, f16, f32, i32, e4m3, u8), "store_add": (bf16, f16, f32, i32)}.get(kind, (bf16, f16, i32))
    if dtype not in takes:
        with pytest.raises(pk.TypeRuleError, match=f"tma.{kind} does not take {dtype}") as caught:
            kernel.program(x, y)
        assert ", ".join(map(str, takes)) in str(caught.value)
        return
    expected = REDUCTIONS[kind](x.astype(float), y.astype(float)).astype(dtype.numpy)
    assert kernel.simulate(x, y).clean
    assert (y == expected).all()
    assert ("reduce.async.bulk" in kernel.cuda(x, y)) == (kind != "store")
    assert kernel.compile(x, y).registers


@pytest.mark.parametrize(
    ("cols", "tile", "dims"),
    [(256, (64, 256), 5), (192, (16, 128), 5), (200, (32, 128), 4), (64, (256, 64), 4), (40, (64, 16), 4)],
)
def test_shapes(cols: int, tile: tuple[int, int], dims: int) -> None:
    """Where the columns fill whole panels, maps have five dimensions; past the end nothing is written."""
    x, y = operands(bf16, cols)
    kernel = copier(bf16, cols, tile)
    kernel.simulate(x, y)
    assert (x == y).all()
    assert f"tma_load_{dims}d(" in kernel.cuda(x, y)
    assert kernel.compile(x, y).registers
    (spec, *_) = kernel.program(x, y).maps
    shape, strides, box = map_geometry(describe(x), spec)
    assert len(shape) == len(strides) + 1 == len(box) == dims
    assert np.prod(box) * 2 <= tile[0] * tile[1] * 2 and all(s % 16 == 0 for s in strides)


@pytest.mark.parametrize(("cols", "rank", "dims"), [(128, 3, 5), (128, 4, 5), (72, 3, 5), (64, 2, 5)])
def test_kept_to_rows(cols: int, rank: int, dims: int) -> None:
    """Rows from `end` on are zeros and are not written; the map that the hardware is given finds the same elements."""
    lead = ("B", "H")[: rank - 2]

    @pk.kernel(warps=1)
    def move(
        x: pk.gl(bf16, *lead, "R", pk.static("C")), y: pk.gl(bf16, *lead, "R", pk.static("C")), row: pk.i32
    ) -> None:
        gate, tile = pk.barrier(), pk.shared(pk.st(bf16, 16, -(-cols // 64) * 64))
        for i, end in enumerate((20, 9, 40, 1000)):
            pk.tma.expect(gate, tile)
            pk.tma.load(tile, x, pk.at(0, 0, row, 0), gate, within=(0, end))
            pk.wait(gate, i % 2)
            pk.tma.store(y, tile, pk.at(0, 0, row + i * 16, 0), within=(row + i * 16, row + i * 16 + 13))
            pk.tma.commit()
            pk.tma.wait()

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3)[4 - rank :] + (80, cols)).astype(bf16.numpy)
    y, expected = np.full_like(x, 7), np.full_like(x, 7)
    assert move.simulate(x, y, 8).clean
    flat, wanted = x.reshape(-1, 80, cols)[0], expected.reshape(-1, 80, cols)[0]
    for i, end in enumerate((20, 9, 40, 1000)):
        rows = np.arange(8, 8 + 13)
        wanted[rows + i * 16] = np.where((rows < end)[:, None], flat[rows], 0)
    assert (y == expected).all()
    assert move.compile(x, y, 8).registers
    (spec, *_) = move.program(x, y, 8).maps
    shape, strides, box = map_geometry(describe(x), spec)
    assert spec.ended and len(shape) == len(strides) + 1 == len(box) == dims and shape[-1] == 81
    for row, end in ((8, 20), (8, 9), (79, 80), (0, 80)):  # what the instruction computes from its coordinates
        offset = (80 - (end - row)) * strides[0] + end * strides[-1] - before_tensor(describe(x), spec)
        assert offset == row * strides[0]
    # A copy of no row is not asked of a map that begins before the tensor: the engine touches memory, whatever it
    # leaves out. A load goes behind the last row by a map that begins with the tensor; nothing is stored.
    text = move.cuda(x, y, 8)
    (loads, behind), stores = re.findall(r"pk_tma_load_(?:5d|4d)\(\w+ \+ 0, &(\w+)", text)[:2], set()
    plain = move.program(x, y, 8).maps[1]
    assert plain == replace(spec, ended=False) and before_tensor(describe(x), plain) == 0 and loads != behind
    for line, copies, rest in re.findall(r"\n *if \((\w+ < end_\d+)\) \{\n(.*?)\n *\}\n([^\n]*)", text, re.S):
        row, end = line.split(" < ")
        assert all(f"- ({end} - {row})" in x and f", {end})" in x for x in copies.splitlines())
        stores |= {rest.strip() == "else {"}
    assert stores == {True, False}
    for outside in re.findall(r"else \{\n(.*?)\n *\}", text, re.S):
        assert all(f"&{behind}, " in x and re.search(r", v_\d+\.shape\[2\], ", x) for x in outside.splitlines())
    with pytest.raises(pk.OutOfBoundsError, match="begins at row -1, before row 0"):
        move.simulate(x, y, -1)


def kept(cols: Any) -> Any:
    """Copies rows that are kept to some, in tiles of 192 columns, which may be more than there are."""

    @pk.kernel(warps=1)
    def move(x: pk.gl(bf16, "R", cols), y: pk.gl(bf16, "R", cols), end: pk.i32) -> None:
        gate, tile = pk.barrier(), pk.shared(pk.st(bf16, 16, 192))
        pk.tma.expect(gate, tile)
        pk.tma.load(tile, x, pk.at(8, 0), gate, within=(0, end))
        pk.wait(gate, 0)
        pk.tma.store(y, tile, pk.at(8, 0), within=(8, end))
        pk.tma.commit()
        pk.tma.wait()

    return move


def test_boxes_behind_the_last_column() -> None:
    """They have no element, as copies of no row have none: the map that begins before the tensor is not asked for the
    third 64 of 72 columns. Of columns whose number is not known a copy asks first."""
    x, y = (np.zeros((80, 72), bf16.numpy) for _ in range(2))
    third = r"pk_tma_(load|store)_(4|5)d\([^;]* 0 \+ 128,"
    assert re.findall(third, kept(pk.static("C")).cuda(x, y, 20)) == [("load", "4")]
    asked = rf"&& 0 \+ 128 < v_\d+\.shape\[3\]\) \{{\n *{third}"
    assert re.findall(asked, kept("C").cuda(x, y, 20)) == [("load", "5"), ("store", "5")]


@pytest.mark.parametrize("dtype", [f32, i32], ids=str)
def test_columns_that_nobody_wants(dtype: DType) -> None:
    """Others may write them meanwhile: two blocks double their parts of one run. On the simulator they are unknown."""

    @pk.kernel(warps=1, grid=2)
    def double(x: pk.gl(dtype, 1, 64), seen: pk.gl(dtype, "R", 64), *, kept: bool) -> None:
        gate, run, i = pk.barrier(), pk.shared(pk.sv(dtype, 64)), pk.block_index.x
        part = (i * 29, i * 29 + 29)
        pk.tma.expect(gate, run)
        pk.tma.load(run, x, (0, 0), gate, columns=part if kept else None)
        pk.wait(gate, 0)
        tile = warp.load(run, layout=pk.coalesced(32, 2))
        warp.store(seen, tile, (i, 0))
        warp.store(x, tile + tile, (0, 0), columns=part)

    x = np.arange(64).astype(dtype.numpy)[None]
    seen, before = np.zeros((2, 64), dtype.numpy), x.copy()
    assert double.simulate(x, seen, kept=True).clean
    inside = np.arange(64) < 58
    assert (x == before * np.where(inside, 2, 1)).all()
    unknown = np.isnan(seen) if dtype is f32 else seen == np.iinfo(np.int32).max
    assert (unknown == [[not i * 29 <= c < i * 29 + 29 for c in range(64)] for i in range(2)]).all()
    with pytest.raises(pk.RaceError):
        double.simulate(x, seen, kept=False)


@pytest.mark.gpu
@pytest.mark.skipif(not driver.available(), reason="no GPU")
@pytest.mark.parametrize("cols", [64, 72, 168])
def test_nothing_before_a_tensor_is_touched(cols: int) -> None:
    """Of so many rows that what lies as far before the tensor is not likely to be anybody's."""
    torch = pytest.importorskip("torch")
    if driver.capability() != (9, 0):
        pytest.skip("the copy engine began with Hopper")
    for width in (pk.static("C"), "C"):
        x = torch.randn(2**27 // cols, cols, device="cuda", dtype=torch.bfloat16)
        y = torch.zeros_like(x)
        for end in (20, 24, 8, 0):
            kept(width)(x, y, end)
        torch.cuda.synchronize()
        assert torch.equal(x[8:24], y[8:24]) and not y[:8].any() and not y[24:64].any()


@pytest.mark.parametrize("hint", ["evict_first", "evict_last", "evict_normal"])
def test_hints(hint: str) -> None:
    x, y = operands(bf16, 64)
    kernel = copier(bf16, 64, (32, 64), hint=hint)
    kernel.simulate(x, y)
    assert (x == y).all()
    assert "L2::cache_hint" in kernel.cuda(x, y) and kernel.compile(x, y).registers
    with pytest.raises(pk.TypeRuleError, match="no cache hint 'keep'") as caught:
        copier(bf16, 64, (32, 64), hint="keep").program(x, y)
    assert "evict_first, evict_last, evict_normal" in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "length", "cols"),
    [(f32, 64, 64), (bf16, 256, 256), (f16, 128, 100), (i32, 4, 64), (f32, 768, 768), (bf16, 512, 700)],
)
def test_vectors(dtype: DType, length: int, cols: int) -> None:
    @pk.kernel(warps=1)
    def move(x: pk.gl(dtype, "R", "C"), y: pk.gl(dtype, "R", "C")) -> None:
        gate, run = pk.barrier(), pk.shared(pk.sv(dtype, length))
        pk.tma.expect(gate, run)
        pk.tma.load(run, x, (1, 0), gate)
        pk.wait(gate, 0)
        pk.tma.store(y, run, (2, 0))
        pk.tma.store_add(y, run, (0, 0))
        pk.tma.commit()
        pk.tma.wait()

    x = (np.arange(3 * 768) % 256).reshape(3, 768).astype(dtype.numpy)[:, : -(-cols // 8) * 8]
    y = np.zeros_like(x)
    assert move.simulate(x, y).clean
    assert (y[[0, 2], :length] == x[1, :length]).all() and (y[:, length:] == 0).all()
    assert move.compile(x, y).registers


def refused(kernel: pk.Kernel, *operands: Any) -> str:
    with pytest.raises(pk.KernelError) as caught:
        kernel.cuda(*operands)
    assert "fix: " in str(caught.value)
    return str(caught.value)


def test_what_tma_cannot_take() -> None:
    x = pk.spec(bf16, (1, 1, 512, 64))
    assert "a TMA box has at most 256 rows, not 512" in refused(copier(bf16, 64, (512, 64)), x, x)
    odd = pk.spec(bf16, (1, 1, 512, 60))
    text = refused(copier(bf16, 60, (64, 64)), odd, odd)
    assert (
        "x begins or strides at multiples of 8 bytes only; TMA takes multiples of 16 (dimension 2 of shape (1, 1, 512, "
        "60)" in text
    )
    assert "has a stride of 120 bytes)" in text
    shifted = pk.spec(bf16, (1, 1, 512, 64), align=2)
    assert "x begins or strides at multiples of 2 bytes only" in refused(copier(bf16, 64, (64, 64)), shifted, shifted)
    array = np.zeros(64 * 72 + 16, ml_dtypes.bfloat16)
    first = -array.__array_interface__["data"][0] % 16 // 2 + 4
    view = array[first : first + 64 * 64].reshape(1, 1, 64, 64)
    assert "8 bytes past a multiple of 16)" in refused(copier(bf16, 64, (64, 64)), view, view)

    @pk.kernel(warps=1)
    def long(x: pk.gl(bf16, "R", 512)) -> None:
        run, gate = pk.shared(pk.sv(bf16, 264)), pk.barrier()
        pk.tma.load(run, x, (0, 0), gate)

    text = refused(long, pk.spec(bf16, (4, 512)))
    assert (
        "a TMA vector has a multiple of 16 bytes, and of 256 elements if it has more than those; not 264 bf16" in text
    )


def test_operands_of_tma() -> None:
    x = pk.spec(bf16, (64, 64))

    def kernel(make: Any) -> str:
        @pk.kernel(warps=1)
        def bad(x: pk.gl(bf16, "R", 64)) -> None:
            make(x)

        return refused(bad, x)

    tile, several = (
        (lambda: pk.shared(pk.st(bf16, 64, 64), name="tile")),
        (lambda: pk.shared(pk.st(bf16, 64, 64), count=2, name="tiles")),
    )
    assert "tma.load into tile completes on no barrier" in kernel(lambda x: pk.tma.load(tile(), x, (0, 0)))
    assert "tiles is an array of 2" in kernel(lambda x: pk.tma.load(several(), x, (0, 0), pk.barrier()))
    assert "TMA moves shared tiles" in kernel(lambda x: pk.tma.store(x, warp.zeros(bf16, 64, 64), (0, 0)))
    assert "is an array of barriers" in kernel(lambda x: pk.tma.load(tile(), x, (0, 0), pk.barrier(1, 2)))


def test_outputs_that_overlap() -> None:
    kernel, x = copier(bf16, 64, (64, 64)), np.zeros((1, 2, 64, 64), bf16.numpy)
    window = np.lib.stride_tricks.as_strided(np.zeros((100, 64), bf16.numpy), (1, 2, 64, 64), (0, 16 * 128, 128, 2))
    with pytest.raises(pk.ArgumentError) as caught:
        kernel.simulate(x, window)
    text = str(caught.value)
    assert (
        "writes 'y', whose elements overlap: shape (1, 2, 64, 64)" in text
        and "dimension 1 moves on by 1024 elements" in text
    )
    assert kernel.simulate(window, x).clean  # an input may
    with pytest.raises(pk.ArgumentError, match="dimension 1 moves on by 0 elements"):
        kernel.simulate(x, np.lib.stride_tricks.as_strided(x[0, 0], (1, 2, 64, 64), (0, 0, 128, 2)))
