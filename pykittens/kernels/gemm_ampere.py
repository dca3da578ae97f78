"""Matrix product with mma.sync, ldmatrix and cp.async, for Ampere and all newer, with an epilogue of the caller's.

    c = epilogue(a @ b)        or        c = epilogue((a @ b, a @ b2))

a (m, k), b and b2 (k, n): bf16 or f16, in either order of rows and columns; c (m, n): bf16, f16 or f32; float32 sums.
A block of four warps makes one tile of c, from slots of a and b that cp.async fills some steps ahead. Each warp owns
16 of every 64 rows, so that epilogues are those of the kernel for Hopper (`gemm.py`), tile for tile. Blocks go down a
group of rows before they go right, so that both operands stay in L2. `matmul.py` chooses the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, f16, f32

HALF, FLOATS = (bf16, f16), (bf16, f16, f32)
EXTRAS = (*FLOATS, pk.i32)


@dataclass(frozen=True)
class Config:
    """A block makes rows x cols of c from `stages` slots of `depth` elements along k; `group`: as in `gemm.py`."""

    rows: int = 128
    cols: int = 128
    stages: int = 3
    depth: int = 32
    group: int = 8

    @property
    def own(self) -> int:
        """How many columns a block finishes."""
        return self.cols


def grid(a: Any, b: Any, config: Config, ta: bool = False, tb: bool = False, **_: Any) -> int:
    """A block for each tile."""
    return pk.cdiv(a.cols if ta else a.rows, config.rows) * pk.cdiv(b.rows if tb else b.cols, config.cols)


@pk.kernel(warps=4, grid=grid, blocks_per_sm=2)
def gemm_ampere(
    a: Annotated[Tensor, HALF, "AR", "AC"],
    b: Annotated[Tensor, HALF, "BR", "BC"],
    c: Annotated[Tensor, FLOATS, "M", "N"] | None,
    x0: Annotated[Tensor, EXTRAS, "R0", "C0"] | None = None,
    x1: Annotated[Tensor, EXTRAS, "R1", "C1"] | None = None,
    x2: Annotated[Tensor, EXTRAS, "R2", "C2"] | None = None,
    x3: Annotated[Tensor, EXTRAS, "R3", "C3"] | None = None,
    b2: Annotated[Tensor, HALF, "BR", "BC"] | None = None,
    c2: Annotated[Tensor, FLOATS, "M", "N"] | None = None,
    c3: Annotated[Tensor, FLOATS, "M", "N"] | None = None,
    *,
    config: Config,
    ta: bool = False,
    tb: bool = False,
    epilogue: Callable[..., Any] | None = None,
) -> None:
    """c = epilogue(a @ b); operands, outputs and epilogue are those of `gemm.gemm`."""
    group, rows, cols, depth = pk.group(4), config.rows, config.cols, config.depth
    high, wide = pk.cdiv(a.cols if ta else a.rows, rows), pk.cdiv(b.rows if tb else b.cols, cols)
    first = pk.block_index.x // (config.group * wide) * config.group  # Triton's order of tiles
    tall = pk.minimum(high - first, config.group)
    inside = pk.block_index.x % (config.group * wide)
    row, col = first + inside % tall, inside // tall
    shapes = {"a": (depth, rows) if ta else (rows, depth), "b": (cols, depth) if tb else (depth, cols)}
    slots = {name: pk.shared(pk.st(a.dtype, *shapes[name[0]]), count=config.stages, name=name) for name in ("a", "b")}
    if b2 is not None:
        slots["b2"] = pk.shared(pk.st(a.dtype, *shapes["b"]), count=config.stages, name="b2")
    steps = pk.cdiv(a.rows if ta else a.cols, depth)

    def load(step: Any) -> None:
        """The slots of a step are on their way; past the last step zeros are, or nothing."""
        with pk.when(step < steps):
            group.load_async(slots["a"][step % config.stages], a, (step, row) if ta else (row, step))
            for name, source in (("b", b), ("b2", b2)):
                if source is not None:
                    group.load_async(slots[name][step % config.stages], source, (col, step) if tb else (step, col))
        group.commit()

    for step in range(config.stages - 1):
        load(step)
    sums = [group.zeros(f32, rows, cols) for name in slots if name != "a"]
    for step in pk.range(steps):
        group.wait_loads(pending=config.stages - 2)
        group.sync()  # the slot of this step is here, and all warps have used the one before it
        load(step + config.stages - 1)
        slot = step % config.stages
        for acc, name in zip(sums, [name for name in slots if name != "a"], strict=True):
            getattr(group, f"mma_A{'t' * ta}B{'t' * tb}")(acc, slots["a"][slot], slots[name][slot])
    width = cols if c is None else min(cols, 64)
    given, outputs = [x for x in (x0, x1, x2, x3) if x is not None], [x for x in (c, c2, c3) if x is not None]
    for down, right in ((r, s) for r in range(0, rows, 64) for s in range(0, cols, width)):
        at = pk.at(row * rows + down, col * cols + right)
        parts = [acc[down : down + 64, right : right + width] for acc in sums]
        y = epilogue(tuple(parts) if b2 is not None else parts[0], *at, *given) if epilogue is not None else parts[0]
        if not outputs:  # the epilogue stores by itself
            continue
        for target, tile in zip(outputs, y if isinstance(y, tuple) else (y,), strict=True):
            group.store(target, tile.to(target.dtype), at)
