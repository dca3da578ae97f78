"""The backward pass of an activation or gate behind a matrix product, with the sums that a bias gets.

    y = f(z)                      dz = dy * f'(z)
    y = f(z) * u                  dz = dy * u * f'(z),   du = dy * f(z)
    dbias = sum over the rows of dz (and of du)

z, u, dy, dz, du: (m, n), bf16 or f16; arithmetic is float32. f is any function of a tile: its derivative is the
reverse walk of what it records (`trace/derivatives.py`). z None: there is no f, and only the sums are made. One read
and one write: each warp goes down every `strips` * 8-th piece of 32 threads' runs, all loads before the first use, and
keeps its sums in registers; the warps of a block meet at the end in a fixed order, and leave a row of `parts`, which
are added up after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, f16, f32, warp

from ..trace.derivatives import Tape
from .arguments import KernelCall, alignment, matrix

HALF, WARPS = (bf16, f16), 8


@pk.kernel(warps=WARPS, grid=lambda dy, strips, width, **_: (pk.cdiv(dy.cols, 32 * width), strips))
def activation_backward(
    z: Annotated[Tensor, HALF, "M", "N"] | None,
    u: Annotated[Tensor, HALF, "M", "N"] | None,
    dy: Annotated[Tensor, HALF, "M", "N"],
    dz: Annotated[Tensor, HALF, "M", "N"] | None,
    du: Annotated[Tensor, HALF, "M", "N"] | None,
    parts: Annotated[Tensor, f32, "S", "N"] | None,
    more: Annotated[Tensor, f32, "S", "N"] | None,
    *,
    activation: Callable[[Any], Any] | None,
    strips: int,
    rows: int,
    width: int,
) -> None:
    """dz and du, and of each strip the sums of their columns: `parts` and `more`."""
    layout, cols = pk.coalesced(32, width), 32 * width
    across, strip = pk.block_index.x, pk.block_index.y
    wanted = [x for x in (parts, more) if x is not None]
    sums = [warp.zeros(f32, rows, cols, layout=layout) for _ in wanted]
    for down in pk.range(strip * WARPS + warp.index, pk.cdiv(dy.rows, rows), strips * WARPS):
        at = (0, 0, down, across)
        given = [warp.load(x, at, rows=rows, cols=cols, dtype=f32, layout=layout) for x in (z, u, dy) if x is not None]
        made = [given[-1]]
        if activation is not None:
            tape = Tape(lambda z, *u: activation(z) * u[0] if u else activation(z), given[:-1])
            made = [tape.words.total(x, given[-1].type) for x in tape.cotangents(given[-1], tape.inputs)]
            tape.forget_result()
        for target, gradient in zip((dz, du), made, strict=False):
            if target is not None:
                warp.store(target, gradient.to(target.dtype), at)
        inside = pk.row_index(given[-1]) < dy.rows - down * rows  # f may have no derivative at the 0 past the end
        for total, gradient in zip(sums, made, strict=False):
            total += pk.where(inside, gradient, 0.0)
    if not wanted:
        return
    shares = pk.shared(pk.sv(f32, cols), count=WARPS * len(wanted), name="shares")
    for i, total in enumerate(sums):
        apart = total.col_sum().swap_layout(pk.coalesced(32, 1))  # neighbours in other banks
        warp.store(shares[i * WARPS + warp.index], apart)
    pk.block.sync()
    for i, target in enumerate(wanted):
        with pk.when(warp.index == i):
            whole = warp.load_vec(shares[i * WARPS])
            for k in range(1, WARPS):
                whole += warp.load_vec(shares[i * WARPS + k])
            warp.store(target, whole, (0, 0, strip, across))


def call(
    products: Sequence[Any],
    dy: Any,
    dproducts: Sequence[Any],
    parts: Sequence[Any],
    activation: Callable[[Any], Any] | None,
    strips: int,
) -> KernelCall:
    """What writes the gradients of one product or of a pair, and the parts of sums; None for what is not there."""
    views = [matrix(x, "an operand")[0] for x in (*products, dy, *dproducts) if x is not None]
    pair, width = len(products) == 2, max(1, min(8, alignment(*views) // 2))
    second = [None] * (1 - pair)
    static = {"activation": activation, "strips": strips, "rows": 1 if activation and not pair else 2, "width": width}
    operands = (*products, *second, dy, *dproducts, *second, *parts, *second)
    return KernelCall(activation_backward, operands, static)
