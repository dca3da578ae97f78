"""Stores of register tiles and vectors into shared or global memory. Elements convert on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Place, Scope, Value
from ..thread_map import Matrices, Registers
from ..types import (
    Coalesced,
    DType,
    RegisterTile,
    RegisterVector,
    SharedTile,
    SharedVector,
    Type,
    bf16,
    e4m3,
    e5m2,
    f16,
    f32,
    i8,
    i32,
    i64,
    u8,
)
from .addressing import MEMORY, VECTOR, GlobalText, memory_c, row_c, shared_address, vector_address
from .broadcast import register_type, registers_of
from .coalesced import check_hint, store_runs
from .conversion import conversion_numerics, convert
from .ldmatrix import STMATRIX, blocks_and_steps, matrix_row_col
from .load_store import LAYOUTS, check_pair, in_runs, move_whole_runs, naive_limit, neighbours, open_runs, pairable
from .samples import Rectangle, Sample, between, gathers, pasted, rectangles, vectors, windows


@dataclass(eq=False)
class Store(Op):
    """A register tile or vector into a shared tile or vector, or a global rectangle; past the end nothing is
    written.
    """

    scope: Scope
    target: Value | Place
    source: Value
    hint: str = ""

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(self.held, self.memory)

    def types(self) -> tuple[Type, ...]:
        check_pair(self.source, self.target, "store")
        check_hint(self.hint, register_type(self.source, "store"), self.target)
        if isinstance(self.target, Place) and self.target.columns and not in_runs(register_type(self.source, "store")):
            fix = "store a tile with layout=pk.coalesced(lanes, width)"
            raise TypeRuleError(f"store of {self.source.label}: {self.source.type} kept to columns", fix=fix)
        return ()

    @property
    def memory(self) -> DType:
        return self.target.type.dtype  # type: ignore[union-attr]

    @property
    def held(self) -> DType:
        return self.source.type.dtype  # type: ignore[union-attr]

    def numpy(self, m: NumpyMachine) -> None:
        array = convert(m[self.source], self.memory)
        vector = isinstance(self.target, Value) and isinstance(self.target.type, SharedVector)
        m.write(self.target, array[:, 0] if vector and array.ndim == 3 else array)  # the only row of a tile

    def effects(self) -> tuple[Effect, ...]:
        type = self.source.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        if self._by_matrices:
            assert isinstance(type, RegisterTile)
            return (Access(self.target, "write", Matrices(type)),)
        return (Access(self.target, "write", Registers(type, neighbours(type, self.target), once=True)),)

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    @property
    def _by_matrices(self) -> bool:
        """Whether stmatrix stores it, where the architecture has it."""
        type = self.source.type
        return (
            isinstance(type, RegisterTile)
            and not in_runs(type)
            and isinstance(self.target, Value)
            and self.memory.packed
            and self.memory == type.dtype
        )

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        type = registers_of(self.source)
        c.line("{")
        if in_runs(type):
            store_runs(c, self.scope, self.target, self.source, self.hint)
        elif isinstance(type, RegisterVector):
            self._vector(c, type)
        else:
            assert isinstance(type, RegisterTile)
            if self._by_matrices and c.has("stmatrix"):
                self._stmatrix(c, type)
            elif type.layout == "row" and pairable(self.target):
                self._pairs(c, type)
            else:
                self._elements(c, type)
        c.line("}")

    def _stmatrix(self, c: CudaWriter, tile: RegisterTile) -> None:
        c.prelude(STMATRIX)
        blocks, steps = blocks_and_steps(tile)
        row, col = matrix_row_col(c, self.scope, tile, "b", "s")
        name = "pk_stmatrix" if tile.layout == "row" else "pk_stmatrix_trans"
        c.line(f"PK_UNROLL for (int b = 0; b < {blocks}; b++) PK_UNROLL for (int s = 0; s < {steps}; s++)")
        c.line(f"  {name}({shared_address(c, self.target, row, col)}, {c[self.source]} + (b * {steps} + s) * 4);")  # type: ignore[arg-type]

    def _pairs(self, c: CudaWriter, tile: RegisterTile) -> None:
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        row = row_c(c, self.target, tile, row, Sym("(2 * i)"))
        vector = VECTOR[2 * self.memory.size]
        g = None if isinstance(self.target, Value) else GlobalText(c, self.target, const=False)
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{ const int r = {row}, x = {col};")
        a, b = (c.stored(self.source, Sym(f"(2 * i + {j})" if j else "(2 * i)"), self.memory) for j in (0, 1))
        c.line(f"union {{ {vector} v; {memory_c(self.memory)} e[2]; }} u; u.e[0] = {a}; u.e[1] = {b};")
        if g is None:
            c.line(f"pk_st_shared({shared_address(c, self.target, 'r', 'x')}, u.v); }}")  # type: ignore[arg-type]
        else:
            inside = g.inside("r", "x")
            c.line(f"{f'if ({inside}) ' if inside else ''}*({vector}*)({g.at('r', 'x')}) = u.v; }}")

    def _elements(self, c: CudaWriter, tile: RegisterTile) -> None:
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("i"))
        row = row_c(c, self.target, tile, row, Sym("i"))
        g = None if isinstance(self.target, Value) else GlobalText(c, self.target, const=False)
        value = c.stored(self.source, Sym("i"), self.memory)
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {{ const int r = {row}, x = {col};")
        if g is None:
            raw = c.raw(value, self.memory)
            c.line(f"pk_st_shared({shared_address(c, self.target, 'r', 'x')}, {raw}); }}")  # type: ignore[arg-type]
        else:
            inside = g.inside("r", "x")
            c.line(f"{f'if ({inside}) ' if inside else ''}*({g.at('r', 'x')}) = {value}; }}")

    def _vector(self, c: CudaWriter, vector: RegisterVector) -> None:
        g = None if isinstance(self.target, Value) else GlobalText(c, self.target, const=False)
        if move_whole_runs(vector, self.target):
            self._whole_runs(c, vector, g)
            return
        at = vector_element(vector, c.warp(self.scope), c.lane, Sym("i"))
        value = c.stored(self.source, Sym("i"), self.memory)
        c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {{ const int x = {at};")
        limit = naive_limit(vector)
        tests = [f"x < {limit}"] if limit else []
        if isinstance(vector.layout, Coalesced):
            tests.append(f"{c.thread(self.scope)} % {vector.layout.lanes} == 0")
        elif vector.kind != "naive":  # copies of an element in several threads: one writes
            tests.append(f"{c.lane} % 4 == 0" if vector.ortho else f"{c.lane} / 4 == 0")
        if g is not None and g.inside("0", "x"):
            tests.append(g.inside("0", "x"))
        if vector.kind == "row" and vector.warps > 1:
            tests.append(f"{c.warp(self.scope)} == 0")
        guard = f"if ({' && '.join(tests)}) " if tests else ""
        if g is None:
            c.line(f"{guard}pk_st_shared({vector_address(c, self.target, 'x')}, {c.raw(value, self.memory)}); }}")  # type: ignore[arg-type]
        else:
            c.line(f"{guard}*({g.at('0', 'x')}) = {value}; }}")

    def _whole_runs(self, c: CudaWriter, vector: RegisterVector, g: Any) -> None:
        width, kind = vector.width, VECTOR[vector.width * self.memory.size]
        whole, some = open_runs(c, self.scope, vector, g)
        c.line(f"union {{ {kind} v; {memory_c(self.memory)} e[{width}]; }} u;")
        value = c.stored(self.source, Sym(f"(i * {width} + j)"), self.memory)
        c.line(f"PK_UNROLL for (int j = 0; j < {width}; j++) u.e[j] = {value};")
        if g is None:
            store = f"pk_st_shared({vector_address(c, self.target, 'x')}, u.v);"  # type: ignore[arg-type]
        else:
            store = f"*({kind}*)({g.at('0', 'x')}) = u.v;"
        if g is not None and g.cols_left:
            c.line(f"if ({whole}) {store} else if ({some}) pk_store_tail({g.at('0', 'x')}, u.v, {g.cols_left} - x); }}")
        else:
            c.line((f"if ({whole}) " if whole else "") + store + " }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (bf16, f16, f32, i32, i64, e4m3, e5m2, i8, u8):
            held = {e4m3: f32, e5m2: f32, i8: i32, u8: i32}.get(dtype, dtype)
            needs = "fp8 conversions" if dtype in (e4m3, e5m2) else ""
            inputs = {"source": "counts"} if dtype in (i8, u8) else {}
            for layout in LAYOUTS[:2]:
                yield Sample(
                    {"target": SharedTile(dtype, 32, 64), "source": RegisterTile(held, 32, 64, layout)},
                    lambda source: source,
                    inputs,
                    exact=True,
                    needs=needs,
                )
            place = Rectangle(dtype, (16, 32), (40, 64), (16, 32))
            yield Sample(
                {"target": place, "source": RegisterTile(held, 16, 32)},
                lambda target, source, p=place: pasted(target, source, p),
                inputs,
                exact=True,
                needs=needs,
            )
        yield Sample(
            {"target": SharedTile(bf16, 128, 96), "source": RegisterTile(bf16, 128, 96, "row", 4)},
            lambda source: source,
            exact=True,
        )
        yield Sample(
            {"target": SharedTile(bf16, 16, 32), "source": RegisterTile(f32, 16, 32)},
            lambda source: source,
            {"source": "wide"},
            exact=True,
        )
        for dtype, layout in ((bf16, Coalesced(32, 8)), (f32, Coalesced(32, 4))):  # the only row of a tile
            fields = {"target": SharedVector(dtype, 512), "source": RegisterTile(dtype, 1, 512, layout)}
            yield Sample(fields, lambda source: source[0], exact=True)
        for place in (*rectangles(bf16), *rectangles(f32), *rectangles(i64)[-2:], *windows(bf16), *windows(f32)):
            for layout in LAYOUTS:
                fields = {"target": place, "source": RegisterTile(place.dtype, 16, 32, layout)}
                yield Sample(fields, lambda target, source, p=place: pasted(target, source, p), exact=True)
        for dtype in (bf16, f32):
            for layout in LAYOUTS:
                for place in gathers(dtype, layout, once=True):
                    fields = {"target": place, "source": RegisterTile(dtype, 16, 32, layout)}
                    yield Sample(fields, lambda target, source, p=place: pasted(target, source, p), exact=True)
        for place in (*between(bf16), *between(f32)):
            for layout in LAYOUTS[2:]:
                fields = {"target": place, "source": RegisterTile(place.dtype, 16, 32, layout)}
                yield Sample(fields, lambda target, source, p=place: pasted(target, source, p), exact=True)
        for type in (*vectors(f32), *vectors(bf16), *vectors(i64)):
            yield Sample(
                {"target": SharedVector(type.dtype, type.length), "source": type}, lambda source: source, exact=True
            )
            for cols, known in ((type.length, True), (type.length - 3, True), (type.length - 3, False)):
                place = Rectangle(type.dtype, (type.length,), (3, cols), (1, 0), static=known, known=known)
                yield Sample(
                    {"target": place, "source": type},
                    lambda target, source, p=place: pasted(target, source, p),
                    exact=True,
                )
