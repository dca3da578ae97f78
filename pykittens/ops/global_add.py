"""Register vectors added to global memory, atomically for each element (PTX "red"): sums of many blocks, in no fixed
order.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Place, Scope, Value
from ..thread_map import Registers
from ..types import RegisterVector, Type, f32
from .addressing import GlobalText
from .broadcast import register_type
from .load_store import check_pair, move_whole_runs, naive_limit
from .samples import Rectangle, Sample, cut, pasted

RED = """
__device__ __forceinline__ void pk_red_add(float* p, const float* x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" :: "l"(p), "f"(x[0]) : "memory");
}
"""
# Two or four neighbours at a time: since sm_90.
WIDE_RED = """
__device__ __forceinline__ void pk_red_add2(float* p, const float* x) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" :: "l"(p), "f"(x[0]), "f"(x[1]) : "memory");
}
__device__ __forceinline__ void pk_red_add4(float* p, const float* x) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
    :: "l"(p), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
}
"""


@dataclass(eq=False)
class AddVector(Op):
    """Adds a naive vector of float32 to neighbours in a tensor's row; past the end nothing is added."""

    spelling = "{scope}.add"

    scope: Scope
    target: Place
    source: Value

    numerics = Numerics("correctly rounded", flushes=True, special="the order of additions is not defined")

    def types(self) -> tuple[Type, ...]:
        type = register_type(self.source, "add")
        check_pair(self.source, self.target, "add")
        assert isinstance(type, RegisterVector) and type.kind == "naive"  # others: `global_reduce`
        if not type.dtype == self.target.type.dtype == f32:
            raise TypeRuleError(
                f"add of {type.dtype} to {self.target.tensor.label}: {self.target.type.dtype}",
                fix="both are float32: add to a tensor of float32, and convert that later",
            )
        return ()

    def _width(self) -> int:
        type = self.source.type
        assert isinstance(type, RegisterVector)
        return (
            type.width if type.width in (2, 4) and move_whole_runs(type, self.target) and not naive_limit(type) else 1
        )

    def numpy(self, m: NumpyMachine) -> None:
        m.reduce(self.target, m[self.source], "add")

    def effects(self) -> tuple[Effect, ...]:
        map = Registers(self.source.type, self._width())  # type: ignore[arg-type]
        return (Access(self.target, "reduce", map, order="relaxed", reduction="add"),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(RED)
        type, width, name = self.source.type, self._width(), c[self.source]
        assert isinstance(type, RegisterVector)
        wide = width > 1 and c.has("wide additions")
        if wide:
            c.prelude(WIDE_RED)
        c.line("{")
        g, limit = GlobalText(c, self.target, const=False), naive_limit(type)
        step = width if wide else 1
        at = vector_element(type, c.warp(self.scope), c.lane, Sym(f"({step} * i)" if step > 1 else "i"))
        tests = [f"x < {limit}" if limit else "", g.inside("0", "x", step)]
        guard = " && ".join(filter(None, tests))
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers // step}; i++) {{ const int x = {at};")
        call = f"pk_red_add{step if step > 1 else ''}({g.at('0', 'x')}, {name} + {step} * i);"
        c.line(f"{f'if ({guard}) ' if guard else ''}{call} }}")
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type in (
            RegisterVector(f32, 256, "naive", width=4),
            RegisterVector(f32, 128, "naive", width=2),
            RegisterVector(f32, 100, "naive", "row", 2),
        ):
            for cols in (type.length + 64, type.length - 3):
                place = Rectangle(f32, (type.length,), (3, cols), (1, 0), static=cols % 4 == 0)
                yield Sample(
                    {"target": place, "source": type},
                    lambda target, source, p=place: pasted(target, cut(target, p) + source, p),
                    {"target": "integers", "source": "integers"},
                    exact=True,
                )
