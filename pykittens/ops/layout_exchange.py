"""A register layout changed through shared memory: where elements leave their warps, all threads write theirs to
scratch of the compiler's, meet, and read what their new registers want (`trace/layout_conversion.py`).

Scratch holds the elements of a tile by rows or by columns, with a gap behind each; which of them, and how wide the gap
is, is what costs shared memory the fewest passes, counted from both layouts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from ..layouts import Sym, bank_conflicts, fragment, pitched_element
from ..loading import dataclass
from ..numerics import MOVES
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import Pitched
from ..types import (
    Coalesced,
    DType,
    RegisterTile,
    SharedVector,
    Type,
    bf16,
    bool_,
    f16,
    f32,
    i32,
    i64,
    u8,
    u32,
)
from .addressing import MEMORY, VECTOR, memory_c, vector_address
from .samples import Sample


def _tile(x: Value) -> RegisterTile:
    assert isinstance(x.type, RegisterTile)
    return x.type


def memory(dtype: DType) -> DType:
    """What elements lie in scratch as: booleans as bytes."""
    return u8 if dtype is bool_ else dtype


@dataclass(frozen=True)
class Room:
    """How the elements of a tile lie in scratch: by rows (or `by_columns`), `pitch` elements from one to the next."""

    pitch: int
    by_columns: bool = False

    def vector(self, type: RegisterTile) -> SharedVector:
        """The scratch that holds a tile."""
        return SharedVector(memory(type.dtype), self.pitch * (type.cols if self.by_columns else type.rows))

    def transposed(self) -> Room:
        """The same scratch, where rows are called columns."""
        return Room(self.pitch, not self.by_columns)


@lru_cache(maxsize=256)
def room(source: RegisterTile, target: RegisterTile, transposed: bool) -> Room:
    """The way to lie that both sides reach in the fewest passes, and of these the smallest."""
    step = max(1, 4 // source.dtype.size)
    gaps = [0, *(step << i for i in range(4))]
    rooms = [Room((source.rows if by else source.cols) + gap, by) for gap in gaps for by in (False, True)]

    def cost(room: Room) -> int:
        return passes(source, room) + passes(target, room.transposed() if transposed else room)

    return min(rooms, key=lambda room: (cost(room), room.pitch))


def passes(type: RegisterTile, room: Room) -> int:
    """How often shared memory works for what the first warp holds, as if each instruction were like one of 8."""
    map = pitched(type, room)
    first, width = map.moves(room.vector(type).shape, type.warps)
    size = memory(type.dtype).size
    asked = first[0][:: max(1, first.shape[1] // 8)]
    each = max(1, 32 * width * size // 128)
    found = sum(each + bank_conflicts(lanes * size, width * size) for lanes in asked)
    return found * first.shape[1] // len(asked)


@lru_cache(maxsize=1024)
def pitched(type: RegisterTile, room: Room) -> Pitched:
    """Who touches what of scratch, as many neighbours at a time as always lie side by side in it."""
    width = 16 // memory(type.dtype).size
    one = Pitched(type, room.pitch, room.by_columns).moves(room.vector(type).shape, type.warps)[0]
    while width > 1:
        if type.registers % width == 0:
            runs = one.reshape(type.warps, -1, width, 32)
            first = runs[:, :, :1]
            if (runs == first + np.arange(width)[:, None]).all() and not (first % width).any():
                break
        width //= 2
    return Pitched(type, room.pitch, room.by_columns, width)


class _Exchange(Op):
    """What both directions share."""

    room: Room
    numerics = MOVES

    def _numbers(self, type: RegisterTile) -> np.ndarray:
        """The element of scratch for each of the tile's."""
        row, col = np.indices(type.shape)
        return np.asarray(pitched_element(row, col, self.room.pitch, self.room.by_columns))

    def _address(self, c: CudaWriter, place: Value, type: RegisterTile, register: Sym) -> str:
        warp = c.warp(self.scope)
        row, col = fragment(type, warp, c.lane, register)
        return vector_address(c, place, pitched_element(row, col, self.room.pitch, self.room.by_columns))


@dataclass(eq=False)
class ShareElements(_Exchange):
    """The elements of a register tile into scratch."""

    scope: Scope
    target: Value
    source: Value
    room: Room

    def types(self) -> tuple[Type, ...]:
        assert self.target.type == self.room.vector(_tile(self.source))
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        found = np.array(np.broadcast_to(m.read(self.target), (m.units, *self.target.type.shape)))  # type: ignore[union-attr]
        found[:, self._numbers(_tile(self.source))] = m[self.source]
        m.write(self.target, found)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", pitched(_tile(self.source), self.room)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        type = _tile(self.source)
        width = pitched(type, self.room).width
        vector, element = VECTOR[width * memory(type.dtype).size], memory_c(memory(type.dtype))
        to = self._address(c, self.target, type, Sym(f"(i * {width})") if width > 1 else Sym("i"))
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers // width}; i++) {{")
        c.line(f"union {{ {vector} v; {element} e[{width}]; u32 w[{max(1, width // 2)}]; }} u;")
        if type.dtype.packed and width > 1:
            c.line(f"PK_UNROLL for (int j = 0; j < {width // 2}; j++) u.w[j] = {c[self.source]}[i * {width // 2} + j];")
        else:
            value = c.moved(self.source, Sym(f"(i * {width} + j)"))
            c.line(f"PK_UNROLL for (int j = 0; j < {width}; j++) u.e[j] = {value};")
        c.line(f"pk_st_shared({to}, u.v); }}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for source, target, transposed in _sampled():
            place = room(source, target, transposed)
            numbers = _numbers_of(source, place)

            def formula(target: np.ndarray, source: np.ndarray, numbers: np.ndarray = numbers) -> np.ndarray:
                out = target.copy()
                out[numbers] = source
                return out

            yield Sample({"target": place.vector(source), "source": source, "room": place}, formula, exact=True)


@dataclass(eq=False)
class TakeElements(_Exchange):
    """A new register tile of a `type` out of scratch."""

    scope: Scope
    source: Value
    type: RegisterTile
    room: Room

    def types(self) -> tuple[Type, ...]:
        assert self.source.type == self.room.vector(self.type)
        return (self.type,)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.read(self.source)[:, self._numbers(self.type)].astype(self.type.dtype.numpy)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", pitched(self.type, self.room)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        type, dtype = self.type, memory(self.type.dtype)
        width = pitched(type, self.room).width
        if dtype.packed and width == 1:  # halves of words
            c.map(self.result, lambda i: f"pk_ld_shared<u16>({self._address(c, self.source, type, i)})")
            return
        c.declare(self.result)
        vector, element = VECTOR[width * dtype.size], memory_c(dtype)
        at = self._address(c, self.source, type, Sym(f"(i * {width})"))
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers // width}; i++) {{")
        c.line(f"union {{ {vector} v; {element} e[{width}]; u32 w[{max(1, width // 2)}]; }} u;")
        c.line(f"u.v = pk_ld_shared<{vector}>({at});")
        if type.dtype.packed:
            c.line(
                f"PK_UNROLL for (int j = 0; j < {width // 2}; j++) {c[self.result]}[i * {width // 2} + j] = u.w[j]; }}"
            )
        else:
            value = "u.e[j] != 0" if type.dtype is bool_ else "u.e[j]"
            c.line(f"PK_UNROLL for (int j = 0; j < {width}; j++) {c[self.result]}[i * {width} + j] = {value}; }}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for source, target, transposed in _sampled():
            place = room(source, target, transposed)
            mine = place.transposed() if transposed else place
            if target.dtype is not bool_:  # bytes other than 0 and 1 are no booleans
                numbers = _numbers_of(target, mine)
                fields = {"source": place.vector(source), "type": target, "room": mine}
                yield Sample(fields, lambda source, numbers=numbers: source[numbers], exact=True)


def _numbers_of(type: RegisterTile, room: Room) -> np.ndarray:
    """The formula of the samples: a row (or column) of elements, and the gap behind it."""
    row, col = np.arange(type.rows)[:, None], np.arange(type.cols)[None, :]
    return col * room.pitch + row if room.by_columns else row * room.pitch + col


def _sampled() -> Iterable[tuple[RegisterTile, RegisterTile, bool]]:
    """Conversions that leave their warps: into runs and out of them, and transposes."""
    for dtype in (bf16, f16, f32, i32, u32, i64, bool_):
        runs = RegisterTile(dtype, 32, 128, Coalesced(64, 2), 2)
        yield runs, RegisterTile(dtype, 32, 128, "row", 2), False
        if dtype in (bf16, f32):
            yield RegisterTile(dtype, 64, 64, "row", 4), RegisterTile(dtype, 64, 64, "col", 4), True
            yield RegisterTile(dtype, 32, 128, "col", 2), runs, False
