"""Elements of memory at computed rows and columns, read into a tile or vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Place, Scope, Value, is_scalar
from ..thread_map import Registers
from ..types import DType, RegisterTile, SharedTile, SharedVector, Type, bf16, f32, i32, i64, u8, u32, with_dtype
from .addressing import MEMORY, VECTOR, memory_c, row_stride, shared_address, vector_address
from .broadcast import Register, common_type, operand, read, register_type, registers_of
from .conversion import conversion_numerics, convert
from .samples import Rectangle, Sample
from .scalars import check_index


def gathered_type(row: Operand, col: Operand, memory: DType) -> Register:
    """What a gather makes: as wide as its indices together; floats as float32, uint32 and int64 as they are, other
    integers as int32.
    """
    for x in (row, col):
        if is_scalar(x):
            check_index(x, "an index")
        elif register_type(x, "an index").dtype is not i32:
            raise TypeRuleError(f"an index of {x.type}", fix="convert it: x.to(pk.i32)")
    held = f32 if memory.kind == "f" else memory if memory in (i64, u32) else i32
    return with_dtype(common_type("elements at indices", row, col), held)


def spots(m: NumpyMachine, shape: Register, row: Operand, col: Operand) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of each element, one unit after another."""
    whole = (m.units, *shape.shape)
    found = [np.broadcast_to(np.asarray(operand(x, shape, i32)(m), np.int64), whole) for x in (row, col)]
    return found[0], found[1]


class Spot:
    """C for where the elements lie: `inside`, a condition, and `at`, an address, for a register each."""

    def __init__(
        self, c: CudaWriter, memory: Value | Place, shape: Register, row: Operand, col: Operand, const: bool = True
    ):
        self.c, self.memory, self.shape, self.index = c, memory, shape, (row, col)
        if isinstance(memory, Place):
            self.tensor, self.pointer, t = c[memory.tensor], c.fresh("p"), memory_c(memory.type.dtype)
            first = [c.scalar(x, i32) for x in memory.first[:2]]
            outer = " + ".join(f"(i64){x} * {self.tensor}.stride[{i}]" for i, x in enumerate(first))
            q = "const " if const else ""
            c.line(f"{q}{t}* {self.pointer} = ({q}{t}*){self.tensor}.data + {outer};")

    def inside(self, r: Sym) -> str:
        tests = []
        for axis, x in zip((2, 3), self.index, strict=True):
            length = self._length(axis)
            if not (isinstance(x, int) and isinstance(length, int) and 0 <= x < length):
                tests.append(f"(u32)({read(self.c, x, self.shape, r, i32)}) < (u32){length}")
        return " && ".join(tests)

    def _length(self, axis: int) -> int | str:
        if isinstance(self.memory, Place):
            dim = self.memory.type.padded[axis]
            return dim if isinstance(dim, int) else f"{self.tensor}.shape[{axis}]"
        return (1, *self.memory.type.shape)[-2:][axis - 2]  # type: ignore[union-attr]

    def at(self, r: Sym) -> str:
        row, col = (read(self.c, x, self.shape, r, i32) for x in self.index)
        if isinstance(self.memory, Place):
            return f"{self.pointer} + (i64)({row}) * {row_stride(self.tensor, self.memory.type)} + ({col})"
        if isinstance(self.memory.type, SharedTile):
            return shared_address(self.c, self.memory, row, col)
        return vector_address(self.c, self.memory, col)

    def loaded(self, r: Sym) -> str:
        """The element as it lies in memory."""
        dtype = self.memory.type.dtype  # type: ignore[union-attr]
        if isinstance(self.memory, Place):
            return f"*({self.at(r)})"
        return self.c.bits(f"pk_ld_shared<{VECTOR[dtype.size]}>({self.at(r)})", dtype)


@dataclass(eq=False)
class Gather(Op):
    """source[row, col] for each element of tiles, vectors or scalars of int32 that are broadcast together; 0 where
    there is none. `source` is where a matrix begins, or a shared tile or vector (of which `row` is 0).
    """

    spelling = "a read at indices"

    scope: Scope
    source: Value | Place
    row: Operand
    col: Operand

    no_vjp = "what reads a tensor has none; `trace.scoring` adds to the gradients of operands"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        held = registers_of(self.result).dtype
        return conversion_numerics(self.memory, held).with_special("what lies outside is 0")

    @property
    def memory(self) -> DType:
        return self.source.type.dtype  # type: ignore[union-attr]

    def types(self) -> tuple[Type, ...]:
        return (gathered_type(self.row, self.col, self.memory),)

    def numpy(self, m: NumpyMachine) -> Any:
        shape = registers_of(self.result)
        return convert(m.gather(self.source, *spots(m, shape, self.row, self.col)), shape.dtype)

    def effects(self) -> tuple[Effect, ...]:
        map = Registers(gathered_type(self.row, self.col, self.memory))
        return (Access(self.source, "read", map, index=(self.row, self.col)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        shape, memory = registers_of(self.result), self.memory
        spot, zero = Spot(c, self.source, shape, self.row, self.col), c.zero(memory, shape.dtype)

        def element(r: Sym) -> str:
            text = c.from_memory(spot.loaded(r), memory, shape.dtype)
            return f"({test} ? {text} : {zero})" if (test := spot.inside(r)) else text

        c.map(self.result, element)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, i32, u32, u8):
            for tile in TILES:
                place = Rectangle(dtype, (1,), (5, 7), static=dtype is f32)
                inputs = {"row": "integers", "col": "integers"}
                row, col = tile.vector("row"), tile.vector("col")
                yield Sample(
                    {"source": place, "row": 3, "col": tile},
                    lambda source, col: _read(source, 3, col),
                    inputs,
                    exact=True,
                )
                yield Sample({"source": place, "row": col, "col": row}, _read, inputs, exact=True)
                yield Sample(
                    {"source": place, "row": row, "col": 2},
                    lambda source, row: _read(source, row, 2),
                    inputs,
                    exact=True,
                )
                for shared in (SharedTile(dtype, 16, 32), SharedVector(dtype, 24)):
                    first = 3 if isinstance(shared, SharedTile) else 0
                    yield Sample(
                        {"source": shared, "row": first, "col": tile},
                        lambda source, col, at=first: _read(np.atleast_2d(source), at, col),
                        inputs,
                        exact=True,
                    )
                yield Sample({"source": SharedTile(dtype, 16, 32), "row": col, "col": row}, _read, inputs, exact=True)


TILES = (RegisterTile(i32, 32, 48), RegisterTile(i32, 32, 48, "col"), RegisterTile(i32, 64, 32, "row", 4))


def _read(source: Any, row: Any, col: Any) -> Any:
    row, col, inside = inside_of(source, row, col)
    return np.where(inside, source[row, col], 0)


def inside_of(array: Any, row: Any, col: Any) -> tuple[Any, Any, Any]:
    """Rows and columns, 0 where they are none, and whether they are some."""
    row, col = np.asarray(row), np.asarray(col)
    row, col = np.broadcast_arrays(row[:, None] if row.ndim == col.ndim == 1 else row, col)
    inside = (row >= 0) & (row < array.shape[0]) & (col >= 0) & (col < array.shape[1])
    return np.where(inside, row, 0), np.where(inside, col, 0), inside
