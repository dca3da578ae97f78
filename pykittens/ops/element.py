"""One element of a global tensor or shared vector, as a scalar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Place, Scope, Value
from ..thread_map import ONE_THREAD
from ..types import DType, ScalarType, SharedVector, Type, bf16, f16, f32, i8, i32, i64, u8
from .addressing import MEMORY, VECTOR, GlobalText, vector_address
from .conversion import conversion_numerics, convert
from .samples import Rectangle, Sample, pasted
from .scalars import as_number, check_fits, check_index, scalar_dtype

# A value that one thread of a warp has, and then all; elsewhere it is 0.
GIVEN = """
__device__ __forceinline__ u32 pk_given(u32 x) { return __reduce_or_sync(0xffffffffu, x); }
__device__ __forceinline__ pk_u32x2 pk_given(pk_u32x2 v) { return {pk_given(v.x), pk_given(v.y)}; }
"""


def check_memory(memory: Value | Place, what: str) -> None:
    """The element can be reached: of a shared tile none can."""
    if isinstance(memory, Value) and not isinstance(memory.type, SharedVector):
        fix = "store or load a part of a shared tile; shared vectors and tensors have elements"
        raise TypeRuleError(f"{what} of {memory.label}: {memory.type}", fix=fix)


def scalar_to_memory(c: CudaWriter, x: Operand, memory: DType) -> str:
    """C for a scalar as it lies in memory."""
    held = scalar_dtype(x) or (f32 if memory.kind == "f" else i64)
    return str(c.to_memory(c.scalar(x, held), memory, held))


@dataclass(eq=False)
class LoadScalar(Op):
    """One element of a global tensor or shared vector, read by every thread.

    `repeated` (set by passes/polling.py): a `pk.loop` may wait for it: every pass reads it anew (C "volatile").
    by_one: of shared memory, one thread of each warp reads it, and gives it to the others.
    """

    spelling = "a read of an element"

    scope: Scope
    source: Value | Place
    at: Operand = 0
    repeated: bool = False
    by_one: bool = False

    collective = False

    def types(self) -> tuple[Type, ...]:
        check_memory(self.source, "an element")
        check_index(self.at, "the index of an element")
        dtype = self.source.type.dtype  # type: ignore[union-attr]
        return (ScalarType(f32 if dtype.kind == "f" else i32 if dtype.bits < 32 else dtype),)

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(self.source.type.dtype, self.result.type.dtype)  # type: ignore[union-attr]

    def numpy(self, m: NumpyMachine) -> Any:
        return convert(m.read_element(self.source, self.at), self.result.type.dtype)  # type: ignore[union-attr]

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", at=None if isinstance(self.source, Place) else self.at),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        dtype, held = self.source.type.dtype, self.result.type.dtype  # type: ignore[union-attr]
        if isinstance(self.source, Place):
            g = GlobalText(c, self.source)
            pointer = f"(volatile {g.qualifier}{g.element}*){g.pointer}" if self.repeated else f"({g.pointer})"
            c.define(self.result, c.from_memory(f"*{pointer}", dtype, held))
        else:
            word = VECTOR[dtype.size]
            text = f"pk_ld_shared<{word}>({vector_address(c, self.source, c.scalar(self.at, i32))})"
            if self.by_one and not c.elected:
                c.prelude(GIVEN)
                text = f"({word})pk_given({c.one()} ? {text} : {word}{{}})"
            c.define(self.result, c.from_memory(c.bits(text, dtype), dtype, held))

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, f16, i32, u8, i8, i64):
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample({"source": place}, lambda source: source[1, 2], exact=True)
            yield Sample(
                {"source": SharedVector(dtype, 32), "at": ScalarType(i32)},
                lambda source, at: source[at],
                {"at": "counts"},
                exact=True,
            )
            given = {"source": SharedVector(dtype, 32), "at": 3, "by_one": True}
            yield Sample(given, lambda source: source[3], exact=True)


@dataclass(eq=False)
class StoreScalar(Op):
    """One element of a global tensor or shared vector, written by one thread of the scope."""

    spelling = "{scope}.set"

    scope: Scope
    target: Value | Place
    value: Operand
    at: Operand = 0

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    def types(self) -> tuple[Type, ...]:
        check_memory(self.target, "set")
        check_index(self.at, "the index of an element")
        scalar_dtype(self.value)
        check_fits(self.value, self.memory, "set")
        return ()

    @property
    def memory(self) -> DType:
        return self.target.type.dtype  # type: ignore[union-attr]

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(scalar_dtype(self.value) or self.memory, self.memory)

    def numpy(self, m: NumpyMachine) -> None:
        m.write_element(self.target, self.at, as_number(m.unit_scalar(self.value), self.memory))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", ONE_THREAD, at=None if isinstance(self.target, Place) else self.at),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        dtype = self.memory
        value = scalar_to_memory(c, self.value, dtype)
        c.line("{")
        if isinstance(self.target, Place):
            g = GlobalText(c, self.target, const=False)
            c.line(f"if ({c.thread(self.scope)} == 0) *({g.pointer}) = {value};")
        else:
            c.line(
                f"if ({c.thread(self.scope)} == 0) "
                f"pk_st_shared({vector_address(c, self.target, c.scalar(self.at, i32))}, {c.raw(value, dtype)});"
            )
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, bf16, i32, u8, i64):
            place, value = (
                Rectangle(dtype, (1,), (3, 5), (1, 2), known=False),
                ScalarType(f32 if dtype.kind == "f" else i32),
            )
            inputs = {"value": "counts"}
            yield Sample(
                {"target": place, "value": value},
                lambda target, value, p=place: pasted(target, value, p),
                inputs,
                exact=True,
            )
            shared = {"target": SharedVector(dtype, 32), "value": value, "at": 3}
            yield Sample(
                shared, lambda target, value: np.concatenate([target[:3], [value], target[4:]]), inputs, exact=True
            )
