"""Loads and stores between registers and shared or global memory. Elements convert on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, vector_element
from ..program import Access, Effect, Op, Operand, Place, Scope, Value
from ..types import (
    Coalesced,
    DType,
    Global,
    Layout,
    RegisterTile,
    RegisterVector,
    ScalarType,
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
    u8,
)
from .broadcast import register_type
from .coalesced import check_hint, load_runs, store_runs
from .places import MEMORY, VECTOR, GlobalText, check_place, known_multiple, memory_c, shared_address, vector_address, vector_bytes
from .samples import Rectangle, Sample, cut, pasted, rectangles, vectors
from .scalars import scalar_dtype

LDMATRIX = """
__device__ __forceinline__ void ldmatrix(u32* v, u32 a, u32 flip = 0, u32 offset = 0) {
  asm volatile("{{ .reg .b32 t; xor.b32 t, %4, %5; add.u32 t, t, %6; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [t]; }}"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(a), "r"(flip), "r"(offset) : "memory"); }
__device__ __forceinline__ void ldmatrix_trans(u32* v, u32 a, u32 flip = 0, u32 offset = 0) {
  asm volatile("{{ .reg .b32 t; xor.b32 t, %4, %5; add.u32 t, t, %6; ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [t]; }}"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(a), "r"(flip), "r"(offset) : "memory"); }
"""
STMATRIX = """
__device__ __forceinline__ void stmatrix(u32 a, const u32* v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(a), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory"); }
__device__ __forceinline__ void stmatrix_trans(u32 a, const u32* v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(a), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory"); }
"""


def matrix_row_col(c: Any, scope: Scope, tile: RegisterTile, block: Any, step: Any) -> tuple[str, str]:
    """C (row, column) that this lane addresses in the 16 x 16 matrix (`block`, `step`) for ldmatrix or stmatrix.

    The four 8 x 8 matrices come in the order of the fragment's packed registers: for row layout down the rows first;
    a column-layout tile is loaded transposed, across the columns first.
    """
    if tile.layout == "row":
        row = f"(({block}) * {tile.warps} + {c.warp(scope)}) * 16 + {c.lane} % 16"
        return row, f"({step}) * 16 + {c.lane} / 16 * 8"
    low, high = f"{c.lane} % 8 + {c.lane} / 16 * 8", f"{c.lane} / 8 % 2 * 8"
    return f"(({step}) * {tile.warps} + {c.warp(scope)}) * 16 + {low}", f"({block}) * 16 + {high}"


def blocks_and_steps(tile: RegisterTile) -> tuple[int, int]:
    """How many 16 x 16 matrices a warp holds along the slow and the fast axis of its registers."""
    rows, cols = tile.warp_rows // 16, tile.cols // 16
    return (rows, cols) if tile.layout == "row" else (cols, rows)


def check_pair(register: Value | RegisterTile | RegisterVector, memory: Value | Place, what: str) -> None:
    """Register and memory operand have the same shape."""
    type = register if isinstance(register, (RegisterTile, RegisterVector)) else register_type(register, what)
    if isinstance(memory, Place):
        check_place(memory, what)
        shape: tuple[int, ...] = memory.shape
    elif isinstance(memory.type, SharedVector) and isinstance(type, RegisterTile) and isinstance(type.layout, Coalesced):
        shape = (1, memory.type.length)  # the only row of a tile
    elif isinstance(memory.type, (SharedTile, SharedVector)):
        shape = memory.type.shape
    else:
        raise TypeRuleError(f"{what} does not take {memory.type}", fix="use a shared tile or vector, or a global tensor with a coordinate")
    wanted = (type.length,) if isinstance(type, RegisterVector) else type.shape
    if shape != wanted:
        raise TypeRuleError(f"{what}: a {type} does not fit {' x '.join(map(str, shape))} elements in memory", fix="shapes must agree")
    if isinstance(type, RegisterVector) and type.partial:
        raise TypeRuleError(f"{what}: a partial vector has no values yet", fix="sum it first: x.total()")
    if what == "load" and _in_runs(type) and type.layout.width == 1 and type.dtype.packed:  # type: ignore[union-attr]
        raise TypeRuleError(f"load: a {type} holds pairs of neighbours, which a run of one does not", fix="load it as pk.f32")


def _in_runs(type: RegisterTile | RegisterVector) -> bool:
    """Whether a thread's elements are runs of neighbours in memory: coalesced tiles and their row vectors."""
    return isinstance(type.layout, Coalesced) and (isinstance(type, RegisterTile) or type.kind == "row")


def split_of(type: RegisterTile | RegisterVector) -> Any:
    if isinstance(type.layout, Coalesced):
        return "threads" if isinstance(type, RegisterTile) else "all" if type.kind == "row" or type.warps == 1 else "one"
    if isinstance(type, RegisterVector):
        return "threads" if type.kind == "naive" else "rows" if type.kind == "col" else "all"
    return "rows"


def _pairable(memory: Value | Place) -> bool:
    """Whether two neighbours of a row can move in one access."""
    if isinstance(memory, Value):
        return True
    size = memory.type.dtype.size
    return memory.inside_columns() and vector_bytes(memory) % (2 * size) == 0


LAYOUTS: tuple[Layout, ...] = ("row", "col", Coalesced(4, 2))


@dataclass(eq=False)
class Load(Op):
    """A new register tile or vector with the elements of a shared tile or vector, or of a global rectangle."""

    scope: Scope
    source: Value | Place
    type: RegisterTile | RegisterVector
    hint: str = ""

    def types(self) -> tuple[Type, ...]:
        check_pair(self.type, self.source, "load")
        check_hint(self.hint)
        return (self.type,)

    @property
    def memory(self) -> DType:
        return self.source.type.dtype  # type: ignore[union-attr]

    def numpy(self, m: Any) -> Any:
        array = m.read(self.source)
        if array.ndim == 2 and isinstance(self.type, RegisterTile):
            array = array[:, None]
        if self.type.dtype.packed:
            array = array.astype(np.float32)
        with np.errstate(all="ignore"):
            return np.broadcast_to(array.astype(self.type.dtype.numpy), (m.units, *self.type.shape))

    def effects(self) -> tuple[Effect, ...]:
        split = split_of(self.type)
        return (Access(self.source, "read", "all" if split == "one" else split),)

    def cuda(self, c: Any) -> None:
        c.prelude(MEMORY)
        c.declare(self.result)
        c.line("{")
        if _in_runs(self.type):
            load_runs(c, self.scope, self.result, self.source, self.hint)
        elif isinstance(self.type, RegisterVector):
            self._vector(c, self.type)
        elif isinstance(self.source, Value) and self.memory.packed and self.memory == self.type.dtype:
            self._ldmatrix(c, self.type)
        elif self.type.layout == "row" and _pairable(self.source):
            self._pairs(c, self.type)
        else:
            self._elements(c, self.type)
        c.line("}")

    def _ldmatrix(self, c: Any, tile: RegisterTile) -> None:
        c.prelude(LDMATRIX)
        blocks, steps = blocks_and_steps(tile)
        row, col = matrix_row_col(c, self.scope, tile, "b", "s")
        name = "ldmatrix" if tile.layout == "row" else "ldmatrix_trans"
        c.line(f"UNROLL for (int b = 0; b < {blocks}; b++) UNROLL for (int s = 0; s < {steps}; s++)")
        c.line(f"  {name}({c[self.result]} + (b * {steps} + s) * 4, {shared_address(c, self.source, row, col)});")  # type: ignore[arg-type]

    def _pairs(self, c: Any, tile: RegisterTile) -> None:
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        size = self.memory.size
        vector = VECTOR[2 * size]
        g = None if isinstance(self.source, Value) else GlobalText(c, self.source)
        c.line(f"UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{ const int r = {row}, x = {col};")
        if g is None:
            load = f"ld_shared<{vector}>({shared_address(c, self.source, 'r', 'x')})"  # type: ignore[arg-type]
        else:
            load = f"*(const {vector}*)({g.at('r', 'x')})"
            if g.inside("r", "x"):
                load = f"({g.inside('r', 'x')}) ? {load} : {vector}{{}}"
        c.line(f"union {{ {vector} v; {memory_c(self.memory)} e[2]; }} u; u.v = {load};")
        c.store_pair(self.result, "i", c.from_memory("u.e[0]", self.memory), c.from_memory("u.e[1]", self.memory))
        c.line("}")

    def _elements(self, c: Any, tile: RegisterTile) -> None:
        g = None if isinstance(self.source, Value) else GlobalText(c, self.source)

        def one(register: Sym) -> str:
            row, col = fragment(tile, c.warp(self.scope), c.lane, register)
            if g is None:
                text = f"ld_shared<{ {1: 'u8', 2: 'u16', 4: 'u32'}[self.memory.size] }>({shared_address(c, self.source, row, col)})"  # type: ignore[arg-type]
                return str(c.from_memory(c.bits(text, self.memory), self.memory))
            inside = g.inside(row, col)
            load = f"*({g.at(row, col)})"
            text = c.from_memory(load, self.memory)
            return f"(({inside}) ? {text} : 0)" if inside else str(text)

        c.map(self.result, one, declare=False)

    def _vector(self, c: Any, vector: RegisterVector) -> None:
        g = None if isinstance(self.source, Value) else GlobalText(c, self.source)
        size = self.memory.size
        naive = vector.kind == "naive"
        limit = vector.length if naive and vector.length % (32 * vector.warps * vector.width) else 0
        if naive and isinstance(self.source, Place):
            wide = vector_bytes(self.source) % (vector.width * size) == 0 and vector.length % vector.width == 0 and vector.width * size <= 16
            if wide and vector.width > 1:
                self._wide(c, vector, g, limit)
                return

        def one(register: Sym) -> str:
            at = vector_element(vector, c.warp(self.scope), c.lane, register)
            if g is None:
                text = f"ld_shared<{ {1: 'u8', 2: 'u16', 4: 'u32'}[size] }>({vector_address(c, self.source, at)})"  # type: ignore[arg-type]
                text = c.from_memory(c.bits(text, self.memory), self.memory)
                test = f"{at} < {limit}" if limit else ""
            else:
                tests = [t for t in (f"{at} < {limit}" if limit else "", g.inside("0", at)) if t]
                test, text = " && ".join(tests), c.from_memory(f"*({g.at('0', at)})", self.memory)
            return f"(({test}) ? {text} : 0)" if test else str(text)

        c.map(self.result, one, declare=False)

    def _wide(self, c: Any, vector: RegisterVector, g: Any, limit: int) -> None:
        width, size = vector.width, self.memory.size
        kind, t = VECTOR[width * size], memory_c(self.memory)
        at = vector_element(vector, c.warp(self.scope), c.lane, Sym(f"(i * {width})"))
        c.line(f"UNROLL for (int i = 0; i < {vector.registers // width}; i++) {{ const int x = {at};")
        tests = [test for test in (f"x < {limit}" if limit else "", g.inside("0", "x", width)) if test]
        load = f"*(const {kind}*)({g.at('0', 'x')})"
        if g.cols_left:
            tail = f"load_tail<{kind}>({g.at('0', 'x')}, {g.cols_left} - x)"
            guard = " && ".join(x for x in (f"x < {limit}" if limit else "", f"x < {g.cols_left}", g.rows_left and f"0 < {g.rows_left}") if x)
            load = f"({' && '.join(tests)}) ? {load} : ({guard}) ? {tail} : {kind}{{}}"
        elif tests:
            load = f"({' && '.join(tests)}) ? {load} : {kind}{{}}"
        c.line(f"union {{ {kind} v; {t} e[{width}]; }} u; u.v = {load};")
        c.line(f"UNROLL for (int j = 0; j < {width // 2}; j++) {{")
        c.store_pair(self.result, f"(i * {width // 2} + j)", c.from_memory("u.e[2 * j]", self.memory), c.from_memory("u.e[2 * j + 1]", self.memory))
        c.line("} }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (bf16, f16, f32, i32, e4m3, e5m2, i8, u8):
            held, arch = {e4m3: f32, e5m2: f32, i8: i32, u8: i32}.get(dtype, dtype), 89 if dtype in (e4m3, e5m2) else 80
            for layout in LAYOUTS[:2]:
                fields = {"source": SharedTile(dtype, 32, 64), "type": RegisterTile(held, 32, 64, layout)}
                yield Sample(fields, lambda source: source, exact=True, arch=arch)
                fields = {"source": Rectangle(dtype, (16, 32), (40, 64), (16, 32)), "type": RegisterTile(held, 16, 32, layout)}
                yield Sample(fields, lambda source: source[16:32, 32:64], exact=True, arch=arch)
        for warps in (2, 4):
            yield Sample({"source": SharedTile(bf16, 128, 96), "type": RegisterTile(bf16, 128, 96, "row", warps)}, lambda source: source, exact=True)
        yield Sample({"source": SharedTile(f32, 16, 32), "type": RegisterTile(bf16, 16, 32)}, lambda source: source, exact=True)
        yield Sample({"source": SharedTile(bf16, 16, 32), "type": RegisterTile(f32, 16, 32)}, lambda source: source, exact=True)
        for place in rectangles(bf16) + rectangles(f32):
            for layout in LAYOUTS:
                fields = {"source": place, "type": RegisterTile(place.dtype, 16, 32, layout)}
                yield Sample(fields, lambda source, p=place: cut(source, p), exact=True)
        for type in (*vectors(f32), *vectors(bf16)):
            yield Sample({"source": SharedVector(type.dtype, type.length), "type": type}, lambda source: source, exact=True)
            for cols, known in ((type.length, True), (type.length - 3, True), (type.length - 3, False)):
                place = Rectangle(type.dtype, (type.length,), (3, cols), (1, 0), static=known, known=known)
                yield Sample({"source": place, "type": type}, lambda source, p=place: cut(source, p), exact=True)


@dataclass(eq=False)
class Store(Op):
    """A register tile or vector into a shared tile or vector, or a global rectangle; past the end nothing is written."""

    scope: Scope
    target: Value | Place
    source: Value
    hint: str = ""

    def types(self) -> tuple[Type, ...]:
        check_pair(self.source, self.target, "store")
        check_hint(self.hint)
        return ()

    @property
    def memory(self) -> DType:
        return self.target.type.dtype  # type: ignore[union-attr]

    def numpy(self, m: Any) -> None:
        array = m[self.source]
        if self.memory.kind == "f" and self.memory.bits < 32 and array.dtype != self.memory.numpy:
            array = array.astype(np.float32)
        with np.errstate(all="ignore"):
            m.write(self.target, array.astype(self.memory.numpy))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", split_of(self.source.type)),)  # type: ignore[arg-type]

    def cuda(self, c: Any) -> None:
        c.prelude(MEMORY)
        type = self.source.type
        c.line("{")
        if self.scope.warps == 1 and isinstance(self.target, Value):
            c.line("__syncwarp();")
        if _in_runs(type):
            store_runs(c, self.scope, self.target, self.source, self.hint)
        elif isinstance(type, RegisterVector):
            self._vector(c, type)
        else:
            assert isinstance(type, RegisterTile)
            if isinstance(self.target, Value) and self.memory.packed and self.memory == type.dtype and c.arch >= 90:
                self._stmatrix(c, type)
            elif type.layout == "row" and _pairable(self.target):
                self._pairs(c, type)
            else:
                self._elements(c, type)
        if self.scope.warps == 1 and isinstance(self.target, Value):
            c.line("__syncwarp();")
        c.line("}")

    def _stmatrix(self, c: Any, tile: RegisterTile) -> None:
        c.prelude(STMATRIX)
        blocks, steps = blocks_and_steps(tile)
        row, col = matrix_row_col(c, self.scope, tile, "b", "s")
        name = "stmatrix" if tile.layout == "row" else "stmatrix_trans"
        c.line(f"UNROLL for (int b = 0; b < {blocks}; b++) UNROLL for (int s = 0; s < {steps}; s++)")
        c.line(f"  {name}({shared_address(c, self.target, row, col)}, {c[self.source]} + (b * {steps} + s) * 4);")  # type: ignore[arg-type]

    def _pairs(self, c: Any, tile: RegisterTile) -> None:
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        vector = VECTOR[2 * self.memory.size]
        g = None if isinstance(self.target, Value) else GlobalText(c, self.target, const=False)
        c.line(f"UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{ const int r = {row}, x = {col};")
        a, b = (c.to_memory(c.element(self.source, Sym(f"(2 * i + {j})" if j else "(2 * i)")), self.memory) for j in (0, 1))
        c.line(f"union {{ {vector} v; {memory_c(self.memory)} e[2]; }} u; u.e[0] = {a}; u.e[1] = {b};")
        if g is None:
            c.line(f"st_shared({shared_address(c, self.target, 'r', 'x')}, u.v); }}")  # type: ignore[arg-type]
        else:
            inside = g.inside("r", "x")
            c.line(f"{f'if ({inside}) ' if inside else ''}*({vector}*)({g.at('r', 'x')}) = u.v; }}")

    def _elements(self, c: Any, tile: RegisterTile) -> None:
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("i"))
        g = None if isinstance(self.target, Value) else GlobalText(c, self.target, const=False)
        value = c.to_memory(c.element(self.source, Sym("i")), self.memory)
        c.line(f"UNROLL for (int i = 0; i < {tile.registers}; i++) {{ const int r = {row}, x = {col};")
        if g is None:
            raw = c.raw(value, self.memory)
            c.line(f"st_shared({shared_address(c, self.target, 'r', 'x')}, {raw}); }}")  # type: ignore[arg-type]
        else:
            inside = g.inside("r", "x")
            c.line(f"{f'if ({inside}) ' if inside else ''}*({g.at('r', 'x')}) = {value}; }}")

    def _vector(self, c: Any, vector: RegisterVector) -> None:
        g = None if isinstance(self.target, Value) else GlobalText(c, self.target, const=False)
        naive, size = vector.kind == "naive", self.memory.size
        limit = vector.length if naive and vector.length % (32 * vector.warps * vector.width) else 0
        if naive and g is not None and isinstance(self.target, Place):
            wide = vector_bytes(self.target) % (vector.width * size) == 0 and vector.length % vector.width == 0 and vector.width * size <= 16
            if wide and vector.width > 1:
                self._wide(c, vector, g, limit)
                return
        at = vector_element(vector, c.warp(self.scope), c.lane, Sym("i"))
        value = c.to_memory(c.element(self.source, Sym("i")), self.memory)
        c.line(f"UNROLL for (int i = 0; i < {vector.registers}; i++) {{ const int x = {at};")
        tests = [f"x < {limit}"] if limit else []
        if isinstance(vector.layout, Coalesced):
            tests.append(f"{c.thread(self.scope)} % {vector.layout.lanes} == 0")
        elif not naive:  # copies of an element in several threads: one writes
            tests.append(f"{c.lane} % 4 == 0" if vector.ortho else f"{c.lane} / 4 == 0")
        if g is not None and g.inside("0", "x"):
            tests.append(g.inside("0", "x"))
        if vector.kind == "row" and vector.warps > 1:
            tests.append(f"{c.warp(self.scope)} == 0")
        guard = f"if ({' && '.join(tests)}) " if tests else ""
        if g is None:
            c.line(f"{guard}st_shared({vector_address(c, self.target, 'x')}, {c.raw(value, self.memory)}); }}")  # type: ignore[arg-type]
        else:
            c.line(f"{guard}*({g.at('0', 'x')}) = {value}; }}")

    def _wide(self, c: Any, vector: RegisterVector, g: Any, limit: int) -> None:
        width, size = vector.width, self.memory.size
        kind, t = VECTOR[width * size], memory_c(self.memory)
        at = vector_element(vector, c.warp(self.scope), c.lane, Sym(f"(i * {width})"))
        c.line(f"UNROLL for (int i = 0; i < {vector.registers // width}; i++) {{ const int x = {at};")
        c.line(f"union {{ {kind} v; {t} e[{width}]; }} u;")
        value = c.to_memory(c.element(self.source, Sym(f"(i * {width} + j)")), self.memory)
        c.line(f"UNROLL for (int j = 0; j < {width}; j++) u.e[j] = {value};")
        tests = [test for test in (f"x < {limit}" if limit else "", g.inside("0", "x", width)) if test]
        store = f"*({kind}*)({g.at('0', 'x')}) = u.v;"
        if g.cols_left:
            guard = " && ".join(x for x in (f"x < {limit}" if limit else "", f"x < {g.cols_left}", g.rows_left and f"0 < {g.rows_left}") if x)
            c.line(f"if ({' && '.join(tests)}) {store} else if ({guard}) store_tail({g.at('0', 'x')}, u.v, {g.cols_left} - x); }}")
        else:
            c.line((f"if ({' && '.join(tests)}) " if tests else "") + store + " }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (bf16, f16, f32, i32, e4m3, e5m2, i8, u8):
            held, arch = {e4m3: f32, e5m2: f32, i8: i32, u8: i32}.get(dtype, dtype), 89 if dtype in (e4m3, e5m2) else 80
            inputs = {"source": "counts"} if dtype in (i8, u8) else {}
            for layout in LAYOUTS[:2]:
                yield Sample(
                    {"target": SharedTile(dtype, 32, 64), "source": RegisterTile(held, 32, 64, layout)}, lambda source: source, inputs, exact=True, arch=arch
                )
            place = Rectangle(dtype, (16, 32), (40, 64), (16, 32))
            yield Sample(
                {"target": place, "source": RegisterTile(held, 16, 32)},
                lambda target, source, p=place: pasted(target, source, p),
                inputs,
                exact=True,
                arch=arch,
            )
        yield Sample({"target": SharedTile(bf16, 128, 96), "source": RegisterTile(bf16, 128, 96, "row", 4)}, lambda source: source, exact=True)
        yield Sample({"target": SharedTile(bf16, 16, 32), "source": RegisterTile(f32, 16, 32)}, lambda source: source, {"source": "wide"}, exact=True)
        for place in rectangles(bf16) + rectangles(f32):
            for layout in LAYOUTS:
                fields = {"target": place, "source": RegisterTile(place.dtype, 16, 32, layout)}
                yield Sample(fields, lambda target, source, p=place: pasted(target, source, p), exact=True)
        for type in (*vectors(f32), *vectors(bf16)):
            yield Sample({"target": SharedVector(type.dtype, type.length), "source": type}, lambda source: source, exact=True)
            for cols, known in ((type.length, True), (type.length - 3, True), (type.length - 3, False)):
                place = Rectangle(type.dtype, (type.length,), (3, cols), (1, 0), static=known, known=known)
                yield Sample({"target": place, "source": type}, lambda target, source, p=place: pasted(target, source, p), exact=True)


@dataclass(eq=False)
class LoadScalar(Op):
    """One element of a global tensor or shared vector, read by every thread."""

    scope: Scope
    source: Value | Place
    at: Operand = 0

    collective = False

    def types(self) -> tuple[Type, ...]:
        dtype = self.source.type.dtype  # type: ignore[union-attr]
        if dtype.bits < 32 and dtype.kind == "f":
            from ..types import f32

            return (ScalarType(f32),)
        return (ScalarType(dtype if dtype.bits >= 32 else i32),)

    def numpy(self, m: Any) -> Any:
        return m.read_element(self.source, self.at)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", "all", at=None if isinstance(self.source, Place) else self.at),)

    def cuda(self, c: Any) -> None:
        c.prelude(MEMORY)
        dtype = self.source.type.dtype  # type: ignore[union-attr]
        if isinstance(self.source, Place):
            g = GlobalText(c, self.source)
            c.define(self.result, c.from_memory(f"*({g.pointer})", dtype))
        else:
            t = {1: "u8", 2: "u16", 4: "u32"}[dtype.size]
            text = f"ld_shared<{t}>({vector_address(c, self.source, c.scalar(self.at, i32))})"
            c.define(self.result, c.from_memory(c.bits(text, dtype), dtype))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, f16, i32, u8, i8):
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample({"source": place}, lambda source: source[1, 2], exact=True)
            yield Sample({"source": SharedVector(dtype, 32), "at": ScalarType(i32)}, lambda source, at: source[at], {"at": "counts"}, exact=True)


@dataclass(eq=False)
class StoreScalar(Op):
    """One element of a global tensor or shared vector, written by one thread of the scope."""

    scope: Scope
    target: Value | Place
    value: Operand
    at: Operand = 0

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.value)
        return ()

    def numpy(self, m: Any) -> None:
        m.write_element(self.target, self.at, m.unit_scalar(self.value))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", "one", at=None if isinstance(self.target, Place) else self.at),)

    def cuda(self, c: Any) -> None:
        c.prelude(MEMORY)
        dtype = self.target.type.dtype  # type: ignore[union-attr]
        value = c.to_memory(c.scalar(self.value, dtype), dtype)
        c.line("{")
        if isinstance(self.target, Place):
            g = GlobalText(c, self.target, const=False)
            c.line(f"if ({c.thread(self.scope)} == 0) *({g.pointer}) = {value};")
        else:
            c.line(f"if ({c.thread(self.scope)} == 0) st_shared({vector_address(c, self.target, c.scalar(self.at, i32))}, {c.raw(value, dtype)});")
        if self.scope.warps == 1:
            c.line("__syncwarp();")
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, i32, u8):
            place, value = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False), ScalarType(f32 if dtype.kind == "f" else i32)
            inputs = {"value": "counts"}
            yield Sample({"target": place, "value": value}, lambda target, value, p=place: pasted(target, value, p), inputs, exact=True)
            shared = {"target": SharedVector(dtype, 32), "value": value, "at": 3}
            yield Sample(shared, lambda target, value: np.concatenate([target[:3], [value], target[4:]]), inputs, exact=True)


def naive_vector(source: Value | Place, dtype: DType, length: int, warps: int) -> RegisterVector:
    """The vector type whose loads from `source` are as wide as its alignment allows: 16 bytes a thread at best."""
    memory = source.type
    assert isinstance(memory, (Global, SharedVector))
    bytes_ = vector_bytes(source) if isinstance(source, Place) else 16
    width = max(1, bytes_ // memory.dtype.size)
    while width > 1 and (length % width or width > 8):
        width //= 2
    return replace(RegisterVector(dtype, length, "naive", "row", warps), width=width)


__all__ = ["Load", "LoadScalar", "Store", "StoreScalar", "known_multiple", "naive_vector"]
