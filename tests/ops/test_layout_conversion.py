"""Every layout conversion of every dtype: the emitted C is evaluated lane by lane, against the layouts' own
functions."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warp
from pykittens.architectures import architecture
from pykittens.gpu.writer import Writer
from pykittens.layouts import fragment, vector_element
from pykittens.ops.layout_conversion import ConvertLayout
from pykittens.ops.layout_route import lane_expression
from pykittens.ops.vector_conversion import ConvertVector
from pykittens.program import Program, Scope, Value
from pykittens.types import REGISTER_DTYPES, Coalesced, DType, Layout, RegisterTile, RegisterVector

LANE = np.arange(32)
LAYOUTS: list[Layout] = ["row", "col", *(Coalesced(n, w) for n in (1, 2, 4, 8, 16, 32) for w in (1, 2, 4, 8))]


def holds(type: RegisterTile | RegisterVector, warp: int) -> np.ndarray:
    """Which element each lane's registers hold, straight from the layouts' functions: (registers, 32)."""
    register = np.arange(type.registers)[:, None]
    if isinstance(type, RegisterTile):
        row, col = fragment(type, warp, LANE[None, :], register)
        return np.broadcast_to(row * type.cols + col, (type.registers, 32))
    return np.broadcast_to(vector_element(type, warp, LANE[None, :], register), (type.registers, 32))


def numpy_of(expression: str) -> str:
    """A C expression of the emitted kind in NumPy's words: `(c ? a : b)` and casts."""
    expression = re.sub(r"\((?:int|bool|u32)\)", "", expression).replace("0xffffffffu", "0")
    expression = re.sub(r"(0x[0-9a-f]+)u", r"\1", expression)
    while " ? " in expression:
        before = expression
        expression = re.sub(
            r"\(([^()?:]*) \? ([^()?:]*|\w+\[\d+\]) : ([^?:]*?)\)(?=[;,) ]|$)", r"pick(\1; \2; \3)", expression, count=1
        )
        assert expression != before, expression
    return expression.replace(";", ",")


def shuffled(_: int, values: np.ndarray, lane: Any) -> np.ndarray:
    return values[np.broadcast_to(lane, 32) & 31]


def byte_perm(a: np.ndarray, b: np.ndarray, selector: Any) -> np.ndarray:
    """PTX "prmt": each nibble of the selector takes one of the eight bytes of `b:a`."""
    eight = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    selector = np.broadcast_to(selector, 32).astype(np.uint64)
    out = np.zeros(32, np.uint64)
    for byte in range(4):
        which = selector >> np.uint64(4 * byte) & np.uint64(7)
        out |= (eight >> which * np.uint64(8) & np.uint64(255)) << np.uint64(8 * byte)
    return out.astype(np.uint32)


def movmatrix(x: np.ndarray) -> np.ndarray:
    """PTX "movmatrix": row r of the 8 x 8 matrix lies in lanes 4 r to 4 r + 3, two elements each; it is transposed."""
    halves = np.stack([x & 0xFFFF, x >> 16], 1).reshape(8, 8).T.reshape(32, 2)
    return (halves[:, 0] | halves[:, 1] << 16).astype(np.uint32)


def run(op: Any, source: np.ndarray, words: int) -> np.ndarray:
    """The registers of the result, by the C that is written: `source` is (registers, 32), 32-bit words or elements."""
    c = Writer(Program("k", op.scope.warps), architecture("sm_90a"))
    op.results = tuple(Value(t) for t in op.types())
    c.names[op.a], c.names[op.result] = "source", "target"
    op.cuda(c)
    names: dict[str, Any] = {
        "source": source,
        "target": np.zeros((words, 32), source.dtype),
        "lane": LANE.astype(np.int64),
    }
    names |= {"__shfl_sync": shuffled, "pick": lambda c, a, b: np.where(np.broadcast_to(c, 32) != 0, a, b)}
    names |= {"__byte_perm": byte_perm, "pk_movmatrix": movmatrix}

    def execute(lines: list[str]) -> None:
        for line in lines:
            if found := re.match(r"const \w+ (\w+) = (.*);", line):
                names[found[1]] = eval(numpy_of(found[2]), {}, names)
            elif found := re.match(r"(?:PK_UNROLL for \(int i = 0; i < (\d+); i\+\+\) )?target\[(.*?)\] = (.*);", line):
                for i in range(int(found[1] or 1)):
                    names["i"] = i
                    names["target"][eval(found[2], {}, names)] = eval(numpy_of(found[3]), {}, names)
            else:
                assert re.fullmatch(r"[{}]|.*\w target\[\d+\];", line.strip()), line

    text = [line for line in c.out]
    loop = next((i for i, line in enumerate(text) if line.count("PK_UNROLL") == 2), None)
    if loop is None:
        execute(text)
        return names["target"]
    (r, rows), (s, cols) = re.findall(r"int (\w) = 0; \w < (\d+)", text[loop])
    for names[r], names[s] in product(range(int(rows)), range(int(cols))):
        execute(text[loop + 1 : -1])
    return names["target"]


def registers(elements: np.ndarray, dtype: DType) -> np.ndarray:
    """Elements (registers, 32) as the writer keeps them: pairs in words for 16-bit floats."""
    if not dtype.packed:
        return elements.astype(np.int64)
    padded = np.concatenate([elements, np.zeros((len(elements) % 2, 32), elements.dtype)])
    return (padded[::2] | padded[1::2] << 16).astype(np.uint32)


def check(type: RegisterTile | RegisterVector, layout: Layout, transpose: bool = False) -> None:
    """All elements arrive where the result's layout wants them, in every warp."""
    scope = Scope("scope", type.warps)
    for number in range(type.warps):
        op: Any = ConvertLayout(scope, Value(type), layout, transpose)
        if isinstance(type, RegisterVector):
            op = ConvertVector(scope, Value(type), replace(type, layout=layout))
        (out,) = op.types()
        held, wanted = holds(type, number), holds(out, number)  # type: ignore[arg-type]
        if transpose:
            rows, cols = out.shape  # type: ignore[union-attr]
            wanted = wanted % cols * rows + wanted // cols
        got = run(op, registers(held, type.dtype), len(registers(wanted, type.dtype)))
        want = registers(wanted, type.dtype)
        if type.dtype.packed and len(wanted) % 2:
            got, want = got.copy(), want.copy()
            got[-1], want[-1] = got[-1] & 0xFFFF, want[-1] & 0xFFFF
        assert np.array_equal(got, want), (type, layout, transpose)


def tiles(dtype: DType, shape: tuple[int, int]) -> Iterator[RegisterTile]:
    for layout in LAYOUTS:
        try:
            yield RegisterTile(dtype, *shape, layout)
        except pk.TypeRuleError:
            continue


# How many pairs of layouts are skipped after each: none of the smallest tile's, in one word an element and in pairs.
STEP = {(16, 16): 1, (32, 64): 59, (16, 48): 41, (48, 256): 191}
CASES = [(d, shape, step if d in (f32, bf16) else 7 * step) for d in REGISTER_DTYPES for shape, step in STEP.items()]


@pytest.mark.thin(2)
@pytest.mark.parametrize(("dtype", "shape", "step"), CASES, ids=str)
def test_every_pair_of_layouts(dtype: DType, shape: tuple[int, int], step: int) -> None:
    found = list(tiles(dtype, shape))
    pairs = [(tile, other.layout) for tile, other in product(found, found) if tile.layout != other.layout]
    for tile, layout in pairs[::step]:
        check(tile, layout)
    for tile, layout in pairs[:: 3 * step]:
        check(tile.vector("col"), layout)
        check(tile.vector("row"), layout)
    for tile in found[::step]:
        check(tile, "col" if tile.layout == "row" else "row", transpose=True)


@pytest.mark.parametrize("dtype", [bf16, f32], ids=str)
def test_rows_of_several_warps_stay_their_own(dtype: DType) -> None:
    for own, other in (("row", "col"), ("col", "row")):
        check(RegisterTile(dtype, 128, 48, own, 4), other)
        check(RegisterTile(dtype, 128, 48, own, 4).vector("col"), other)
        check(RegisterTile(dtype, 128, 48, own, 4).vector("row"), other)


def test_any_function_of_the_lane_can_be_written() -> None:
    dice = np.random.default_rng(0)
    functions = [tuple(dice.permutation(32).tolist()) for _ in range(20)] + [tuple(dice.integers(0, 32, 32).tolist())]
    functions += [
        tuple((LANE ^ 5).tolist()),
        tuple((LANE // 4 + LANE % 4 * 8).tolist()),
        (7,) * 32,
        tuple(LANE.tolist()),
    ]
    for values in functions:
        text = re.sub(r"(0x[0-9a-f]+)u", r"\1", lane_expression(values))
        assert tuple(np.broadcast_to(eval(text, {}, {"lane": LANE}), 32).tolist()) == values, text


def traced(body: Any, shape: tuple[int, int], warps: int, dtype: DType) -> np.ndarray:
    """What a kernel makes of the numbers 0, 1, ... of a shape."""
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype.numpy)
    y = np.zeros((512, 512), dtype.numpy)

    @pk.kernel(warps=warps)
    def k(x: pk.gl(dtype, *shape), y: pk.gl(dtype, 512, 512)) -> None:
        body(x, y)

    k.simulate(x, y)
    return y


def coalesced(x: Any) -> Any:
    return warp.load(x, (0, 0), rows=16, cols=64, layout=pk.coalesced(8, 4))


def test_mixed_layouts_are_mended_as_the_error_says() -> None:
    with pytest.raises(pk.TypeRuleError) as error:
        traced(lambda x, y: warp.zeros(f32, 16, 64) + coalesced(x), (16, 64), 1, f32)
    code = error.value.fix.split(": ", 1)[1]

    def body(x: Any, y: Any) -> None:
        changed = eval(code, {"pk": pk, "x": coalesced(x)})
        warp.store(y, warp.load(x, (0, 0), rows=16, cols=64) + changed, (0, 0))

    got = traced(body, (16, 64), 1, f32)
    assert np.array_equal(got[:16, :64], 2 * np.arange(1024).reshape(16, 64))


def test_without_a_layout_it_is_row_or_column() -> None:
    def body(x: Any, y: Any) -> None:
        tile = coalesced(x)
        assert [t.type.layout for t in (tile.swap_layout(), tile.swap_layout().swap_layout())] == ["row", "col"]
        assert tile.swap_layout(pk.coalesced(8, 4)) is tile
        warp.store(y, tile.swap_layout().swap_layout(), (0, 0))

    assert np.array_equal(traced(body, (16, 64), 1, f32)[:16, :64], np.arange(1024).reshape(16, 64))
