"""Vectors of one kind as another: naive vectors in other runs, column and row vectors, of any layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import Coalesced, RegisterTile, RegisterVector, Type, bf16, bool_, f32, i32, i64, with_dtype
from .broadcast import register_type
from .layout_conversion import Shuffles
from .layout_route import Register, route
from .samples import Sample


@dataclass(eq=False)
class ConvertVector(Op):
    """The same elements as a vector of another `type`, each from its lane (see `layout_route`), none from another
    warp.
    """

    scope: Scope
    a: Value
    type: RegisterVector

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        a = register_type(self.a, "a vector")
        if (a.shape, a.warps) != (self.type.shape, self.type.warps) or route(a, self._result(a), False) is None:
            fix = "let the words find the way: x.as_vec(), x.as_col(), x.as_row()"
            raise TypeRuleError(f"{a} to {self.type}: elements would leave their warps", fix=fix)
        return (self._result(a),)

    def _result(self, a: Register) -> Register:
        return with_dtype(self.type, a.dtype)

    def numpy(self, m: NumpyMachine) -> Any:
        return m[self.a].copy()

    def cuda(self, c: CudaWriter) -> None:
        a, out = self.a.type, self.result.type
        assert isinstance(a, RegisterVector) and isinstance(out, RegisterVector)
        c.declare(self.result)
        sources = route(a, out, False)
        assert sources is not None
        shuffles = Shuffles(c, self.a, self.result)
        shuffles.pairs(sources) if a.dtype.packed else shuffles.elements(sources)

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        own = self.a.type
        return ((self.a, lambda: d.recorded(ConvertVector(self.scope, cotangents[0], own))),)  # type: ignore[arg-type]

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, i32, i64, bool_):
            tile = RegisterTile(dtype, 96, 96)
            kinds = [
                *(RegisterVector(dtype, 96, "naive", width=width) for width in (1, 4)),
                tile.vector("col"),
                tile.vector("row"),
                *(RegisterTile(dtype, 96, 96, Coalesced(8, 4)).vector(kind) for kind in ("col", "row")),
            ]
            for a in kinds if dtype is f32 else kinds[:3]:
                for type in kinds:
                    if a != type:
                        yield Sample({"a": a, "type": type}, lambda a: a, exact=True)
