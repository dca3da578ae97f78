"""Memory order between threads: fences, and loads and stores of one element with an order (PTX ISA, "memory consistency
model").

What a thread did before a *release* is known to a thread that reads the released value with an *acquire*, where the
scopes of both hold both threads: "cta" (the block), "cluster", "gpu". A relaxed access after a fence releases what the
fence knew; a fence after a relaxed access acquires. The threads of a warp are brought together around each of them
(`__syncwarp`), so that what one lane releases or acquires, the warp does; a wider scope meets in its barrier before it
releases.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import EXACT, MOVES
from ..program import Access, CudaWriter, Effect, MemoryScope, NumpyMachine, Op, Operand, Order, Place, Scope, Sync
from ..thread_map import ONE_THREAD
from ..types import DType, ScalarType, Type, f32, i32, i64, u32
from .addressing import MEMORY, GlobalText
from .samples import Rectangle, Sample, pasted
from .scalars import as_dtype, as_number, promoted, scalar_dtype

SCOPES = ("cta", "cluster", "gpu")
ACQUIRES, RELEASES = ("acquire", "acq_rel"), ("release", "acq_rel")
DTYPES = (i32, u32, f32, i64)


def check_order(word: str, order: str, orders: tuple[str, ...], memory_scope: str) -> None:
    """The order is one of those that this operation may have, and the scope one that PTX knows."""
    if order not in orders:
        raise TypeRuleError(f"{word} with order={order!r}", fix=f"the order is one of {', '.join(orders)}")
    if memory_scope not in SCOPES:
        raise TypeRuleError(f"{word} with scope={memory_scope!r}", fix=f"the scope is one of {', '.join(SCOPES)}")


def check_element(word: str, place: Place, dtypes: tuple[DType, ...] = DTYPES) -> DType:
    """The element's dtype, which is one that a strong access may have."""
    dtype = place.type.dtype
    if dtype not in dtypes:
        raise TypeRuleError(
            f"{word} of {place.tensor.label}: {dtype}", fix=f"it takes {', '.join(d.name for d in dtypes)}"
        )
    return dtype


def element_access(c: CudaWriter, place: Place, instruction: str, memory_scope: str) -> tuple[str, str]:
    """The instruction with its scope and width, and the element's pointer: ("ld.acquire.gpu.global.b32", "p")."""
    c.prelude(MEMORY)
    pointer = GlobalText(c, place, const=False).pointer
    return f"{instruction}.{memory_scope}.global.b{place.type.dtype.bits}", pointer


def letter(dtype: DType) -> str:
    """The letter of an inline-PTX operand of this dtype."""
    return "f" if dtype is f32 else "l" if dtype.bits == 64 else "r"


class _Ordered(Op):
    """What has a `memory_scope`. Of a warp, one thread can do it; a wider scope may have to meet."""

    memory_scope: MemoryScope

    @property
    def single_thread(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    def _require(self, c: CudaWriter) -> None:
        if self.memory_scope == "cluster":
            c.require("clusters", self)


@dataclass(eq=False)
class MemoryFence(_Ordered):
    """Orders the warp's accesses before it and after it for all threads of the memory scope (PTX "membar, fence":
    fence.acq_rel)."""

    spelling = "pk.fence"

    scope: Scope
    memory_scope: MemoryScope = "gpu"

    def types(self) -> tuple[Type, ...]:
        check_order("pk.fence", "acq_rel", ("acq_rel",), self.memory_scope)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("memory fence", scope=self.memory_scope),)

    def cuda(self, c: CudaWriter) -> None:
        # __syncwarp(); asm volatile("fence.acq_rel.gpu;" ::: "memory"); __syncwarp();
        self._require(c)
        together = "" if c.elected else "__syncwarp(); "
        c.line(f'{together}asm volatile("fence.acq_rel.{self.memory_scope};" ::: "memory"); {together}'.strip())


@dataclass(eq=False)
class StrongLoad(_Ordered):
    """One element of a tensor, read by one thread of the warp with an order; the whole warp gets it (PTX "ld")."""

    spelling = "a strong load"

    scope: Scope
    source: Place
    order: Order = "acquire"
    memory_scope: MemoryScope = "gpu"

    uniform_over = 1

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_order("a load", self.order, ("relaxed", "acquire"), self.memory_scope)
        return (ScalarType(check_element("a load with an order", self.source)),)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.read_element(self.source, 0)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", ONE_THREAD, order=self.order, scope=self.memory_scope),)

    def cuda(self, c: CudaWriter) -> None:
        # int x = 0; if (lane == 0) asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
        self._require(c)
        dtype, x = self.source.type.dtype, c.fresh("x")
        name, pointer = element_access(c, self.source, f"ld.{self.order}", self.memory_scope)
        text = f'asm volatile("{name} %0, [%1];" : "={letter(dtype)}"({x}) : "l"({pointer}) : "memory");'
        if c.elected:
            c.line(f"{dtype.c} {x}; {text}")
            c.define(self.result, x)
            return
        c.line(f"{dtype.c} {x} = 0; if (lane == 0) {text}")
        c.define(self.result, f"__shfl_sync(0xffffffffu, {x}, 0)")
        if self.order in ACQUIRES:
            c.line("__syncwarp();")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, order, reach in zip(DTYPES, ("acquire", "relaxed") * 2, ("gpu", "cta", "gpu", "gpu"), strict=True):
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample(
                {"source": place, "order": order, "memory_scope": reach}, lambda source: source[1, 2], exact=True
            )


@dataclass(eq=False)
class StrongStore(_Ordered):
    """One element of a tensor, written by one thread of the scope with an order (PTX "st")."""

    spelling = "{scope}.set"

    scope: Scope
    target: Place
    value: Operand
    order: Order = "release"
    memory_scope: MemoryScope = "gpu"

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_order("a store", self.order, ("relaxed", "release"), self.memory_scope)
        dtype = check_element("a store with an order", self.target)
        if scalar_dtype(self.value) is not None and dtype.kind != "f" and promoted(self.value, 0).kind == "f":
            raise TypeRuleError(
                f"set of a float in {self.target.tensor.label}: {dtype}", fix=f"convert with pk.cast(x, pk.{dtype})"
            )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        m.write_element(self.target, 0, as_number(m.unit_scalar(self.value), self.target.type.dtype))

    def effects(self) -> tuple[Effect, ...]:
        store = Access(self.target, "write", ONE_THREAD, order=self.order, scope=self.memory_scope)
        return _after_meeting(self.scope, self.order, store)

    def cuda(self, c: CudaWriter) -> None:
        # __syncwarp(); if (lane == 0) asm volatile("st.release.gpu.global.b32 [%0], %1;" :: "l"(p), "r"(v) : "memory");
        self._require(c)
        dtype = self.target.type.dtype
        name, pointer = element_access(c, self.target, f"st.{self.order}", self.memory_scope)
        value = as_dtype(c, self.value, dtype)
        if self.order in RELEASES and not c.elected:
            c.line(c.barrier(self))
        text = f'asm volatile("{name} [%0], %1;" :: "l"({pointer}), "{letter(dtype)}"({value}) : "memory");'
        c.line(text if c.elected else f"if ({c.thread(self.scope)} == 0) {text}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, order, reach in zip(DTYPES, ("release", "relaxed") * 2, ("gpu", "cta", "gpu", "gpu"), strict=True):
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            for warps in (1, 2):
                yield Sample(
                    {"target": place, "value": ScalarType(dtype), "order": order, "memory_scope": reach},
                    lambda target, value, p=place: pasted(target, value, p),
                    {"value": "counts"},
                    exact=True,
                    warps=warps,
                )


@dataclass(eq=False)
class Signal(_Ordered):
    """Adds to an element with a release, once for the scope, all of whose threads have come (PTX "red.release")."""

    spelling = "pk.signal"

    scope: Scope
    target: Place
    count: Operand
    memory_scope: MemoryScope = "gpu"
    order: Order = "release"

    numerics = EXACT.with_special("wraps")

    def types(self) -> tuple[Type, ...]:
        check_order("pk.signal", self.order, ("relaxed", "release"), self.memory_scope)
        check_element("pk.signal", self.target, (i32, u32))
        _check_count("pk.signal", self.count)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        m.atomic_element(self.target, "add", as_number(m.unit_scalar(self.count), self.target.type.dtype), None)

    def effects(self) -> tuple[Effect, ...]:
        add = Access(
            self.target,
            "reduce",
            ONE_THREAD,
            order=self.order,
            scope=self.memory_scope,
            reduction="add",
        )
        return _after_meeting(self.scope, self.order, add)

    def cuda(self, c: CudaWriter) -> None:
        # __syncwarp(); if (lane == 0) asm volatile("red.release.gpu.global.add.s32 [%0], %1;" :: "l"(p), "r"(n) :
        # "memory");
        self._require(c)
        c.prelude(MEMORY)
        dtype, pointer = self.target.type.dtype, GlobalText(c, self.target, const=False).pointer
        count = as_dtype(c, self.count, dtype)
        if self.order in RELEASES and not c.elected:
            c.line(c.barrier(self))
        name = f"red.{self.order}.{self.memory_scope}.global.add.{'s' if dtype is i32 else 'u'}32"
        text = f'asm volatile("{name} [%0], %1;" :: "l"({pointer}), "r"({count}) : "memory");'
        c.line(text if c.elected else f"if ({c.thread(self.scope)} == 0) {text}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, warps in ((i32, 1), (u32, 2)):
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample(
                {"target": place, "count": ScalarType(i32)},
                lambda target, count, p=place: pasted(target, target[1, 2] + count, p),
                {"target": "counts", "count": "counts"},
                exact=True,
                warps=warps,
            )


@dataclass(eq=False)
class WaitFor(_Ordered):
    """Waits, each warp for itself, until an element is at least `count`, and acquires what was released (PTX
    "ld.acquire").
    """

    spelling = "pk.wait_for"

    scope: Scope
    source: Place
    count: Operand
    memory_scope: MemoryScope = "gpu"
    order: Order = "acquire"

    def types(self) -> tuple[Type, ...]:
        check_order("pk.wait_for", self.order, ("relaxed", "acquire"), self.memory_scope)
        check_element("pk.wait_for", self.source, (i32, u32))
        _check_count("pk.wait_for", self.count)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        read = Access(self.source, "read", ONE_THREAD, order=self.order, scope=self.memory_scope)
        return (Sync("until", self.source, phase=self.count), read)

    def cuda(self, c: CudaWriter) -> None:
        # if (lane == 0) { int x; do asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" ...); while (x < n); }
        # __syncwarp();
        self._require(c)
        dtype, x = self.source.type.dtype, c.fresh("x")
        name, pointer = element_access(c, self.source, f"ld.{self.order}", self.memory_scope)
        load = f'asm volatile("{name} %0, [%1];" : "=r"({x}) : "l"({pointer}) : "memory");'
        loop = f"{{ {dtype.c} {x}; do {{ {load} }} while ({x} < {as_dtype(c, self.count, dtype)}); }}"
        c.line(loop if c.elected else f"if (lane == 0) {loop} __syncwarp();")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype in (i32, u32):  # what it waits for is there
            place = Rectangle(dtype, (1,), (3, 5), (1, 2), known=False)
            yield Sample({"source": place, "count": 0}, lambda source: (), {"source": "counts"}, exact=True)


def _after_meeting(scope: Scope, order: str, access: Access) -> tuple[Effect, ...]:
    """A release by several warps tells what all of them did: they meet before it."""
    return (Sync("barrier"), access) if scope.warps > 1 and order in RELEASES else (access,)


def _check_count(word: str, count: Operand) -> None:
    dtype = scalar_dtype(count)
    if dtype is not None and dtype.kind not in "iu":
        raise TypeRuleError(f"{word} of a count of {dtype}", fix="counts are integers")
