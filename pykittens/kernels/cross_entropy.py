"""Cross-entropy of rows of logits, and its gradient in the same pass.

    z      = x, or c tanh(x / c) with softcap c
    lse    = log(sum(exp(z)))
    loss   = lse - (1 - a) z[t] - a mean(z) + b lse^2          (label smoothing a, z-loss b, target t)
    dz     = (1 + 2 b lse) exp(z - lse) - (1 - a) [column is t] - a / n
    dx     = dz (1 - (z / c)^2)

"mean" divides by how many targets are not `ignore_index`: with none of these the loss is NaN, as in torch, and the
gradient zero. An ignored row has loss 0 and gradient 0, whatever is in it; a target that is no column is an error on
the simulator and in debug builds, and on a GPU its row's loss and gradient are NaN. Goyal et al. call b the weight of
PaLM's auxiliary loss (Chowdhery et al. 2022, section 5); softcap is Gemma 2's (2024).

x: (m, n), bf16, f16 or f32, n up to 524,288; float32 between. Logits are read once and the gradient is written once,
in place where asked: a row stays in registers, spread over a cluster where it is long. The target's logit is read by
the block whose columns have it, which also knows lse and writes the loss: without smoothing the logarithm of the sum of
exponentials less the target's exponent, since losses of nearly certain targets are less than lse and z are rounded by.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, i64
from pykittens.errors import ArgumentError
from pykittens.interop import arrays
from pykittens.interop.arrays import ArrayInfo
from pykittens.interop.views import View
from pykittens.types import DTYPES

from .arguments import check_floats, floats, machine, may_overlap, values_of
from .rows import FLOATS, Rows, drawing, drawn, stream, teams

LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
SOME = 4096  # targets that a team counts at a time; a block of 32 warps takes four times as many, or losses
ALONE = 16_384  # targets, at most, that teams count themselves, while their first rows come
HELD, SMOOTH, HEAVY = 80, 64, 32  # logits of a thread, at most: plain, with smoothing, and with a softcap or in float32
SPARE = 1024  # more rows than blocks that stay look at past the end
PLAIN, STREAMS, STREAMED, MOST = 16_384, 4096, 262_144, 524_288  # rows in registers, that stream, and the longest
# Blocks of a cluster, warps of a team, teams of a block, logits of a thread, at most: clusters of 8 find less room.
SPLITS = ((1, 8, 2, 64), (1, 16, 1, 64), (2, 16, 1, 64), (4, 16, 1, 80), (8, 16, 1, 64))


@pk.kernel(
    warps=lambda config, **_: config.warps,
    grid=lambda loss, config, **_: config.blocks(loss.cols),
    cluster=lambda config, **_: config.cluster,
    blocks_per_sm=lambda config, **_: config.blocks_per_sm,
    pdl=lambda dependent=False, **_: dependent,
)
def entropy(
    x: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    targets: Annotated[Tensor, (i32, i64), "M"],
    share: Annotated[Tensor, f32, "ONE"],
    dx: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    loss: Annotated[Tensor, f32, "M"],
    lse: Annotated[Tensor, f32, "M"],
    long: Annotated[Tensor, FLOATS, 1, "MN"],
    dlong: Annotated[Tensor, FLOATS, 1, "MN"],
    counter: Annotated[Tensor, i32, 1],
    ignore: Annotated[Scalar, i32],
    smoothing: Annotated[Scalar, f32],
    even: Annotated[Scalar, f32],
    z: Annotated[Scalar, f32],
    cap: Annotated[Scalar, f32],
    narrow: Annotated[Scalar, f32],
    *,
    smooth: bool,
    squared: bool,
    capped: bool,
    counts: bool,
    shared: bool,
    config: Rows,
    dependent: bool = False,
) -> None:
    """Each row's loss, log-sum-exp and gradient, times `share` where it is `shared`; lse and dx only where given.

    `even`: smoothing / n, `narrow`: 1 / cap. `smooth`, `squared`, `capped`: whether there is label smoothing, z-loss, a
    softcap. `counts`: each team counts the targets itself, and one writes `share`. `long`, `dlong`: x and dx as one row
    each, where the config is shifted. `counter`: rows are drawn from it. `dependent`: `prepare`, ahead, may still run.
    """
    n, m = config.n, loss.cols
    if dependent:
        pk.wait_for_previous()
    if config.stages:
        pk.launch_next()
    rows, x, dx = drawn(config, counter, m), *((long, dlong) if config.shifted else (x, dx))
    for t, team in enumerate(teams(config, (x,), rows=rows)):
        part: Any = share[0] if shared and not counts else 1.0
        if counts:
            part = 1.0 / how_many(pk.group(config.team), targets, ignore)
            with pk.when((team.index == 0) & (team.part == 0) & (pk.warp.index == 0)):
                pk.warp.set(share, (0,), part)
        early = counter is not None and config.teams > 1  # short rows would wait for their targets
        ahead = pk.var(targets.dtype, targets[pk.minimum(rows[t].first, m - 1)]) if early else None
        for mine in team.tiles():
            row, target = mine.first, targets[pk.minimum(mine.first, m - 1)] if ahead is None else ahead + 0
            inside, wanted = (target >= 0) & (target < n), target != ignore
            pk.assert_(inside | ~wanted, "a target is a column, or ignore_index")
            col = pk.cast(pk.where(inside, target, 0), i32) - mine.left  # from where this part begins
            here = (col >= 0) & (col < config.cols)
            picked: Any = pk.cast(mine.pick(x, pk.where(here, col, 0)), f32)
            picked = mine.team.full_col(f32, 1, picked, layout=config.layout)
            value, slope = mine.load(x), None
            if ahead is not None:  # behind the slot's fence, which waits for what is being loaded
                ahead.set(targets[pk.minimum(rows[t].following, m - 1)])
            if capped:
                bent = pk.tanh(value * narrow)
                slope, value, picked = 1.0 - bent * bent, bent * cap, pk.tanh(picked * narrow) * cap
            value = mine.cut(value, -pk.inf)
            peak = mine.max(value)
            weight = pk.exp2(pk.fma(value, LOG2E, peak * -LOG2E))
            total, level = mine.sums(weight, mine.cut(value, 0.0)) if smooth else (mine.sum(weight), 0.0)
            whole = pk.log(total) + peak
            status = pk.where(wanted, pk.where(inside, 1.0, math.nan), 0.0)
            known = mine.team.full_col(f32, 1, status, layout=config.layout)
            with pk.when(here & (row < m)):
                if smooth:
                    found = whole - picked * (1.0 - smoothing) - level * even
                else:
                    found = pk.maximum(pk.log(total) - pk.fma(picked, LOG2E, peak * -LOG2E) * LN2, 0.0)
                found = found + whole * whole * z if squared else found
                mine.store_column(loss, pk.where(known == 0.0, 0.0, found * known))
                if lse is not None:
                    mine.store_column(lse, whole)
            if dx is None:
                continue
            scale = known * part if shared else known
            factor = scale * pk.rcp(total)
            factor = factor * (whole * (2.0 * z) + 1.0) if squared else factor
            grad = pk.fma(weight, factor, -scale * even) if smooth else weight * factor
            with pk.when(wanted):
                mine.store(dx, grad * slope if capped else grad)
            with pk.otherwise():  # whatever is in the row
                mine.store(dx, mine.team.zeros(f32, 1, config.cols, layout=config.layout))
            with pk.when(here & inside & wanted & (row < m)):
                mine.team.sync()  # the target's column again: a comparison for every column costs more
                rest = pk.exp2((picked - peak) * LOG2E) * factor - scale * (1.0 - smoothing + even)
                rest = rest * (1.0 - (picked * narrow) * (picked * narrow)) if capped else rest
                mine.store_element(dx, rest, col)


def how_many(group: Any, targets: Any, ignore: Any, at_once: int = SOME) -> Any:
    """How many targets are not `ignore`, counted by a group of warps."""

    def some(lap: Any) -> Any:
        target = group.load_vec(targets, (0, 0, 0, lap), length=at_once, dtype=i32)
        return pk.where((target != ignore) & (pk.iota(target) + lap * at_once < targets.cols), 1.0, 0.0)

    total = some(0)
    for lap in pk.range(1, pk.cdiv(targets.cols, at_once)):
        total += some(lap)
    return total.sum()


@pk.kernel(warps=32)
def prepare(
    targets: Annotated[Tensor, (i32, i64), "M"],
    share: Annotated[Tensor, f32, "ONE"],
    counter: Annotated[Tensor, i32, 1],
    ignore: Annotated[Scalar, i32],
    *,
    overlap: bool = False,
) -> None:
    """share = 1 over how many targets are not `ignore`, infinite where all are; counter = 0: each where it is given.
    `overlap`: the next kernel begins at once, and waits where it needs them.
    """
    if overlap:
        pk.launch_next()
    if counter is not None:
        with pk.when(pk.warp.index == 0):
            pk.warp.set(counter, (0,), 0)
    if share is not None:
        whole = how_many(pk.block, targets, ignore, 4 * SOME)
        with pk.when(pk.warp.index == 0):
            pk.warp.set(share, (0,), 1.0 / whole)


@pk.kernel(warps=32, pdl=lambda dependent=False, **_: dependent)
def total_loss(
    loss: Annotated[Tensor, f32, "M"],
    share: Annotated[Tensor, f32, "ONE"],
    total: Annotated[Tensor, f32, "ONE"],
    *,
    dependent: bool = False,
) -> None:
    """The sum of all losses, times `share` where it is given; in an order that never changes. `dependent`: the kernel
    ahead may still run.
    """
    if dependent:
        pk.wait_for_previous()
    some = pk.block.load_vec(loss, (0, 0, 0, 0), length=4 * SOME)
    for lap in pk.range(1, pk.cdiv(loss.cols, 4 * SOME)):
        some += pk.block.load_vec(loss, (0, 0, 0, lap), length=4 * SOME)
    whole = some.sum()
    with pk.when(pk.warp.index == 0):
        pk.warp.set(total, (0,), whole if share is None else whole * share[0])


def cross_entropy(
    x: Any,
    targets: Any,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    gradient: bool = True,
    in_place: bool = False,
    config: Rows | None = None,
) -> tuple[Any, Any, Any]:
    """(loss, lse, gradient) of logits x (m, n) and targets (m,) for arrays of any framework; see the head of this file.

    The loss has shape () for "mean" and "sum", (m,) for "none"; lse (m,) is float32. The gradient has the dtype of x,
    for an upstream gradient of 1; None without `gradient`; x itself with `in_place`.
    """
    info, other = floats(x, "x"), arrays.describe(targets, "targets")
    settings = reduction, ignore_index, label_smoothing, z_loss, softcap
    check(info, other, *settings)
    m = info.shape[0]
    loss, lse = (
        arrays.empty(info.kind, shape, "f32", info.device) for shape in ((m,) if reduction == "none" else (), (m,))
    )
    dx = x if in_place else arrays.empty(info.kind, tuple(info.shape), info.dtype, info.device) if gradient else None
    STEPS(x, targets, loss, lse, dx, *settings, config=config)
    return loss, lse, dx


class Steps:
    """The launches as one, called as a kernel is: how many targets count, the rows, the sum of their losses."""

    def __call__(
        self,
        x: Any,
        targets: Any,
        loss: Any,
        lse: Any,
        dx: Any,
        reduction: str,
        ignore_index: int,
        smoothing: float,
        z_loss: float,
        softcap: float,
        config: Rows | None = None,
        shared: bool = True,
    ) -> None:
        """`shared`: whether the gradient is divided by how many targets count, where the loss is."""
        info = arrays.describe(x)
        (m, n), size = info.shape, DTYPES[info.dtype].size
        if m > 1 and arrays.describe(targets).strides[0] != 1:
            targets = arrays.dense_copy(targets, "targets")
        align = math.gcd(16, info.pointer, 0 if m == 1 else info.strides[0] * size)
        choices = {"smooth": smoothing > 0, "squared": z_loss > 0, "capped": softcap > 0}
        dense = dx is None or arrays.describe(dx).pointer % 16 == 0
        dense = dense and info.pointer % 16 == 0 and info.strides[0] == n and (m + SPARE) * n < 2**31
        config = config or plan_rows(
            n, size, align, smooth=smoothing > 0, heavy=softcap > 0, dense=dense, **machine(info)
        )
        rows = loss if reduction == "none" else arrays.empty(info.kind, (m,), "f32", info.device)
        share = arrays.empty(info.kind, (1,), "f32", info.device) if reduction == "mean" else None
        numbers = ignore_index, float(smoothing), smoothing / n, float(z_loss), float(softcap)
        part = share if shared else None
        row = [x, dx, None, None]
        if config.shifted:
            row = [None, None, *(None if a is None else View(a, (1, m * n), (m * n, 1)) for a in (x, dx))]
        narrow = 1 / softcap if softcap else 0.0
        counts, overlap = share is not None and config.stages > 0 and m <= ALONE, may_overlap(info)
        counter, draws = None, drawing(config, m, machine(info)["processors"])
        if draws is not None:
            config, counter = draws, arrays.empty(info.kind, (1,), "i32", info.device)
        if counter is not None or (share is not None and not counts):
            prepare(targets, None if counts else share, counter, ignore_index, overlap=overlap)
            choices["dependent"] = overlap
        choices |= {"counts": counts, "shared": part is not None}
        row.append(counter)
        entropy(row[0], targets, share, row[1], rows, lse, *row[2:], *numbers, narrow, **choices, config=config)
        if reduction != "none":
            total_loss(rows, share, View(loss, (1,), (1,)), dependent=overlap)


STEPS = Steps()


def check(
    x: ArrayInfo, targets: ArrayInfo, reduction: str, ignore_index: int, smoothing: float, z_loss: float, softcap: float
) -> None:
    """Raises `ArgumentError` for operands or settings that the kernels do not take."""
    check_settings(reduction, ignore_index, smoothing, z_loss, softcap)
    check_floats("cross_entropy", "x", x)
    check_targets("logits", x, targets)
    if x.shape[1] > MOST or (x.shape[1] == 0 and x.shape[0] > 0):
        raise ArgumentError(f"rows of {x.shape[1]} logits", fix=f"vocabularies from 1 to {MOST} are supported")
    if x.shape[1] > 1 and x.strides[1] != 1:
        fix = "columns must follow one another: pass a contiguous copy"
        raise ArgumentError(f"logits have strides {tuple(x.strides)}", fix=fix)


def check_settings(reduction: str, ignore_index: int, smoothing: float, z_loss: float, softcap: float) -> None:
    """Raises `ArgumentError` for settings that there is no loss for."""
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"cross_entropy with reduction={reduction!r}", fix='use "mean", "sum" or "none"')
    if not 0 <= smoothing <= 1 or not z_loss >= 0 or not 0 <= softcap < math.inf:
        fact = f"cross_entropy with label_smoothing={smoothing}, z_loss={z_loss}, softcap={softcap}"
        raise ArgumentError(fact, fix="smoothing is from 0 to 1, z-loss and softcap are not negative, and 0 is none")
    if not -(2**31) <= ignore_index < 2**31:
        raise ArgumentError(f"cross_entropy with ignore_index={ignore_index}", fix="it is a 32-bit integer")


def look_at_targets(name: str, targets: Any, columns: int, ignore_index: int) -> None:
    """Raises `ArgumentError` for a target that is no column, where targets may be looked at."""
    if 0 in targets.shape or (values := values_of(targets)) is None:
        return
    if (wrong := ((values < 0) | (values >= columns)) & (values != ignore_index)).any():
        i = int(wrong.argmax())
        fact = f"{name}: target {i} is {values[i]}, of {columns} columns, and ignore_index {ignore_index}"
        raise ArgumentError(fact, fix=f"pass 0 to {columns - 1}, or {ignore_index} for rows that do not count")


def check_targets(name: str, x: ArrayInfo, targets: ArrayInfo) -> None:
    """Raises `ArgumentError` for what are no targets of the rows of a matrix."""
    if len(x.shape) != 2 or tuple(targets.shape) != tuple(x.shape[:1]):
        fact = f"cross_entropy of {name} {tuple(x.shape)} and targets {tuple(targets.shape)}"
        raise ArgumentError(fact, fix="pass (m, n) and (m,): reshape (batch, tokens, n) to (-1, n)")
    if targets.dtype not in ("i32", "i64"):
        raise ArgumentError(f"targets are {targets.dtype}", fix="pass int32 or int64")


def plan_rows(
    n: int,
    size: int,
    align: int,
    *,
    smooth: bool = False,
    heavy: bool = False,
    dense: bool = False,
    clusters: bool = True,
    processors: int = 132,
    split: tuple[int, int, int] | None = None,
    **settings: Any,
) -> Rows:
    """How rows of n logits of `size` bytes are divided: long ones, and those that begin anywhere, stream where TMA can
    read them; others are read as they come.

    `smooth`, `heavy`: with label smoothing, with a softcap, which take more registers. `split`: blocks of a cluster,
    warps of a team, teams of a block.
    """
    long = n > PLAIN if align == 16 else dense and n >= STREAMS
    if clusters and (long or split) and n <= STREAMED:
        most = HEAVY if heavy or size == 4 else SMOOTH if smooth else HELD
        wide = n if align == 16 else n + 16 // size - 1
        fitting = (x for x in SPLITS if wide <= x[0] * x[1] * 32 * min(x[3], most))
        cluster, team, teams = split or next(fitting, SPLITS[-1])[:3]
        settings = {"cluster": cluster, "team": team, "teams": teams, **settings}
        return replace(stream(wide, size, size, 0, processors, **settings), n=n, shifted=wide > n)
    width, warps, cluster = align // size, -(-n // (32 * 32)), 1
    while clusters and cluster < 8 and warps > 16 * cluster:
        cluster *= 2
    team = min(32, -(-warps // cluster))
    return Rows(
        n,
        width,
        32 * team,
        -(-n // (cluster * 32 * team * width)) * 32 * team * width,
        team=team,
        warps=max(4, team) if cluster == team == 1 else team,
        cluster=cluster,
        blocks_per_sm=max(1, 16 // max(4, team)),
        **settings,
    )


def reference(
    x: np.ndarray,
    targets: np.ndarray,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loss, lse, gradient) in float64; targets that are no column count as NaN."""
    x, (m, n) = x.astype(np.float64), x.shape
    wanted, inside = targets != ignore_index, (targets >= 0) & (targets < n)
    hot = np.zeros((m, n))
    hot[np.arange(m), np.where(inside, targets, 0)] = 1
    with np.errstate(all="ignore"):
        value = softcap * np.tanh(x / softcap) if softcap else x
        peak = value.max(1)
        weight = np.exp(value - peak[:, None])
        lse = np.log(weight.sum(1)) + peak
        loss = lse - (1 - label_smoothing) * value[np.arange(m), np.where(inside, targets, 0)] + z_loss * lse**2
        grad = (1 + 2 * z_loss * lse)[:, None] * weight / weight.sum(1)[:, None] - (1 - label_smoothing) * hot
        if label_smoothing:
            loss, grad = loss - label_smoothing * value.mean(1), grad - label_smoothing / n
        grad = grad * (1 - np.tanh(x / softcap) ** 2) if softcap else grad
        loss, grad = np.where(inside, loss, np.nan), np.where(inside[:, None], grad, np.nan)
        loss, grad = np.where(wanted, loss, 0.0), np.where(wanted[:, None], grad, 0.0)
        count = wanted.sum()
        if reduction == "mean":
            return loss.sum() / np.float64(count), lse, np.where(wanted[:, None], grad / np.float64(count), 0.0)
    return (loss if reduction == "none" else loss.sum()), lse, grad
