"""A traced kernel as data: values, operations, regions, and the program that holds them.

An operation is an instance of an `Op` subclass; its dataclass fields are its operands (`Value`s, or
tuples and `Place`s that contain them), its regions (`Block`s) and its static attributes. Passes and back ends
never know operations by name: they read an operation's four faces, which are the methods of `Op`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Union

from .errors import Frame
from .types import BarrierType, Global, ScalarType, SharedTile, SharedVector, Type


class Value:
    """What an operation made, or a parameter or buffer of the kernel.

    `name` is what a diagnosis calls it; `where` is the line that made it.
    """

    def __init__(self, type: Type, name: str = ""):
        self.type, self.name = type, name
        self.location: tuple[Frame, ...] = ()
        self.block: Block | None = None  # the region that made it; None for parameters and buffers
        self.producer: Op | None = None
        self.multiple = 1  # of an integer without a producer: a number it is certainly a multiple of

    @property
    def label(self) -> str:
        """What an error calls it: its name, the expression that made it, or its type."""
        return self.name or (self.producer.expression if self.producer is not None else "") or str(self.type)


Operand = Any  # Value | int | float: a scalar operand may be a Python number, known at trace time


@dataclass(frozen=True)
class Scope:
    """The set of threads that does an operation together: `warps` consecutive warps."""

    name: str
    warps: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Place:
    """A rectangle (or run) of elements of a global tensor: first element and shape, in elements.

    `first` is (batch, depth, row, col). What lies past the end of rows or columns reads as zero
    and is not written.
    """

    tensor: Value
    first: tuple[Operand, Operand, Operand, Operand]
    shape: tuple[int, ...]  # (rows, cols), or (length,) along the columns

    @property
    def type(self) -> Global:
        type = self.tensor.type
        assert isinstance(type, Global)
        return type

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def cols(self) -> int:
        return self.shape[-1]

    def inside_columns(self) -> bool:
        """Whether no column can lie past the end, whatever the arguments are."""
        dim, col = self.type.padded[3], self.first[3]
        return isinstance(dim, int) and isinstance(col, int) and col + self.cols <= dim

    def inside_rows(self) -> bool:
        """Whether no row can lie past the end, whatever the arguments are."""
        dim, row = self.type.padded[2], self.first[2]
        return isinstance(dim, int) and isinstance(row, int) and row + self.rows <= dim


# Which warps of the scope touch which elements of an access.
Split = Literal["rows", "threads", "warps", "all", "one"]


@dataclass(frozen=True)
class Access:
    """One effect: an operation reads or writes shared or global memory, or registers after it has returned.

    mode "reduce" is a write that other reductions of the same operation may overlap. proxy: "generic" (ordinary loads
    and stores) or "async" (TMA and wgmma). done: when it is finished: "now", the name of the group queue it joins
    ("wgmma", "cp.async", "bulk"; "bulk.read" is finished when its source may be overwritten), or the mbarrier it
    completes on (whose pending bytes it pays when it writes shared memory). split: which warps of the scope touch which
    elements: "rows" (16 in turn), "threads" (16-byte vectors in turn), "warps" (equal parts), "all" (each warp touches
    everything), "one" (an elected thread). rank: the block of the cluster whose shared memory is meant (None: the own);
    mask: multicast, bit r set writes the same bytes, and pays the same barrier, of block r. at: only this element of a
    shared vector.
    """

    target: Value | Place
    mode: Literal["read", "write", "reduce"]
    split: Split = "all"
    proxy: Literal["generic", "async"] = "generic"
    done: str | Value = "now"
    rank: Operand | None = None
    mask: Operand | None = None
    at: Operand | None = None


@dataclass(frozen=True)
class Sync:
    """One effect that orders others.

    kind: "barrier" (the scope's warps meet), "cluster" (all warps of all blocks of the cluster meet), "arrive" (`count`
    arrivals at an mbarrier, one from the scope, which first adds `bytes` to what its phase waits for; or the scope's
    warps are counted at a named barrier), "wait" (until the phase with parity `phase` of an mbarrier has ended; or for
    a named barrier, counting the scope's warps too), "commit" and "join" (a group queue named `queue`; `pending` groups
    may stay unfinished), "fence" (generic writes known to this thread become visible to the async proxy). target: the
    barrier, its item `index` for named ones; rank: the block of the cluster whose barrier is meant (None: the own).
    """

    kind: Literal["barrier", "cluster", "arrive", "wait", "commit", "join", "fence"]
    target: Value | None = None
    queue: str = ""
    pending: int = 0
    phase: Operand = 0
    bytes: Operand = 0
    count: int = 1
    index: Operand = 0
    rank: Operand | None = None


Effect = Union[Access, Sync]


CLUSTER, BLOCK = -1, 0  # for `Op.uniform_over`


class Op:
    """Base of all operations. A subclass is a frozen-by-habit dataclass whose first field is `scope`.

    The four faces: `types` (the type rule; raises the user's error), `numpy` (its meaning on arrays whose
    first axis counts the units of the scope that run it together), `cuda` (its CUDA C), and `effects`.
    """

    scope: Scope
    location: tuple[Frame, ...] = ()
    results: tuple[Value, ...] = ()
    writes: ClassVar[tuple[str, ...]] = ()  # fields whose register operands change in place
    collective: ClassVar[bool] = True  # all threads of the scope must come to it
    uniform_over: int = (
        CLUSTER  # how many warps in turn get the same results from the same operands at most, or BLOCK, or CLUSTER
    )
    single_thread: ClassVar[bool] = False  # one thread can do it alone: issued by an elected one

    def types(self) -> tuple[Type, ...]:
        """The types of the results; raises `TypeRuleError` for operands it does not take."""
        return ()

    @classmethod
    def samples(cls) -> Iterable[Any]:
        """Small configurations of it (`ops.samples.Sample`) for the conformance tests; none for what only orders others."""
        return ()

    def numpy(self, m: Any, *args: Any) -> Any:
        """The meaning on a CPU: `m` is the machine. Returns one array per result (or one, or None)."""
        raise NotImplementedError(f"{type(self).__name__} has no meaning on the CPU")

    def cuda(self, c: Any) -> None:
        """Writes its CUDA C to the writer `c`."""
        raise NotImplementedError(f"{type(self).__name__} has no CUDA text")

    def effects(self) -> tuple[Effect, ...]:
        """What it reads and writes in memory, and what it orders."""
        return ()

    def tensor_maps(self) -> tuple[TensorMapSpec, ...]:
        """The tensor maps that the launcher must pass for it."""
        return ()

    def flops(self) -> int:
        """Matrix multiply-adds of one unit of the scope, counted as two."""
        return 0

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @property
    def expression(self) -> str:
        """What an error calls its result where that has no name; empty for the type of the result."""
        return ""

    @property
    def result(self) -> Value:
        return self.results[0]

    # Walking ------------------------------------------------------------------------------------------

    def fields(self) -> list[tuple[str, Any]]:
        """Its dataclass fields by name, `scope` left out."""
        return [(name, getattr(self, name)) for name in _fields(type(self))]  # type: ignore[arg-type]

    def operands(self) -> Iterable[Value]:
        """Every value it mentions, regions left out."""
        return [value for _, item in self.fields() for value in values_in(item)]

    def depends_on(self) -> Iterable[Value]:
        """The values that what it makes or changes follows from: its operands, but for one that it overwrites."""
        return self.operands()

    def blocks(self) -> list[Block]:
        """Its regions."""
        return [item for _, item in self.fields() if isinstance(item, Block)]


@functools.cache
def _fields(op: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(op) if f.name != "scope")


def values_in(item: Any) -> list[Value]:
    """The values inside an operand: a value, a tuple or list of them, or a place."""
    if isinstance(item, Value):
        return [item]
    if isinstance(item, (tuple, list)):
        return [value for part in item for value in values_in(part)]
    return [item.tensor, *values_in(item.first)] if isinstance(item, Place) else []


@dataclass
class Block:
    """A region: operations in order."""

    ops: list[Op] = field(default_factory=list)
    parent: Block | None = None

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def walk(self) -> Iterator[Op]:
        """All operations, regions included, in order."""
        for op in self.ops:
            yield op
            for block in op.blocks():
                yield from block.walk()


@dataclass
class Buffer:
    """A piece of shared memory: `count` items of a type. `offset` (bytes) is set by the shared-memory plan."""

    value: Value
    count: int
    align: int
    offset: int = -1

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


@dataclass(frozen=True)
class TensorMapSpec:
    """A tensor map the launcher must build: which tensor, the box (rows, cols), and the swizzle in bytes (0: a vector).

    `panels`: the map has a dimension that counts panels of `swizzle` bytes, of a vector 256 elements, see `ops/tma.py`.
    """

    tensor: str
    box: tuple[int, int]
    swizzle: int
    panels: bool


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
            return f"{self.name(item.tensor)}[{', '.join(map(self.operand, item.first))}; {'x'.join(map(str, item.shape))}]"
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


def mapped(item: Any, change: Callable[[Value], Value]) -> Any:
    """An operand with every value in it replaced by `change(value)`."""
    if isinstance(item, Value):
        return change(item)
    if isinstance(item, tuple):
        return tuple(mapped(part, change) for part in item)
    if isinstance(item, Place):
        return Place(change(item.tensor), mapped(item.first, change), item.shape)
    return item


def is_scalar(operand: Operand) -> bool:
    """Whether an operand is a number known now or a traced scalar."""
    return isinstance(operand, (bool, int, float)) or (
        isinstance(operand, Value) and isinstance(operand.type, ScalarType)
    )
