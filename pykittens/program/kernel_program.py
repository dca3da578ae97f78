"""A traced kernel as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from ..errors import Frame
from ..loading import dataclass
from ..types import BarrierType, SharedTile, SharedVector, Type
from .op import Block, Op
from .tensor_map import TensorMapSpec
from .values import Place, Scope, Value


@dataclass
class Buffer:
    """A piece of shared memory: `count` items of a type. `offset` (bytes) is set by the shared-memory plan.

    `scratch` says that the compiler uses it for the terms of reductions, again and again: the scope whose warps meet
    there, and the blocks of the cluster that do.
    """

    value: Value
    count: int
    align: int
    offset: int = -1
    scratch: tuple[Scope, int] | None = None

    @property
    def item(self) -> Type:
        return self.value.type

    @property
    def item_bytes(self) -> int:
        type = self.value.type
        assert isinstance(type, (SharedTile, SharedVector, BarrierType))
        return -(-type.bytes // self.align) * self.align if self.count > 1 else type.bytes

    @property
    def bytes(self) -> int:
        return self.item_bytes * self.count


@dataclass
class Parameter:
    """A run-time parameter of the kernel: a global tensor or a scalar."""

    name: str
    value: Value


@dataclass
class Program:
    """A kernel, traced for one specialisation."""

    name: str
    warps: int
    parameters: list[Parameter] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    body: Block = field(default_factory=Block)
    cluster: tuple[int, int, int] = (1, 1, 1)
    maps: list[TensorMapSpec] = field(default_factory=list)
    location: tuple[Frame, ...] = ()
    shared_bytes: int = 0
    blocks_per_sm: int = 1
    registers: int = 0  # at most this many registers a thread; 0 lets the compiler choose
    debug: bool = False
    cooperative: bool = False  # all blocks run at once
    pdl: bool = False  # may begin before the kernel ahead of it in the stream has ended
    facts: dict[str, Any] = field(default_factory=dict)  # what passes found out, by pass

    @property
    def threads(self) -> int:
        return self.warps * 32

    def walk(self) -> Iterator[Op]:
        return self.body.walk()

    def __str__(self) -> str:
        return Printer(self).text()


class Printer:
    """A program as text, one operation a line with the Python line that made it."""

    def __init__(self, program: Program):
        self.program, self.names, self.out = program, {}, []  # type: ignore[var-annotated]
        for p in program.parameters:
            self.names[p.value] = p.name

    def name(self, value: Value) -> str:
        if value not in self.names:
            base = value.name or "v"
            self.names[value] = f"{base}{len(self.names)}" if not value.name or base in self.names.values() else base
        return self.names[value]

    def operand(self, item: Any) -> str:
        if isinstance(item, Value):
            return self.name(item)
        if isinstance(item, Place):
            return (
                f"{self.name(item.tensor)}[{', '.join(map(self.operand, item.first))}; "
                f"{'x'.join(map(str, item.shape))}]"
            )
        if isinstance(item, (tuple, list)):
            return "(" + ", ".join(map(self.operand, item)) + ")"
        return str(item)

    def text(self) -> str:
        p = self.program
        parameters = ", ".join(f"{q.name}: {q.value.type}" for q in p.parameters)
        self.out = [f"kernel {p.name}({parameters})  # {p.warps} warps, {p.shared_bytes} bytes shared"]
        for b in p.buffers:
            count = f"{b.count} x " if b.count > 1 else ""
            self.out.append(
                f"  shared {self.name(b.value)}: {count}{b.item}  # bytes {b.offset} to {b.offset + b.bytes}"
            )
        self.block(p.body, 1)
        return "\n".join(self.out)

    def block(self, block: Block, depth: int) -> None:
        for op in block:
            results = ", ".join(f"{self.name(r)}: {r.type}" for r in op.results)
            fields = ", ".join(f"{k}={self.operand(v)}" for k, v in op.fields() if not isinstance(v, Block))
            line = f"  # {op.location[0].line}" if op.location else ""
            head = f"{results} = " if results else ""
            self.out.append(f"{'  ' * depth}{head}{op.scope}.{op.name}({fields}){line}")
            for inner in op.blocks():
                self.out.append("  " * depth + "{")
                self.block(inner, depth + 1)
                self.out.append("  " * depth + "}")
