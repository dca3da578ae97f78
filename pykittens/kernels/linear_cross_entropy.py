"""Cross-entropy of a linear layer's logits, which never lie in memory as a whole, and the gradients of both operands.

    z       = x w^T + bias, or c tanh((x w^T + bias) / c) with softcap c
    lse     = log(sum(exp(z)))
    loss    = lse - (1 - a) z[t] - a mean(z) + b lse^2     (smoothing a, z-loss b, target t: as `cross_entropy.py`)
    dlogits = g ((1 + 2 b lse) exp(z - lse) - (1 - a) [column is t] - a / v) + e exp(z - lse), times 1 - (z / c)^2
    dx      = dlogits w,  dw = dlogits^T x,  dbias = sum of dlogits over the rows

for gradients g of the row's loss and e of its lse. x: (m, h), w: (v, h), both bf16 or f16; float32 between.

Forward: a matrix product whose epilogue leaves, for each row and each tile of columns, the largest logit, the sum of
exponentials beside it, and the target's logit; `finish` joins those of a row. Backward: the vocabulary is cut into
slices. For each, the logits are computed again, and the epilogue makes of them the slice of dlogits, in 16 bits, in a
workspace that all slices share; two more products make the slice of dw, complete, and what it adds to dx, in float32.
So four products of m h v, and WORKSPACE bytes beside a float32 copy of dx (none where one slice is enough). After
Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024), and Liger Kernel (Hsu et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, i64, warp, warpgroup
from pykittens.errors import ArgumentError
from pykittens.interop import arrays
from pykittens.interop.arrays import ArrayInfo
from pykittens.interop.views import View
from pykittens.types import Coalesced

from . import cross_entropy, matmul
from .cross_entropy import LOG2E, count_targets, total_loss

WORKSPACE = 512 << 20  # bytes of a slice of the logits' gradient
STEP = 256  # a slice has a multiple of so many columns
WARPS, TALL, SIDE = 8, 16, 32  # of `finish`: warps of a block; tiles of columns, and rows, that a warp takes
LAYOUT = Coalesced(SIDE, 1)
PIECE = 64  # columns of a tile that `statistics` takes at a time
IGNORED, NOWHERE = -1, -2  # instead of a column


@pk.kernel(warps=4, grid=lambda targets, **_: -(-targets.rows // 4))
def find_columns(
    targets: Annotated[Tensor, (i32, i64), "M", 1],
    column: Annotated[Tensor, i32, "M"],
    ignore: Annotated[Scalar, i32],
    v: Annotated[Scalar, i32],
    first: Annotated[Scalar, i32],
    width: Annotated[Scalar, i32],
) -> None:
    """Where each row's target is among `width` columns from `first`: its column there, IGNORED, or NOWHERE."""
    row = pk.block_index.x * 4 + warp.index
    with pk.when(row < targets.rows):
        target = targets[row, 0]
        inside, wanted = (target >= 0) & (target < v), target != ignore
        pk.assert_(inside | ~wanted, "a target is a column, or ignore_index")
        here = inside & (target >= first) & (target < first + width)
        found = pk.cast(pk.where(here, target - first, NOWHERE), i32)
        warp.set(column, (row,), pk.where(wanted, found, IGNORED))


def logits(x: Any, col: Any, bias: Any, cap: float) -> Any:
    """What the loss is of, from a tile of the product."""
    if bias is not None:
        x = x + warpgroup.load_row(bias, pk.at(0, col), length=x.cols, dtype=f32)
    return pk.tanh(x * (1 / cap)) * cap if cap else x


@lru_cache(maxsize=256)
def statistics(terms: int, cap: float, cut: int) -> Callable[..., None]:
    """The epilogue of the forward product, which stores no product.

    For each row of a tile of columns it leaves in `parts` the largest logit, the sum of exponentials of logits less
    that, the target's logit (0 where it is elsewhere) and, of four terms, the sum of logits. `cut`: the end of the
    vocabulary where it lies within a tile, else 0.
    """

    def epilogue(x: Any, row: Any, col: Any, column: Any, parts: Any, bias: Any = None) -> None:
        target = warpgroup.load_col(column, pk.at(0, row), length=x.rows)
        pieces, peaks, hit, level, total = [], [], None, None, None
        for i in range(0, x.cols, PIECE):
            z = logits(x[:, i : i + PIECE], col + i, bias, cap)
            hit = pk.where(pk.col_index(z) + (col + i) == target, z, 0.0).row_sum(partial=True, onto=hit)
            if terms == 4:
                level = (pk.right_fill(z, cut - col - i, 0.0) if cut else z).row_sum(partial=True, onto=level)
            pieces.append(pk.right_fill(z, cut - col - i, -pk.inf) if cut else z)
            peaks.append(pieces[-1].row_max())
        peak = reduce(pk.maximum, peaks)
        shift = pk.where(peak == -pk.inf, 0.0, peak) * -LOG2E
        for z in pieces:
            total = pk.exp2(pk.fma(z, LOG2E, shift)).row_sum(partial=True, onto=total)
        tiles, sums = parts.rows // terms, [x.total() for x in (total, hit, level) if x is not None]
        for term, value in enumerate((peak, *sums)):
            warpgroup.store(parts, value, pk.at(tiles * term + col // x.cols, row))

    return epilogue


@pk.kernel(warps=WARPS, grid=lambda loss, **_: -(-loss.cols // SIDE))
def finish(
    parts: Annotated[Tensor, f32, pk.static("TERMS"), "T", "M"],
    column: Annotated[Tensor, i32, "M"],
    loss: Annotated[Tensor, f32, "M"],
    lse: Annotated[Tensor, f32, "M"],
    smoothing: Annotated[Scalar, f32],
    even: Annotated[Scalar, f32],
    z: Annotated[Scalar, f32],
) -> None:
    """Each row's loss and log-sum-exp from what `statistics` left of it, a lane a row. `even`: smoothing / v."""
    terms, tiles = parts.depth, parts.rows
    shared = pk.shared(pk.sv(f32, SIDE), count=WARPS * terms, name="sums")

    def some(term: int, lap: Any, fill: float = 0.0) -> Any:
        tile = lap * WARPS + warp.index
        x = warp.load(parts, (0, term, tile, pk.block_index.x), rows=TALL, cols=SIDE, layout=LAYOUT)
        return pk.where(pk.row_index(x) + tile * TALL < tiles, x, fill) if fill else x

    def of_all_warps(term: int, mine: Any, join: Callable[[Any, Any], Any]) -> Any:
        warp.store(shared[term * WARPS + warp.index], mine)
        pk.block.sync()
        found = warp.load_row(shared[term * WARPS], layout=LAYOUT)
        for k in range(1, WARPS):
            found = join(found, warp.load_row(shared[term * WARPS + k], layout=LAYOUT))
        return found

    laps, empty = pk.cdiv(tiles, TALL * WARPS), warp.zeros(f32, TALL, SIDE, layout=LAYOUT)
    peak, sums = empty - pk.inf, [empty + 0.0 for _ in range(1, terms)]
    for lap in pk.range(laps):
        peak[:] = pk.maximum(peak, some(0, lap, -pk.inf))
    top = of_all_warps(0, peak.col_max(), pk.maximum)
    shift = pk.where(top == -pk.inf, 0.0, top) * -LOG2E
    for lap in pk.range(laps):
        sums[0] += some(1, lap) * pk.exp2(pk.fma(some(0, lap, -pk.inf), LOG2E, shift))
        for term in range(2, terms):
            sums[term - 1] += some(term, lap)
    total, picked, *level = (of_all_warps(i + 1, x.col_sum(), lambda a, b: a + b) for i, x in enumerate(sums))
    with pk.when(warp.index == 0):
        at, whole = (0, 0, 0, pk.block_index.x), pk.log(total) + top
        found = whole - picked * (1.0 - smoothing) + whole * whole * z
        if level:
            found = found - level[0] * even
        target = warp.load_row(column, at, length=SIDE, layout=LAYOUT)
        found = pk.where(target == NOWHERE, math.nan, pk.where(target == IGNORED, 0.0, found))
        warp.store(loss, found, at)
        warp.store(lse, whole, at)


@pk.kernel(warps=4, grid=lambda lse, **_: -(-lse.cols // (4 * SIDE)))
def slopes(
    column: Annotated[Tensor, i32, "M"],
    lse: Annotated[Tensor, f32, "M"],
    share: Annotated[Tensor, f32, "ONE"],
    dloss: Annotated[Tensor, f32, "D"],
    dlse: Annotated[Tensor, f32, "M"],
    state: Annotated[Tensor, f32, 4, "M"],
    smoothing: Annotated[Scalar, f32],
    even: Annotated[Scalar, f32],
    z: Annotated[Scalar, f32],
    *,
    each: bool,
) -> None:
    """What `gradient` multiplies a row's exponentials by, and takes away. `each`: dloss has a number for each row."""
    place = pk.block_index.x * 4 + warp.index

    def some(x: Any) -> Any:
        return warp.load_row(x, (0, 0, 0, place), length=SIDE, layout=LAYOUT)

    level, target = some(lse), some(column)
    up = some(dloss) if each else dloss[0]
    up = up if share is None else up * share[0]
    up = pk.where(target == NOWHERE, math.nan, pk.where(target == IGNORED, 0.0, up))
    scale = up * (level * (2.0 * z) + 1.0)
    scale = scale if dlse is None else scale + some(dlse)
    for i, value in enumerate((level * -LOG2E, scale, up * (1.0 - smoothing), up * even)):
        warp.store(state, value, (0, 0, i, place))


@lru_cache(maxsize=256)
def gradient(smooth: bool, cap: float, everywhere: bool) -> Callable[..., Any]:
    """The epilogue that makes the logits' gradient of logits. `everywhere`: ignored rows have one too, that of lse."""

    def epilogue(x: Any, row: Any, col: Any, column: Any, state: Any, bias: Any = None) -> Any:
        x = logits(x, col, bias, cap)
        target = warpgroup.load_col(column, pk.at(0, row), length=x.rows)
        level, scale, hot, *even = (
            warpgroup.load_col(state, pk.at(i, row), length=x.rows) for i in range(4 if smooth else 3)
        )
        slope = pk.exp2(pk.fma(x, LOG2E, level)) * scale
        if smooth:
            slope = slope - even[0]
        slope = slope - pk.where(pk.col_index(x) + col == target, hot, 0.0)
        if cap:
            slope = slope * (1.0 - (x * (1 / cap)) * (x * (1 / cap)))
        return slope if everywhere else pk.where(target == IGNORED, 0.0, slope)

    return epilogue


def add(x: Any, row: Any, col: Any, sums: Any) -> Any:
    """The epilogue that adds what earlier slices gave."""
    return x + warpgroup.load(sums, pk.at(row, col), rows=x.rows, cols=x.cols)


Settings = tuple[str, int, float, float, float]  # reduction, ignore_index, label smoothing, z-loss, softcap


class Forward:
    """The launches of the forward pass as one, called as a kernel is."""

    def __call__(self, x: Any, weight: Any, targets: Any, bias: Any, loss: Any, lse: Any, *settings: Any) -> None:
        reduction, ignore, smoothing, z_loss, cap = settings
        (m, v), new = (x.shape[0], weight.shape[0]), maker(x)
        column, targets = new((m,), "i32"), as_column(targets)
        find_columns(targets, column, ignore, v, 0, v)
        x, weight = readable(x), readable(weight)
        config = matmul.choose_kernel(*map(arrays.describe, (x, weight.T))).config
        width = config.own
        tiles, terms = -(-v // width), 4 if smoothing else 3
        parts = new((terms * tiles, m), "f32")
        epilogue = statistics(terms, float(cap), v if v % width else 0)
        run(matmul.call(x, weight.T, None, epilogue, [column, parts, *given(bias)], config=config))
        rows = loss if reduction == "none" else new((m,), "f32")
        each = View(parts, (terms, tiles, m), (tiles * m, m, 1))
        finish(each, column, rows, lse, float(smoothing), smoothing / v, float(z_loss))
        if reduction != "none":
            total_loss(rows, share_of(column, reduction, new), View(loss, (1,), (1,)))


class Backward:
    """The launches of the backward pass as one. dx, dweight and dbias: None where nobody wants them."""

    def __call__(
        self,
        x: Any,
        weight: Any,
        targets: Any,
        bias: Any,
        lse: Any,
        dloss: Any,
        dlse: Any,
        dx: Any,
        dweight: Any,
        dbias: Any,
        *settings: Any,
        workspace: int = WORKSPACE,
    ) -> None:
        reduction, ignore, smoothing, z_loss, cap = settings
        ((m, h), v), new, info = (x.shape, weight.shape[0]), maker(x), arrays.describe(x)
        column, state, targets = new((m,), "i32"), new((4, m), "f32"), as_column(targets)
        find_columns(targets, column, ignore, v, 0, v)
        numbers = float(smoothing), smoothing / v, float(z_loss)
        if dloss is None:
            dloss = new((1,), "f32")
            arrays.fill(dloss, 0.0)
        each = reduction == "none" and arrays.describe(dloss).shape != (1,)
        dloss = View(dloss, (m if each else 1,), (1,))
        slopes(column, lse, share_of(column, reduction, new), dloss, dlse, state, *numbers, each=each)
        x, weight = readable(x), readable(weight)
        width = slice_of(m, v, workspace)
        stride = -(-width // 8) * 8
        slope, first = new((m, stride), info.dtype), 0
        sums = new((m, h), "f32") if dx is not None and width < v else None
        ones = new((1, m), info.dtype) if dbias is not None else None
        if ones is not None:
            arrays.fill(ones, 1.0)
        epilogue = gradient(smoothing > 0, float(cap), dlse is not None)
        while first < v:
            wide = min(width, v - first)
            if first:
                find_columns(targets, column, ignore, v, first, wide)
            part, made = rows_of(weight, first, wide), View(slope, (m, wide), (stride, 1))
            extras = [column, state, *([] if bias is None else [View(bias, (1, wide), (wide, 1), first)])]
            run(matmul.call(x, part.T, made, epilogue, extras))
            if dweight is not None:
                run(matmul.call(made.T, x, rows_of(dweight, first, wide)))
            if ones is not None:
                run(matmul.call(ones, made, View(dbias, (1, wide), (wide, 1), first)))
            if dx is not None:
                out = dx if first + wide == v else sums
                run(matmul.call(made, part, out, *((add, [sums]) if first else ())))
            first += wide


FORWARD, BACKWARD = Forward(), Backward()


def run(call: Any) -> None:
    """Launches."""
    call.kernel(*call.operands, **call.statics)


def maker(x: Any) -> Callable[[tuple[int, ...], str], Any]:
    """What makes arrays of a shape and dtype where x is."""
    info = arrays.describe(x)
    return lambda shape, dtype: arrays.empty(info.kind, shape, dtype, info.device)


def given(x: Any) -> list[Any]:
    return [] if x is None else [x]


def share_of(column: Any, reduction: str, new: Callable[..., Any]) -> Any:
    """1 over how many rows count, for "mean"."""
    if reduction != "mean":
        return None
    share = new((1,), "f32")
    count_targets(column, share, IGNORED)
    return share


def as_column(x: Any) -> View:
    """A vector of any stride as a matrix of one column."""
    info = arrays.describe(x)
    return View(x, (info.shape[0], 1), (info.strides[0], 1))


def rows_of(x: Any, first: int, count: int) -> View:
    """Some rows of a matrix."""
    info = arrays.describe(x)
    seen = x if isinstance(x, View) else View(x, tuple(info.shape), tuple(info.strides))
    return View(seen.array, (count, seen.shape[1]), seen.strides, seen.offset + first * seen.strides[0])


def readable(x: Any) -> View:
    """A matrix whose rows are read as they are: a copy of it where they do not begin at multiples of 16 bytes."""
    (x,), _ = matmul.stored([x], [matmul.order(matmul.described(x), False)], False)
    return rows_of(x, 0, arrays.describe(x).shape[0])


def slice_of(m: int, v: int, workspace: int) -> int:
    """How many columns a slice has: slices of about the same width, as many as keep one within the workspace."""
    most = max(STEP, workspace // (2 * m) // STEP * STEP)
    return min(v, -(-v // (-(-v // most) * STEP)) * STEP)


def check(
    x: ArrayInfo,
    weight: ArrayInfo,
    targets: ArrayInfo,
    bias: ArrayInfo | None,
    *settings: Any,
) -> None:
    """Raises `ArgumentError` for operands or settings that the kernels do not take."""
    if len(x.shape) != 2 or len(weight.shape) != 2 or x.shape[1] != weight.shape[1] or 0 in tuple(weight.shape):
        fact = f"linear_cross_entropy of x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        raise ArgumentError(
            fact, fix="pass (m, h) and (v, h), v and h at least 1: reshape (batch, tokens, h) to (-1, h)"
        )
    if x.dtype not in ("bf16", "f16") or weight.dtype != x.dtype:
        fact = f"linear_cross_entropy: x is {x.dtype}, weight is {weight.dtype}"
        raise ArgumentError(fact, fix="pass both as bf16 or both as f16")
    if bias is not None and (tuple(bias.shape) != (weight.shape[0],) or bias.dtype not in ("bf16", "f16", "f32")):
        fact = f"linear_cross_entropy: bias is {bias.dtype} {tuple(bias.shape)}"
        raise ArgumentError(fact, fix=f"pass bf16, f16 or f32 of shape ({weight.shape[0]},)")
    if bias is not None and bias.shape[0] > 1 and bias.strides[0] != 1:
        raise ArgumentError(
            f"linear_cross_entropy: bias has strides {tuple(bias.strides)}", fix="pass a contiguous one"
        )
    if weight.shape[0] >= 2**30:
        raise ArgumentError(f"a vocabulary of {weight.shape[0]}", fix="up to 2^30 - 1 are supported")
    cross_entropy.check_settings(*settings)
    cross_entropy.check_targets("x", x, targets)


def reference(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    bias: np.ndarray | None = None,
    **settings: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(loss, lse, dx, dweight, dbias) in float64, for upstream gradients of 1."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    logits = x @ weight.T + (0 if bias is None else bias.astype(np.float64))
    loss, lse, slope = cross_entropy.reference(logits, targets, **settings)
    return loss, lse, slope @ weight, slope.T @ x, slope.sum(0)
