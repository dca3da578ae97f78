"""The escape hatch: CUDA C with named operands, its effects, and its meaning for the simulator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value, is_scalar
from ..thread_map import ANY_THREAD, Declared, ThreadMap
from ..types import RegisterTile, RegisterVector, ScalarType, SharedTile, SharedVector, Type, i32, i64
from .scalars import literal, scalar_dtype

_OPERAND = re.compile(r"\{([^\W\d]\w*)\}")
_RESERVED = re.compile(r"\bpk_\w+|\bv_\d+\b")


@dataclass(eq=False)
class Inline(Op):
    """`text` with `{name}` for each operand: a register array, a 32-bit shared address, or a scalar.

    Operands in `outputs` are register tiles, vectors or variables changed in place, or shared tiles written; those in
    `inputs` are read. `meaning` takes arrays by name and returns those of the outputs, in order, for the simulator.
    """

    spelling = "pk.cuda"

    scope: Scope
    text: str
    names: tuple[str, ...]
    values: tuple[Any, ...]
    outputs: tuple[str, ...]
    meaning: Callable[..., Any] | None
    support: str
    touches: tuple[tuple[str, Callable[..., Any]], ...] = ()  # by operand: the thread of each element, from its indices

    writes = ("values",)

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return self.scope.warps  # nobody knows what it does

    def types(self) -> tuple[Type, ...]:
        unknown = {x[1] for x in _OPERAND.finditer(self.text) if f"{{{x[0]}}}" not in self.text} - set(self.names)
        if unknown:
            raise TypeRuleError(
                f"pk.cuda: no operand is called {', '.join(sorted(unknown))}",
                fix=f"operands here: {', '.join(self.names)}",
            )
        if taken := _RESERVED.search(self.text + "\n" + self.support):
            raise TypeRuleError(
                f"pk.cuda: {taken[0]} is a name of the compiler's", fix=f"call it {taken[0].replace('_', '', 1)}"
            )
        for name, x in zip(self.names, self.values, strict=True):
            if name in self.outputs and is_scalar(x) and not isinstance(x, Value):
                raise TypeRuleError(f"pk.cuda writes {name}, which is the number {x}", fix="pass a pk.var or a tile")
        return ()

    def written(self) -> list[Value]:
        return [x for name, x in zip(self.names, self.values, strict=True) if name in self.outputs]

    def numpy(self, m: NumpyMachine) -> None:
        if self.meaning is None:
            raise TypeRuleError(
                "this pk.cuda has no meaning on the CPU",
                fix="give it numpy=function of its operands",
                location=self.location,
            )
        arrays = {
            n: m.read(x)
            if isinstance(getattr(x, "type", None), (SharedTile, SharedVector))
            else m.unit_scalar(x)
            if is_scalar(x)
            else m[x]
            for n, x in zip(self.names, self.values, strict=True)
        }
        out = self.meaning(**arrays)
        results = out if isinstance(out, tuple) else (out,)
        for target, array in zip(self.written(), results, strict=True):
            if isinstance(target.type, (SharedTile, SharedVector)):
                m.write(target, np.asarray(array).astype(target.type.dtype.numpy))
            elif isinstance(target.type, ScalarType):
                m.assign(target, m.per_warp(np.asarray(array)) if isinstance(array, np.ndarray) else array)
            else:
                assert isinstance(target.type, (RegisterTile, RegisterVector))
                m.assign(target, np.broadcast_to(array, (m.units, *target.type.shape)).astype(target.type.dtype.numpy))

    def effects(self) -> tuple[Effect, ...]:
        found = []
        for name, x in zip(self.names, self.values, strict=True):
            if isinstance(getattr(x, "type", None), (SharedTile, SharedVector)):
                found.append(Access(x, "write" if name in self.outputs else "read", self._threads(name)))
        return tuple(found)

    def _threads(self, name: str) -> ThreadMap:
        """Which threads touch which elements of an operand, as the author says; or any may touch all."""
        declared = dict(self.touches)
        return Declared(declared[name]) if name in declared else ANY_THREAD

    def cuda(self, c: CudaWriter) -> None:
        if self.support:
            c.prelude(self.support, authored=True)
        operands = {n: _c(c, x) for n, x in zip(self.names, self.values, strict=True)}
        # Once over the text: what stands for an operand is not looked at again.
        text = _OPERAND.sub(lambda found: operands.get(found[1], found[0]), self.text)
        c.line("{")
        for line in text.strip().splitlines():
            c.line(line)
        c.line("}")


def _c(c: CudaWriter, x: Any) -> str:
    """An operand in C: its identifier, or a number as a literal (Python's 0.5 is a float, not a double)."""
    if isinstance(x, Value):
        return c[x]
    return literal(x, scalar_dtype(x) or (i32 if -(2**31) <= x < 2**31 else i64))
