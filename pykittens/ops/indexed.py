"""Elements of a tensor at computed rows and columns: read into a tile or vector, and added to where such were read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Place, Scope, Value, is_scalar
from ..thread_map import ANY_THREAD
from ..types import DType, RegisterTile, RegisterVector, Type, bf16, f16, f32, i32, i64, u8, u32, with_dtype
from .addressing import memory_c
from .broadcast import Register, common_type, operand, read, register_type, registers_of
from .conversion import conversion_numerics, convert
from .global_reduce import holds_once
from .red import check_combined, combined_numerics, needed, red
from .samples import Rectangle, Sample
from .scalars import check_index


def gathered_type(row: Operand, col: Operand, memory: DType) -> Register:
    """What a gather makes: as wide as its indices together, floats as float32, integers as int32 or int64."""
    for x in (row, col):
        if is_scalar(x):
            check_index(x, "an index")
        elif register_type(x, "an index").dtype is not i32:
            raise TypeRuleError(f"an index of {x.type}", fix="convert it: x.to(pk.i32)")
    return with_dtype(
        common_type("elements at indices", row, col), f32 if memory.kind == "f" else i64 if memory is i64 else i32
    )


def spots(m: NumpyMachine, shape: Register, row: Operand, col: Operand) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of each element, one unit after another."""
    whole = (m.units, *shape.shape)
    found = [np.broadcast_to(np.asarray(operand(m, x, shape, i32), np.int64), whole) for x in (row, col)]
    return found[0], found[1]


class Spot:
    """C for where the elements lie: `inside`, a condition, and `at`, an address, for a register each."""

    def __init__(self, c: CudaWriter, place: Place, shape: Register, row: Operand, col: Operand, const: bool = True):
        self.c, self.place, self.shape, self.index = c, place, shape, (row, col)
        self.tensor, self.pointer, t = c[place.tensor], c.fresh("p"), memory_c(place.type.dtype)
        first = [c.scalar(x, i32) for x in place.first[:2]]
        outer = " + ".join(f"(i64){x} * {self.tensor}.stride[{i}]" for i, x in enumerate(first))
        q = "const " if const else ""
        c.line(f"{q}{t}* {self.pointer} = ({q}{t}*){self.tensor}.data + {outer};")

    def inside(self, r: Sym) -> str:
        tests = []
        for axis, x in zip((2, 3), self.index, strict=True):
            dim = self.place.type.padded[axis]
            length = str(dim) if isinstance(dim, int) else f"{self.tensor}.shape[{axis}]"
            tests.append(f"(u32)({read(self.c, x, self.shape, r, i32)}) < (u32){length}")
        return " && ".join(tests)

    def at(self, r: Sym) -> str:
        row, col = (read(self.c, x, self.shape, r, i32) for x in self.index)
        return f"{self.pointer} + (i64)({row}) * {self.tensor}.stride[2] + ({col})"


@dataclass(eq=False)
class Gather(Op):
    """source[row, col] for each element of tiles, vectors or scalars of int32 that are broadcast together; 0 where
    there is none. `source` is where a matrix begins; (row, col) count from there.
    """

    scope: Scope
    source: Place
    row: Operand
    col: Operand

    no_vjp = "what reads a tensor has none; `trace.scoring` adds to the gradients of operands"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        held = registers_of(self.result).dtype
        return conversion_numerics(self.source.type.dtype, held).with_special("what lies outside is 0")

    def types(self) -> tuple[Type, ...]:
        return (gathered_type(self.row, self.col, self.source.type.dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        shape = registers_of(self.result)
        return convert(m.gather(self.source, *spots(m, shape, self.row, self.col)), shape.dtype)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", ANY_THREAD, everywhere=True),)

    def cuda(self, c: CudaWriter) -> None:
        shape, memory = registers_of(self.result), self.source.type.dtype
        spot, zero = Spot(c, self.source, shape, self.row, self.col), c.zero(self.source.type.dtype, shape.dtype)
        c.map(
            self.result,
            lambda r: f"(({spot.inside(r)}) ? {c.from_memory(f'*({spot.at(r)})', memory, shape.dtype)} : {zero})",
        )

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, i32, u8):
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


@dataclass(eq=False)
class ScatterReduce(Op):
    """target[row, col] becomes itself `kind` each element of a tile or vector, atomically; what lies outside is
    dropped. Of the threads that hold copies of a vector's element, one does it; of a partial vector each adds its term.
    """

    scope: Scope
    target: Place
    row: Operand
    col: Operand
    source: Value
    kind: Literal["add", "min", "max"] = "add"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return combined_numerics(self.kind, self.target.type.dtype)

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.source, self.kind)
        check_combined(self.kind, self.source, self.target)
        held = with_dtype(gathered_type(self.row, self.col, self.target.type.dtype), type.dtype)
        if self._whole != held:
            raise TypeRuleError(
                f"{self.kind} of {type} at indices of {held}",
                fix=f"give each index an element: pk.full_like(index, 1, pk.{type.dtype}), say",
            )
        if getattr(type, "partial", False) and self.kind != "add":
            raise TypeRuleError(f"{self.kind} of {type} at indices", fix="sum it first: x.total()")
        return ()

    @property
    def _whole(self) -> Register:
        """The type of the source, or of its sums."""
        type = registers_of(self.source)
        return replace(type, partial=False) if isinstance(type, RegisterVector) else type

    def numpy(self, m: NumpyMachine) -> None:
        array, whole = m[self.source], self._whole
        terms = array.sum(axis=-1) if array.ndim > 1 + len(whole.shape) else array
        m.scatter(self.target, *spots(m, whole, self.row, self.col), terms, self.kind)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "reduce", ANY_THREAD, order="relaxed", reduction=self.kind, everywhere=True),)

    def cuda(self, c: CudaWriter) -> None:
        type = registers_of(self.source)
        if feature := needed(type.dtype):
            c.require(feature, self)
        c.prelude(red(self.kind, type.dtype))
        spot, once = Spot(c, self.target, self._whole, self.row, self.col, const=False), ""
        if isinstance(type, RegisterVector) and not (type.partial and type.kind == "col"):
            tests = holds_once(c, self.scope, type)
            once = " && ".join(filter(None, tests[:1] if type.partial else tests))
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {{")
        if isinstance(type, RegisterVector) and type.kind == "naive":
            c.line(f"const int x = {vector_element(type, c.warp(self.scope), c.lane, Sym('i'))};")
        test = " && ".join(filter(None, (once, spot.inside(Sym("i")))))
        c.line(f"if ({test}) pk_red_{self.kind}({spot.at(Sym('i'))}, {c.moved(self.source, Sym('i'))}); }}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for index in TILES:
            place, source = Rectangle(f32, (1,), (5, 7)), with_dtype(index, f32)
            row, col = index.vector("row"), index.vector("col")
            inputs = dict.fromkeys(("target", "row", "col", "source"), "integers")
            yield Sample(
                {"target": place, "row": 3, "col": index, "source": source, "kind": "add"},
                lambda target, col, source: _combined(target, 3, col, source),
                inputs,
                exact=True,
            )
            yield Sample(
                {"target": place, "row": col, "col": row, "source": source, "kind": "add"},
                _combined,
                inputs,
                exact=True,
            )
            partial = [(col, replace(col, partial=True))] if index.layout == "row" else []
            for vector, term in ((row, row), (col, col), *partial):
                yield Sample(
                    {"target": place, "row": vector, "col": 2, "source": with_dtype(term, f32), "kind": "add"},
                    lambda target, row, source: _combined(target, row, 2, source.sum(1) if source.ndim > 1 else source),
                    inputs,
                    exact=True,
                )
        for naive in (RegisterVector(i32, 100, "naive", "row", 2), RegisterVector(i32, 48, "naive", width=4)):
            yield Sample(
                {"target": Rectangle(f32, (1,), (5, 7)), "row": 1, "col": naive, "source": with_dtype(naive, f32)}
                | {"kind": "add"},
                lambda target, col, source: _combined(target, 1, col, source),
                dict.fromkeys(("target", "col", "source"), "integers"),
                exact=True,
            )
        combine = ("add", np.add), ("min", np.minimum), ("max", np.maximum)
        for dtype in (i32, u32, i64, f32, f16):
            for kind, f in combine[: 1 if dtype is f16 else 3]:
                fields = {"target": Rectangle(dtype, (1,), (5, 7)), "row": 3, "col": TILES[0], "kind": kind}
                numbers = "bits" if dtype.kind == "i" else "counts"
                yield Sample(
                    fields | {"source": with_dtype(TILES[0], dtype)},
                    lambda target, col, source, f=f: _combined(target, 3, col, source, f),
                    {"col": "integers", "target": numbers, "source": numbers},
                    exact=True,
                )


TILES = (RegisterTile(i32, 32, 48), RegisterTile(i32, 32, 48, "col"), RegisterTile(i32, 64, 32, "row", 4))


def _read(source: Any, row: Any, col: Any) -> Any:
    row, col, inside = _inside(source, row, col)
    return np.where(inside, source[row, col], 0)


def _combined(target: Any, row: Any, col: Any, source: Any, f: Any = np.add) -> Any:
    row, col, inside = _inside(target, row, col)
    out = target.copy()
    f.at(out, (row[inside], col[inside]), source[inside])
    return out


def _inside(array: Any, row: Any, col: Any) -> tuple[Any, Any, Any]:
    """Rows and columns, 0 where they are none, and whether they are some."""
    row, col = np.asarray(row), np.asarray(col)
    row, col = np.broadcast_arrays(row[:, None] if row.ndim == col.ndim == 1 else row, col)
    inside = (row >= 0) & (row < array.shape[0]) & (col >= 0) & (col < array.shape[1])
    return np.where(inside, row, 0), np.where(inside, col, 0), inside
