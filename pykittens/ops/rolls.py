"""A tile with its columns rolled round, by several distances at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..numerics import MOVES
from ..program import CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import RegisterTile, Type, bf16, f16
from .broadcast import register_type
from .samples import Sample


@dataclass(eq=False)
class Rolls(Op):
    """A tile for each distance m: its column c is column (c + m) modulo the width of a 16-bit row-layout tile.

    The four threads that share a row hold its pairs of columns in turn. A roll by two columns is the pair of the next
    thread (one shuffle a word, shared by all distances that need it), by eight another word of the same thread; an odd
    roll takes half a word of each of two.
    """

    scope: Scope
    a: Value
    distances: tuple[int, ...]

    numerics = MOVES
    no_vjp = "columns roll in 16-bit tiles, and cotangents are float32"

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "rolls")
        if not isinstance(type, RegisterTile) or type.layout != "row" or not type.dtype.packed:
            raise TypeRuleError(
                f"rolls of {type}", fix="columns roll in row-layout tiles of bf16 or f16: convert first"
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
        words, blocks = (
            type.registers // 2,
            type.cols // 8,
        )  # blocks of 8 columns: a word of each of the four threads, in each row
        turned = {0: source}  # the words of the thread that is 0 to 3 further on
        pairs = {pair for m in self.distances for pair in (m // 2, m // 2 + m % 2)}
        for turn in sorted({pair % 4 for pair in pairs} - {0}):
            turned[turn] = c.fresh("turned")
            c.line(f"u32 {turned[turn]}[{words}];")
            c.line(
                f"PK_UNROLL for (int i = 0; i < {words}; i++) {turned[turn]}[i] = __shfl_sync(0xffffffffu, "
                f"{source}[i], (lane & 28) | ((lane + {turn}) & 3));"
            )

        def word(i: int, pair: int) -> str:
            """Word `i` of the tile rolled by `pair` pairs: past the last thread it lies in the next block of
            columns.
            """
            here, there = (
                i % 2 + 2 * ((i // 2 + step) % blocks) + i // (2 * blocks) * 2 * blocks
                for step in (pair // 4, pair // 4 + 1)
            )
            name, turn = turned[pair % 4], pair % 4
            return f"((lane & 3) < {4 - turn} ? {name}[{here}] : {name}[{there}])" if turn else f"{name}[{here}]"

        for distance, result in zip(self.distances, self.results, strict=True):
            name = c.declare(result)
            for i in range(words):
                text = word(i, distance // 2)
                if distance % 2:
                    text = f"__byte_perm({text}, {word(i, distance // 2 + 1)}, 0x5432)"
                c.line(f"{name}[{i}] = {text};")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        sixteen = RegisterTile(bf16, 16, 16)
        for type, distances in (
            (sixteen, tuple(range(16))),
            (RegisterTile(f16, 32, 32), (0, 9, 30)),
            (RegisterTile(bf16, 64, 16, "row", 4), (5,)),
        ):
            yield Sample(
                {"a": type, "distances": distances},
                lambda a, distances: tuple(np.roll(a, -m, 1) for m in distances),
                exact=True,
            )
