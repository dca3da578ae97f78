"""Conversions whose elements leave their warps go through shared memory: every element arrives, in the simulator and by
the addresses that are written for a GPU, without bank conflicts where that can be."""

import re
from itertools import product
from typing import Annotated, Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import Tensor, bf16, f32, i32, warp, warpgroup
from pykittens.architectures import architecture
from pykittens.gpu.writer import Writer
from pykittens.ops import sync
from pykittens.ops.layout_exchange import ShareElements, TakeElements, memory, passes, pitched, room
from pykittens.ops.layout_route import route
from pykittens.program import Program, Scope, Value
from pykittens.types import Coalesced, DType, RegisterTile, bool_, f16, u32

LAYOUTS: list[Any] = ["row", "col", Coalesced(64, 2), Coalesced(64, 1)]
PAIRS = [(a, b, t) for a, b, t in product(LAYOUTS, LAYOUTS, (False, True)) if t or a != b]


def crossing(dtype: DType) -> list[tuple[RegisterTile, RegisterTile, bool]]:
    """All conversions and transposes of a tile over two warps that leave their warps."""
    pairs = []
    for a, b, transposed in PAIRS:
        shape = (128, 64) if transposed else (64, 128)
        if transposed and b == Coalesced(64, 2):
            continue  # its rows are 128 elements at least
        source, target = RegisterTile(dtype, 64, 128, a, 2), RegisterTile(dtype, *shape, b, 2)
        if route(source, target, transposed) is None:
            pairs.append((source, target, transposed))
    return pairs


def argument(text: str) -> str:
    """C up to the bracket that closes what was open before."""
    depth = np.cumsum([{"(": 1, ")": -1}.get(x, 0) for x in text])
    return text[: int(np.argmax(depth < 0))]


def touched(op: Any, type: RegisterTile) -> np.ndarray:
    """The bytes of scratch that the emitted C names: (warps, instructions, 32)."""
    c = Writer(Program("k", type.warps), architecture("sm_90a"))
    place = op.target if isinstance(op, ShareElements) else op.source
    c.names[place] = "base"
    if isinstance(op, ShareElements):
        c.names[op.source] = "registers"
    else:
        op.results = tuple(Value(t) for t in op.types())
    op.cuda(c)
    text = "\n".join(c.out)
    call = re.search(r"pk_st_shared\((.*), u\.v\)", text) or re.search(r"u\.v = pk_ld_shared<\w+>\((.*)\);", text)
    calls = [call[1]] if call else [argument(part) for part in text.split("pk_ld_shared<u16>(")[1:]]
    count = int(re.findall(r"int i = 0; i < (\d+)", text)[0])
    warp, i, lane = np.arange(type.warps)[:, None, None], np.arange(count)[None, :, None], np.arange(32)[None, None, :]
    names = {"base": 0, "i": i, "lane": lane, "warp": warp, "warp_id": warp}
    found = [np.broadcast_to(eval(x.replace("/", "//"), {}, names), (type.warps, count, 32)) for x in calls]
    return np.stack(found, 2).reshape(type.warps, -1, 32)


@pytest.mark.parametrize("dtype", [bf16, f32, bool_], ids=str)
def test_addresses_are_the_layouts(dtype: DType) -> None:
    scope = Scope("group(2)", 2)
    for source, target, transposed in crossing(dtype):
        lies = room(source, target, transposed)
        mine, place = lies.transposed() if transposed else lies, Value(lies.vector(source))
        for op, type, own in (
            (ShareElements(scope, place, Value(source), lies), source, lies),
            (TakeElements(scope, place, target, mine), target, mine),
        ):
            want = pitched(type, own).moves(lies.vector(source).shape, 2)[0] * memory(dtype).size
            assert np.array_equal(touched(op, type), want), (source, target, transposed)


def test_bank_conflicts_are_rare() -> None:
    """A warp moves 128 bytes a pass: all, but perhaps one side where fragments become fragments of other rows."""
    for source, target, transposed in crossing(f32):
        lies = room(source, target, transposed)
        found = passes(source, lies), passes(target, lies.transposed() if transposed else lies)
        fragments = transposed and source.layout == target.layout
        worst = [1, 2] if fragments and source.layout in ("row", "col") else [1, 1]
        assert sorted(x / source.registers for x in found) == worst, (source, target, transposed, lies)


def moved(dtype: DType, source: Any, target: Any, transposed: bool, warps: int = 2, units: int = 1) -> Any:
    """What a kernel makes of the numbers 0, 1, ...: for each unit other ones, twice in a loop."""
    held = i32 if dtype in (bool_, u32) else dtype
    x = np.arange(units * source.rows * source.cols).reshape(units, source.rows, source.cols).astype(held.numpy)
    y = np.zeros((units, *target.shape), held.numpy)

    @pk.kernel(warps=warps * units)
    def k(
        x: Annotated[Tensor, held, units, source.rows, source.cols],
        y: Annotated[Tensor, held, units, target.rows, target.cols],
    ) -> None:
        group = pk.group(warps)
        at = (group.index, 0, 0)
        for _ in pk.range(2):
            tile = group.load(x, at, rows=source.rows, cols=source.cols, layout=source.layout)
            tile = (tile % 3 == 0) if dtype is bool_ else tile if dtype is held else tile.to(dtype)
            tile = tile.transpose(target.layout) if transposed else tile.swap_layout(target.layout)
            assert tile.type.layout == target.layout and tile.type.shape == target.shape
            group.store(y, tile if dtype is held else tile.to(held), at)

    k.simulate(x, y)
    want = (x % 3 == 0).astype(x.dtype) if dtype is bool_ else x
    return y, want.swapaxes(1, 2) if transposed else want


@pytest.mark.parametrize("dtype", [bf16, f16, f32, i32, u32, bool_], ids=str)
def test_every_element_arrives(dtype: DType) -> None:
    for source, target, transposed in crossing(dtype)[:: 1 if dtype is f32 else 3]:
        if not (dtype.packed and Coalesced(64, 1) in (source.layout, target.layout)):  # loads and stores refuse these
            got, want = moved(dtype, source, target, transposed)
            assert np.array_equal(got, want), (source, target, transposed)


def test_units_have_rooms_of_their_own() -> None:
    got, want = moved(f32, RegisterTile(f32, 64, 128, "row", 4), RegisterTile(f32, 128, 64, "col", 4), True, 4, 2)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", ["col", "row"])
def test_vectors(kind: str) -> None:
    x, y = np.arange(128, dtype=np.float32), np.zeros((64, 128), np.float32)
    other = pk.coalesced(128, 1)

    @pk.kernel(warps=4)
    def k(x: Annotated[Tensor, f32, 128], y: Annotated[Tensor, f32, 64, 128]) -> None:
        if kind == "row":
            v = warpgroup.load_row(x, (0,), length=128, layout=other).swap_layout("row")
        else:
            v = warpgroup.load_col(x, (0,), length=64, layout=other).swap_layout("row")
        back = v.swap_layout(other).swap_layout("row")
        warpgroup.store(y, warpgroup.zeros(f32, 64, 128) + (v + back) * 0.5, (0, 0))

    k.simulate(x, y)
    assert np.array_equal(y, np.broadcast_to(x if kind == "row" else x[:64, None], y.shape))


def test_scratch_is_waited_for() -> None:
    """Written, met, read; and once more before it is written again, in a loop and after it."""

    @pk.kernel(warps=4)
    def k(x: Annotated[Tensor, f32, 64, 64], y: Annotated[Tensor, f32, 64, 64]) -> None:
        tile = warpgroup.load(x, (0, 0), rows=64)
        for _ in pk.range(3):
            tile[:] = tile.transpose().swap_layout("row")
        warpgroup.store(y, tile, (0, 0))

    x = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    y = np.zeros_like(x)
    report = k.simulate(x, y)
    assert np.array_equal(y, x.T)
    assert report.bank_conflicts == 0
    assert sum(isinstance(op, sync.Barrier) for op in k.program(x, y).body.walk()) == 2


def test_a_part_of_the_scope_cannot_exchange() -> None:
    @pk.kernel(warps=4)
    def k(x: Annotated[Tensor, f32, 64, 64]) -> None:
        tile = warpgroup.load(x, (0, 0), rows=64)
        with pk.when(warp.index == 0):
            warpgroup.store(x, tile.transpose(), (0, 0))

    with pytest.raises(pk.KernelError) as error:
        k.simulate(np.zeros((64, 64), np.float32))
    assert "tile.transpose()" in str(error.value)
