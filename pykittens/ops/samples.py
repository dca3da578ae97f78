"""Small configurations of operations for the conformance tests: what to feed them, and what should come out.

`Op.samples()` yields `Sample`s; `pykittens.testing.conformance` makes a kernel of each, runs it on the simulated GPU,
on a GPU where there is one, and compares with the sample's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np

from ..loading import dataclass
from ..program import Op, Scope
from ..types import Coalesced, DType, Layout, RegisterTile, RegisterVector, i32


@dataclass(frozen=True)
class Rectangle:
    """Stands for a `Place` operand: a rectangle (or run) of `shape` elements at row and column `at` of a tensor of
    `size`.

    `static`: the tensor's rows and columns are known when the kernel is compiled. `known`: so is `at`. `pitch`:
    elements from row to row in memory, if more than the columns. `within`: the rows that it is kept to;
    `columns`: the columns. `rows`: gathered, the row of each row, by a vector that goes with a tile of `layout`.
    """

    dtype: DType
    shape: tuple[int, ...]
    size: tuple[int, int]
    at: tuple[int, int] = (0, 0)
    static: bool = True
    known: bool = True
    pitch: int = 0
    within: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    rows: tuple[int, ...] = ()
    layout: Layout = "row"

    @property
    def vector(self) -> RegisterVector:
        """The type of the vector of rows."""
        return RegisterVector(i32, len(self.rows), "col", self.layout)

    def __str__(self) -> str:
        text = (
            f"{self.dtype} {'x'.join(map(str, self.shape))} at {self.at[0]},{self.at[1]} of "
            f"{self.size[0]}x{self.size[1]}"
        )
        return (
            text
            + ("" if self.static else " dynamic")
            + ("" if self.known else " traced")
            + (f" pitch {self.pitch}" if self.pitch else "")
            + (f" within {self.within[0]},{self.within[1]}" if self.within else "")
            + (f" columns {self.columns[0]},{self.columns[1]}" if self.columns else "")
            + (f" {len(self.rows)} rows" if self.rows else "")
        )


@dataclass(frozen=True)
class Sample:
    """One configuration of an operation.

    fields: its fields by name, without the scope. A type stands for an operand of that type (a mutable `ScalarType` for
    a variable), a `Rectangle` for a place in global memory, a tuple for a tuple of these; everything else is the
    attribute itself.

    expected: a formula of NumPy arrays, independent of the operation's own meaning where it can be. It takes the
    operands by field (the parameters it names; floats as float64, integers as int64, masks as bool; of one unit) and
    `unit`, the number of the unit, and returns the results in order, then the operands changed in place: registers,
    shared tiles, global tensors. A partial vector is expected as its total.

    inputs: how the elements are chosen, by field: "normal", "positive", "unit" (-1 to 1), "small" (to 0.2), "integers"
    (-8 to 8), "bits" (any integer), "between" (whole numbers and halves), "nonzero", "special" (infinities, NaNs,
    zeros of both signs among others), "steps" (distinct small numbers), "places" (each from 0 once), "ones" (mostly),
    "mask".

    exact: compiled kernel and simulator agree bit for bit; what moves, converts or counts must. tolerance: else,
    relative to the size of the elements. before, after: operations recorded around it, given the scope and the
    operands: what an asynchronous one needs to finish. warps: of the scope, where no operand says so. needs: the
    feature (`architectures.FEATURES`) without which no architecture has it.
    """

    fields: Mapping[str, Any]
    expected: Callable[..., Any] | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    tolerance: float = 0.0
    before: Callable[[Scope, Mapping[str, Any]], Iterable[Op]] = lambda scope, operands: ()
    after: Callable[[Scope, Mapping[str, Any]], Iterable[Op]] = lambda scope, operands: ()
    warps: int = 1
    needs: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{name}={_shown(x)}" for name, x in self.fields.items())


def _shown(x: Any) -> str:
    if isinstance(x, tuple):
        return f"({', '.join(map(_shown, x))})"
    return getattr(x, "__name__", None) or str(x)


def rounded(dtype: DType, array: Any) -> np.ndarray:
    """An array as elements of a dtype: floats rounded to nearest even (once from float64 where the dtype has no
    narrower source).
    """
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(dtype.numpy)


def tiles(dtype: DType) -> tuple[RegisterTile, ...]:
    """A tile in each layout, and one over several warps."""
    layouts = (RegisterTile(dtype, 32, 48), RegisterTile(dtype, 32, 48, "col"), RegisterTile(dtype, 64, 32, "row", 4))
    return (*layouts, RegisterTile(dtype, 8, 64, Coalesced(8, 4)), RegisterTile(dtype, 3, 256, Coalesced(64, 2), 2))


def vectors(dtype: DType) -> tuple[RegisterVector, ...]:
    """A vector of each kind."""
    tile, other = RegisterTile(dtype, 32, 48), RegisterTile(dtype, 128, 16, "col", 4)
    naive = (RegisterVector(dtype, 100, "naive", "row", 2), RegisterVector(dtype, 64, "naive", width=2))
    return (tile.vector("col"), tile.vector("row"), other.vector("col"), other.vector("row"), *naive)


def rectangles(dtype: DType) -> tuple[Rectangle, ...]:
    """16 x 32 elements of tensors: inside, across the last rows and columns, at odd places and pitches, known early
    and late.
    """
    whole = Rectangle(dtype, (16, 32), (48, 64), (16, 32))
    ragged = Rectangle(dtype, (16, 32), (24, 56), (16, 32))
    return (
        whole,
        replace(whole, static=False),
        replace(whole, static=False, known=False),
        replace(whole, pitch=72),
        ragged,
        replace(ragged, static=False, pitch=64),
        replace(ragged, static=False, known=False),
        replace(ragged, size=(30, 53), at=(17, 24)),
        replace(ragged, size=(30, 53), at=(17, 21), static=False, pitch=55),
        replace(ragged, size=(10, 64), at=(16, 32), static=False),
    )


def windows(dtype: DType) -> tuple[Rectangle, ...]:
    """16 x 32 elements of tensors, kept to some rows: before the first, behind the last, none at all."""
    first = Rectangle(dtype, (16, 32), (40, 64), (-3, 32), within=(0, 40))
    return (
        first,
        replace(first, at=(-5, 32), within=(-9, 6), static=False, known=False),
        replace(first, at=(30, 40), within=(33, 99), static=False),
        replace(first, at=(8, 0), within=(11, 12), known=False),
        replace(first, at=(-30, 0), within=(0, 40)),
        replace(first, at=(8, 0), within=(20, 11)),
    )


def between(dtype: DType) -> tuple[Rectangle, ...]:
    """16 x 32 elements of tensors, kept to some columns: all, some that begin and end within a run, none."""
    first = Rectangle(dtype, (16, 32), (40, 64), (8, 32), columns=(0, 64))
    return (
        first,
        replace(first, columns=(35, 61)),
        replace(first, at=(30, 0), columns=(7, 9), static=False, known=False),
        replace(first, at=(8, 48), columns=(40, 99), known=False),
        replace(first, columns=(50, 40), static=False),
    )


def gathers(dtype: DType, layout: Layout, once: bool) -> tuple[Rectangle, ...]:
    """16 x 32 elements of rows anywhere in a tensor, some of which are not there; `once`: none twice."""
    rows = (3, -1, 0, 23, 7, 24, 5, 99, 1, 11, 2, -7, 22, 14, 9, 6) if once else (3, -1, 0, 23, 3, 24, 5, 99) * 2
    some = Rectangle(dtype, (16, 32), (24, 56), (0, 16), rows=rows, layout=layout)
    return some, replace(some, at=(0, 32), static=False), replace(some, size=(24, 53), at=(0, 21), pitch=55)


def cut(array: np.ndarray, place: Rectangle) -> np.ndarray:
    """The elements of a rectangle, zero past the end and outside of the rows that it is kept to."""
    rows, cols = (1, *place.shape)[-2:]
    out = np.zeros((rows, cols), array.dtype)
    for row, mine in inside(array, place):
        part = array[row, place.at[1] : place.at[1] + cols]
        out[mine, : len(part)] = part
    return out.reshape(place.shape)


def inside(array: np.ndarray, place: Rectangle) -> list[tuple[int, int]]:
    """The rows of a tensor that a rectangle has, each with its number in the rectangle."""
    first, end = place.within or (0, len(array))
    rows = place.rows or range(place.at[0], place.at[0] + (1, *place.shape)[-2])
    return [(row, i) for i, row in enumerate(rows) if max(first, 0) <= row < min(end, len(array))]


def pasted(array: np.ndarray, part: np.ndarray, place: Rectangle) -> np.ndarray:
    """A tensor with a rectangle in its place, as far as it has room."""
    out = array.astype(np.result_type(array, part))
    rows, cols = (1, *place.shape)[-2:]
    for row, mine in inside(array, place):
        first, end = place.columns or (0, out.shape[1])
        for col in range(max(place.at[1], first), min(place.at[1] + cols, end, out.shape[1])):
            out[row, col] = np.asarray(part).reshape(rows, cols)[mine, col - place.at[1]]
    return out
