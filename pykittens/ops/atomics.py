"""One element that many threads change: atomics (PTX "atom"), and an element of shared memory by one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import ResourceError, TypeRuleError
from ..loading import dataclass
from ..numerics import EXACT, Numerics
from ..program import Access, CudaWriter, Effect, MemoryScope, NumpyMachine, Op, Operand, Order, Place, Scope, Value
from ..thread_map import ONE_THREAD
from ..types import DType, ScalarType, SharedVector, Type, f32, i32, i64, u32
from .addressing import MEMORY, GlobalText, vector_address
from .conversion import canonical, conversion_numerics
from .element import check_memory, scalar_to_memory
from .memory_order import ACQUIRES, RELEASES, check_order, letter
from .samples import Rectangle, Sample, pasted
from .scalars import as_dtype, as_number, check_index, promoted, scalar_dtype
from .unary import flushed

INTEGERS = (i32, u32, i64)
ALL = (i32, u32, f32, i64)
DTYPES = {"add": ALL, "exch": ALL, "cas": ALL, **dict.fromkeys(("min", "max", "and", "or", "xor"), INTEGERS)}


def added(old: Any, value: Any) -> Any:
    """What an atomic addition leaves: integers wrap, and float32 in global memory flushes subnormals (PTX "atom")."""
    if np.asarray(old).dtype.kind != "f":
        return np.add(old, value)
    return canonical(flushed(np.add(flushed(old), flushed(value))))


FORMULAS: dict[str, Callable[[Any, Any], Any]] = {
    "add": added,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


def shared_formula(kind: str) -> Callable[[Any, Any], Any]:
    """The formula of an atomic in shared memory, which keeps subnormals (PTX "atom"); the new value of "cas"."""

    def plain(old: Any, value: Any) -> Any:
        return canonical(np.add(old, value)) if np.asarray(old).dtype.kind == "f" else np.add(old, value)

    return plain if kind == "add" else FORMULAS["exch" if kind == "cas" else kind]


@dataclass(eq=False)
class Atomic(Op):
    """Changes one element of a tensor or shared vector in one step, once for the scope; the result is what it was.

    kind: "add" (integers wrap), "min", "max", "and", "or", "xor", "exch" (the element becomes `value`), "cas" (it
    becomes `value` where it is `expected`, bit for bit). order, memory_scope: semantics and scope (PTX ISA, "atom"). In
    a warp all threads get the result. In a wider scope only one thread may run at all: see `passes/elect.py`.
    """

    spelling = "pk.atomic_{kind}"

    scope: Scope
    target: Value | Place
    kind: str
    value: Operand
    expected: Operand | None = None
    at: Operand = 0
    order: Order = "relaxed"
    memory_scope: MemoryScope = "gpu"

    single_thread = True

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        if self.kind in ("exch", "cas"):
            return EXACT
        if self.dtype.kind != "f":
            return EXACT.with_special("wraps" if self.kind == "add" else "")
        flushes = isinstance(self.target, Place)
        return Numerics("correctly rounded", flushes=flushes, special="the order of additions is not defined")

    @property
    def dtype(self) -> DType:
        return self.target.type.dtype  # type: ignore[union-attr]

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return self.scope.warps

    @property
    def word(self) -> str:
        return f"pk.atomic_{self.kind}"

    def types(self) -> tuple[Type, ...]:
        check_memory(self.target, self.word)
        check_index(self.at, "the index of an element")
        dtype, name = self.dtype, (self.target.tensor if isinstance(self.target, Place) else self.target).label
        if dtype not in DTYPES[self.kind]:
            raise TypeRuleError(
                f"{self.word} to {name}: {dtype}",
                fix=f"it takes {', '.join(d.name for d in DTYPES[self.kind])}",
            )
        for operand in (self.value, self.expected):
            if operand is not None and scalar_dtype(operand) is not None and dtype.kind != "f":
                if promoted(operand, 0).kind == "f":
                    raise TypeRuleError(
                        f"{self.word} of a float to {name}: {dtype}",
                        fix=f"convert with pk.cast(x, pk.{dtype})",
                    )
        check_order(self.word, self.order, ("relaxed", "acquire", "release", "acq_rel"), self.memory_scope)
        if self.order != "relaxed" and not isinstance(self.target, Place):
            raise TypeRuleError(
                f"{self.word} of {name} in shared memory with order={self.order!r}",
                fix="hand over through shared memory by a barrier: warp.sync(), pk.block.sync() or pk.barrier()",
            )
        return (ScalarType(dtype),)

    def numpy(self, m: NumpyMachine) -> Any:
        if self.scope.warps > 1 and m.warps > 1:
            raise self._crowd()
        value, expected = (
            x if x is None else as_number(m.unit_scalar(x), self.dtype) for x in (self.value, self.expected)
        )
        return m.atomic_element(self.target, self.kind, value, expected, self.at)

    def effects(self) -> tuple[Effect, ...]:
        return (
            Access(
                self.target,
                "reduce",
                ONE_THREAD,
                order=self.order,
                scope=self.memory_scope,
                reduction=self.kind,
                at=None if isinstance(self.target, Place) else self.at,
            ),
        )

    def cuda(self, c: CudaWriter) -> None:
        # int old; if (lane == 0) asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(old) : "l"(p),
        # "r"(v) : "memory");
        if self.scope.warps > 1 and not c.elected:
            raise self._crowd()
        if self.memory_scope == "cluster":
            c.require("clusters", self)
        c.prelude(MEMORY)
        dtype = self.dtype
        if isinstance(self.target, Place):
            where, space, letter_ = GlobalText(c, self.target, const=False).pointer, f"{self.memory_scope}.global", "l"
        else:
            where, space, letter_ = vector_address(c, self.target, c.scalar(self.at, i32)), "cta.shared::cta", "r"
        operands = [as_dtype(c, x, dtype) for x in (self.expected, self.value) if x is not None]
        kind = letter(dtype)
        inputs = ", ".join(f'"{kind}"({x})' for x in operands)
        name = f"atom.{self.order}.{space}.{self.kind}.{_ptx_type(self.kind, dtype)}"
        places = ", ".join(f"%{i + 2}" for i in range(len(operands)))
        old = c.fresh("old")
        inputs = f'"{letter_}"({where}), {inputs}'
        text = f'asm volatile("{name} %0, [%1], {places};" : "={kind}"({old}) : {inputs} : "memory");'
        if c.elected:
            c.line(f"{dtype.c} {old}; {text}")
            c.define(self.result, old)
            return
        if self.order in RELEASES:
            c.line("__syncwarp();")
        wanted = c.used(self.result)  # else nobody waits for it
        c.line(f"{'' if wanted else '[[maybe_unused]] '}{dtype.c} {old} = 0; if (lane == 0) {text}")
        if wanted:
            c.define(self.result, f"__shfl_sync(0xffffffffu, {old}, 0)")
        if self.order in ACQUIRES:
            c.line("__syncwarp();")

    def refuse_crowd(self) -> None:
        if self.scope.warps > 1:
            raise self._crowd()

    def _crowd(self) -> ResourceError:
        return ResourceError(
            f"{self.word} by {self.scope.warps} warps, all of which would need the result",
            fix="let one warp do it (with pk.when(warp.index == 0): ..., by=warp), or do it in a role of one warp",
            location=self.location,
        )

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        orders = [("relaxed", "gpu"), ("acquire", "cta"), ("release", "gpu"), ("acq_rel", "gpu")]
        for kind, formula in FORMULAS.items():
            for dtype, (order, reach) in zip(DTYPES[kind], orders, strict=False):
                place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
                yield Sample(
                    {"target": place, "kind": kind, "value": ScalarType(dtype), "order": order, "memory_scope": reach},
                    lambda target, value, p=place, f=formula: (target[1, 2], pasted(target, f(target[1, 2], value), p)),
                    {"target": "counts", "value": "counts"},
                    exact=True,
                )
        for dtype in ALL:
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample(
                {"target": place, "kind": "cas", "value": ScalarType(dtype), "expected": ScalarType(dtype)},
                lambda target, value, expected, p=place: (
                    target[1, 2],
                    pasted(target, value if target[1, 2] == expected else target[1, 2], p),
                ),
                {"target": "ones", "value": "counts", "expected": "ones"},
                exact=True,
            )
        for kind, formula in FORMULAS.items():
            for dtype in DTYPES[kind]:
                fields = {"target": SharedVector(dtype, 32), "kind": kind, "value": ScalarType(dtype)}

                def changed(target: Any, value: Any, at: Any, f: Any = formula) -> Any:
                    return target[at], np.concatenate([target[:at], [f(target[at], value)], target[at + 1 :]])

                inputs = dict.fromkeys(("target", "value", "at"), "counts")
                yield Sample(fields | {"at": ScalarType(i32)}, changed, inputs, exact=True)


def _ptx_type(kind: str, dtype: DType) -> str:
    """What an atomic calls its operands' type: two's complement adds signed 64 bits as unsigned (PTX ISA, "atom")."""
    if kind in ("and", "or", "xor", "exch", "cas"):
        return f"b{dtype.bits}"
    if kind == "add" and dtype is i64:
        return "u64"
    return {"i": "s", "u": "u", "f": "f"}[dtype.kind] + str(dtype.bits)


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
