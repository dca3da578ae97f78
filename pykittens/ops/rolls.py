"""A tile with its columns rolled round, by several distances at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import RegisterTile, Type, bf16, f16, f32, i32, i64
from .broadcast import register_type
from .samples import Sample


@dataclass(eq=False)
class Rolls(Op):
    """A tile for each distance m: its column c is column (c + m) modulo the width of a row-layout tile.

    The four threads that share a row hold its pairs of columns in turn. A roll by two columns is the pair of the next
    thread (one shuffle a word, shared by all distances that need it), by eight another pair of the same thread; an odd
    roll takes half a pair of each of two. A pair is a word of 16-bit elements, or two words.
    """

    scope: Scope
    a: Value
    distances: tuple[int, ...]

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "rolls")
        if not isinstance(type, RegisterTile) or type.layout != "row" or type.dtype.kind == "b":
            raise TypeRuleError(
                f"rolls of {type}", fix="columns roll in row-layout tiles of numbers: x.swap_layout(), mask.to(pk.i32)"
            )
        if not self.distances or not all(isinstance(m, int) and 0 <= m < type.cols for m in self.distances):
            raise TypeRuleError(
                f"{type} rolled by {self.distances!r}", fix=f"distances are Python ints from 0 to {type.cols - 1}"
            )
        return (type,) * len(self.distances)

    def numpy(self, m: NumpyMachine) -> Any:
        rolled = tuple(np.roll(m[self.a], -distance, axis=2) for distance in self.distances)
        return rolled if len(rolled) > 1 else rolled[0]

    def cuda(self, c: CudaWriter) -> None:
        type, source = self.a.type, c[self.a]
        assert isinstance(type, RegisterTile)
        pairs, blocks = type.registers // 2, type.cols // 8  # a block: 8 columns, a pair of each of the four threads
        each = 1 if type.dtype.packed else 2  # words of a pair
        ctype = "u32" if type.dtype.packed else type.dtype.c
        turned = {0: source}  # the words of the thread that is 0 to 3 further on
        apart = {pair for m in self.distances for pair in (m // 2, m // 2 + m % 2)}
        for turn in sorted({pair % 4 for pair in apart} - {0}):
            turned[turn] = c.fresh("turned")
            c.line(f"{ctype} {turned[turn]}[{pairs * each}];")
            other = f"__shfl_sync(0xffffffffu, {source}[i], (lane & 28) | ((lane + {turn}) & 3))"
            c.line(f"PK_UNROLL for (int i = 0; i < {pairs * each}; i++) {turned[turn]}[i] = {other};")

        def word(i: int, pair: int, half: int = 0) -> str:
            """Word `half` of pair `i` of the tile rolled by `pair` pairs: past the last thread it lies in the next
            block of columns.
            """
            here, there = (
                (i % 2 + 2 * ((i // 2 + step) % blocks) + i // (2 * blocks) * 2 * blocks) * each + half
                for step in (pair // 4, pair // 4 + 1)
            )
            name, turn = turned[pair % 4], pair % 4
            return f"((lane & 3) < {4 - turn} ? {name}[{here}] : {name}[{there}])" if turn else f"{name}[{here}]"

        for distance, result in zip(self.distances, self.results, strict=True):
            name, pair, odd = c.declare(result), distance // 2, distance % 2
            for i in range(pairs):
                if each == 2:
                    low, high = (word(i, pair, 1), word(i, pair + 1, 0)) if odd else (word(i, pair), word(i, pair, 1))
                    c.line(f"{name}[{2 * i}] = {low}; {name}[{2 * i + 1}] = {high};")
                else:
                    text = word(i, pair)
                    c.line(f"{name}[{i}] = {f'__byte_perm({text}, {word(i, pair + 1)}, 0x5432)' if odd else text};")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        type = self.a.type
        assert isinstance(type, RegisterTile)
        for distance, c in zip(self.distances, cotangents, strict=True):
            back = Rolls(self.scope, c, (-distance % type.cols,))
            yield self.a, lambda back=back: d.recorded(back)  # type: ignore[misc]

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        sixteen = RegisterTile(bf16, 16, 16)
        for type, distances in (
            (sixteen, tuple(range(16))),
            (RegisterTile(f16, 32, 32), (0, 9, 30)),
            (RegisterTile(bf16, 64, 16, "row", 4), (5,)),
            (RegisterTile(f32, 16, 16), (0, 1, 2, 15)),
            (RegisterTile(i32, 64, 32, "row", 4), (9, 30)),
            (RegisterTile(i64, 16, 32), (0, 2, 9)),
        ):
            yield Sample(
                {"a": type, "distances": distances},
                lambda a, distances: tuple(np.roll(a, -m, 1) for m in distances),
                exact=True,
            )
