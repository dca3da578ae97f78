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
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pykittens.interop import arrays
from pykittens.interop.views import View

from . import linear_cross_entropy as steps
from . import matmul
from .cross_entropy import total_loss
from .linear_cross_entropy import PIECE, add, as_column, find_columns, finish, maker, part_of, readable, rows_of, run
from .vocabulary_slices import Areas, Slice


class Forward:
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
        ((m, h), v), new, rows = (x.shape, weight.shape[0]), maker(x), areas.rows
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
        spare = new((rows, areas.spare), arrays.describe(x).dtype) if areas.spare else None
        x, weight = readable(x), readable(weight)
        for top in range(0, m, rows):
            n = min(rows, m - top)
            some, own = rows_of(x, top, n), View(state, (4, n), (m, 1), top)
            made = [place(area, top, n, m, kept, held, spare, areas) for area in slices]
            for i, (area, powers) in enumerate(zip(slices, made, strict=True)):
                part, cut = rows_of(weight, area.first, area.wide), area.wide if area.wide % PIECE else 0
                its = at((terms * (above[i + 1] - above[i]), n), (rows, 1), terms * above[i] * rows)
                here = View(columns, (1, n), (n, 1), (1 + i) * m + top)
                epilogue = steps.statistics(terms, 0.0, cut, keep=True)
                config = steps.gemm.Config() if steps.chosen(some, part).own < PIECE else None
                operands = [here, its, *part_of(bias, area.first, area.wide)]
                run(matmul.call(some, part.T, powers, epilogue, operands, config=config))
            each = at((terms, above[-1], n), (rows, terms * rows, 1))
            column, level = View(columns, (n,), (1,), top), View(lse, (n,), (1,))
            finish(each, column, View(losses, (n,), (1,), top), level, float(smoothing), smoothing / v, float(z_loss))
            steps.slopes(column, level, share, None, None, own, float(smoothing), smoothing / v, z_loss, each=False)
            for i, (area, slope) in enumerate(zip(slices, made, strict=True)):
                peaks = at((above[i + 1] - above[i], n), (terms * rows, 1), terms * above[i] * rows)
                target = View(columns, (n,), (1,), (1 + i) * m + top)
                steps.rescale(slope, peaks, target, own, slope, smooth=smoothing > 0, everywhere=False)
                if dx is not None:
                    out = rows_of(dx, top, n) if area is slices[-1] else rows_of(sums, 0, n)
                    adding = (add, [rows_of(sums, 0, n)]) if i else ()
                    run(matmul.call(slope, rows_of(weight, area.first, area.wide), out, *adding))
        total_loss(losses, steps.share_of(View(columns, (m,), (1,)), reduction, new), View(loss, (1,), (1,)))


class Backward:
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
        ones = new((1, m), dtype) if dbias is not None else None
        if ones is not None:
            arrays.fill(ones, 1.0)
        again = max((area.wide for area in areas.slices if area.first >= areas.again), default=0)
        spare = kept if over and kept is not None and kept.shape[1] >= again else None
        spare = new((m, -(-again // 8) * 8), dtype) if again and spare is None else spare
        x, weight = readable(x), readable(weight)
        for area in areas.slices:
            first, wide, _ = area
            if first >= areas.again:
                find_columns(targets, column, ignore, v, first, wide)
                assert spare is not None
                slope = View(spare, (m, wide), (spare.shape[1], 1))
                operands = [column, state, *part_of(bias, first, wide)]
                epilogue = steps.gradient(smoothing > 0, 0.0, False)
                run(matmul.call(x, rows_of(weight, first, wide).T, slope, epilogue, operands))
            else:
                slope = place(area, 0, m, m, kept, held, None, areas)
            if ones is not None:
                run(matmul.call(ones, slope, part_of(dbias, first, wide)[0], times, [upstream]))
            if dweight is not None:
                run(matmul.call(slope.T, x, rows_of(dweight, first, wide), times, [upstream]))


FORWARD, BACKWARD = Forward(), Backward()


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
