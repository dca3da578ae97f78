"""Who touches what, as thread maps say, is what the emitted code does: its addresses are evaluated thread by thread."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pykittens.architectures import architecture
from pykittens.errors import TypeRuleError
from pykittens.gpu.writer import Writer
from pykittens.layouts import shared_offset
from pykittens.ops.copies import CopyAsync, CopyIn, CopyOut
from pykittens.ops.load import Load
from pykittens.ops.store import Store
from pykittens.program import Access, Op, Parameter, Place, Program, Scope, Value
from pykittens.thread_map import MatrixOperand, ThreadMap
from pykittens.types import Coalesced, Global, RegisterTile, RegisterVector, SharedTile, SharedVector, bf16, f32, u8

CALL = re.compile(r"pk_(st_shared|ld_shared<\w+>|ldmatrix\w*|stmatrix\w*|cp_async<\d+>)\(")
WIDTH = {"pk_u32x4": 16, "pk_u32x2": 8, "u32": 4, "u16": 2, "u8": 1}


def emitted(op: Op, warps: int) -> str:
    """The CUDA C of one operation on shared memory that begins at 0."""
    program = Program("k", warps)
    c = Writer(program, architecture("sm_90a"))
    op.results = tuple(Value(t, "out") for t in op.types())
    for value in op.operands():
        if isinstance(value.type, (SharedTile, SharedVector)):
            c.names[value] = "0"
        elif isinstance(value.type, Global):
            program.parameters.append(Parameter("tensor", value))
            c.names[value] = "tensor"
    op.cuda(c)
    return "\n".join(c.out)


def arguments(text: str) -> list[str]:
    """The arguments of a call, from behind its parenthesis."""
    found, depth, start = [], 0, 0
    for i, ch in enumerate(text):
        if ch in "([{":
            depth += 1
        elif ch in ")]}":
            depth -= 1
            if depth < 0:
                return [*found, text[start:i]]
        elif ch == "," and not depth:
            found.append(text[start:i])
            start = i + 1
    raise AssertionError(text)


def choice(before: str) -> str:
    """The condition of `condition ? call(...) : 0`, from what stands before the call."""
    found = re.search(r"\) \? [\w()]*$", before)
    if found is None or "inside" in before:
        return "True"
    depth, i = 1, found.start()
    while depth:
        i -= 1
        depth += {")": 1, "(": -1}.get(before[i], 0)
    return before[i : found.start() + 1]


def evaluate(expression: str, names: dict[str, Any]) -> Any:
    """A C expression of integers in NumPy."""
    if "&&" in expression:
        parts = [evaluate(part, names) for part in expression.split("&&")]
        return np.logical_and.reduce(np.broadcast_arrays(*parts))
    return eval(expression.replace("/", "//"), {}, names)


def addresses(text: str, warps: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(thread, byte address, bytes) of every access to shared memory."""
    loops = [(name, int(n)) for name, n in re.findall(r"for \(int (\w+) = 0; \w+ < (\d+); \w+\+\+\)", text)]
    loops = [(name, n) for name, n in loops if name in ("i", "b", "s")]
    calls = list(CALL.finditer(text))
    places = [arguments(text[call.end() :])[call[1].startswith("ldmatrix")] for call in calls]
    matrices = "matrix" in calls[0][1]
    typed = re.search(r"ld_shared<(\w+)>|union \{ (\w+) v;|const (\w+) v = ", text)
    counted = re.search(r"cp_async<(\d+)>", text)
    width = (
        16 if matrices else int(counted[1]) if counted else WIDTH[next(filter(None, typed.groups()))] if typed else size
    )
    *turns, thread = np.meshgrid(*(np.arange(n) for _, n in loops), np.arange(32 * warps), indexing="ij")
    names: dict[str, Any] = {"thread": thread, "lane": thread % 32, "warp_id": thread // 32}
    names.update({name: turn for (name, _), turn in zip(loops, turns, strict=True)})
    for declared in re.findall(r"const int ((?:\w+ = .*?)+);", text):
        for part in arguments(declared + ")"):
            name, expression = part.split(" = ", 1)
            if not expression.strip().startswith("tensor"):
                names[name.strip()] = evaluate(expression, names)
    inside = np.ones(thread.shape, bool)
    for guard in re.findall(r"if (\(.*?\)) (?:\{|pk_st_shared)", text):
        inside &= evaluate(guard[1:-1], names)
    for call, place in zip(calls, places, strict=True):
        mine = inside & evaluate(choice(text[: call.start()]), names)
        yield thread[mine], np.broadcast_to(evaluate(place, names), thread.shape)[mine], width


def by_code(op: Op, shared: SharedTile | SharedVector, warps: int) -> np.ndarray:
    """Which lanes of each warp touch each element, by the emitted code."""
    size = shared.dtype.size
    if isinstance(shared, SharedTile):
        offsets = np.asarray(shared_offset(shared, *np.indices(shared.shape))).ravel()
    else:
        offsets = np.arange(shared.length) * size
    element = np.full(offsets.max() + 1, -1)
    element[offsets] = np.arange(len(offsets))
    found = np.zeros((warps, len(offsets)), np.uint32)
    for threads, at, width in addresses(emitted(op, warps), warps, size):
        for byte in range(0, width, size):
            assert (element[at + byte] >= 0).all()
            np.bitwise_or.at(
                found, (threads // 32, element[at + byte]), np.uint32(1) << (threads % 32).astype(np.uint32)
            )
    return found


def tiles() -> Iterator[RegisterTile]:
    for dtype in (f32, bf16):
        for warps in (1, 2, 4):
            for cols in (16, 64):
                for layout in ("row", "col"):
                    yield RegisterTile(dtype, 32 * warps, cols, layout, warps)  # type: ignore[arg-type]
            for lanes in (4, 8, 32) if warps == 1 else (32 * warps,):
                for width in (1, 2, 4, 8):
                    yield RegisterTile(dtype, 8, lanes * width * 2, Coalesced(lanes, width), warps)


def vectors() -> Iterator[RegisterVector]:
    for dtype in (f32, bf16):
        for warps in (1, 4):
            for kind in ("col", "row"):
                for layout in ("row", "col"):
                    yield RegisterVector(dtype, 64 * warps, kind, layout, warps)  # type: ignore[arg-type]
            for width in (1, 2, 4, 8):
                for length in (64 * warps * width, 40 * width):
                    yield RegisterVector(dtype, length, "naive", "row", warps, width=width)
            for lanes in (8, 32) if warps == 1 else (128,):
                layout2 = Coalesced(lanes, 4)
                yield RegisterVector(dtype, 8 * lanes, "row", layout2, warps)
                yield RegisterVector(dtype, 32, "col", layout2, warps)


def operations() -> Iterator[Any]:
    for type in (*tiles(), *vectors()):
        for dtype in (f32, bf16, u8) if type.dtype is f32 else (bf16,):
            memory: Any = SharedVector(dtype, type.length) if isinstance(type, RegisterVector) else None
            if memory is None:
                assert isinstance(type, RegisterTile)
                try:
                    memory = SharedTile(dtype, *type.shape)
                except TypeRuleError:
                    continue
            held = type if dtype is not u8 else None
            if held is not None:
                yield pytest.param(type, memory, id=f"{type}, {dtype}")


def check(op: Op, shared: SharedTile | SharedVector, warps: int) -> None:
    (access,) = (e for e in op.effects() if isinstance(e, Access) and isinstance(e.target, Value))
    found, said = by_code(op, shared, warps), access.threads.lanes(shared.shape, warps)
    if access.threads.whole_warps:  # lanes name the rows of matrices: the warp is what counts
        found, said = found != 0, said != 0
        moved, width = access.threads.moves(shared.shape, warps)
        assert width * shared.dtype.size == 16 and moved.shape[2] == 32
    assert np.array_equal(found, said)


@pytest.mark.parametrize(("type", "memory"), list(operations()))
def test_loads_and_stores_touch_what_their_maps_say(
    type: RegisterTile | RegisterVector, memory: SharedTile | SharedVector
) -> None:
    scope, shared = Scope("group", type.warps), Value(memory, "shared")
    try:
        load = Load(scope, shared, type)
        load.types()
    except TypeRuleError:  # pairs that a run of one does not hold
        pass
    else:
        check(load, memory, type.warps)
    check(Store(scope, shared, Value(type, "x")), memory, type.warps)


@pytest.mark.parametrize("copy", [CopyIn, CopyAsync, CopyOut])
@pytest.mark.parametrize("align", [16, 8, 4, 2])
@pytest.mark.parametrize("warps", [1, 2, 4])
@pytest.mark.parametrize("cols", [16, 48, 64])
def test_copies_touch_what_their_maps_say(copy: Any, align: int, warps: int, cols: int) -> None:
    scope, shared = Scope("group", warps), Value(SharedTile(bf16, 32, cols), "shared")
    place = Place(Value(Global(bf16, (32, cols), align), "tensor"), (0, 0, 0, 0), (32, cols))
    op = copy(scope, place, shared) if copy is CopyOut else copy(scope, shared, place)
    if copy is CopyAsync and align < 4:
        return
    check(op, shared.type, warps)  # type: ignore[arg-type]


def test_operands_of_products_are_read_whole_or_by_rows() -> None:
    rows = MatrixOperand(shared=False).lanes((64, 32), 4).reshape(4, 64, 32) != 0
    assert all((rows[w].all(axis=1) == (np.arange(64) // 16 % 4 == w)).all() for w in range(4))
    assert (MatrixOperand(shared=True).lanes((64, 32), 4) != 0).all()


def test_maps_of_the_same_layout_are_evaluated_once() -> None:
    """They compare and hash by what they say."""
    a, b = (RegisterTile(f32, 32, 32, "row"), RegisterTile(f32, 32, 32, "row"))
    from pykittens.thread_map import Registers

    first: ThreadMap = Registers(a, 2)
    assert first == Registers(b, 2) and first.lanes((32, 32), 1) is Registers(b, 2).lanes((32, 32), 1)
