"""Debug builds: a wait that lasts too long says location it is, and ends the kernel.

    PYKITTENS_DEBUG=1 python train.py          # or @pk.kernel(..., debug=True)
    PYKITTENS_PATIENCE=30                      # seconds that a wait may last; 5 unless said

Waits at mbarriers, rings and loops that only look at memory are bounded. A hardware barrier cannot be: there those who
wait for its threads elsewhere speak. Each warp tells once, others get a moment to tell theirs, then the kernel traps; a
debug build waits for the end of every launch, so that the error comes out of the call that made it.
"""

from __future__ import annotations

import os

from ..errors import Frame, ResourceError
from ..program import Op, Program, Sync, Value
from .c_text import string

SUPPORT = r"""
__device__ __forceinline__ u64 pk_nanoseconds() {
  u64 t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}
__device__ __noinline__ void pk_expired(const char* what, int index, u32 phase, const char* role, const char* line) {
  const u32 active = __activemask();
  if ((threadIdx.x & 31) == __ffs(active) - 1) {
    printf("pykittens: block (%d, %d, %d), warp %d, %s has waited PATIENCE_TEXT s for ",
      blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x >> 5, role);
    if (index == -2) printf("%s, at %s\n", what, line);
    else if (index == -1) printf("the phase with parity %u of %s to end, at %s\n", phase, what, line);
    else printf("the phase with parity %u of %s[%d] to end, at %s\n", phase, what, index, line);
  }
  const u64 since = pk_nanoseconds();
  while (pk_nanoseconds() - since < 200000000ull) __nanosleep(1000);  // others tell theirs
  asm volatile("trap;");
}
__device__ __forceinline__ void pk_bounded(
    u64 since, const char* what, int index, u32 phase, const char* role, const char* line) {
  if (pk_nanoseconds() - since > PATIENCEull) pk_expired(what, index, phase, role, line);
}
"""


def debugging() -> bool:
    """Whether the environment asks for debug builds."""
    return os.environ.get("PYKITTENS_DEBUG", "") not in ("", "0")


def support() -> str:
    """The device functions, with the bound of the environment."""
    text = os.environ.get("PYKITTENS_PATIENCE", "5")
    try:
        patience = float(text)
    except ValueError:
        patience = 0.0
    if not 0 < patience < 1e6:
        raise ResourceError(
            f"PYKITTENS_PATIENCE is {text!r}",
            fix="give the seconds that a wait of a debug build may last, for example 5",
            location=(),
        )
    return SUPPORT.replace("PATIENCE_TEXT", f"{patience:g}").replace("PATIENCE", str(int(patience * 1e9)))


def role_text(program: Program, role: str) -> str:
    """Who waits, as a C string."""
    return string(f"role {role!r} of {program.name}" if role else program.name)


def line_text(location: tuple[Frame, ...]) -> str:
    """The user's line, as a C string."""
    return string(f"{location[0]} in {location[0].function}" if location else "no line")


def array_of(barrier: Value) -> tuple[Value, bool]:
    """The buffer that a barrier lies in, and whether it is one of several."""
    array = barrier.producer.array if barrier.producer is not None and hasattr(barrier.producer, "array") else barrier
    return array, getattr(array, "count", 1) > 1


def spins(loop: Op) -> bool:
    """Whether a loop only looks at memory: nothing inside synchronises, so it waits for somebody else's write."""
    inner = [op for block in loop.blocks() for op in block.walk() if not any(True for _ in op.blocks())]
    return not any(isinstance(effect, Sync) for op in inner for effect in op.effects())
