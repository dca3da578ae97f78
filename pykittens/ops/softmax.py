"""What makes an online softmax fast: rescaling rows only when their peak moved, exponentials on two kinds of units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_register
from ..program import Op, Scope, Value
from ..types import RegisterTile, RegisterVector, Type, f32
from .maps import MATH, common_type, register_type
from .samples import Sample


@dataclass(eq=False)
class Rescale(Op):
    """`tile *= vector`, in place, passed over by every warp whose factors are all 1: the result is the same.

    The vote takes a few instructions; the multiplications it saves are one for each element a thread holds.
    """

    scope: Scope
    tile: Value
    vector: Value

    writes = ("tile",)

    def types(self) -> tuple[Type, ...]:
        tile, vector = register_type(self.tile, "rescale"), register_type(self.vector, "rescale")
        common_type("rescale", self.tile, self.vector)
        if not isinstance(tile, RegisterTile) or not isinstance(vector, RegisterVector) or vector.partial:
            raise TypeRuleError(f"rescale multiplies a tile by a vector, not {tile} by {vector}", fix="tile.rescale(column_vector)")
        if tile.dtype is not f32 or vector.dtype is not f32:
            raise TypeRuleError(f"rescale takes float32, not {tile} and {vector}", fix="keep accumulators in float32")
        return ()

    def numpy(self, m: Any) -> None:
        vector = self.vector.type
        assert isinstance(vector, RegisterVector)
        factor = m[self.vector]
        with np.errstate(all="ignore"):
            m.assign(self.tile, m[self.tile] * (factor[:, :, None] if vector.kind == "col" else factor[:, None, :]))

    def cuda(self, c: Any) -> None:
        tile, vector = self.tile.type, self.vector.type
        assert isinstance(tile, RegisterTile) and isinstance(vector, RegisterVector)
        test = " || ".join(f"{c[self.vector]}[{i}] != 1.0f" for i in range(vector.registers))
        index = vector_register(tile, vector, Sym("i"))
        c.line(f"if (__any_sync(0xffffffffu, {test})) {{")
        c.line(f"UNROLL for (int i = 0; i < {tile.registers}; i++) {c[self.tile]}[i] *= {c[self.vector]}[{index}];")
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for tile in (RegisterTile(f32, 32, 48), RegisterTile(f32, 64, 16, "row", 4)):
            for inputs in ({"vector": "ones"}, {"vector": "normal"}):
                yield Sample({"tile": tile, "vector": tile.vector("col")}, lambda tile, vector: tile * vector[:, None], inputs, exact=True)


EXP2_POLYNOMIAL = """
__device__ __forceinline__ float exp2_polynomial(float x) {
  x = fmaxf(x, -127.0f);  // gives exactly 0
  const float whole = x + 12582912.0f;  // 1.5 * 2**23: rounds to an integer in the low bits
  const float f = x - (whole - 12582912.0f);  // in [-0.5, 0.5]
  const float p = fmaf(fmaf(fmaf(0.055008588f, f, 0.242210379f), f, 0.693282900f), f, 1.0f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(whole) << 23));
}
"""


@dataclass(eq=False)
class MixedExp2(Op):
    """2 ** x, of which every `every`th element a thread holds is a cubic polynomial instead of the special-function unit's.

    That unit gives 16 results a cycle on a multiprocessor, where the tensor core of a head dimension of 64 would use as many:
    the multiply-add units take a share. The polynomial is fitted on [-0.5, 0.5] with value 1 at 0, relative error under 1e-04, for weights
    that are rounded to 16 bits anyway; -inf gives 0.
    """

    scope: Scope
    a: Value
    every: int

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.a, "exp2_mixed")
        if type.dtype is not f32:
            raise TypeRuleError(f"exp2_mixed takes float32, not {type}", fix="convert with x.to(pk.f32)")
        if not isinstance(self.every, int) or self.every < 2:
            raise TypeRuleError(f"exp2_mixed with every={self.every!r}", fix="a Python int, 2 or more")
        return (type,)

    def numpy(self, m: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.exp2(m[self.a])

    def cuda(self, c: Any) -> None:
        c.prelude(MATH)
        c.prelude(EXP2_POLYNOMIAL)
        n = self.every
        c.map(self.result, lambda r: f"{r} % {n} == {n - 1} ? exp2_polynomial({c.element(self.a, r)}) : ex2({c.element(self.a, r)})")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for every in (2, 4):
            yield Sample({"a": RegisterTile(f32, 32, 48), "every": every}, lambda a: np.exp2(a), tolerance=2e-4)
