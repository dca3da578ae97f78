"""One element combined with one of memory, atomically (PTX ISA "red"): added, or the lesser or greater kept.

PTX has no extremes of floats. Their bits are in the order of integers: of positive ones signed, of negative ones the
other way round, unsigned. So the greater of two is max.s32 with a new element whose sign bit is clear, else min.u32;
and NaN comes with the sign in which it stays: 0x7fffffff for max, 0xffffffff for min.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..numerics import EXACT, Numerics
from ..program import Place, Value
from ..types import DType, bf16, f16, f32, i32, i64, u32
from .broadcast import register_type
from .conversion import convert

PTX = {f32: "f32", f16: "noftz.f16", bf16: "noftz.bf16", i32: "s32", u32: "u32", i64: "s64"}
_BY_NUMPY = {dtype.numpy: dtype for dtype in PTX}
ALLOWED = {"add": (f32, bf16, f16, i32, u32, i64)} | dict.fromkeys(("min", "max"), (f32, i32, u32, i64))


def check_combined(kind: str, source: Value, target: Value | Place) -> None:
    """The elements are of the memory's dtype, and there is an instruction that combines those."""
    type, place = register_type(source, kind), target.tensor if isinstance(target, Place) else target
    memory = place.type.dtype  # type: ignore[union-attr]
    if type.dtype is not memory or memory not in ALLOWED[kind]:
        raise TypeRuleError(
            f"{kind} of {type} into {place.label}: {place.type}",
            fix=f"both hold one of {', '.join(d.name for d in ALLOWED[kind])}: convert with x.to(pk.f32)",
        )


def combined_numerics(kind: str, dtype: DType, shared: bool = False) -> Numerics:
    """What an atomic combination promises; `shared`: in shared memory, where float32 keeps subnormals."""
    if dtype.kind == "f" and kind == "add":
        flushes = dtype is f32 and not shared
        return Numerics("correctly rounded", flushes=flushes, special="each addition; their order is not defined")
    if dtype is f32:
        kept = "0x7fffffff of max, 0xffffffff of min"
        return EXACT.with_special(f"+0 > -0; a new NaN stays ({kept}), one of the other sign in memory may go")
    return EXACT.with_special("wraps" if kind == "add" else "")


def needed(dtype: DType) -> str:
    """The feature (`architectures.FEATURES`) that additions of a dtype need."""
    return "bf16 additions" if dtype is bf16 else ""


def red_name(kind: str, dtype: DType, shared: bool = False) -> str:
    """What `red` defines: `pk_red_add_f32`, or `pk_red_shared_add_f32`."""
    return f"pk_red_{'shared_' if shared else ''}{kind}_{dtype}"


def red(kind: str, dtype: DType, shared: bool = False) -> str:
    """C of a function that combines one element with memory, 16-bit floats as u16; in shared memory, where addresses
    have 32 bits, for the threads of the block.
    """
    held = "u16" if dtype.packed else dtype.c
    pointer, p, space = ("u32", "r", "cta.shared::cta") if shared else (f"{held}*", "l", "gpu.global")
    head = f"__device__ __forceinline__ void {red_name(kind, dtype, shared)}({pointer} p, {held} x)"
    if dtype is f32 and kind != "add":
        other, nan = ("min", "0x7fffffff") if kind == "max" else ("max", "-1")
        return f"""
{head} {{
  const int b = x != x ? {nan} : __float_as_int(x);
  if (b >= 0) asm volatile("red.relaxed.{space}.{kind}.s32 [%0], %1;" :: "{p}"(p), "r"(b) : "memory");
  else asm volatile("red.relaxed.{space}.{other}.u32 [%0], %1;" :: "{p}"(p), "r"(b) : "memory");
}}
"""
    constraint = {"u16": "h", "float": "f", "i64": "l"}.get(held, "r")
    ptx = "u64" if kind == "add" and dtype is i64 else PTX[dtype]  # no .s64; the bits of the sum are the same
    return f"""
{head} {{
  asm volatile("red.relaxed.{space}.{kind}.{ptx} [%0], %1;" :: "{p}"(p), "{constraint}"(x) : "memory");
}}
"""


def combine(kind: str, old: Any, new: Any) -> np.ndarray:
    """What memory holds afterwards, of arrays of one dtype."""
    old, new = np.asarray(old), np.asarray(new)
    if old.dtype == np.float32 and kind != "add":
        bits = np.where(new != new, np.int32(0x7FFFFFFF if kind == "max" else -1), new.view(np.int32))
        signed, unsigned = (np.maximum, np.minimum) if kind == "max" else (np.minimum, np.maximum)
        reverse = unsigned(old.view(np.uint32), bits.view(np.uint32)).view(np.int32)
        return np.where(bits >= 0, signed(old.view(np.int32), bits), reverse).view(np.float32)
    ufunc, memory = {"add": np.add, "min": np.minimum, "max": np.maximum}[kind], _BY_NUMPY[old.dtype]
    wide = f32 if memory.packed else memory
    return convert(ufunc(convert(old, wide), convert(new, wide)), memory)
