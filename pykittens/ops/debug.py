"""Looking inside a running kernel: print and assert, on both back ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import KernelAssertionError, TypeRuleError
from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope, Value, is_scalar
from ..types import DType, RegisterTile, RegisterVector, Type, bool_, i64
from .control import check_condition
from .scalars import scalar_dtype


@dataclass(eq=False)
class Print(Op):
    """Prints texts, scalars and register tiles on one line for each unit of the scope.

    A GPU writes tiles element by element, a line each, after the line with the rest: `[block 0,0,0 warp 1] x[3, 5] =
    0.5`.
    """

    scope: Scope
    parts: tuple[str | Operand, ...]

    def types(self) -> tuple[Type, ...]:
        for x in self.parts:
            if not isinstance(x, str) and not is_scalar(x) and not isinstance(x.type, (RegisterTile, RegisterVector)):
                raise TypeRuleError(
                    f"pk.print shows scalars and register tiles, not {x.type}", fix="load it into registers first"
                )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        shown = [x if isinstance(x, str) else m.unit_scalar(x) if is_scalar(x) else m[x] for x in self.parts]
        for unit in range(m.units):
            parts = [str(x[unit] if isinstance(x, np.ndarray) else x) for x in shown]
            m.print(f"[block {m.block_label()} {self.scope} {m.unit_label(unit)}] {' '.join(parts)}")

    def cuda(self, c: CudaWriter) -> None:
        head = f"[block %d,%d,%d {self.scope} %d] "
        place = ["blockIdx.x", "blockIdx.y", "blockIdx.z", c.unit(self.scope)]
        form, arguments = [], list(place)
        for x in self.parts:
            if isinstance(x, str):
                form.append(x.replace("%", "%%"))
            elif is_scalar(x):
                dtype = scalar_dtype(x) or i64
                specifier, argument = _shown(c.scalar(x, dtype), dtype)
                form.append(specifier)
                arguments.append(argument)
            else:
                form.append(f"<{x.type}>")
        text = c.string(head + " ".join(form) + "\n")
        c.line(f"if ({c.thread(self.scope)} == 0) printf({text}, {', '.join(arguments)});")
        for x in self.parts:
            if isinstance(x, Value) and not is_scalar(x):
                self._tile(c, x, head, place)

    def _tile(self, c: CudaWriter, x: Value, head: str, place: list[str]) -> None:
        type, i = x.type, Sym("i")
        assert isinstance(type, (RegisterTile, RegisterVector))
        c.line(f"for (int i = 0; i < {type.registers}; i++) {{")
        if isinstance(type, RegisterTile):
            index: tuple[Any, ...] = fragment(type, c.warp(self.scope), c.lane, i)
            c.line("{")
        else:
            index = (vector_element(type, c.warp(self.scope), c.lane, i),)
            c.line(f"if ({index[0]} < {type.length}) {{")  # the last threads of a naive vector may hold none
        specifier, argument = _shown(c.element(x, i), type.dtype)
        text = c.string(f"{head}{x.name or type}[{', '.join(['%d'] * len(index))}] = " + specifier + "\n")
        c.line(f"printf({text}, {', '.join([*place, *map(str, index), argument])});")
        c.line("} }")


def _shown(value: str, dtype: DType) -> tuple[str, str]:
    """The printf conversion for a value of a dtype, and its argument."""
    if dtype is bool_:
        return "%s", f'({value} ? "True" : "False")'
    return ("%g", f"(double)({value})") if dtype.kind == "f" else ("%lld", f"(long long)({value})")


@dataclass(eq=False)
class Assert(Op):
    """Stops the kernel where the condition does not hold; on a GPU only in a debug build."""

    scope: Scope
    condition: Operand
    text: str

    def types(self) -> tuple[Type, ...]:
        check_condition(self.condition)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        held = np.atleast_1d(m.unit_scalar(self.condition))
        if not held.all():
            raise KernelAssertionError(
                f"assertion failed in block {m.block_label()}, {self.scope} {m.unit_label(int(np.argmin(held)))}: "
                f"{self.text}",
                location=self.location,
            )

    def cuda(self, c: CudaWriter) -> None:
        if c.debug:
            condition = c.scalar(self.condition, bool_)
            c.line(f"if (!({condition})) {{")
            form = "pykittens: assertion failed in block (%d, %d, %d), warp %d, at %s: %s\n"
            where = "blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x >> 5"
            line = c.string(f"{self.location[0]}" if self.location else "")
            c.line(f"if (lane == 0) printf({c.string(form)}, {where}, {line}, {c.string(self.text)});")
            c.line('__syncwarp(); asm volatile("trap;"); }')  # no lane traps before the text is out
