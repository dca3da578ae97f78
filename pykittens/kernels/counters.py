"""Counters and flags in global memory, 0 before the kernel that counts with them, which may begin meanwhile.

counter = zeros(x)        then a kernel that begins with `pk.wait_for_previous`
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, i32, warp

from ..interop import arrays

RUN = 1024  # flags that a block sets to 0


@pk.kernel(warps=1, grid=lambda flags, **_: pk.cdiv(flags.cols, RUN))
def clear(flags: Annotated[Tensor, i32, "F"]) -> None:
    """flags = 0. The next kernel begins at once, and waits where it first looks at them."""
    pk.launch_next()
    warp.store(flags, warp.full_vec(i32, RUN, 0), (pk.block_index.x,))


def zeros(beside: Any, count: int = 1) -> Any:
    """So many zeros of 32 bits, of the framework and on the device of an array."""
    info = arrays.describe(beside)
    flags = arrays.empty(info.kind, (count,), "i32", info.device)
    clear(flags)
    return flags
