"""Scalars that one thread hands to others: an atomic sum in global memory, an element of shared memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ResourceError, TypeRuleError
from ..numerics import EXACT, Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Place, Scope, Value
from ..thread_map import ONE_THREAD
from ..types import DType, ScalarType, SharedVector, Type, f32, i32, u32
from .addressing import MEMORY, GlobalText, vector_address
from .conversion import conversion_numerics
from .element import scalar_to_memory
from .samples import Rectangle, Sample, pasted
from .scalars import as_dtype, as_number, promoted, scalar_dtype

DTYPES = (i32, u32, f32)


@dataclass(eq=False)
class AtomicAdd(Op):
    """Adds a scalar to one element of a tensor, atomically, once for the scope; the result is what it was before.

    In a warp all threads get the result. In a wider scope only one thread may run at all: see `passes/elect.py`.
    """

    scope: Scope
    target: Place
    value: Operand

    single_thread = True

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        if self.target.type.dtype.kind != "f":
            return EXACT.with_special("wraps")
        return Numerics("correctly rounded", flushes=True, special="the order of additions is not defined")

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return self.scope.warps

    def types(self) -> tuple[Type, ...]:
        dtype = self.target.type.dtype
        if dtype not in DTYPES:
            raise TypeRuleError(
                f"pk.atomic_add to {self.target.tensor.label}: {dtype}",
                fix=f"it takes {', '.join(d.name for d in DTYPES)}",
            )
        scalar_dtype(self.value)
        if dtype.kind != "f" and promoted(self.value, 0).kind == "f":
            raise TypeRuleError(
                f"pk.atomic_add of a float to {self.target.tensor.label}: {dtype}",
                fix=f"convert with pk.cast(x, pk.{dtype})",
            )
        return (ScalarType(dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        if self.scope.warps > 1 and m.warps > 1:
            raise self._crowd()
        return m.add_element(self.target, as_number(m.unit_scalar(self.value), self.target.type.dtype))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "reduce", ONE_THREAD, order="relaxed", reduction="add"),)

    def cuda(self, c: CudaWriter) -> None:
        if self.scope.warps > 1 and not c.elected:
            raise self._crowd()
        c.prelude(MEMORY)
        dtype = self.target.type.dtype
        g, value = GlobalText(c, self.target, const=False), as_dtype(c, self.value, dtype)
        if c.elected:
            c.define(self.result, f"atomicAdd({g.pointer}, {value})")
            return
        old = c.fresh("old")
        c.line(f"{dtype.c} {old}; if (lane == 0) {old} = atomicAdd({g.pointer}, {value});")
        c.define(self.result, f"__shfl_sync(0xffffffffu, {old}, 0)")

    def _crowd(self) -> ResourceError:
        return ResourceError(
            f"pk.atomic_add by {self.scope.warps} warps, all of which would need the result",
            fix="do it in a role of one warp, or in one where every operation is a single thread's, such as TMA loads",
            location=self.location,
        )

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in DTYPES:
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample(
                {"target": place, "value": ScalarType(dtype)},
                lambda target, value, p=place: (target[1, 2], pasted(target, target[1, 2] + value, p)),
                {"target": "counts", "value": "counts"},
                exact=True,
            )


@dataclass(eq=False)
class StoreOne(Op):
    """One elected thread of the scope writes an element of a shared vector."""

    scope: Scope
    target: Value
    value: Operand
    at: Operand = 0

    single_thread = True

    def types(self) -> tuple[Type, ...]:
        scalar_dtype(self.value)
        return ()

    @property
    def memory(self) -> DType:
        type = self.target.type
        assert isinstance(type, SharedVector)
        return type.dtype

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return conversion_numerics(scalar_dtype(self.value) or self.memory, self.memory)

    def numpy(self, m: NumpyMachine) -> None:
        m.write_element(self.target, self.at, as_number(m.unit_scalar(self.value), self.memory))

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", ONE_THREAD, at=self.at),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        value = c.raw(scalar_to_memory(c, self.value, self.memory), self.memory)
        c.line(f"{c.elect(self.scope)}pk_st_shared({vector_address(c, self.target, c.scalar(self.at, i32))}, {value});")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (f32, i32):
            fields = {"target": SharedVector(dtype, 32), "value": ScalarType(dtype), "at": 3}
            yield Sample(fields, lambda target, value: np.concatenate([target[:3], [value], target[4:]]), exact=True)
