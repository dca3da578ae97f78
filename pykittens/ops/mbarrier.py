"""Barriers in shared memory that count arrivals and bytes (PTX "mbarrier"), and the state that walks a ring of them."""

from __future__ import annotations

from typing import Literal

from ..errors import TypeRuleError
from ..loading import dataclass
from ..program import CudaWriter, Effect, NumpyMachine, Op, Operand, Scope, Sync, Value
from ..types import BarrierType, RegisterVector, ScalarType, Type, f32, i32, u32
from .scalars import check_index

MBARRIER = """
__device__ __forceinline__ void pk_mbarrier_init(u32 b, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(count) : "memory");
}
__device__ __forceinline__ void pk_mbarrier_expect(u32 b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(b), "r"(bytes) : "memory");
}
__device__ __forceinline__ void pk_mbarrier_arrive(u32 b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory");
}
__device__ __forceinline__ void pk_mbarrier_arrive_remote(u32 b, u32 rank) {
  asm volatile("{ .reg .b32 r; mapa.shared::cluster.u32 r, %0, %1;"
    " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r]; }" :: "r"(b), "r"(rank) : "memory");
}
// Thread 0 arrives; without a branch, which the compiler moves nothing across.
__device__ __forceinline__ void pk_mbarrier_arrive_first(u32 b, u32 thread) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, %1, 0; @p mbarrier.arrive.shared::cta.b64 _, [%0]; }"
    :: "r"(b), "r"(thread) : "memory");
}
// The same after x has been computed: no arithmetic gives the NaN that it is compared with.
template<int R> __device__ __forceinline__ void pk_mbarrier_arrive_after(u32 b, u32 thread, const float (&x)[R]) {
  bool is = thread == 0;
  PK_UNROLL for (int i = 0; i < R; i++) is &= __float_as_uint(x[i]) != 0x7f8badadu;
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; @p mbarrier.arrive.shared::cta.b64 _, [%0]; }"
    :: "r"(b), "r"((u32)is) : "memory");
}
// A thread for each block; what was read is handed over, nothing written, so the scope need not be the cluster.
template<int N> __device__ __forceinline__ void pk_mbarrier_release(u32 b, u32 thread) {
  asm volatile("{ .reg .pred p; .reg .b32 r; setp.lt.u32 p, %1, %2; @p mapa.shared::cluster.u32 r, %0, %1;"
    " @p mbarrier.arrive.shared::cluster.b64 _, [r]; }" :: "r"(b), "r"(thread), "n"(N) : "memory");
}
"""

# An arrival does not wait for the loads before it: ptxas gives it no scoreboard, and shared memory's queue lets it pass
# them, so that a slot was seen to be filled again before it had been read. A proxy fence, which PTX asks for between a
# read through the generic proxy and a write through the async one, holds the arrival until loads have been performed.
READ_FENCE = 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");'

# Where what a wait acquires may come from: qualifiers of the polling instruction, and what follows the loop.
Acquire = Literal["cta", "cluster", "terms"]
_ACQUIRES: dict[Acquire, tuple[str, str]] = {
    "cta": ("", ""),  # acquire.cta by default
    "cluster": (".acquire.cluster", ""),  # invalidates L1 once, when the phase has ended
    # PTX ISA "membar, fence": only accesses to shared memory are ordered, of what the cluster released; no L1 holds it.
    "terms": (".relaxed.cluster", "fence.acquire.sync_restrict::shared::cluster.cluster;"),
}


def waiting(acquire: Acquire) -> str:
    """Device functions that ask whether a phase has ended, and wait until it has (PTX "mbarrier.try_wait")."""
    how, after = _ACQUIRES[acquire]
    test = f"mbarrier.try_wait.parity{how}.shared::cta.b64 p"
    return f"""
__device__ __forceinline__ bool pk_mbarrier_try_{acquire}(u32 b, u32 phase) {{
  u32 done;
  asm volatile("{{ .reg .pred p; {test}, [%1], %2; {after} selp.u32 %0, 1, 0, p; }}"
    : "=r"(done) : "r"(b), "r"(phase) : "memory");
  return done;
}}
__device__ __forceinline__ void pk_mbarrier_wait_{acquire}(u32 b, u32 phase) {{
  asm volatile("{{ .reg .pred p; L%=: {test}, [%0], %1; @p bra D%=; bra L%=; D%=: {after} }}"
    :: "r"(b), "r"(phase) : "memory");
}}
"""


def check_barrier(barrier: Value) -> None:
    """The operand is one mbarrier."""
    if not isinstance(barrier.type, BarrierType):
        raise TypeRuleError(
            f"{barrier.label} is {barrier.type}, not an mbarrier", fix="make one with pk.barrier(count)"
        )
    if getattr(barrier, "count", 1) > 1:
        raise TypeRuleError(f"{barrier.label} is an array of barriers", fix="index one: barriers[i]")


@dataclass(eq=False)
class Arrive(Op):
    """One thread of the scope arrives, and first adds `bytes` to what the phase waits for (expect_tx)."""

    spelling = "pk.arrive"

    scope: Scope
    barrier: Value
    bytes: Operand = 0
    rank: Operand | None = None  # the block of the cluster whose barrier is meant; None: the own
    # n > 0: a slot of a ring goes back to all n blocks of the cluster: one thread for each arrives at its barrier
    spread: int = 0
    after: Value | None = (
        # a float32 vector that is computed first. ptxas moves no wait for products above an arrival: this keeps one
        # back
        None
    )
    lanes_ordered: bool = False  # after all that the lanes of its warp have done
    gives: tuple[
        Value, ...
    ] = ()  # the tiles of a ring, of which it gives back a slot: what it hands over; none: anything

    fenced: bool = False  # set by passes/read_fences.py: a fence stands behind the loads of what is given back

    single_thread = True

    @property
    def fences(self) -> bool:
        """Whether it may give back what its warp has read by ordinary loads: a wider scope has read by wgmma alone."""
        anything = not self.lanes_ordered and isinstance(self.bytes, int) and self.bytes == 0  # `pk.arrive`
        return bool(self.gives or anything) and self.scope.warps == 1

    def types(self) -> tuple[Type, ...]:
        check_barrier(self.barrier)
        if self.after is not None and not (
            isinstance(self.after.type, RegisterVector) and self.after.type.dtype == f32
        ):
            raise TypeRuleError(
                f"a release after {self.after.type}",
                fix="pass a float32 vector that follows from what shall come before it",
            )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        if self.spread:
            return tuple(Sync("arrive", self.barrier, rank=rank) for rank in range(self.spread))
        return (Sync("arrive", self.barrier, bytes=self.bytes, rank=self.rank),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MBARRIER)
        c.require("mbarrier bytes", self)
        b = c[self.barrier]
        if self.fences and not self.fenced and c.has("tma"):
            c.line(f"{READ_FENCE}  // loads of what is given back have been performed")
        if self.spread:
            c.line(f"pk_mbarrier_release<{self.spread}>({b}, {c.thread(self.scope)});")
            return
        elect = c.elect(self.scope)
        if self.rank is not None:
            c.line(f"{elect}pk_mbarrier_arrive_remote({b}, {c.scalar(self.rank, i32)});")
        elif isinstance(self.bytes, int) and self.bytes == 0:
            wide = elect and self.scope.warps > 1
            if wide and self.after is not None:
                c.line(f"pk_mbarrier_arrive_after({b}, {c.thread(self.scope)}, {c[self.after]});")
                return
            c.line(
                f"pk_mbarrier_arrive_first({b}, {c.thread(self.scope)});"
                if wide
                else f"{elect}pk_mbarrier_arrive({b});"
            )
        else:
            c.line(f"{elect}pk_mbarrier_expect({b}, {c.scalar(self.bytes, i32)});")


@dataclass(eq=False)
class Wait(Op):
    """Waits until the phase with parity `phase` (0 or 1) has ended."""

    spelling = "pk.wait"

    scope: Scope
    barrier: Value
    phase: Operand

    acquire: Acquire = "cta"  # set by passes/remote.py

    single_thread = True  # may run in one elected thread
    collective = True

    def types(self) -> tuple[Type, ...]:
        check_barrier(self.barrier)
        check_index(self.phase, "the phase of an mbarrier")
        if not isinstance(self.phase, Value) and self.phase not in (0, 1):
            raise TypeRuleError(f"a wait for phase {self.phase}", fix="pass the parity, 0 or 1: phase % 2")
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("wait", self.barrier, phase=self.phase),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MBARRIER)
        c.require("mbarrier bytes", self)
        c.prelude(waiting(self.acquire))
        phase = c.scalar(self.phase, u32)
        call = f"{self.acquire}({c[self.barrier]}, {phase})"
        if c.debug:
            c.bounded(self, f"pk_mbarrier_try_{call}", phase, self.barrier)
        else:
            c.line(f"pk_mbarrier_wait_{call};")


@dataclass(eq=False)
class Advance(Op):
    """Moves a cursor (index, phase) to the next of `stages` slots; the phase flips after the last."""

    scope: Scope
    index: Value
    phase: Value | None
    stages: int

    writes = ("index", "phase")
    collective = False
    single_thread = True

    def types(self) -> tuple[Type, ...]:
        assert isinstance(self.index.type, ScalarType)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        index = m.scalar(self.index) + 1
        wrapped = index == self.stages
        m.assign(self.index, m.choose(wrapped, 0, index))
        if self.phase is not None:
            phase = m.scalar(self.phase)
            m.assign(self.phase, m.choose(wrapped, phase ^ 1, phase))

    def cuda(self, c: CudaWriter) -> None:
        flip = f" {c[self.phase]} ^= 1;" if self.phase is not None else ""
        if self.stages == 1:
            c.line(flip.strip() or ";")
        else:
            c.line(f"if (++{c[self.index]} == {self.stages}) {{ {c[self.index]} = 0;{flip} }}")
