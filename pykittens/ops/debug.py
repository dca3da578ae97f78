"""Looking inside a running kernel: print and assert, on both back ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import KernelAssertionError, TypeRuleError
from ..layouts import Sym, fragment, vector_element
from ..program import CudaWriter, NumpyMachine, Op, Operand, Scope, Value, is_scalar
from ..types import RegisterTile, RegisterVector, ScalarType, Type
from .control import check_condition


@dataclass(eq=False)
class Print(Op):
    """Prints a text and values: scalars once per unit of the scope, tiles element by element on a GPU."""

    scope: Scope
    text: str
    values: tuple[Operand, ...]

    def types(self) -> tuple[Type, ...]:
        for x in self.values:
            if not is_scalar(x) and not isinstance(x.type, (RegisterTile, RegisterVector)):
                raise TypeRuleError(
                    f"pk.print shows scalars and register tiles, not {x.type}", fix="load it into registers first"
                )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        shown = [m.unit_scalar(x) if is_scalar(x) else m[x] for x in self.values]
        for unit in range(m.units):
            parts = [str(x[unit] if isinstance(x, np.ndarray) else x) for x in shown]
            m.print(f"[block {m.block_label()} {self.scope} {m.unit_label(unit)}] {self.text}{' '.join(parts)}")

    def cuda(self, c: CudaWriter) -> None:
        text = self.text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
        head = f"[block %d,%d,%d {self.scope} %d] {text}"
        place = f"blockIdx.x, blockIdx.y, blockIdx.z, {c.unit(self.scope)}"
        for x in self.values:
            if is_scalar(x):
                form = (
                    "%f"
                    if isinstance(x, float)
                    or (isinstance(x, Value) and isinstance(x.type, ScalarType) and x.type.dtype.kind == "f")
                    else "%lld"
                )
                cast = "double" if form == "%f" else "long long"
                value = c[x] if isinstance(x, Value) else x
                c.line(f'if ({c.thread(self.scope)} == 0) printf("{head}{form}\\n", {place}, ({cast})({value}));')
            else:
                self._tile(c, x, head, place)
        if not self.values:
            c.line(f'if ({c.thread(self.scope)} == 0) printf("{head}\\n", {place});')

    def _tile(self, c: CudaWriter, x: Value, head: str, place: str) -> None:
        type = x.type
        i = Sym("i")
        c.line(f"for (int i = 0; i < {type.registers}; i++)")  # type: ignore[union-attr]
        if isinstance(type, RegisterTile):
            row, col = fragment(type, c.warp(self.scope), c.lane, i)
            c.line(f'  printf("{head}[%d, %d] = %f\\n", {place}, {row}, {col}, (double){c.element(x, i)});')
        else:
            assert isinstance(type, RegisterVector)
            c.line(
                f'  printf("{head}[%d] = %f\\n", {place}, {vector_element(type, c.warp(self.scope), c.lane, i)}, (double){c.element(x, i)});'
            )


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
                f"assertion failed in block {m.block_label()}, {self.scope} {m.unit_label(int(np.argmin(held)))}: {self.text}",
                location=self.location,
            )

    def cuda(self, c: CudaWriter) -> None:
        if c.debug:
            text = self.text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
            line = f"{self.location[0]}" if self.location else ""
            condition = c[self.condition] if isinstance(self.condition, Value) else int(self.condition)
            c.line(f"if (!({condition})) {{")
            c.line(
                'if (lane == 0) printf("pykittens: assertion failed in block (%d, %d, %d), warp %d, at '
                f'{line}: {text}\\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x >> 5);'
            )
            c.line('__syncwarp(); asm volatile("trap;"); }')  # no lane traps before the text is out
