"""The gradient through the epilogue of a product, by the derivative of the traced function.

    y = epilogue(x, row, col, *operands)        dx = sum over y of dy * dy/dx, and the same for each operand

x: the product, dy: (m, n); bf16, f16 or f32, arithmetic float32. Nobody writes an activation's backward: the epilogue
is recorded and walked backwards (`trace/derivatives.py`). One read of x and dy, one write of dx. An operand of (m, n)
gets its gradient at once; one that is broadcast gets parts of it, to be added up: (1, n) a row for each strip of
blocks, (m, 1) a row for each column of tiles, (1, 1) one for each block. A block goes down its strip of 32 columns
with float32 sums in registers, so that the bits are the same in every run. Where rows of x and dy begin at multiples of
16 bytes, the next tiles are on their way in shared memory (cp.async) while one is worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, e4m3, e5m2, f16, f32, warpgroup
from pykittens.errors import ArgumentError

from ..trace.derivatives import Tape
from ..types import RegisterTile
from .arguments import KernelCall, alignment

FLOATS, MADE = (bf16, f16, f32, e4m3, e5m2), (bf16, f16, f32)
ROWS, COLS, STAGES = 64, 32, 3
KINDS = {(True, True): "one", (True, False): "row", (False, True): "col", (False, False): "tile"}  # of what is 1 long


@pk.kernel(warps=4, grid=lambda dy, strips, **_: (pk.cdiv(dy.cols, COLS), strips))
def epilogue_backward(
    x: Annotated[Tensor, MADE, "M", "N"] | None,
    dy: Annotated[Tensor, MADE, "M", "N"],
    o0: Annotated[Tensor, FLOATS, "R0", "C0"] | None,
    o1: Annotated[Tensor, FLOATS, "R1", "C1"] | None,
    o2: Annotated[Tensor, FLOATS, "R2", "C2"] | None,
    o3: Annotated[Tensor, FLOATS, "R3", "C3"] | None,
    dx: Annotated[Tensor, MADE, "M", "N"] | None,
    d0: Annotated[Tensor, MADE, "A0", "B0"] | None,
    d1: Annotated[Tensor, MADE, "A1", "B1"] | None,
    d2: Annotated[Tensor, MADE, "A2", "B2"] | None,
    d3: Annotated[Tensor, MADE, "A3", "B3"] | None,
    *,
    epilogue: Callable[..., Any],
    kinds: tuple[str, ...],
    strips: int = 1,
    single: tuple[bool, ...] = (False, False),
    stages: int = 0,
) -> None:
    """dx, and d0 to d3, what the operands o0 to o3 get; None for what nobody wants.

    `kinds` says how each operand is broadcast, `single` which lengths of dy are 1. `stages`: slots of tiles that are on
    their way, or 0.
    """
    tile, strip = pk.block_index.x, pk.block_index.y
    col = tile * COLS
    operands = [o for o in (o0, o1, o2, o3) if o is not None]
    wanted: list[Any] = [d for o, d in zip((o0, o1, o2, o3), (d0, d1, d2, d3), strict=True) if o is not None]
    summed = {i: warpgroup.zeros(f32, ROWS, COLS) for i, d in enumerate(wanted) if d is not None and kinds[i] in SUMS}
    if dx is not None:
        staged = pk.shared(pk.st(dx.dtype, ROWS, COLS), name="staged")
    laps = pk.cdiv(pk.cdiv(dy.rows, ROWS) - strip, strips)
    slots = {z: pk.shared(pk.st(z.dtype, ROWS, COLS), count=stages) for z in (x, dy) if z is not None and stages}

    def fetch(lap: Any) -> None:
        with pk.when(lap < laps):
            for z, tiles in slots.items():
                warpgroup.load_async(tiles[lap % stages], z, pk.at((strip + lap * strips) * ROWS, col))
        warpgroup.commit()

    for lap in range(stages - 1):
        fetch(lap)
    for lap in pk.range(laps):
        row = (strip + lap * strips) * ROWS
        at = pk.at(row, col)
        if stages:
            warpgroup.wait_loads(pending=stages - 2)
            warpgroup.sync()  # this lap's tiles are here, and nobody reads those of the lap before
            fetch(lap + stages - 1)

        def load(z: Any) -> Any:
            if z is None:
                return warpgroup.zeros(f32, ROWS, COLS)
            if stages:
                return warpgroup.load(slots[z][lap % stages]).to(f32)
            return warpgroup.load(z, at, rows=ROWS, cols=COLS, dtype=f32)

        product, dout = load(x), load(dy)
        inside = (pk.row_index(dout) < dy.rows - row) & (pk.col_index(dout) < dy.cols - col)

        tape = Tape(lambda x: epilogue(x, row, col, *operands), (product,), operands)
        loads = [(i, op, made) for op, made in tape.loads for i, o in enumerate(operands) if op.source.tensor is o]
        found = tape.cotangents(dout, [*tape.inputs, *(made for *_, made in loads)])
        tape.forget_result()
        for i, d in enumerate(wanted):
            terms = [
                term
                for (j, op, _), some in zip(loads, found[1:], strict=True)
                if j == i and d is not None
                for term in contribution(kinds[i], op, some, (row, col), single, inside)
            ]
            if d is None:
                continue
            if kinds[i] == "tile":
                warpgroup.store(d, sum(terms, warpgroup.zeros(f32, ROWS, COLS)).to(d.dtype), at)
            elif kinds[i] == "col":
                warpgroup.store(d, sum(terms, warpgroup.zeros_col(f32, ROWS)), pk.at(tile, row))
            else:
                for term in terms:
                    summed[i] += term
        if dx is not None:
            warpgroup.sync()
            warpgroup.store(staged, tape.words.total(found[0], dout.type).to(dx.dtype))
            warpgroup.sync()
            warpgroup.store(dx, staged, at)
    for i, acc in summed.items():
        sums = acc.col_sum()
        if kinds[i] == "row":
            warpgroup.store(wanted[i], sums, pk.at(strip, col))
        else:
            warpgroup.set(wanted[i], (strip, tile), sums.sum())


LONG = {"one": (False, False), "row": (False, True), "col": (True, False), "tile": (True, True)}
SUMS = ("row", "one")  # kinds whose sums stay in registers until a strip has ended


def contribution(
    kind: str, op: Any, some: Sequence[Any], here: tuple[Any, Any], single: tuple[bool, ...], inside: Any
) -> list[Any]:
    """What a load of an operand adds to its gradient: a tile of terms, or for (m, 1) their sums over the columns."""
    for first, own, long, only in zip(op.source.first[2:], here, LONG[kind], single, strict=True):
        if not (first is own if long else isinstance(first, int) and first == 0 or only and first is own):
            raise ArgumentError(
                "the gradient of an operand that the epilogue reads elsewhere than at its own element",
                fix="read it at pk.at(row, col), with 0 for a dimension of length 1, or detach it",
            )
    tensor, terms, (first_row, first_col) = op.source.tensor, [], op.source.first[2:]
    for term in some:
        if not isinstance(term.type, RegisterTile) or (kind in ("tile", "row") and term.shape != (ROWS, COLS)):
            fix = "use it elementwise, or detach it"
            raise ArgumentError("the gradient of an operand that the epilogue uses in sums", fix=fix)
        if isinstance(op.result.type, RegisterTile):  # what was read past the operand's end was 0
            rows, cols = tensor.rows - first_row, tensor.cols - first_col
            term = pk.where((pk.row_index(term) < rows) & (pk.col_index(term) < cols), term, 0.0)
        elif term.shape == (ROWS, COLS):
            term = pk.where(inside, term, 0.0)
        if kind == "col" or term.shape != (ROWS, COLS):
            term = term.row_sum()
        terms.append(term if kind != "one" or isinstance(term.type, RegisterTile) else in_first_column(term))
    return terms


def in_first_column(sums: Any) -> Any:
    """A column vector as a tile with the same sum."""
    tile = warpgroup.zeros(f32, ROWS, COLS)
    return pk.where(pk.col_index(tile) == 0, tile + sums, 0.0)


def kinds_of(shapes: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """For operands of two dimensions, how each goes with the product: a length of 1 is broadcast."""
    return tuple(KINDS[bool(rows == 1), bool(cols == 1)] for rows, cols in shapes)


def part_shape(kind: str, m: int, n: int, strips: int) -> tuple[int, int]:
    """The shape of an operand's gradient, or of the float32 parts of it."""
    tiles = -(-n // COLS)
    return {"tile": (m, n), "row": (strips, n), "col": (tiles, m), "one": (strips, tiles)}[kind]


def call(
    x: Any,
    dy: Any,
    operands: Sequence[Any],
    dx: Any,
    doperands: Sequence[Any],
    epilogue: Callable[..., Any],
    kinds: tuple[str, ...],
    strips: int,
) -> KernelCall:
    """What writes the gradients, of operands of two dimensions. x and dx are None where they are not needed."""
    missing = [None] * (4 - len(operands))
    given = (x, dy, *operands, *missing, dx, *doperands, *missing)
    single = tuple(n == 1 for n in dy.shape)
    stages = STAGES if alignment(*(z for z in (x, dy) if z is not None)) == 16 else 0
    static = {"epilogue": epilogue, "kinds": kinds, "strips": strips, "single": single, "stages": stages}
    return KernelCall(epilogue_backward, given, static)
