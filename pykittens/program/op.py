"""An operation and its four faces, and regions of operations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import Frame
from ..numerics import Numerics
from ..types import Type
from .effects import Effect
from .interfaces import CudaWriter, Derivation, NumpyMachine
from .tensor_map import TensorMapSpec
from .values import Scope, Value, values_in

CLUSTER, BLOCK = -1, 0  # for `Op.uniform_over`
Shares = Iterable[tuple[Any, Callable[[], Any]]]  # operands, and what gives each its share of a cotangent


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
    numerics: Numerics | None = None  # what it promises about the numbers it makes; None where it makes none
    spelling: ClassVar[str] = ""  # how authors spell it, where that is not the class's name: "{scope}.set"
    single_thread: ClassVar[bool] = False  # one thread can do it alone: issued by an elected one
    no_vjp: ClassVar[str] = ""  # why floats that it makes of floats have no derivative here
    pointwise: ClassVar[bool] = False  # each element follows from those at its place: `vjp` takes unsummed cotangents
    # The compiler orders it with what other lanes of its warp do before and after: `passes/lanes.py`.
    lanes_ordered: bool = False

    def types(self) -> tuple[Type, ...]:
        """The types of the results; raises `TypeRuleError` for operands it does not take."""
        return ()

    @classmethod
    def samples(cls) -> Iterable[Any]:
        """Small configurations of it (`ops.samples.Sample`) for the conformance tests; none for what only orders
        others.
        """
        return ()

    def numpy(self, m: NumpyMachine, *args: Any) -> Any:
        """The meaning on a CPU: `m` is the machine, which has NumPy ignore what floats overflow or lose. Returns one
        array per result (or one, or None).
        """
        raise NotImplementedError(f"{type(self).__name__} has no meaning on the CPU")

    def cuda(self, c: CudaWriter) -> None:
        """Writes its CUDA C to the writer `c`."""
        raise NotImplementedError(f"{type(self).__name__} has no CUDA text")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        """The derivative, as a vector-Jacobian product: each operand of floats with what gives its share of the
        results' cotangents. `trace/derivatives.py` walks a function backwards with it.
        """
        raise NotImplementedError(self.no_vjp or f"{self.name} has no derivative")

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
    def spelled(self) -> str:
        """It as the author wrote it, for errors: `spelling` with the scope, and the kind if it has one, filled in."""
        return (self.spelling or "{scope}." + self.name).format(scope=self.scope, kind=getattr(self, "kind", ""))

    def refuse_crowd(self) -> None:
        """Raises where several warps do together what only one thread may, since all would need the result."""

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
        found: list[Value] = []
        for name in _operand_fields(type(self)):  # type: ignore[arg-type]
            item = getattr(self, name)
            if isinstance(item, Value):
                found.append(item)
            elif item is not None:
                found += values_in(item)
        return found

    def depends_on(self) -> Iterable[Value]:
        """The values that what it makes or changes follows from: its operands, but for one that it overwrites."""
        return self.operands()

    def blocks(self) -> list[Block]:
        """Its regions."""
        return [getattr(self, name) for name in _regions(type(self))]  # type: ignore[arg-type]


@functools.cache
def _fields(op: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(op) if f.name != "scope")


@functools.cache
def _operand_fields(op: Any) -> tuple[str, ...]:
    """The fields that may hold values: all whose annotation says no other type."""
    return tuple(f.name for f in dataclasses.fields(op) if f.name != "scope" and f.type not in _NO_VALUE)


_NO_VALUE = ("str", "int", "bool", "float", "DType", "Scope", "str | None", "int | None", str, int, bool, float)


@functools.cache
def _regions(op: Any) -> tuple[str, ...]:
    """The fields that are annotated as a `Block`: most operations have none, and are asked at every walk."""
    return tuple(f.name for f in dataclasses.fields(op) if f.type in ("Block", Block))


@dataclass(eq=False)
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
            if _regions(type(op)):  # type: ignore[arg-type]
                for block in op.blocks():
                    yield from block.walk()
