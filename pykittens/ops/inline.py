"""The escape hatch: CUDA C with named operands, its effects, and its meaning for the simulator."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value, is_scalar
from ..thread_map import InTurn
from ..types import RegisterTile, RegisterVector, ScalarType, SharedTile, SharedVector, Type


@dataclass(eq=False)
class Inline(Op):
    """`text` with `{name}` for each operand: a register array, a 32-bit shared address, or a scalar.

    Operands in `outputs` are register tiles, vectors or variables changed in place, or shared tiles written; those in
    `inputs` are read. `meaning` takes arrays by name and returns those of the outputs, in order, for the simulator.
    """

    scope: Scope
    text: str
    names: tuple[str, ...]
    values: tuple[Any, ...]
    outputs: tuple[str, ...]
    meaning: Callable[..., Any] | None
    support: str

    writes = ("values",)

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return self.scope.warps  # nobody knows what it does

    def types(self) -> tuple[Type, ...]:
        used = set(re.findall(r"(?<!\{)\{([a-z_A-Z][a-zA-Z_0-9]*)\}(?!\})", self.text))
        unknown = used - set(self.names)
        if unknown:
            raise TypeRuleError(
                f"pk.cuda: no operand is called {', '.join(sorted(unknown))}",
                fix=f"operands here: {', '.join(self.names)}",
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
                found.append(Access(x, "write" if name in self.outputs else "read", InTurn(16 // x.type.dtype.size)))
        return tuple(found)

    def cuda(self, c: CudaWriter) -> None:
        if self.support:
            c.prelude(self.support)
        text = self.text
        for name, x in zip(self.names, self.values, strict=True):
            text = text.replace("{" + name + "}", str(c[x] if isinstance(x, Value) else x))
        c.line("{")
        for line in text.strip().splitlines():
            c.line(line)
        c.line("}")
