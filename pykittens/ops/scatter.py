"""Elements of a tile or vector written to computed rows and columns of memory, or combined with what is there (PTX
"red").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Place, Scope, Value
from ..thread_map import Registers
from ..types import DType, RegisterVector, SharedTile, SharedVector, Type, bf16, f16, f32, i8, i32, i64, u32, with_dtype
from .addressing import MEMORY
from .broadcast import Register, register_type, registers_of
from .conversion import conversion_numerics, convert
from .global_reduce import holds_once
from .indexed import TILES, Spot, gathered_type, inside_of, spots
from .red import check_combined, combined_numerics, needed, red, red_name
from .samples import Rectangle, Sample


class _AtIndices(Op):
    """What goes to target[row, col]."""

    scope: Scope
    target: Value | Place

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    @property
    def memory(self) -> DType:
        return self.target.type.dtype  # type: ignore[union-attr]


@dataclass(eq=False)
class Scatter(_AtIndices):
    """target[row, col] becomes each element of a tile or vector; what lies outside is dropped. No two go to one place,
    and of the threads that hold copies of a vector's element, one writes it.
    """

    spelling = "{scope}.store"

    scope: Scope
    target: Value | Place
    row: Operand
    col: Operand
    source: Value

    @property
    def name(self) -> str:
        return "store"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(registers_of(self.source).dtype, self.memory)

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.source, "store")
        if getattr(type, "partial", False):
            raise TypeRuleError("store: a partial vector has no values yet", fix="sum it first: x.total()")
        check_indices("store", type, gathered_type(self.row, self.col, self.memory))
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        type = registers_of(self.source)
        m.scatter(self.target, *spots(m, type, self.row, self.col), convert(m[self.source], self.memory))

    def effects(self) -> tuple[Effect, ...]:
        map = Registers(registers_of(self.source), once=True)
        return (Access(self.target, "write", map, index=(self.row, self.col)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        type, i = registers_of(self.source), Sym("i")
        spot = Spot(c, self.target, type, self.row, self.col, const=False)
        once = holds_once(c, self.scope, type) if isinstance(type, RegisterVector) else []
        open_registers(c, self.scope, type)
        value, test = c.stored(self.source, i, self.memory), " && ".join(filter(None, (*once, spot.inside(i))))
        shared = f"pk_st_shared({spot.at(i)}, {c.raw(value, self.memory)});"
        text = f"*({spot.at(i)}) = {value};" if isinstance(self.target, Place) else shared
        c.line(f"{f'if ({test}) ' if test else ''}{text} }}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        # Each index once: `steps` of the samples are 0, 1, 2, ... in some order, of which some lie outside.
        for dtype in (f32, bf16, i32, i8, i64):
            held = with_dtype(TILES[0], {i8: i32, bf16: f32}.get(dtype, dtype)).dtype
            for tile in TILES:
                row, col = tile.vector("row"), tile.vector("col")
                place = Rectangle(dtype, (1,), (tile.rows - 3, tile.cols - 5), static=dtype is f32)
                inputs = dict.fromkeys(("target", "source"), "counts") | dict.fromkeys(("row", "col"), "places")
                for target in (place, SharedTile(dtype, 24, 32)) if tile is TILES[0] else (place,):
                    yield Sample(
                        {"target": target, "row": col, "col": row, "source": with_dtype(tile, held)},
                        _scattered,
                        inputs,
                        exact=True,
                    )
                yield Sample(
                    {"target": place, "row": 2, "col": row, "source": with_dtype(row, held)},
                    lambda target, col, source: _scattered(target, 2, col, source),
                    inputs,
                    exact=True,
                )
            for naive in (RegisterVector(i32, 100, "naive", "row", 2), RegisterVector(i32, 48, "naive", width=4)):
                yield Sample(
                    {"target": SharedVector(dtype, 32), "row": 0, "col": naive, "source": with_dtype(naive, held)},
                    lambda target, col, source: _scattered(target[None], 0, col, source)[0],
                    inputs,
                    exact=True,
                )


@dataclass(eq=False)
class ScatterReduce(_AtIndices):
    """target[row, col] becomes itself `kind` each element of a tile or vector, atomically; what lies outside is
    dropped. Of the threads that hold copies of a vector's element, one does it; of a partial vector each adds its term.
    """

    spelling = "{scope}.{kind}"

    scope: Scope
    target: Value | Place
    row: Operand
    col: Operand
    source: Value
    kind: Literal["add", "min", "max"] = "add"

    @property
    def name(self) -> str:
        return self.kind

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return combined_numerics(self.kind, self.memory, not isinstance(self.target, Place))

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.source, self.kind)
        check_combined(self.kind, self.source, self.target)
        check_indices(self.kind, self._whole, gathered_type(self.row, self.col, self.memory))
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
        map, index = Registers(self._whole, once=True), (self.row, self.col)
        return (Access(self.target, "reduce", map, order="relaxed", reduction=self.kind, index=index),)

    def cuda(self, c: CudaWriter) -> None:
        type = registers_of(self.source)
        if feature := needed(type.dtype):
            c.require(feature, self)
        shared = not isinstance(self.target, Place)
        c.prelude(red(self.kind, type.dtype, shared))
        spot, once = Spot(c, self.target, self._whole, self.row, self.col, const=False), ""
        if isinstance(type, RegisterVector) and not (type.partial and type.kind == "col"):
            tests = holds_once(c, self.scope, type)
            once = " && ".join(filter(None, tests[:1] if type.partial else tests))
        open_registers(c, self.scope, type)
        test = " && ".join(filter(None, (once, spot.inside(Sym("i")))))
        call = f"{red_name(self.kind, type.dtype, shared)}({spot.at(Sym('i'))}, {c.moved(self.source, Sym('i'))});"
        c.line(f"{f'if ({test}) ' if test else ''}{call} }}")

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
        in_shared: tuple[tuple[DType, str, Any], ...]
        in_shared = (f32, "add", np.add), (i32, "max", np.maximum), (bf16, "add", np.add)
        for dtype, kind, f in in_shared:
            col = TILES[0].vector("col")
            fields = {"target": SharedVector(dtype, 24), "row": 0, "col": col, "source": with_dtype(col, dtype)}
            yield Sample(
                fields | {"kind": kind},
                lambda target, col, source, f=f: _combined(target[None], 0, col, source, f)[0],
                dict.fromkeys(("target", "col", "source"), "integers"),
                exact=True,
                needs=needed(dtype),
            )
            row = TILES[0].vector("row")
            fields = {
                "target": SharedTile(dtype, 16, 32),
                "row": col,
                "col": row,
                "source": with_dtype(TILES[0], dtype),
            }
            yield Sample(
                fields | {"kind": kind},
                lambda target, row, col, source, f=f: _combined(target, row, col, source, f),
                dict.fromkeys(("target", "row", "col", "source"), "integers"),
                exact=True,
                needs=needed(dtype),
            )
        for naive in (RegisterVector(i32, 100, "naive", "row", 2), RegisterVector(i32, 48, "naive", width=4)):
            yield Sample(
                {"target": Rectangle(f32, (1,), (5, 7)), "row": 1, "col": naive, "source": with_dtype(naive, f32)}
                | {"kind": "add"},
                lambda target, col, source: _combined(target, 1, col, source),
                dict.fromkeys(("target", "col", "source"), "integers"),
                exact=True,
            )
        combine: Any = ("add", np.add), ("min", np.minimum), ("max", np.maximum)
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


def check_indices(what: str, type: Register, indices: Register) -> None:
    """There is an index for each element."""
    held = with_dtype(indices, type.dtype)
    if type != held:
        raise TypeRuleError(
            f"{what} of {type} at indices of {held}",
            fix=f"give each index an element: pk.full_like(index, 1, pk.{type.dtype}), say",
        )


def open_registers(c: CudaWriter, scope: Scope, type: Register) -> None:
    """Begins a loop over the registers `i`; of a naive vector, `x` is the element of each."""
    c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {{")
    if isinstance(type, RegisterVector) and type.kind == "naive":
        c.line(f"const int x = {vector_element(type, c.warp(scope), c.lane, Sym('i'))};")


def _scattered(target: Any, row: Any, col: Any, source: Any) -> Any:
    row, col, inside = inside_of(target, row, col)
    out = target.copy()
    out[row[inside], col[inside]] = source[inside]
    return out


def _combined(target: Any, row: Any, col: Any, source: Any, f: Any = np.add) -> Any:
    row, col, inside = inside_of(target, row, col)
    out = target.copy()
    f.at(out, (row[inside], col[inside]), source[inside])
    return out
