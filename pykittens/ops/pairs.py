"""Pairs of neighbouring columns taken apart and put together, inside each thread: for rotations of interleaved
pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import Coalesced, RegisterTile, Type, bf16, f32
from .broadcast import register_type
from .samples import Sample


@dataclass(eq=False)
class SplitPairs(Op):
    """The even and the odd columns of a coalesced tile, as two tiles."""

    scope: Scope
    a: Value

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "split_pairs")
        if not isinstance(type, RegisterTile) or not isinstance(type.layout, Coalesced) or type.layout.width < 2:
            raise TypeRuleError(
                f"split_pairs of {type}", fix="load it with layout=pk.coalesced(lanes, width), width 2 or more"
            )
        half = replace(type, cols=type.cols // 2, layout=replace(type.layout, width=type.layout.width // 2))
        return (half, half)

    def numpy(self, m: NumpyMachine) -> Any:
        array = m[self.a]
        return array[:, :, 0::2], array[:, :, 1::2]

    def cuda(self, c: CudaWriter) -> None:
        for i, part in enumerate(self.results):
            self._half(c, part, i)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        return ((self.a, lambda: d.recorded(JoinPairs(self.scope, *cotangents))),)

    def _half(self, c: CudaWriter, part: Value, first: int) -> None:
        c.map(part, lambda register: c.moved(self.a, register * 2 + first))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, layout in ((f32, Coalesced(8, 4)), (bf16, Coalesced(32, 8)), (bf16, Coalesced(4, 2))):
            yield Sample({"a": RegisterTile(dtype, 16, 256, layout)}, lambda a: (a[:, ::2], a[:, 1::2]), exact=True)


@dataclass(eq=False)
class JoinPairs(Op):
    """A coalesced tile whose even columns are those of `a` and odd columns those of `b`."""

    scope: Scope
    a: Value
    b: Value

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a, b = register_type(self.a, "join_pairs"), register_type(self.b, "join_pairs")
        if a != b or not isinstance(a, RegisterTile) or not isinstance(a.layout, Coalesced):
            raise TypeRuleError(
                f"join_pairs of {a} and {b}", fix="pass two coalesced tiles of one type, as split_pairs makes them"
            )
        if a.layout.width > 8:
            fix = "join tiles whose runs are at most 8 wide: layout=pk.coalesced(lanes, 8)"
            raise TypeRuleError(f"join_pairs of {a}: runs of {2 * a.layout.width} elements", fix=fix)
        return (replace(a, cols=a.cols * 2, layout=replace(a.layout, width=a.layout.width * 2)),)

    def numpy(self, m: NumpyMachine) -> Any:
        a, b = m[self.a], m[self.b]
        return np.stack([a, b], axis=-1).reshape(*a.shape[:2], -1)

    def cuda(self, c: CudaWriter) -> None:
        def one(r: Any) -> str:
            a, b = c.moved(self.a, r // 2), c.moved(self.b, r // 2)
            return f"({r}) % 2 ? {b} : {a}"

        c.map(self.result, one)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        halves = d.recorded(SplitPairs(self.scope, cotangents[0]))
        return (self.a, lambda: halves[0]), (self.b, lambda: halves[1])

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, layout in ((f32, Coalesced(8, 4)), (bf16, Coalesced(32, 4)), (bf16, Coalesced(4, 2))):
            tile = RegisterTile(dtype, 16, 128, layout)
            yield Sample({"a": tile, "b": tile}, lambda a, b: np.stack([a, b], -1).reshape(16, -1), exact=True)
