"""Rows times a number: o = x * f, with one f for all or one for each row.

x, o: (m, n), all bf16, f16 or f32, dense, or with rows of any distance where each has its factor; f: (1,) or (m,).
Written over x, rows whose factor is 1 are left alone: a gradient that was made for an upstream gradient of 1 then costs
a launch, and no pass, where that is what comes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32
from pykittens.interop import arrays
from pykittens.interop.views import View
from pykittens.types import DTYPES, Coalesced

from .arguments import KernelCall, machine, may_overlap
from .rows import FLOATS

WARPS, RESIDENT = 8, 8  # warps of a block, blocks of a multiprocessor
LONGEST = 2**31 - 2**16  # elements of a row


@pk.kernel(
    warps=WARPS,
    grid=lambda x, blocks, width, **_: min(blocks, x.rows * -(-x.cols // (32 * WARPS * width))),
    pdl=lambda dependent=False, **_: dependent,
)
def scale_rows(
    x: Annotated[Tensor, FLOATS, "M", "N"],
    factor: Annotated[Tensor, FLOATS, "F"],
    o: Annotated[Tensor, FLOATS, "M", "N"],
    blocks: Annotated[Scalar, i32],
    *,
    width: int,
    each: bool,
    in_place: bool,
    dependent: bool = False,
) -> None:
    """`each`: a factor for each row. `in_place`: o is x. `dependent`: the kernel ahead may still run."""
    cols, layout = 32 * WARPS * width, Coalesced(32 * WARPS, width)
    if dependent:
        pk.wait_for_previous()

    def scale(row: Any, col: Any, by: Any) -> None:
        value = pk.block.load(
            x, (0, 0, row, col), rows=1, cols=cols, layout=layout, dtype=x.dtype if width > 1 else f32
        )
        scaled = value.to(f32) * by
        pk.block.store(o, scaled.to(o.dtype) if width > 1 else scaled, (0, 0, row, col))

    across = pk.cdiv(x.cols, cols)
    with nullcontext() if each or not in_place else pk.when(pk.cast(factor[0], f32) != 1.0):
        for tile in pk.persistent(x.rows * across):
            row = tile // across
            by = pk.cast(factor[row if each else 0], f32)
            with pk.when(by != 1.0) if each and in_place else nullcontext():
                scale(row, tile % across, by)


def call(x: Any, factor: Any, o: Any) -> KernelCall:
    """What writes x times the factors into o, which may be x."""
    info = arrays.describe(x)
    (m, n), size, each = info.shape, DTYPES[info.dtype].size, arrays.describe(factor).shape != ()
    rows, cols = (m, n) if each or m * n > LONGEST else (1, m * n)
    found = [y if isinstance(y, View) else View(y, tuple(y.shape), (n, 1)) for y in (x, o)]
    seen = [View(y.array, (rows, cols), (y.strides[0] if each else cols, 1), y.offset) for y in found]
    aligned = rows == 1 or all(y.strides[0] * size % 16 == 0 for y in seen)
    pointers = info.pointer, arrays.describe(o).pointer
    width = 16 // size if aligned and (pointers[0] | pointers[1]) % 16 == 0 else 1
    statics = {"width": width, "each": each, "in_place": pointers[0] == pointers[1], "dependent": may_overlap(info)}
    blocks = machine(info)["processors"] * RESIDENT
    return KernelCall(scale_rows, (seen[0], View(factor, (m if each else 1,), (1,)), seen[1], blocks), statics)


def reference(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """x * f in float64."""
    return x.astype(np.float64) * factor.astype(np.float64)[:, None]
