"""Loads of register tiles and vectors from shared or global memory. Elements convert on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Place, Scope, Value
from ..thread_map import Matrices, Registers
from ..types import (
    Coalesced,
    DType,
    Global,
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
from .addressing import MEMORY, VECTOR, GlobalText, memory_c, row_c, shared_address, vector_address, vector_bytes
from .broadcast import spread
from .coalesced import check_hint, load_runs
from .conversion import conversion_numerics, convert
from .ldmatrix import LDMATRIX, blocks_and_steps, matrix_row_col
from .load_store import LAYOUTS, check_pair, in_runs, move_whole_runs, naive_limit, neighbours, open_runs, pairable
from .samples import Rectangle, Sample, cut, gathers, rectangles, vectors, windows


@dataclass(eq=False)
class Load(Op):
    """A new register tile or vector with the elements of a shared tile or vector, or of a global rectangle."""

    scope: Scope
    source: Value | Place
    type: RegisterTile | RegisterVector
    hint: str = ""

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(self.memory, self.type.dtype).with_special("what lies past the end is 0")

    def types(self) -> tuple[Type, ...]:
        check_pair(self.type, self.source, "load")
        check_hint(self.hint, self.type, self.source)
        return (self.type,)

    @property
    def memory(self) -> DType:
        return self.source.type.dtype  # type: ignore[union-attr]

    def numpy(self, m: NumpyMachine) -> Any:
        array = m.read(self.source)
        if array.ndim == 2 and isinstance(self.type, RegisterTile):
            array = array[:, None]
        found = convert(array, self.type.dtype)
        return spread(found.copy(), (m.units, *self.type.shape))  # what is stored there later is not seen

    def effects(self) -> tuple[Effect, ...]:
        if self._by_matrices:
            assert isinstance(self.type, RegisterTile)
            return (Access(self.source, "read", Matrices(self.type)),)
        width = 2 if self._in_pairs() else neighbours(self.type, self.source)
        return (Access(self.source, "read", Registers(self.type, width)),)

    @property
    def _by_matrices(self) -> bool:
        """Whether ldmatrix loads it."""
        return (
            isinstance(self.type, RegisterTile)
            and not in_runs(self.type)
            and isinstance(self.source, Value)
            and self.memory.packed
            and self.memory == self.type.dtype
        )

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        c.declare(self.result)
        c.line("{")
        if in_runs(self.type):
            load_runs(c, self.scope, self.result, self.source, self.hint)
        elif isinstance(self.type, RegisterVector):
            self._vector(c, self.type)
        elif self._by_matrices:
            self._ldmatrix(c, self.type)
        elif self.type.layout == "row" and pairable(self.source):
            self._pairs(c, self.type)
        else:
            self._elements(c, self.type)
        c.line("}")

    def _ldmatrix(self, c: CudaWriter, tile: RegisterTile) -> None:
        c.prelude(LDMATRIX)
        blocks, steps = blocks_and_steps(tile)
        row, col = matrix_row_col(c, self.scope, tile, "b", "s")
        name = "pk_ldmatrix" if tile.layout == "row" else "pk_ldmatrix_trans"
        c.line(f"PK_UNROLL for (int b = 0; b < {blocks}; b++) PK_UNROLL for (int s = 0; s < {steps}; s++)")
        address = shared_address(c, self.source, row, col)  # type: ignore[arg-type]
        c.line(f"  {name}({c[self.result]} + (b * {steps} + s) * 4, {address});")

    def _pairs(self, c: CudaWriter, tile: RegisterTile) -> None:
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        row = row_c(c, self.source, tile, row, Sym("(2 * i)"))
        size = self.memory.size
        vector = VECTOR[2 * size]
        g = None if isinstance(self.source, Value) else GlobalText(c, self.source)
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{ const int r = {row}, x = {col};")
        if g is None:
            load = f"pk_ld_shared<{vector}>({shared_address(c, self.source, 'r', 'x')})"  # type: ignore[arg-type]
        else:
            load = f"*(const {vector}*)({g.at('r', 'x')})"
            if g.inside("r", "x"):
                load = f"({g.inside('r', 'x')}) ? {load} : {vector}{{}}"
        c.line(f"union {{ {vector} v; {memory_c(self.memory)} e[2]; }} u; u.v = {load};")
        c.store_pair(
            self.result,
            "i",
            c.from_memory("u.e[0]", self.memory, self.type.dtype),
            c.from_memory("u.e[1]", self.memory, self.type.dtype),
        )
        c.line("}")

    def _elements(self, c: CudaWriter, tile: RegisterTile) -> None:
        g = None if isinstance(self.source, Value) else GlobalText(c, self.source)

        def one(register: Sym) -> str:
            row, col = fragment(tile, c.warp(self.scope), c.lane, register)
            row = row_c(c, self.source, tile, row, register)
            if g is None:
                address = shared_address(c, self.source, row, col)  # type: ignore[arg-type]
                text = f"pk_ld_shared<{VECTOR[self.memory.size]}>({address})"
                return str(c.from_memory(c.bits(text, self.memory), self.memory, self.type.dtype))
            inside = g.inside(row, col)
            load = f"*({g.at(row, col)})"
            text = c.from_memory(load, self.memory, self.type.dtype)
            return f"(({inside}) ? {text} : {c.zero(self.memory, tile.dtype)})" if inside else str(text)

        c.map(self.result, one, declare=False)

    def _vector(self, c: CudaWriter, vector: RegisterVector) -> None:
        g = None if isinstance(self.source, Value) else GlobalText(c, self.source)
        if move_whole_runs(vector, self.source):
            self._whole_runs(c, vector, g)
            return
        limit = naive_limit(vector)
        if self._in_pairs():
            self._vector_pairs(c, vector)
            return

        def one(register: Sym) -> str:
            at = vector_element(vector, c.warp(self.scope), c.lane, register)
            if g is None:
                address = vector_address(c, self.source, at)  # type: ignore[arg-type]
                text = f"pk_ld_shared<{VECTOR[self.memory.size]}>({address})"
                text = c.from_memory(c.bits(text, self.memory), self.memory, self.type.dtype)
                test = f"{at} < {limit}" if limit else ""
            else:
                tests = [t for t in (f"{at} < {limit}" if limit else "", g.inside("0", at)) if t]
                test, text = " && ".join(tests), c.from_memory(f"*({g.at('0', at)})", self.memory, self.type.dtype)
            return f"(({test}) ? {text} : {c.zero(self.memory, vector.dtype)})" if test else str(text)

        c.map(self.result, one, declare=False)

    def _in_pairs(self) -> bool:
        """Whether this loads a vector from shared memory of whose every eight elements a thread has two neighbours."""
        fragment = isinstance(self.type, RegisterVector) and self.type.kind != "naive" and not self.type.ortho
        return fragment and not isinstance(self.type.layout, Coalesced) and isinstance(self.source, Value)

    def _vector_pairs(self, c: CudaWriter, vector: RegisterVector) -> None:
        kind = VECTOR[2 * self.memory.size]
        at = vector_element(vector, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers // 2}; i++) {{")
        c.line(f"union {{ {kind} v; {memory_c(self.memory)} e[2]; }} u;")
        c.line(f"u.v = pk_ld_shared<{kind}>({vector_address(c, self.source, at)});")  # type: ignore[arg-type]
        low, high = (c.from_memory(f"u.e[{j}]", self.memory, vector.dtype) for j in (0, 1))
        c.store_pair(self.result, "i", low, high)
        c.line("}")

    def _whole_runs(self, c: CudaWriter, vector: RegisterVector, g: Any) -> None:
        width, kind = vector.width, VECTOR[vector.width * self.memory.size]
        whole, some = open_runs(c, self.scope, vector, g)
        if g is None:
            load = f"pk_ld_shared<{kind}>({vector_address(c, self.source, 'x')})"  # type: ignore[arg-type]
        else:
            load = f"*(const {kind}*)({g.at('0', 'x')})"
        if g is not None and g.cols_left:
            load = (
                f"({whole}) ? {load} : ({some}) ? pk_load_tail<{kind}>({g.at('0', 'x')}, {g.cols_left} - x) : "
                f"{kind}{{}}"
            )
        elif whole:
            load = f"({whole}) ? {load} : {kind}{{}}"
        c.line(f"union {{ {kind} v; {memory_c(self.memory)} e[{width}]; }} u; u.v = {load};")
        c.line(f"PK_UNROLL for (int j = 0; j < {width // 2}; j++) {{")
        c.store_pair(
            self.result,
            f"(i * {width // 2} + j)",
            c.from_memory("u.e[2 * j]", self.memory, self.type.dtype),
            c.from_memory("u.e[2 * j + 1]", self.memory, self.type.dtype),
        )
        c.line("} }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (bf16, f16, f32, i32, i64, e4m3, e5m2, i8, u8):
            held = {e4m3: f32, e5m2: f32, i8: i32, u8: i32}.get(dtype, dtype)
            needs = "fp8 conversions" if dtype in (e4m3, e5m2) else ""
            for layout in LAYOUTS[:2]:
                fields = {"source": SharedTile(dtype, 32, 64), "type": RegisterTile(held, 32, 64, layout)}
                yield Sample(fields, lambda source: source, exact=True, needs=needs)
                fields = {
                    "source": Rectangle(dtype, (16, 32), (40, 64), (16, 32)),
                    "type": RegisterTile(held, 16, 32, layout),
                }
                yield Sample(fields, lambda source: source[16:32, 32:64], exact=True, needs=needs)
        for dtype, held, width in ((e4m3, bf16, 16), (e4m3, f16, 4), (e5m2, f16, 8), (e5m2, bf16, 2)):  # in pairs
            fields = {"source": SharedTile(dtype, 16, 64), "type": RegisterTile(held, 16, 64, Coalesced(4, width))}
            yield Sample(fields, lambda source: source, exact=True, needs="fp8 conversions")
        for warps in (2, 4):
            yield Sample(
                {"source": SharedTile(bf16, 128, 96), "type": RegisterTile(bf16, 128, 96, "row", warps)},
                lambda source: source,
                exact=True,
            )
        yield Sample(
            {"source": SharedTile(f32, 16, 32), "type": RegisterTile(bf16, 16, 32)}, lambda source: source, exact=True
        )
        yield Sample(
            {"source": SharedTile(bf16, 16, 32), "type": RegisterTile(f32, 16, 32)}, lambda source: source, exact=True
        )
        for place in (*rectangles(bf16), *rectangles(f32), *rectangles(i64)[-2:], *windows(bf16), *windows(f32)):
            for layout in LAYOUTS:
                fields = {"source": place, "type": RegisterTile(place.dtype, 16, 32, layout)}
                yield Sample(fields, lambda source, p=place: cut(source, p), exact=True)
        for dtype in (bf16, f32):
            for layout in LAYOUTS:
                for place in gathers(dtype, layout, once=False):
                    fields = {"source": place, "type": RegisterTile(dtype, 16, 32, layout)}
                    yield Sample(fields, lambda source, p=place: cut(source, p), exact=True)
        for type in (*vectors(f32), *vectors(bf16), *vectors(i64)):
            yield Sample(
                {"source": SharedVector(type.dtype, type.length), "type": type}, lambda source: source, exact=True
            )
            for cols, known in ((type.length, True), (type.length - 3, True), (type.length - 3, False)):
                place = Rectangle(type.dtype, (type.length,), (3, cols), (1, 0), static=known, known=known)
                yield Sample({"source": place, "type": type}, lambda source, p=place: cut(source, p), exact=True)


def naive_vector(source: Value | Place, dtype: DType, length: int, warps: int) -> RegisterVector:
    """The vector type whose loads from `source` are as wide as its alignment allows: 16 bytes a thread at best."""
    memory = source.type
    assert isinstance(memory, (Global, SharedVector))
    bytes_ = vector_bytes(source) if isinstance(source, Place) else 16
    width = max(1, bytes_ // memory.dtype.size)
    while width > 1 and (length % width or width > 8):
        width //= 2
    return replace(RegisterVector(dtype, length, "naive", "row", warps), width=width)
