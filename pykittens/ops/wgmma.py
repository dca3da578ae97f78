"""The asynchronous tensor core of a warpgroup (PTX "wgmma"): one call is one group; `WgmmaWait` waits for it.

Shapes are m64 n8..256, and along k 32 bytes: k16 of 16-bit elements, k32 of 8-bit floats and integers, k8 of float32
(as tf32). A comes from shared memory or, of 16 bits, from registers, B from shared memory. Until it has been waited
for, the accumulator and a register A must not be touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import descriptor_base, descriptor_step
from ..loading import dataclass
from ..numerics import EXACT, Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Sync, Value
from ..thread_map import MatrixOperand
from ..types import DType, RegisterTile, SharedTile, Type, bf16, e4m3, e5m2, f16, f32, i8, i32, u8
from .broadcast import register_type
from .conversion import canonical
from .matmul_base import Product, check_shapes, formula, multiply
from .mma_bytes import PTX, integer_product
from .samples import Sample
from .views import Item

WGMMA = """
__device__ __forceinline__ void pk_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void pk_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template<int N> __device__ __forceinline__ void pk_wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}
// Of a slot in a ring: only the step is worked out in a loop.
__device__ __forceinline__ u64 pk_wgmma_descriptor(u32 address, u64 base, u32 step = 0) {
  return (u64)((((address & 0x3FFFF) >> 4) | (u32)base) + step) | (base >> 32 << 32); }
template<int R> __device__ __forceinline__ void pk_pin(float (&d)[R]) {
  PK_UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
template<int R> __device__ __forceinline__ void pk_pin(u32 (&d)[R]) {
  PK_UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+r"(d[i]) :: "memory");
}
template<int R> __device__ __forceinline__ void pk_pin(int (&d)[R]) {
  PK_UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+r"(d[i]) :: "memory");
}
template<int R> __device__ __forceinline__ void pk_keep(const u32 (&a)[R]) {
  PK_UNROLL for (int i = 0; i < R; i++) asm volatile("" :: "r"(a[i]) : "memory");
}
"""

FLOATS, INTEGERS = (e4m3, e5m2), (i8, u8)
PAIRS = {(bf16, bf16): "bf16.bf16", (f16, f16): "f16.f16", (f32, f32): "tf32.tf32"} | {
    (a, b): f"{PTX[a]}.{PTX[b]}" for kind in (FLOATS, INTEGERS) for a in kind for b in kind
}


def to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 numbers with 10 bits of fraction, as wgmma reads them: the other 13 are ignored."""
    cut = (np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), cut)


def instruction(n: int, d: DType, a: DType, b: DType, registers: bool, ta: bool, tb: bool) -> tuple[str, str]:
    """Name and definition of a device function that issues one wgmma.mma_async."""
    inputs, k, sums = PAIRS[a, b], 32 // a.size, "s32" if d is i32 else d.name
    count = n // 4 if d is f16 else n // 2
    name = f"pk_wgmma_n{n}_{d}_{inputs.replace('.', '_')}" + "_r" * registers + "_ta" * ta + "_tb" * tb
    ctype, letter = {f32: ("float", "f"), f16: ("u32", "r"), i32: ("int", "r")}[d]
    regs = ", ".join(f"%{i}" for i in range(count))
    outs = ", ".join(f'"+{letter}"(d[{i}])' for i in range(count))
    if registers:
        a_text = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}"
        a_parameter, a_inputs, used = "const u32* a", ", ".join(f'"r"(a[{i}])' for i in range(4)), 4
    else:
        a_text, a_parameter, a_inputs, used = f"%{count}", "u64 a", '"l"(a)', 1
    tail = "p" if d is i32 else "p, 1, 1"  # integers have no negation
    if a.size == 2:  # only 16-bit operands can be stored transposed
        tail += f", {int(tb)}" if registers else f", {int(ta)}, {int(tb)}"
    return (
        name,
        f"""
__device__ __forceinline__ void {name}({ctype}* d, {a_parameter}, u64 b, int accumulate) {{
  asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + used + 1}, 0;"
    " wgmma.mma_async.sync.aligned.m64n{n}k{k}.{sums}.{inputs} {{{regs}}}, {a_text}, %{count + used}, {tail};}}"
    : {outs} : {a_inputs}, "l"(b), "r"(accumulate)); }}
""",
    )


@dataclass(eq=False)
class Wgmma(Product):
    """A product on the asynchronous tensor core."""

    @property
    def dtype(self) -> DType:
        """That of A."""
        return self.a.type.dtype  # type: ignore[union-attr]

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        if self.dtype in INTEGERS:
            return EXACT.with_special("wraps")
        found = super().numerics
        return found.with_special("operands are cut to tf32, toward zero") if self.dtype is f32 else found

    def types(self) -> tuple[Type, ...]:
        what = f"warpgroup.{self.name}"
        d = register_type(self.d, what)
        m, n, k = check_shapes(what, self.d, self.a, self.b, self.ta, self.tb)
        a, b = self.a.type, self.b.type
        assert isinstance(a, (RegisterTile, SharedTile))
        if not isinstance(b, SharedTile):
            raise TypeRuleError(f"{what}: B is {b}; wgmma reads B from shared memory", fix="store it to a shared tile")
        if (a.dtype, b.dtype) not in PAIRS:
            known = ", ".join(f"{x} by {y}" for x, y in PAIRS)
            raise TypeRuleError(f"{what} does not multiply {a.dtype} by {b.dtype}", fix=f"wgmma multiplies {known}")
        held = i32 if a.dtype in INTEGERS else f32
        allowed = (f32, f16) if a.dtype in (f16, *FLOATS) else (held,)
        if not isinstance(d, RegisterTile) or d.layout != "row" or d.dtype not in allowed:
            raise TypeRuleError(
                f"{what} of {a.dtype} accumulates into a row-layout tile of {' or '.join(x.name for x in allowed)}, "
                f"not {self.d.type}",
                fix=f"make it with warpgroup.zeros(pk.{held}, m, n)",
            )
        if d.warps != 4:
            raise TypeRuleError(
                f"{what}: the accumulator {d} is not a warpgroup's", fix="make it with warpgroup.zeros(...)"
            )
        if n > 256 or n % 8:
            raise TypeRuleError(f"{what}: n = {n}; wgmma has n = 8 to 256 in steps of 8", fix="split the accumulator")
        unit = 32 // a.dtype.size
        if m % 64 or k % unit:
            raise TypeRuleError(f"{what}: m = {m}, k = {k}", fix=f"m is a multiple of 64, k of {unit}")
        if a.dtype.size != 2 and (self.ta or not self.tb):
            raise TypeRuleError(
                f"{what}: operands of {a.dtype} must have k along their rows", fix="use mma_ABt, with B stored n x k"
            )
        if isinstance(a, RegisterTile) and a.dtype.size != 2:
            raise TypeRuleError(f"{what}: A is {a}; in registers it is of 16 bits", fix="store it to a shared tile")
        if isinstance(a, RegisterTile) and (self.ta or a.warps != 4 or a.layout != "row"):
            raise TypeRuleError(
                f"{what}: a register A is a warpgroup's row-layout tile, not transposed; this is {a}",
                fix="store it to a shared tile, or load it with layout='row'",
            )
        for x in (self.a, self.b):
            if isinstance(x.type, SharedTile) and x.type.apart:
                raise TypeRuleError(
                    f"{what}: {x.label} begins {x.type.apart} of its tile",
                    fix=f"begin parts at multiples of 8 rows and {x.type.panel} columns",
                )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        if self.dtype in INTEGERS:
            integer_product(m, self)
        elif self.dtype is f32:
            a, b = to_tf32(m.read(self.a)), to_tf32(m.read(self.b))
            product = multiply(a, b.swapaxes(1, 2))
            m.assign(self.d, canonical(product if self.overwrite else m[self.d] + product))
        else:
            super().numpy(m)

    def effects(self) -> tuple[Effect, ...]:
        a = Access(self.a, "read", MatrixOperand(shared=self.ta), "async", "wgmma")
        b = Access(self.b, "read", MatrixOperand(shared=True), "async", "wgmma")
        return (a, b, Access(self.d, "write", done="wgmma"), Sync("commit", queue="wgmma"))

    def cuda(self, c: CudaWriter) -> None:
        c.require("wgmma", self)
        c.prelude(WGMMA)
        d, a, b = self.d.type, self.a.type, self.b.type
        assert isinstance(d, RegisterTile) and isinstance(a, (RegisterTile, SharedTile)) and isinstance(b, SharedTile)
        m, n, k = check_shapes(self.name, self.d, self.a, self.b, self.ta, self.tb)
        steps = k // (32 // a.dtype.size)
        name, text = instruction(n, d.dtype, a.dtype, b.dtype, isinstance(a, RegisterTile), self.ta, not self.tb)
        c.prelude(text)
        acc, accumulators = c[self.d], d.registers // (m // 64) // (2 if d.dtype is f16 else 1)
        c.line("{ pk_wgmma_fence();")
        bd = c.fresh("bd")
        item = self.b.producer if isinstance(self.b.producer, Item) else None
        origin = f"{c[item.array if item else self.b]}, {descriptor_base(b, not self.tb):#x}ull"
        c.line(f"const u64 {bd} = pk_wgmma_descriptor({origin}{f', {c[self.b]}_step' if item else ''});")
        if isinstance(a, SharedTile):
            ad = c.fresh("ad")
            address = c.fresh("address")
            c.line(f"u32 {address} = {c[self.a]};")
            if (
                steps > 8
                # or the compiler keeps a descriptor for each step in registers, where A stays the same in a loop, and
                # spills others
            ):
                c.line(f'asm volatile("" : "+r"({address}));')
            c.line(f"const u64 {ad} = pk_wgmma_descriptor({address}, {descriptor_base(a, self.ta):#x}ull);")
        for block in range(m // 64):
            for step in range(steps):
                b_text = f"{bd} + {descriptor_step(b, not self.tb, step) // 16}"
                if isinstance(a, SharedTile):
                    shift = descriptor_step(a, self.ta, step) + (
                        block * 64 // a.panel * a.pitch * a.swizzle if self.ta else block * 64 * a.swizzle
                    )
                    a_text = f"{ad} + {shift // 16}"
                else:
                    a_text = f"{c[self.a]} + {(block * steps + step) * 4}"
                accumulate = 0 if self.overwrite and step == 0 else 1
                c.line(f"{name}({acc} + {block * accumulators}, {a_text}, {b_text}, {accumulate});")
        c.line("pk_wgmma_commit(); }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        inputs, wait = (
            {"a": "integers", "b": "integers", "d": "integers"},
            lambda scope, operands: (WgmmaWait(scope, (operands["d"],)),),
        )

        def sample(
            d: DType, a: DType, b: DType, shape: tuple[int, int, int], ta: bool, tb: bool, registers: bool = False
        ) -> Sample:
            m, n, k = shape
            a_shape, b_shape = (k, m) if ta else (m, k), (n, k) if tb else (k, n)
            left = RegisterTile(a, *a_shape, "row", 4) if registers else SharedTile(a, *a_shape)
            fields = {
                "d": RegisterTile(d, m, n, "row", 4),
                "a": left,
                "b": SharedTile(b, *b_shape),
                "ta": ta,
                "tb": tb,
                "overwrite": tb,
            }
            return Sample(fields, formula, inputs, exact=True, after=wait, needs="wgmma")

        for dtype in (bf16, f16):
            for tb in (False, True):
                yield sample(f32, dtype, dtype, (64, 64, 64), False, tb, registers=True)
                for ta in (False, True):
                    yield sample(f32, dtype, dtype, (64, 48, 96), ta, tb)
        yield sample(f32, bf16, bf16, (128, 128, 128), False, True)
        yield sample(f16, f16, f16, (64, 32, 32), False, False)
        for pair in PAIRS:
            if pair[0].size == 1:
                yield sample(i32 if pair[0] in INTEGERS else f32, *pair, (64, 32, 64), False, True)
        yield sample(i32, i8, u8, (128, 48, 160), False, True)
        yield sample(f32, f32, f32, (128, 48, 80), False, True)

        def cut(d: Any, a: Any, b: Any) -> Any:  # not rounded
            return to_tf32(a).astype(float) @ to_tf32(b).T

        fields = sample(f32, f32, f32, (64, 16, 16), False, True).fields
        yield Sample(fields, cut, tolerance=1e-5, after=wait, needs="wgmma")


@dataclass(eq=False)
class WgmmaWait(Op):
    """Waits for the groups that touch `tiles` (none: for all but `pending`). A pass finds the count and what is
    finished.
    """

    spelling = "warpgroup.wait"

    scope: Scope
    tiles: tuple[Value, ...]
    pending: int | None = None

    finished: tuple[Value, ...] = ()  # set by passes/inflight.py: accumulators that may be touched from here on
    released: tuple[Value, ...] = ()  # register A operands that may be overwritten from here on

    def types(self) -> tuple[Type, ...]:
        for x in self.tiles:
            register_type(x, "warpgroup.wait")
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("join", queue="wgmma", pending=self.pending or 0),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(WGMMA)
        c.line(f"pk_wgmma_wait<{self.pending or 0}>();")
        for x in self.finished:  # or the compiler may read the accumulator above the wait
            c.line(f"pk_pin({c[x]});")
        for x in self.released:  # ptxas before 13.3 may reuse A's registers before wgmma has read them
            c.line(f"pk_keep({c[x]});")
