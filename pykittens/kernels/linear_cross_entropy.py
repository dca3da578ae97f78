"""Cross-entropy of a linear layer's logits, which never lie in memory as a whole, and the gradients of both operands.

    z       = x w^T + bias, or c tanh((x w^T + bias) / c) with softcap c
    lse     = log(sum(exp(z)))
    loss    = lse - (1 - a) z[t] - a mean(z) + b lse^2     (smoothing a, z-loss b, target t: as `cross_entropy.py`)
    dlogits = g ((1 + 2 b lse) exp(z - lse) - (1 - a) [column is t] - a / v) + e exp(z - lse), times 1 - (z / c)^2
    dx      = dlogits w,  dw = dlogits^T x,  dbias = sum of dlogits over the rows

for gradients g of the row's loss and e of its lse. x: (m, h), w: (v, h), both bf16 or f16; float32 between.

Forward: a matrix product whose epilogue leaves, for each row and each tile of columns, the largest logit, the sum of
exponentials beside it, and the target's logit; `finish` joins those of a row. Where there will be a backward pass, the
exponentials themselves are kept, in 16 bits: of as many columns as KEPT bytes hold, and of as many as the memory of the
weight's gradient holds, which is then taken early (`vocabulary_slices`). Backward: the vocabulary is cut into slices.
For each, dlogits are made in 16 bits, in a workspace that all slices share: of what was kept by one pass over it
(`rescale`), of the rest by computing the logits again, in the epilogue. Two more products make the slice of dw,
complete, and what it adds to dx, in float32. So three products of m h v for kept columns and four for others, and KEPT
and WORKSPACE bytes beside a float32 copy of dx (none where one slice is enough). After Wijmans et al., "Cut Your Losses
in Large-Vocabulary Language Models" (2024), and Liger Kernel (Hsu et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, i64, warp, warpgroup
from pykittens.errors import ArgumentError
from pykittens.interop import arrays
from pykittens.interop.arrays import ArrayInfo
from pykittens.interop.views import View
from pykittens.types import Coalesced

from . import cross_entropy, gemm, matmul
from .arguments import may_overlap
from .attention import processors_of
from .cross_entropy import LN2, LOG2E, prepare, total_loss
from .vocabulary_slices import WORKSPACE, Slice, slices_of

WARPS = 8  # of a block
TILES, SIDE = 64, 8  # of columns, and rows, that a warp of `finish` takes
LAYOUT = Coalesced(SIDE, 1)
LANES = 32  # rows that a warp of `slopes` takes
TALL = 16  # rows that a warp of `rescale` takes
PIECE = 64  # columns of a tile that `statistics` takes at a time, and of what is kept beside one peak
PIECES = 4  # of these that a warp of `rescale` goes through, TALL rows at a time
NEAR = 44.0  # how far above a row's number logits may be: exponentials up to 2^64, and their sums, are numbers of bf16
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
def statistics(
    terms: int, cap: float, cut: int, keep: bool = False, apart: bool = False, known: bool = False
) -> Callable[..., Any]:
    """The epilogue of the forward product, which stores no product.

    For each row of a tile of columns it leaves in `parts` the largest logit, the sum of exponentials of logits less
    that, the target's logit (0 where it is elsewhere) and, of four terms, the sum of logits. `cut`: the end of the
    vocabulary where it lies within a tile, else 0. `keep`: tiles are pieces whose exponentials are the result; `apart`:
    the largest logits go into `peaks` too; `known`: a number of each row takes the place of the largest logit where
    that is at most NEAR above it, so that most exponentials of a row are beside the same number.
    """

    def epilogue(x: Any, row: Any, col: Any, column: Any, parts: Any, *more: Any) -> Any:
        bias = more[-1] if len(more) > apart + known else None
        target = warpgroup.load_col(column, pk.at(0, row), length=x.rows)
        pieces, tops, hit, level, total = [], [], None, None, None
        for i in range(0, x.cols, PIECE):
            z = logits(x[:, i : i + PIECE], col + i, bias, cap)
            hit = pk.where(pk.col_index(z) + (col + i) == target, z, 0.0).row_sum(partial=True, onto=hit)
            if terms == 4:
                level = (pk.right_fill(z, cut - col - i, 0.0) if cut else z).row_sum(partial=True, onto=level)
            pieces.append(pk.right_fill(z, cut - col - i, -pk.inf) if cut else z)
            tops.append(pieces[-1].row_max())
        peak = reduce(pk.maximum, tops)
        if known:
            number = warpgroup.load_col(more[0], pk.at(0, row), length=x.rows)
            peak = pk.where(peak > number + NEAR, peak, number)
        shift = pk.where(peak == -pk.inf, 0.0, peak) * -LOG2E
        for z in pieces:
            powers = pk.exp2(pk.fma(z, LOG2E, shift))
            total = powers.row_sum(partial=True, onto=total)
        sums = [x.total() for x in (total, hit, level) if x is not None]
        for term, value in enumerate((peak, *sums)):
            warpgroup.store(parts, value, pk.at(col // x.cols * terms + term, row))
        if not keep:
            return None
        if apart:
            warpgroup.store(more[0], peak, pk.at(col // x.cols, row))
        return powers

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
    found: Annotated[Tensor, f32, 3, "M"] | None = None,
) -> None:
    """Each row's loss and log-sum-exp from what `statistics` left of it. `even`: smoothing / v. `found`: the largest
    number that a row's exponentials are beside, its target's logit, and the sum of exponentials beside that number.
    """
    terms, tiles = parts.depth, parts.rows
    shared = pk.shared(pk.sv(f32, SIDE), count=WARPS * terms, name="sums")

    def some(term: int, lap: Any, fill: float = 0.0) -> Any:
        tile = lap * WARPS + warp.index
        x = warp.load(parts, (0, term, tile, pk.block_index.x), rows=TILES, cols=SIDE, layout=LAYOUT)
        return pk.where(pk.row_index(x) + tile * TILES < tiles, x, fill) if fill else x

    def of_all_warps(term: int, mine: Any, join: Callable[[Any, Any], Any]) -> Any:
        warp.store(shared[term * WARPS + warp.index], mine)
        pk.block.sync()
        found = warp.load_row(shared[term * WARPS], layout=LAYOUT)
        for k in range(1, WARPS):
            found = join(found, warp.load_row(shared[term * WARPS + k], layout=LAYOUT))
        return found

    laps, empty = pk.cdiv(tiles, TILES * WARPS), warp.zeros(f32, TILES, SIDE, layout=LAYOUT)
    peak, sums = empty - pk.inf, [empty + 0.0 for _ in range(1, terms)]
    for lap in pk.range(laps):
        peak[:] = pk.maximum(peak, some(0, lap, -pk.inf))
    most = of_all_warps(0, peak.col_max(), pk.maximum)
    shift = pk.where(most == -pk.inf, 0.0, most) * -LOG2E
    for lap in pk.range(laps):
        sums[0] += some(1, lap) * pk.exp2(some(0, lap, -pk.inf) * LOG2E + shift)  # 1 beside the largest itself
        for term in range(2, terms):
            sums[term - 1] += some(term, lap)
    total, picked, *level = (of_all_warps(i + 1, x.col_sum(), lambda a, b: a + b) for i, x in enumerate(sums))
    with pk.when(warp.index == 0):
        at, whole = (0, 0, 0, pk.block_index.x), pk.log(total) + most
        if level:
            own = whole - picked * (1.0 - smoothing) - level[0] * even
        else:  # nearly certain targets have losses below a unit in the last place of their logit
            own = pk.maximum(pk.log(total) - pk.fma(picked, LOG2E, shift) * LN2, 0.0)
        own = own + whole * whole * z
        target = warp.load_row(column, at, length=SIDE, layout=LAYOUT)
        own = pk.where(target == NOWHERE, math.nan, pk.where(target == IGNORED, 0.0, own))
        warp.store(loss, own, at)
        warp.store(lse, whole, at)
        if found is not None:
            for i, value in enumerate((most, picked, total)):
                warp.store(found, value, (0, 0, i, pk.block_index.x))


@pk.kernel(warps=4, grid=lambda lse, **_: -(-lse.cols // (4 * LANES)))
def slopes(
    column: Annotated[Tensor, i32, "M"],
    lse: Annotated[Tensor, f32, "M"],
    share: Annotated[Tensor, f32, "ONE"],
    dloss: Annotated[Tensor, f32, "D"] | None,
    dlse: Annotated[Tensor, f32, "M"] | None,
    state: Annotated[Tensor, f32, 4, "M"],
    smoothing: Annotated[Scalar, f32],
    even: Annotated[Scalar, f32],
    z: Annotated[Scalar, f32],
    *,
    each: bool,
) -> None:
    """What `gradient` multiplies a row's exponentials by, and takes away. `each`: dloss has a number for each row; None
    is 1.
    """
    place = pk.block_index.x * 4 + warp.index

    def some(x: Any) -> Any:
        return warp.load_row(x, (0, 0, 0, place), length=LANES, layout=Coalesced(LANES, 1))

    level, target = some(lse), some(column)
    up = 1.0 if dloss is None else some(dloss) if each else dloss[0]
    up = up if share is None else up * share[0]
    up = pk.where(target == NOWHERE, math.nan, pk.where(target == IGNORED, 0.0, up))
    scale = up * (level * (2.0 * z) + 1.0)
    scale = scale if dlse is None else scale + some(dlse)
    for i, value in enumerate((level * -LOG2E, scale, up * (1.0 - smoothing), up * even)):
        warp.store(state, value, (0, 0, i, place))


@pk.kernel(
    warps=WARPS,
    grid=lambda out, **_: (pk.cdiv(out.cols, PIECES * PIECE), pk.cdiv(out.rows, WARPS * TALL)),
    blocks_per_sm=3,
)
def rescale(
    powers: Annotated[Tensor, (bf16, f16), "M", "N"],
    peaks: Annotated[Tensor, f32, "P", "M"],
    column: Annotated[Tensor, i32, "M"],
    state: Annotated[Tensor, f32, 4, "M"],
    out: Annotated[Tensor, (bf16, f16), "M", "N"],
    *,
    smooth: bool,
    everywhere: bool,
) -> None:
    """What `gradient` makes of logits, of exponentials that were kept: TALL rows of some pieces of columns a warp."""
    place, layout = pk.block_index.y * WARPS + warp.index, Coalesced(PIECE // 8, 8)

    def some(x: Any, i: Any = 0) -> Any:
        return warp.load_col(x, (0, 0, i, place), length=TALL, layout=layout)

    target = some(column)
    level, scale, hot, *even = (some(state, i) for i in range(4 if smooth else 3))
    for i in pk.range(PIECES):
        piece = pk.block_index.x * PIECES + i
        x = warp.load(powers, (0, 0, place, piece), rows=TALL, cols=PIECE, dtype=f32, layout=layout)
        share = pk.exp2(pk.fma(some(peaks, piece), LOG2E, level)) * scale  # 0 where all that was kept is 0
        slope = sloped(x * share, even, hot, target, piece * PIECE, everywhere)
        warp.store(out, slope.to(out.dtype), (0, 0, place, piece))


def sloped(slope: Any, even: list[Any], hot: Any, target: Any, col: Any, everywhere: bool, bend: Any = None) -> Any:
    """The gradient of logits, of a row's shares of its exponentials."""
    if even:
        slope = slope - even[0]
    slope = slope - pk.where(pk.col_index(slope) + col == target, hot, 0.0)
    slope = slope if bend is None else slope * bend
    return slope if everywhere else pk.where(target == IGNORED, 0.0, slope)


@lru_cache(maxsize=256)
def gradient(smooth: bool, cap: float, everywhere: bool) -> Callable[..., Any]:
    """The epilogue that makes the logits' gradient of logits. `everywhere`: ignored rows have one too, that of lse."""

    def epilogue(x: Any, row: Any, col: Any, column: Any, state: Any, bias: Any = None) -> Any:
        x = logits(x, col, bias, cap)
        target = warpgroup.load_col(column, pk.at(0, row), length=x.rows)
        level, scale, hot, *even = (
            warpgroup.load_col(state, pk.at(i, row), length=x.rows) for i in range(4 if smooth else 3)
        )
        bend = 1.0 - (x * (1 / cap)) * (x * (1 / cap)) if cap else None
        return sloped(pk.exp2(pk.fma(x, LOG2E, level)) * scale, even, hot, target, col, everywhere, bend)

    return epilogue


def add(x: Any, row: Any, col: Any, sums: Any) -> Any:
    """The epilogue that adds what earlier slices gave."""
    return x + warpgroup.load(sums, pk.at(row, col), rows=x.rows, cols=x.cols)


Settings = tuple[str, int, float, float, float]  # reduction, ignore_index, label smoothing, z-loss, softcap


class ForwardSteps:
    """The launches of the forward pass as one, called as a kernel is. kept and peaks: None where nothing is kept; held:
    the memory of the weight's gradient, None where it holds nothing.
    """

    def __call__(
        self,
        x: Any,
        weight: Any,
        targets: Any,
        bias: Any,
        loss: Any,
        lse: Any,
        kept: Any,
        peaks: Any,
        held: Any,
        *settings: Any,
        workspace: int = WORKSPACE,
    ) -> None:
        reduction, ignore, smoothing, z_loss, cap = settings
        (m, v), new = (x.shape[0], weight.shape[0]), maker(x)
        column, targets, terms = new((m,), "i32"), as_column(targets), 4 if smoothing else 3
        slices, most = divided(x, weight, kept, peaks, held, workspace)
        find_columns(targets, column, ignore, v, 0, v)
        x, weight = readable(x), readable(weight)
        some, left = -(-most // PIECE), rows_of(weight, most, v - most)
        wide = chosen(x, left).own if most < v else PIECE
        tiles = some + -(-(v - most) // wide)
        parts, behind = new((terms * tiles, m), "f32"), new((m,), "i32") if slices[0].wide < v else column

        def product(first: int, part: Any, tile: int, made: Any = None, config: Any = None) -> None:
            n, keep, here = part.shape[0], made is not None, behind if first else column
            if first:
                find_columns(targets, behind, ignore, v, first, n)
            epilogue = statistics(terms, float(cap), n if n % tile else 0, keep, keep)
            above = first // PIECE if first < most else some
            its = View(parts, (terms * -(-n // tile), m), (m, 1), terms * above * m)
            tops = [View(peaks, (-(-n // PIECE), m), (m, 1), above * m)] if keep else []
            run(matmul.call(x, part.T, made, epilogue, [here, its, *tops, *part_of(bias, first, n)], config=config))

        for first, n, place in powers_of(slices, m, most, kept, held, whole=True):
            part = rows_of(weight, first, n)
            narrow = gemm.Config() if chosen(x, part).own < PIECE else None
            product(first, part, PIECE, place, narrow)
        if most < v:
            product(most, left, wide, config=chosen(x, left))
        rows = loss if reduction == "none" else new((m,), "f32")
        each = View(parts, (terms, tiles, m), (m, terms * m, 1))
        finish(each, column, rows, lse, float(smoothing), smoothing / v, float(z_loss))
        if reduction != "none":
            share, overlap = share_of(column, reduction, new), may_overlap(arrays.describe(loss))
            total_loss(rows, share, View(loss, (1,), (1,)), dependent=overlap)


class BackwardSteps:
    """The launches of the backward pass as one. dx, dweight and dbias: None where nobody wants them. dweight may be
    `held` itself, of which nothing is left then.
    """

    def __call__(
        self,
        x: Any,
        weight: Any,
        targets: Any,
        bias: Any,
        lse: Any,
        dloss: Any,
        dlse: Any,
        kept: Any,
        peaks: Any,
        held: Any,
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
        slices, most = divided(x, weight, kept, peaks, held, workspace)
        x, weight = readable(x), readable(weight)
        stride = -(-max(wide for _, wide, _ in slices) // 8) * 8
        slope = new((m, stride), info.dtype)
        sums = new((m, h), "f32") if dx is not None and len(slices) > 1 else None
        ones = new((1, m), info.dtype) if dbias is not None else None
        if ones is not None:
            arrays.fill(ones, 1.0)
        smooth, everywhere = smoothing > 0, dlse is not None
        powers = {first: place for first, _, place in powers_of(slices, m, most, kept, held)}
        for first, wide, _ in slices:
            if first:
                find_columns(targets, column, ignore, v, first, wide)
            part, made = rows_of(weight, first, wide), View(slope, (m, wide), (stride, 1))
            if first in powers:
                beside = View(peaks, (-(-wide // PIECE), m), (m, 1), first // PIECE * m)
                rescale(powers[first], beside, column, state, made, smooth=smooth, everywhere=everywhere)
            else:
                epilogue = gradient(smooth, float(cap), everywhere)
                run(matmul.call(x, part.T, made, epilogue, [column, state, *part_of(bias, first, wide)]))
            if dweight is not None:
                run(matmul.call(made.T, x, rows_of(dweight, first, wide)))
            if ones is not None:
                run(matmul.call(ones, made, *part_of(dbias, first, wide)))
            if dx is not None:
                out = dx if first + wide == v else sums
                run(matmul.call(made, part, out, *((add, [sums]) if first else ())))


FORWARD, BACKWARD = ForwardSteps(), BackwardSteps()


def run(call: Any) -> None:
    """Launches."""
    call.kernel(*call.operands, **call.statics)


def maker(x: Any) -> Callable[[tuple[int, ...], str], Any]:
    """What makes arrays of a shape and dtype where x is."""
    info = arrays.describe(x)
    return lambda shape, dtype: arrays.empty(info.kind, shape, dtype, info.device)


def given(x: Any) -> list[Any]:
    return [] if x is None else [x]


def chosen(x: Any, part: Any) -> Any:
    """The configuration of the product of x with rows of the weight."""
    return matmul.choose_kernel(*map(matmul.described, (x, part.T))).config


def part_of(bias: Any, first: int, count: int) -> list[Any]:
    """The bias of some columns, where there is one."""
    return [] if bias is None else [View(bias, (1, count), (count, 1), first)]


def share_of(column: Any, reduction: str, new: Callable[..., Any]) -> Any:
    """1 over how many rows count, for "mean"."""
    if reduction != "mean":
        return None
    share = new((1,), "f32")
    prepare(column, share, None, IGNORED)
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


def divided(x: Any, weight: Any, kept: Any, peaks: Any, held: Any, workspace: int) -> tuple[list[Slice], int]:
    """The slices of the vocabulary, and how many columns' exponentials are kept: the first ones. As many peaks as there
    are say how many of them are held in the memory of the weight's gradient.
    """
    (m, h), v = x.shape, weight.shape[0]
    more = 0 if kept is None else kept.shape[1]
    early = 0 if held is None or peaks is None else (peaks.shape[0] - -(-more // PIECE)) * PIECE
    more = min(v - early, more)
    return slices_of(m, h, v, early, more, workspace, processors_of(arrays.describe(x).device)), early + more


def powers_of(
    slices: list[Slice], m: int, most: int, kept: Any, held: Any, whole: bool = False
) -> Iterator[tuple[int, int, View]]:
    """The slices whose exponentials are kept: their first columns, their widths, and where they are. `whole`: those
    that are kept outside of the weight's gradient are one.
    """
    beyond = next((x.first for x in slices if x.offset is None), most)  # of the held columns
    for first, wide, offset in slices:
        if offset is not None:
            yield first, wide, View(held, (m, wide), (wide, 1), offset)
        elif first < most and not (whole and first > beyond):
            n = most - beyond if whole else wide
            yield first, n, View(kept, (m, n), (kept.shape[1], 1), first - beyond)


def check(
    x: ArrayInfo,
    weight: ArrayInfo,
    targets: ArrayInfo,
    bias: ArrayInfo | None,
    *settings: Any,
) -> None:
    """Raises `ArgumentError` for operands or settings that the kernels do not take."""
    if len(x.shape) != 2 or len(weight.shape) != 2 or x.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        fact = f"linear_cross_entropy of x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        raise ArgumentError(fact, fix="pass (m, h) and (v, h), v at least 1: reshape (batch, tokens, h) to (-1, h)")
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
