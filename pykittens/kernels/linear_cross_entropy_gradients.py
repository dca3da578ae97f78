"""Linear cross-entropy whose gradients are made in the forward pass, of an upstream gradient of 1.

    z = x w^T + bias,  loss = the mean or sum of the rows' losses,  u = the gradient that will come for it

The forward pass takes some rows of x after others. Of each it makes all exponentials of logits, in 16 bits, and their
log-sum-exps; then, in place, the logits' gradients S, and dx = S w. The backward pass is left with

    dw = u S^T x,  dbias = u sum of S over the rows,  dx = u dx

so that all of it is three products of 2 m h v operations, if S finds room. It lies in memory of its own and, where that
does not suffice, in that of the weight's gradient (`vocabulary_slices.areas_of`). Columns for which there is no room at
all are made once more in the backward pass, a fourth product for these. What is summed over several parts of the
vocabulary is summed in float32. The kernels are those of `linear_cross_entropy.py`; that one is left with what needs
another gradient for each row. Making gradients ahead is Liger Kernel's way (Hsu et al. 2024), which adds up dw over
rows.

In bf16, which has float32's range, exponentials are E = exp(z - r), beside one number of each row: its target's logit.
Then S has a factor f of each row, and S / f is E but in the target's column, so that no pass over E need make S of it:

    S = f E - up [column is t],  f = up (1 + 2 b lse) exp(r - lse),  dx = f ((S / f) w),  dw = u (S / f)^T (f x)

64 logits of which one is more than NEAR above r are beside the largest of them; `settle` then brings all exponentials
of the row beside one number. Under label smoothing, and in f16, `rescale` makes S.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp, warpgroup
from pykittens.interop import arrays
from pykittens.interop.views import View
from pykittens.types import Coalesced

from . import linear_cross_entropy as steps
from . import matmul, scale_rows
from .arguments import may_overlap
from .cross_entropy import LOG2E, total_loss
from .linear_cross_entropy import (
    IGNORED,
    LANES,
    NOWHERE,
    PIECE,
    TALL,
    WARPS,
    add,
    as_column,
    find_columns,
    finish,
    maker,
    part_of,
    readable,
    rows_of,
    run,
)
from .vocabulary_slices import Areas, Slice

GROUP = 32  # pieces of columns whose numbers a warp of `settle` looks at together
SPAN = 256  # elements of two rows that a warp of `target_logits` multiplies at a time


@pk.kernel(warps=WARPS, grid=lambda x, **_: -(-x.rows // WARPS))
def target_logits(
    x: Annotated[Tensor, (bf16, f16), "M", "H"],
    weight: Annotated[Tensor, (bf16, f16), "V", "H"],
    column: Annotated[Tensor, i32, "M"],
    bias: Annotated[Tensor, (bf16, f16, f32), 1, "V"] | None,
    logit: Annotated[Tensor, f32, "M"],
) -> None:
    """Each row's logit of its target; of column 0 where it has none."""
    row, layout = pk.block_index.x * WARPS + warp.index, Coalesced(32, 8)
    with pk.when(row < x.rows):
        target = pk.where(column[row] < 0, 0, column[row])
        total = warp.zeros(f32, 1, SPAN, layout=layout)
        for part in pk.range(pk.cdiv(x.cols, SPAN)):
            a, b = (
                warp.load(y, (0, 0, at, part), rows=1, cols=SPAN, dtype=f32, layout=layout)
                for y, at in ((x, row), (weight, target))
            )
            total[:] = pk.fma(a, b, total)
        found = total.row_sum().sum()
        warp.set(logit, (row,), found if bias is None else found + pk.cast(bias[0, target], f32))


@pk.kernel(warps=4, grid=lambda lse, **_: -(-lse.cols // (4 * LANES)))
def factors(
    column: Annotated[Tensor, i32, "M"],
    lse: Annotated[Tensor, f32, "M"],
    found: Annotated[Tensor, f32, 3, "M"],
    share: Annotated[Tensor, f32, "ONE"] | None,
    state: Annotated[Tensor, f32, 4, "M"],
    marks: Annotated[Tensor, f32, 4, "M"],
    z: Annotated[Scalar, f32],
) -> None:
    """What a row's gradient is made with: of `gradient`, and, as the fourth, the factor f; and what `settle` is to do.

    `marks`: the number beside which exponentials already are what they should be (NaN: all are to be written), the
    number that they should be beside, what else they are multiplied by, and S / f in the target's column. That is
    rounded to bf16, and f then such that S is not: mostly it is by far the largest. All exponentials of a row are
    written where f would be near 0 or negative under a z-loss, or would have to make 0 of what is no number.
    """
    place = pk.block_index.x * 4 + warp.index

    def some(x: Any, i: int = 0) -> Any:
        return warp.load_row(x, (0, 0, i, place), length=LANES, layout=Coalesced(LANES, 1))

    level, most, logit, total, target = some(lse), *(some(found, i) for i in range(3)), some(column)
    up = pk.where(target == IGNORED, 0.0, 1.0 if share is None else share[0])
    up = pk.where(target == NOWHERE, math.nan, up)
    bend = level * (2.0 * z) + 1.0
    shape, times = (pk.where(bend >= 0.5, *pair) for pair in ((bend, 1.0), (1.0, bend)))
    power = pk.exp2(pk.fma(logit, LOG2E, most * -LOG2E))  # as `statistics` made it, so that what remains is the others'
    exact = power * times - total / shape
    hot = exact.to(bf16).to(f32)
    factor = up * shape / total * pk.where(hot == 0.0, 1.0, exact / hot)
    for i, value in enumerate((level * -LOG2E, up * bend, up, pk.where(target == IGNORED, 0.0, factor))):
        warp.store(state, value, (0, 0, i, place))
    beside = pk.where(bend >= 0.5, most, math.nan)
    beside = pk.where(target == IGNORED, pk.where(level - level == 0.0, most, math.nan), beside)
    for i, value in enumerate((beside, most, times, hot)):
        warp.store(marks, value, (0, 0, i, place))


@pk.kernel(
    warps=WARPS,
    grid=lambda powers, **_: (pk.cdiv(powers.cols, GROUP * PIECE), pk.cdiv(powers.rows, WARPS * TALL)),
)
def settle(
    powers: Annotated[Tensor, (bf16, f16), "M", "N"],
    numbers: Annotated[Tensor, f32, "P", "M"],
    column: Annotated[Tensor, i32, "M"],
    marks: Annotated[Tensor, f32, 4, "M"],
    out: Annotated[Tensor, (bf16, f16), "M", "N"],
) -> None:
    """Exponentials become S / f in `out`, which may be `powers`: those of rows that are not yet beside one number
    (`factors`), and in columns of targets. Of others only their numbers are read.
    """
    place, group = pk.block_index.y * WARPS + warp.index, pk.block_index.x
    across, layout = Coalesced(TALL // 4, 4), Coalesced(PIECE // 8, 8)

    def a_row(x: Any, i: int = 0) -> Any:
        return warp.load_row(x, (0, 0, i, place), length=TALL, layout=across)

    def a_col(x: Any, i: Any = 0) -> Any:
        return warp.load_col(x, (0, 0, i, place), length=TALL, layout=layout)

    target, hot = a_row(column) - group * (GROUP * PIECE), a_row(marks, 3)
    found = warp.load(numbers, (0, 0, group, place), rows=GROUP, cols=TALL, layout=across)
    other = pk.where(found == a_row(marks), 0.0, 1.0)
    other = pk.where(pk.row_index(other) + group * GROUP < numbers.rows, other, 0.0)
    with pk.when(other.row_max().max() > 0.0):
        for piece in pk.range(group * GROUP, pk.minimum((group + 1) * GROUP, numbers.rows)):
            x = warp.load(powers, (0, 0, place, piece), rows=TALL, cols=PIECE, dtype=f32, layout=layout)
            by = pk.exp2((a_col(numbers, piece) - a_col(marks, 1)) * LOG2E) * a_col(marks, 2)
            slope = pk.where(a_col(column) == IGNORED, 0.0, x * by)
            warp.store(out, slope.to(out.dtype), (0, 0, place, piece))
        warp.sync()  # the rows' targets lie in what other lanes have just written
    col = pk.where(target < 0, -1, pk.where(target < GROUP * PIECE, target + group * (GROUP * PIECE), -1))
    warp.store(out, hot.to(out.dtype), pk.at(pk.iota(col) + place * TALL, col))


class ForwardSteps:
    """The launches of the forward pass as one, called as a kernel is. dx: None where nobody wants it. kept and held:
    where S is, None where nothing of it is (`Areas`).
    """

    def __call__(
        self,
        x: Any,
        weight: Any,
        targets: Any,
        bias: Any,
        loss: Any,
        state: Any,
        dx: Any,
        kept: Any,
        held: Any,
        *settings: Any,
        areas: Areas,
    ) -> None:
        reduction, ignore, smoothing, z_loss, _ = settings
        ((m, h), v), new, rows, info = (x.shape, weight.shape[0]), maker(x), areas.rows, arrays.describe(x)
        apart = factored(info, smoothing)
        slices, terms, targets = areas.slices, 4 if smoothing else 3, as_column(targets)
        columns, lse, losses = new((1 + len(slices), m), "i32"), new((rows,), "f32"), new((m,), "f32")
        for i, (first, wide, _) in enumerate([Slice(0, v), *slices]):
            find_columns(targets, View(columns, (m,), (1,), i * m), ignore, v, first, wide)
        share = steps.share_of(View(columns, (m,), (1,)), scaled_ahead(reduction, x), new)
        above = [0]
        for area in slices:
            above.append(above[-1] - (-area.wide // PIECE))
        noted = held if areas.below else new((terms * above[-1] * rows,), "f32")
        at = partial(View, noted, dtype="f32")
        sums = new((rows, h), "f32") if dx is not None and len(slices) > 1 else None
        spare = new((rows, areas.spare), info.dtype) if areas.spare else None
        x, weight = readable(x), readable(weight)
        logit, found, marks = (new(shape, "f32") if apart else None for shape in ((m,), (3, rows), (4, rows)))
        if apart:
            target_logits(x, weight, View(columns, (m,), (1,)), *(part_of(bias, 0, v) or [None]), logit)
        for top in range(0, m, rows):
            n = min(rows, m - top)
            some, own = rows_of(x, top, n), View(state, (4, n), (m, 1), top)
            made = [place(area, top, n, m, kept, held, spare, areas) for area in slices]
            for i, (area, powers) in enumerate(zip(slices, made, strict=True)):
                part, cut = rows_of(weight, area.first, area.wide), area.wide if area.wide % PIECE else 0
                its = at((terms * (above[i + 1] - above[i]), n), (rows, 1), terms * above[i] * rows)
                here = View(columns, (1, n), (n, 1), (1 + i) * m + top)
                epilogue = steps.statistics(terms, 0.0, cut, keep=True, known=apart)
                config = steps.gemm.Config() if steps.chosen(some, part).own < PIECE else None
                beside = [View(logit, (1, n), (n, 1), top)] if apart else []
                operands = [here, its, *beside, *part_of(bias, area.first, area.wide)]
                product(some, part.T, powers, epilogue, operands, config)
            each = at((terms, above[-1], n), (rows, terms * rows, 1))
            column, level = View(columns, (n,), (1,), top), View(lse, (n,), (1,))
            seen, mark = (View(x, (i, n), (rows, 1)) if apart else None for i, x in ((3, found), (4, marks)))
            by = float(smoothing), smoothing / v, float(z_loss)
            finish(each, column, View(losses, (n,), (1,), top), level, *by, found=seen)
            if apart:
                factors(column, level, seen, share, own, mark, float(z_loss))
            else:
                steps.slopes(column, level, share, None, None, own, *by, each=False)
            for i, (area, slope) in enumerate(zip(slices, made, strict=True)):
                peaks = at((above[i + 1] - above[i], n), (terms * rows, 1), terms * above[i] * rows)
                target = View(columns, (n,), (1,), (1 + i) * m + top)
                if apart:
                    settle(slope, peaks, target, mark, slope)
                else:
                    steps.rescale(slope, peaks, target, own, slope, smooth=smoothing > 0, everywhere=False)
                if dx is not None:
                    last = area is slices[-1]
                    out = rows_of(dx, top, n) if last else rows_of(sums, 0, n)
                    before = [rows_of(sums, 0, n)] if i else []
                    factor = [View(state, (1, n), (n, 1), 3 * m + top)] if apart and last else []
                    part, ending = rows_of(weight, area.first, area.wide), EPILOGUES[bool(before), bool(factor)]
                    product(slope, part, out, ending, [*before, *factor])
        share = steps.share_of(View(columns, (m,), (1,)), reduction, new)
        total_loss(losses, share, View(loss, (1,), (1,)), dependent=may_overlap(info))


class BackwardSteps:
    """What is left for the backward pass, as one: u times dweight and dbias, each None where nobody wants it. dweight
    may be `held` itself, of which nothing is left then; `over`: nothing need be left of `kept` either.
    """

    def __call__(
        self,
        x: Any,
        weight: Any,
        targets: Any,
        bias: Any,
        state: Any,
        kept: Any,
        held: Any,
        upstream: Any,
        dweight: Any,
        dbias: Any,
        *settings: Any,
        areas: Areas,
        over: bool,
    ) -> None:
        _, ignore, smoothing, *_ = settings
        (m, v), new, dtype = (x.shape[0], weight.shape[0]), maker(x), arrays.describe(x).dtype
        upstream, targets, column = View(upstream, (1, 1), (1, 1)), as_column(targets), new((m,), "i32")
        apart = factored(arrays.describe(x), smoothing) and areas.again
        factor = View(state, (m,), (1,), 3 * m) if apart else None
        again = max((area.wide for area in areas.slices if area.first >= areas.again), default=0)
        spare = kept if over and kept is not None and kept.shape[1] >= again else None
        spare = new((m, -(-again // 8) * 8), dtype) if again and spare is None else spare
        x, weight = readable(x), readable(weight)
        by_rows, by_ones = self.sides(x, factor, dweight is not None, dbias is not None)
        for area in areas.slices:
            first, wide, _ = area
            made = first < areas.again
            if first >= areas.again:
                find_columns(targets, column, ignore, v, first, wide)
                assert spare is not None
                slope = View(spare, (m, wide), (spare.shape[1], 1))
                operands = [column, state, *part_of(bias, first, wide)]
                epilogue = steps.gradient(smoothing > 0, 0.0, False)
                product(x, rows_of(weight, first, wide).T, slope, epilogue, operands)
            else:
                slope = place(area, 0, m, m, kept, held, None, areas)
            if dbias is not None:
                product(by_ones[made], slope, part_of(dbias, first, wide)[0], times, [upstream])
            if dweight is not None:
                product(slope.T, by_rows[made], rows_of(dweight, first, wide), times, [upstream])

    @staticmethod
    def sides(x: View, factor: Any, for_weight: bool, for_bias: bool) -> tuple[list[Any], list[Any]]:
        """x and ones, by which slopes are multiplied: as they are, and times the rows' factors, where there are any."""
        (m, h), new, dtype = x.shape, maker(x), arrays.describe(x).dtype
        ones: Any = new((1, m), dtype) if for_bias else None
        if ones is not None:
            arrays.fill(ones, 1.0)
        found = [[x, x], [ones, ones]]
        if factor is not None and for_weight:
            stride = -(-h // 8) * 8
            found[0][1] = View(new((m, stride), dtype), (m, h), (stride, 1))
            run(scale_rows.call(x, factor, found[0][1]))
        if factor is not None and for_bias:
            found[1][1] = new((1, m), dtype)
            run(scale_rows.call(View(ones, (m, 1), (1, 1)), factor, View(found[1][1], (m, 1), (1, 1))))
        return found[0], found[1]


FORWARD, BACKWARD = ForwardSteps(), BackwardSteps()


def scaled(x: Any, row: Any, col: Any, factor: Any) -> Any:
    """The epilogue that multiplies by a factor of each row."""
    return x * warpgroup.load_col(factor, pk.at(0, row), length=x.rows)


def added_and_scaled(x: Any, row: Any, col: Any, sums: Any, factor: Any) -> Any:
    """The epilogue that adds what earlier slices gave, and multiplies by a factor of each row."""
    return scaled(add(x, row, col, sums), row, col, factor)


EPILOGUES = {(False, False): None, (True, False): add, (False, True): scaled, (True, True): added_and_scaled}


def factored(x: Any, smoothing: float) -> bool:
    """Whether the gradient of logits is kept as S / f."""
    return str(x.dtype).endswith(("bf16", "bfloat16")) and smoothing == 0


def product(a: Any, b: Any, out: Any, epilogue: Any, operands: Any, config: Any = None) -> None:
    """Launches a product that takes no memory but its operands'."""
    run(matmul.call(a, b, out, epilogue, operands, config=config, divide=False))


def times(x: Any, row: Any, col: Any, by: Any) -> Any:
    """The epilogue that multiplies by the upstream gradient."""
    return x * by[0, 0]


def scaled_ahead(reduction: str, x: Any) -> str:
    """`reduction`, or "sum" where the mean's share is part of the upstream gradient: in f16 it would leave the range
    of gradients that a loss is scaled for.
    """
    return "sum" if arrays.describe(x).dtype == "f16" else reduction


def place(area: Slice, top: int, n: int, m: int, kept: Any, held: Any, spare: Any, areas: Areas) -> View:
    """Where n rows, from `top`, of a slice are."""
    if area.offset is not None:
        return View(held, (n, area.wide), (area.wide, 1), area.offset + top * area.wide)
    if area.first >= areas.again:
        return View(spare, (n, area.wide), (areas.spare, 1), area.first - areas.again)
    return View(kept, (n, area.wide), (kept.shape[1], 1), top * kept.shape[1] + area.first - areas.held)
