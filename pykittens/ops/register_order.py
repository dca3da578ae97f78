"""A tile as the vector of its registers, and back: the order in which threads hold it, for scratch memory that only
such tiles see.

No element moves. The vector is a naive one in runs of 16 bytes a thread, so that its loads and stores fill whole lines
without bank conflicts, which those of a float32 fragment (8 bytes a thread, eight rows at a time) cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import fragment, vector_element
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import RegisterTile, RegisterVector, Type, bf16, f32
from .broadcast import register_type, registers_of
from .samples import Sample


def vector_of(tile: RegisterTile, width: int = 0) -> RegisterVector:
    """The type of the vector that has the registers of a tile, in runs of `width` (0: of 16 bytes)."""
    width = width or 16 // max(tile.dtype.size, 2)
    if tile.registers % width:
        raise TypeRuleError(
            f"{tile} has {tile.registers} elements a thread, which are not whole runs of {width}",
            fix=f"make it a multiple of {width} elements a thread, or pass a width that divides them",
        )
    return RegisterVector(tile.dtype, tile.rows * tile.cols, "naive", "row", tile.warps, width=width)


@lru_cache(maxsize=256)
def order(tile: RegisterTile, width: int) -> np.ndarray:
    """For each element of the vector in runs of `width`: which one of the tile's it is, row after row."""
    vector, found = vector_of(tile, width), np.empty(tile.rows * tile.cols, np.int64)
    warp, lane, register = np.ix_(range(tile.warps), range(32), range(tile.registers))
    row, col = fragment(tile, warp, lane, register)
    at = np.broadcast_to(np.asarray(row) * tile.cols + col, (tile.warps, 32, tile.registers))
    found[np.asarray(vector_element(vector, warp, lane, register))] = at
    return found


@dataclass(eq=False)
class ToVector(Op):
    """The registers of a tile as a vector (`x.registers()`)."""

    scope: Scope
    a: Value
    width: int = 0

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a = register_type(self.a, "registers")
        if not isinstance(a, RegisterTile):
            raise TypeRuleError(f"registers() is of a tile, not {a}", fix="store the vector as it is")
        return (vector_of(a, self.width),)

    def numpy(self, m: NumpyMachine) -> Any:
        array, tile, vector = m[self.a], self.a.type, self.result.type
        assert isinstance(tile, RegisterTile) and isinstance(vector, RegisterVector)
        return array.reshape(array.shape[0], -1)[:, order(tile, vector.width).ravel()]

    def cuda(self, c: CudaWriter) -> None:
        c.declare(self.result)
        c.copy(self.result, self.a)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        tile = replace(registers_of(self.a), dtype=f32)
        assert isinstance(tile, RegisterTile)
        return ((self.a, lambda: d.recorded(FromVector(self.scope, cotangents[0], tile))),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for tile, width in _CASES:
            yield Sample(
                {"a": tile, "width": width}, lambda a, t=tile, w=width: a.reshape(-1)[_by_hand(t, w)], exact=True
            )


@dataclass(eq=False)
class FromVector(Op):
    """A tile of type `tile` whose registers are those of a vector (`x.tile(rows, cols)`)."""

    scope: Scope
    a: Value
    tile: RegisterTile

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a = register_type(self.a, "tile")
        if not isinstance(a, RegisterVector) or a != vector_of(self.tile, a.width):
            raise TypeRuleError(
                f"{a} does not hold the registers of {self.tile}",
                fix=f"load a vector of {self.tile.rows * self.tile.cols} elements with load_vec of the same scope",
            )
        return (self.tile,)

    def numpy(self, m: NumpyMachine) -> Any:
        array = m[self.a]
        out = np.empty_like(array)
        out[:, order(self.tile, self.a.type.width)] = array  # type: ignore[union-attr]
        return out.reshape(array.shape[0], self.tile.rows, self.tile.cols)

    def cuda(self, c: CudaWriter) -> None:
        c.declare(self.result)
        c.copy(self.result, self.a)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        width = registers_of(self.a).width  # type: ignore[union-attr]
        return ((self.a, lambda: d.recorded(ToVector(self.scope, cotangents[0], width))),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for tile, width in _CASES:
            yield Sample(
                {"a": vector_of(tile, width), "tile": tile},
                lambda a, t=tile, w=width: a[np.argsort(_by_hand(t, w))].reshape(t.rows, t.cols),
                exact=True,
            )


_CASES = (
    (RegisterTile(f32, 32, 32), 4),
    (RegisterTile(f32, 64, 48, "row", 4), 4),
    (RegisterTile(f32, 32, 16), 1),
    (RegisterTile(bf16, 16, 64), 8),
)


def _by_hand(tile: RegisterTile, width: int) -> np.ndarray:
    """`order` of a row-layout tile, from PTX's picture of an m16n8 accumulator (ISA, "Matrix fragments for
    mma.m16n8k16").
    """
    found = []
    for run in range(tile.registers // width):
        for thread in range(32 * tile.warps):
            for register in range(run * width, run * width + width):
                fragment_number, inside = divmod(register, 4)
                block, step = divmod(fragment_number, tile.cols // 8)
                row = (block * tile.warps + thread // 32) * 16 + thread % 32 // 4 + inside // 2 * 8
                found.append(row * tile.cols + step * 8 + thread % 4 * 2 + inside % 2)
    return np.array(found)
