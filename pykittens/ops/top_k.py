"""The largest elements of each row or column of a tile, with where they stand: arg-max, arg-min and top-k.

Every element has a key (`sort_keys`), all different. The largest key is the largest element, and of equal ones the
first; the next is the largest key below that. Keys of several warps are reduced as other integers are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, vector_register
from ..loading import dataclass
from ..numerics import EXACT
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import Coalesced, RegisterTile, RegisterVector, Type, bf16, f16, f32, i32, u32
from .broadcast import compute
from .conversion import convert
from .reduce import combine_lanes
from .samples import Sample, tiles
from .sort_keys import ORDER, order_c, ranked_type, turned_c


@dataclass(eq=False)
class TopK(Op):
    """The `k` largest (or smallest) elements of each row ("col": column vectors) or column ("row"), largest first.

    Results: k vectors of the elements, then k of their indices (int32).
    """

    scope: Scope
    a: Value
    k: int
    to: Literal["col", "row"]
    largest: bool = True

    no_vjp = "choose by the index instead: pk.where(pk.col_index(x) == x.row_argmax(), x, 0.0).row_sum()"
    numerics = EXACT.with_special("of equal elements the first; NaN comes before all; -0 counts as +0, and becomes it")

    @property
    def type(self) -> RegisterTile:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        return type

    @property
    def length(self) -> int:
        """Elements to choose from."""
        return self.type.cols if self.to == "col" else self.type.rows

    def types(self) -> tuple[Type, ...]:
        type = ranked_type(self.a, self.to)
        check_count(self.k, self.length)
        assert not spread(type, self.to)  # `trace.largest`
        vector = type.vector(self.to)
        return (vector,) * self.k + (replace(vector, dtype=i32),) * self.k

    def numpy(self, m: NumpyMachine) -> Any:
        dtype = self.type.dtype
        array = compute(m[self.a], dtype) + 0
        array = array if self.to == "col" else array.swapaxes(1, 2)
        missing = array != array
        # Sorted from the last place on, so that of equal elements the first comes last; NaNs after all.
        backwards = np.broadcast_to(-np.arange(array.shape[2]), array.shape)
        values = np.where(missing, 0, array if self.largest else -_wide(array))
        order = np.lexsort((backwards, values, missing))
        chosen = order[..., ::-1][..., : self.k]
        found = convert(np.take_along_axis(array, chosen, 2), dtype)
        return [
            *(found[..., i] for i in range(self.k)),
            *(chosen[..., i].astype(np.int32) for i in range(self.k)),
        ]

    def cuda(self, c: CudaWriter) -> None:
        """For each of the k: the largest key of each thread's registers, then of the lanes that share the row."""
        c.prelude(ORDER)
        tile, vector, r = self.type, self.results[0].type, Sym("i")
        assert isinstance(vector, RegisterVector)
        place = fragment(tile, c.warp(self.scope), c.lane, r)[1 if self.to == "col" else 0]
        order = order_c(c.element(self.a, r), tile.dtype, self.largest)
        at = str(vector_register(tile, vector, r))
        best = [c.fresh("best") for _ in range(self.k)]
        for number, name in enumerate(best):
            c.line(f"u64 {name}[{vector.registers}];")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) {name}[i] = 0ull;")
            c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers}; i++) {{")
            c.line(f"  const u64 key = (u64){order} << 32 | (0xffffffffu - (u32)({place}));")
            below = f"key < {best[number - 1]}[{at}] && " if number else ""
            c.line(f"  if ({below}key > {name}[{at}]) {name}[{at}] = key; }}")
            combine_lanes(c, name, vector.registers, lambda a, b: f"max({a}, {b})", self._lanes(tile, vector))
        held = "float" if tile.dtype.kind == "f" else tile.dtype.c
        for number, name in enumerate(best):
            found = c.fresh("found")
            key = turned_c(f"(u32)({name}[i] >> 32)", tile.dtype, self.largest)
            c.line(f"{held} {found}[{vector.registers}];")
            c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers}; i++) pk_unorder({key}, {found}[i]);")
            c.map(self.results[number], f"{found}[{{}}]".format)
            c.map(self.results[self.k + number], f"(int)(0xffffffffu - (u32){name}[{{}}])".format)

    def _lanes(self, tile: RegisterTile, vector: RegisterVector) -> tuple[int, ...]:
        """Bits of the lane by which those differ that share a row (or column)."""
        if isinstance(tile.layout, Coalesced):
            return tuple(x for x in (16, 8, 4, 2, 1) if (x < tile.layout.lanes) == (self.to == "col"))
        return (1, 2) if vector.ortho else (4, 8, 16)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for axis, to in ((1, "col"), (0, "row")):
            for type in (*tiles(f32), RegisterTile(bf16, 16, 32), RegisterTile(f16, 16, 32, "col")):
                if type.warps == 1 or (to == "col" and not isinstance(type.layout, Coalesced)):
                    yield _sample(type, 1, to, axis, "integers")
            for type in (RegisterTile(i32, 16, 32), RegisterTile(u32, 16, 32)):
                yield _sample(type, 3, to, axis, "bits")
            yield _sample(RegisterTile(f32, 16, 32), 2, to, axis, "special")
            yield _sample(RegisterTile(i32, 16, 32), 1, to, axis, "integers", largest=False)
            yield _sample(RegisterTile(f32, 16, 32), 4, to, axis, "special", largest=False)


def check_count(k: int, length: int) -> int:
    """k, where so many can be chosen."""
    if not isinstance(k, int) or not 1 <= k <= length:
        raise TypeRuleError(f"the {k!r} largest of {length} elements", fix=f"k is a Python int from 1 to {length}")
    return k


def spread(type: RegisterTile, to: str) -> bool:
    """Whether what is to be chosen from lies in several warps."""
    return type.warps > 1 and (to == "row") != isinstance(type.layout, Coalesced)


def _wide(array: np.ndarray) -> np.ndarray:
    """Numbers that can be negated."""
    return array if array.dtype.kind == "f" else array.astype(np.int64)


def _sample(type: RegisterTile, k: int, to: str, axis: int, inputs: str, largest: bool = True) -> Sample:
    def expected(a: np.ndarray) -> tuple[np.ndarray, ...]:
        """One after another, by NumPy's own arg-max; what has been found is out."""
        left, values, places = np.array(a, dtype=object), [], []
        for _ in range(k):
            best = [_first(row, largest) for row in (left if axis == 1 else left.T)]
            places.append(np.array(best))
            lines = np.arange(len(best))
            at = (lines, places[-1]) if axis == 1 else (places[-1], lines)
            values.append(a[at] + 0)
            left[at] = None
        return (*values, *places)

    return Sample({"a": type, "k": k, "to": to, "largest": largest}, expected, {"a": inputs}, exact=True)


def _first(row: np.ndarray, largest: bool) -> int:
    """Where the largest (smallest) stands: a NaN, if there is one."""
    given = [i for i, x in enumerate(row) if x is not None]
    missing = [i for i in given if row[i] != row[i]]
    return missing[0] if missing else (max if largest else min)(given, key=lambda i: row[i])
