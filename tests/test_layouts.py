"""Layouts against the tables of the PTX ISA, written down here a second time, and against what hardware does with
addresses."""

import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pykittens import bf16, e4m3, f16, f32, i32, rt, rv, st
from pykittens.layouts import (
    Sym,
    bank_conflicts,
    descriptor_base,
    descriptor_step,
    fragment,
    shared_offset,
    swizzle,
    tile_offsets,
    vector_element,
    vector_register,
)
from pykittens.ops.ldmatrix import matrix_row_col
from pykittens.ops.mma import Mma
from pykittens.program import Scope, Value
from pykittens.types import Coalesced, RegisterTile, RegisterVector, SharedTile

FRAGMENTS = [
    rt(dtype, rows * warps, cols, layout, warps)
    for dtype in (bf16, f32)
    for rows in (16, 32, 48)
    for cols in (16, 32, 80)
    for layout in ("row", "col")
    for warps in (1, 2, 4)
]
COALESCED = [
    rt(f32, 2 * (32 * warps // lanes), lanes * width * 3, Coalesced(lanes, width), warps)
    for warps, choices in ((1, (1, 2, 4, 8, 16, 32)), (4, (128,)))
    for lanes in choices
    for width in (1, 2, 4, 8)
]
TILES = FRAGMENTS + COALESCED


def threads(tile: RegisterTile | RegisterVector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(warp, lane, register) of everything a scope holds, as arrays that broadcast to (warps, 32, registers)."""
    return np.arange(tile.warps)[:, None, None], np.arange(32)[None, :, None], np.arange(tile.registers)[None, None, :]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_element_of_a_tile_is_held_once(tile: RegisterTile) -> None:
    row, col = np.broadcast_arrays(*fragment(tile, *threads(tile)), subok=False)[:2]
    row, col = (
        np.broadcast_to(row, (tile.warps, 32, tile.registers)),
        np.broadcast_to(col, (tile.warps, 32, tile.registers)),
    )
    assert row.min() == 0 and col.min() == 0 and row.max() == tile.rows - 1 and col.max() == tile.cols - 1
    assert len(np.unique(row * tile.cols + col)) == tile.rows * tile.cols == row.size


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("kind", ["col", "row"])
def test_a_tiles_vectors_lie_in_the_threads_that_need_them(tile: RegisterTile, kind: Any) -> None:
    warp, lane, register = threads(tile)
    vector = tile.vector(kind)
    wanted = fragment(tile, warp, lane, register)[0 if kind == "col" else 1]
    held = vector_register(tile, vector, register)
    assert held.min() >= 0 and held.max() == vector.registers - 1
    assert np.array_equal(*np.broadcast_arrays(vector_element(vector, warp, lane, held), wanted))


@pytest.mark.parametrize(
    "vector",
    [rv(f32, n, "naive", warps=w, width=k) for n in (32, 100, 512) for w in (1, 2, 4) for k in (1, 2, 4, 8)],
    ids=str,
)
def test_every_element_of_a_naive_vector_is_held_once(vector: RegisterVector) -> None:
    element = np.broadcast_to(vector_element(vector, *threads(vector)), (vector.warps, 32, vector.registers))
    inside = element[element < vector.length]
    assert sorted(inside.tolist()) == list(range(vector.length))


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": (row, column) of register i of a lane.


def ptx_a(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if i in (0, 1, 4, 5) else group + 8
    return row, thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8


def ptx_b(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8), group


def ptx_d(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def test_a_row_tile_is_the_a_operand() -> None:
    tile = rt(bf16, 32, 48)
    for lane in range(32):
        for block in range(2):
            for step in range(3):
                for i in range(8):
                    row, col = ptx_a(lane, i)
                    assert fragment(tile, 0, lane, (block * 3 + step) * 8 + i) == (block * 16 + row, step * 16 + col)


def test_a_row_tile_is_the_accumulator() -> None:
    tile = rt(f32, 32, 48)
    for lane in range(32):
        for block in range(2):
            for n in range(6):
                for i in range(4):
                    row, col = ptx_d(lane, i)
                    assert fragment(tile, 0, lane, (block * 6 + n) * 4 + i) == (block * 16 + row, n * 8 + col)


def test_a_column_tile_is_the_b_operand() -> None:
    """`Mma` takes packed registers 0, 2 for the first eight columns of a 16 x 16 matrix and 1, 3 for the next eight."""
    tile = rt(bf16, 48, 32, "col")  # k x n
    for lane in range(32):
        for n in range(2):
            for k in range(3):
                for half in range(2):
                    for i in range(4):
                        packed = (half, half + 2)[i // 2]
                        row, col = ptx_b(lane, i)
                        register = (n * 3 + k) * 8 + packed * 2 + i % 2
                        assert fragment(tile, 0, lane, register) == (k * 16 + row, n * 16 + half * 8 + col)


def test_a_row_tile_is_the_transposed_b_operand() -> None:
    tile = rt(bf16, 32, 48)  # n x k
    for lane in range(32):
        for n in range(2):
            for k in range(3):
                for half in range(2):
                    for i in range(4):
                        row, col = ptx_b(lane, i)
                        register = (n * 3 + k) * 8 + (half, half + 2)[i // 2] * 2 + i % 2
                        assert fragment(tile, 0, lane, register) == (n * 16 + half * 8 + col, k * 16 + row)


def test_a_warpgroups_tile_is_the_accumulator_of_wgmma() -> None:
    """PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", matrix D: 16 rows a warp, in order."""
    tile = rt(f32, 128, 24 + 8, "row", 4)
    for warp in range(4):
        for lane in range(32):
            for m in range(2):
                for i in range(tile.registers // 2):
                    row = 16 * warp + (lane >> 2) + 8 * ((i // 2) % 2)
                    col = 8 * (i // 4) + (lane % 4) * 2 + i % 2
                    assert fragment(tile, warp, lane, m * (tile.registers // 2) + i) == (m * 64 + row, col)


# ldmatrix and stmatrix: matrix j has its row r at the address that lane 8 j + r gives; a lane receives two neighbours
# of row lane / 4 of each matrix, or with .trans, of column lane / 4 (PTX ISA, "ldmatrix").


class Text:
    """Stands for the writer: the numbers of the running thread as C."""

    lane = Sym("lane")

    def __init__(self, number: int = 0):
        self.number = number

    def warp(self, scope: Scope) -> Any:
        return Sym("warp") if scope.warps > 1 else 0

    def __getitem__(self, value: Value) -> str:
        return "0"

    def fresh(self, base: str) -> str:
        return base

    def line(self, text: str) -> None:
        """Takes the address that an ldmatrix begins with: it adds a step after flipping bits."""
        self.base = text.removeprefix("const u32 at = ").removesuffix(";")


def evaluate(text: Any, **names: int) -> int:
    """C without side effects, on numbers that are not negative."""
    return int(eval(str(text).replace("/", "//"), {}, names))


def received(rows: list[tuple[int, int]], lane: int, matrix: int, half: int, trans: bool) -> tuple[int, int]:
    """Which element a lane receives in half `half` of register `matrix`, when lane l addresses `rows[l]`."""
    line, place = (lane // 4, lane % 4 * 2 + half) if not trans else (lane % 4 * 2 + half, lane // 4)
    row, col = rows[8 * matrix + line]
    return row, col + place


@pytest.mark.parametrize("tile", [t for t in FRAGMENTS if t.dtype is bf16], ids=str)
def test_ldmatrix_addresses(tile: RegisterTile) -> None:
    scope, rows, cols = Scope("group", tile.warps), tile.warp_rows // 16, tile.cols // 16
    blocks, steps = (rows, cols) if tile.layout == "row" else (cols, rows)
    row, col = matrix_row_col(Text(), scope, tile, "b", "s")
    for warp in range(tile.warps):
        for b in range(blocks):
            for s in range(steps):
                given = [
                    (evaluate(row, lane=n, warp=warp, b=b, s=s), evaluate(col, lane=n, warp=warp, b=b, s=s))
                    for n in range(32)
                ]
                for lane in range(0, 32, 5):
                    for register in range(4):
                        for half in range(2):
                            got = received(given, lane, register, half, tile.layout == "col")
                            assert got == fragment(tile, warp, lane, (b * steps + s) * 8 + register * 2 + half)


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("warps", [1, 2])
def test_shared_operands_of_mma(which: str, transposed: bool, warps: int) -> None:
    """What `Mma` loads with ldmatrix is the fragment of A, or of B."""
    if transposed and which == "a" and warps > 1:
        pytest.skip("each warp owns rows of A")
    m, n, k = 32 * warps, 48, 64
    a = Value(st(bf16, *((k, m) if transposed and which == "a" else (m, k))))
    b = Value(st(bf16, *((n, k) if transposed and which == "b" else (k, n))))
    d = Value(rt(f32, m, n, "row", warps))
    op = Mma(Scope("group", warps), d, a, b, transposed and which == "a", transposed and which == "b", False)
    c = Text()
    text = op._load_a(c, d.type) if which == "a" else op._load_b(c)
    name, _, flip, offset = re.fullmatch(r"(\w+)\((\S+), at, (.*), (.*)\)", text).groups()  # type: ignore[union-attr]
    tile = (a if which == "a" else b).type
    assert isinstance(tile, SharedTile)
    where = {int(tile_offsets(tile)[r, c]): (r, c) for r in range(tile.rows) for c in range(0, tile.cols, 8)}
    for warp in range(warps):
        for block in range(2):
            for step in range(k // 16):
                names = {"m": block, "n": block, "k": step, "warp": warp}
                given = [
                    where[(evaluate(c.base, lane=lane, **names) ^ evaluate(flip, **names)) + evaluate(offset, **names)]
                    for lane in range(32)
                ]
                for lane in range(32):
                    for i in range(8):
                        got = received(given, lane, i // 2, i % 2, name == "pk_ldmatrix_trans")
                        if which == "a":
                            row, col = ptx_a(lane, i)
                            want = (((block * warps) + warp) * 16 + row, step * 16 + col)
                        else:  # registers 0, 1 are the first eight columns, 2 and 3 the next
                            row, col = ptx_b(lane, i % 4)
                            want = (step * 16 + row, block * 16 + i // 4 * 8 + col)
                        assert got == (want[::-1] if transposed else want)


# Shared memory ----------------------------------------------------------------------------------------------

SHARED = [
    st(dtype, rows, cols) for dtype in (bf16, f32, e4m3) for rows in (8, 16, 64) for cols in (32, 64, 96, 128, 256)
] + [st(bf16, 64, 16), st(f16, 16, 48)]
SHARED += [st(bf16, 32, 64, swizzle=span) for span in (32, 64)] + [st(f32, 16, 32, pitch=64)]


@pytest.mark.parametrize("tile", SHARED, ids=str)
def test_every_element_of_a_shared_tile_has_its_bytes(tile: SharedTile) -> None:
    offsets = tile_offsets(tile)
    assert offsets.shape == tile.shape and len(np.unique(offsets)) == offsets.size
    assert offsets.min() == 0 and (offsets % tile.dtype.size == 0).all()
    if tile.pitch == tile.rows:
        assert offsets.max() == tile.bytes - tile.dtype.size


@pytest.mark.parametrize("span", [32, 64, 128])
def test_the_swizzle_is_that_of_tma(span: int) -> None:
    """PTX ISA, "Swizzling modes": 16-byte chunks are exchanged by XOR with bits 7 to 9 of the address; 2, 4 or 8 of
    them."""
    offsets = np.arange(2048)
    got = swizzle(offsets, span)
    bits = {32: 1, 64: 2, 128: 3}[span]
    want = [(o & ~(((1 << bits) - 1) << 4)) | (((o >> 4) ^ (o >> 7)) & ((1 << bits) - 1)) << 4 for o in range(2048)]
    assert got.tolist() == want and sorted(want) == list(range(2048))
    assert np.array_equal(swizzle(got, span), offsets)


@pytest.mark.parametrize("tile", [t for t in SHARED if t.dtype.size == 2], ids=str)
def test_ldmatrix_never_conflicts(tile: SharedTile) -> None:
    """Eight rows of eight 16-bit elements, wherever they begin: all 128 bytes come from different banks."""
    offsets = tile_offsets(tile)
    for row in range(0, tile.rows, 8):
        for col in range(0, tile.cols, 8):
            assert bank_conflicts(offsets[row : row + 8, col], 16) == 0


def test_bank_conflicts() -> None:
    lanes = np.arange(32)
    assert bank_conflicts(lanes * 4, 4) == 0
    assert bank_conflicts(lanes * 0, 4) == 0  # a broadcast
    assert bank_conflicts(lanes * 8, 4) == 1
    assert bank_conflicts(lanes * 128, 4) == 31
    assert bank_conflicts(lanes * 16, 16) == 0
    assert bank_conflicts(lanes * 8, 8) == 0
    assert bank_conflicts(lanes[:8] * 128, 16) == 7


# Descriptors: PTX ISA, "Matrix Descriptor Format" and "Strides": the address of an element from the fields.


def field(descriptor: int, first: int, bits: int) -> int:
    return descriptor >> first & ((1 << bits) - 1)


def chunks(tile: SharedTile, transposed: bool) -> Iterator[int]:
    return iter(range((tile.rows if transposed else tile.cols) // (32 // tile.dtype.size)))


@pytest.mark.parametrize("tile", [t for t in SHARED if t.dtype.size < 4 and t.rows >= 16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_descriptors(tile: SharedTile, transposed: bool) -> None:
    if transposed and tile.dtype.size == 1:
        pytest.skip("8-bit operands are K-major")
    base, size = descriptor_base(tile, transposed), tile.dtype.size
    leading, stride, mode = field(base, 16, 14) * 16, field(base, 32, 14) * 16, field(base, 62, 2)
    span = {1: 128, 2: 64, 3: 32}[mode]
    assert span == tile.swizzle and field(base, 0, 14) == 0 and field(base, 49, 13) == 0
    for chunk in chunks(tile, transposed):
        start = descriptor_step(tile, transposed, chunk)
        per = 32 // size if not transposed else 16
        for k in range(per):
            for mn in range(0, tile.cols if transposed else tile.rows, 3):
                if transposed:  # rows of the tile run along k
                    panel, inside = divmod(mn * size, span)
                    linear = start + panel * leading + (k // 8) * stride + (k % 8) * span + inside
                    row, col = chunk * per + k, mn
                else:
                    linear = start + (mn // 8) * stride + (mn % 8) * span + k * size
                    row, col = mn, chunk * per + k
                assert swizzle(linear, span) == shared_offset(tile, row, col)


# One formula for all: what a symbol prints is what a number gives ------------------------------------------


@pytest.mark.parametrize("tile", TILES[::7] + COALESCED[::3], ids=str)
def test_symbols_of_fragments(tile: RegisterTile) -> None:
    chance = random.Random(1)
    texts = fragment(tile, Sym("warp") if tile.warps > 1 else 0, Sym("lane"), Sym("i"))
    for _ in range(50):
        warp, lane, i = chance.randrange(tile.warps), chance.randrange(32), chance.randrange(tile.registers)
        assert tuple(evaluate(t, warp=warp, lane=lane, i=i) for t in texts) == fragment(tile, warp, lane, i)
        for kind in ("col", "row"):
            vector = tile.vector(kind)  # type: ignore[arg-type]
            assert evaluate(vector_register(tile, vector, Sym("i")), i=i) == vector_register(tile, vector, i)
            element = vector_element(vector, Sym("warp") if tile.warps > 1 else 0, Sym("lane"), Sym("i"))
            n = chance.randrange(vector.registers)
            assert evaluate(element, warp=warp, lane=lane, i=n) == vector_element(vector, warp, lane, n)


@pytest.mark.parametrize("tile", SHARED, ids=str)
def test_symbols_of_offsets(tile: SharedTile) -> None:
    chance = random.Random(1)
    for _ in range(50):
        r, c = chance.randrange(tile.rows), chance.randrange(tile.cols)
        want = shared_offset(tile, r, c)
        assert evaluate(shared_offset(tile, Sym("r"), Sym("c")), r=r, c=c) == want
        assert evaluate(shared_offset(tile, r, Sym("c")), c=c) == want
        assert evaluate(shared_offset(tile, Sym("r"), c), r=r) == want


@pytest.mark.parametrize(
    "text",
    ["x + 0", "x * 1", "0 + x", "x // 1", "x % 1", "x * 0", "x & 0", "x ^ 0", "1 * x", "x >> 0", "x << 0", "x | 0"],
)
def test_symbols_simplify(text: str) -> None:
    class Or(Sym):
        def __or__(self, other: Any) -> Sym:
            return self._binary("|", other)

    shown = str(eval(text, {}, {"x": Or("x")}))
    assert shown in ("x", "0") and evaluate(shown, x=5) == eval(text, {}, {"x": 5})


def test_integers_too() -> None:
    assert rt(i32, 16, 16).registers == 8
