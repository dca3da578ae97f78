"""Gradients of LayerNorm and RMSNorm (`norms.py`), with dropout and a residual stream before them.

With s the stream that was normalised, r = 1 / sqrt(mean((s - mean(s))^2) + eps) and v = (s - mean(s)) r (for RMSNorm
without the means), for gradients dy of y and, where s was returned too, ds of s:

    g         = dy * weight
    dresidual = (g - mean(g) - v * mean(g * v)) r + ds                (RMSNorm: without mean(g))
    dx        = dresidual / (1 - p) where the element was kept, else 0
    dweight   = sum of dy * v over the rows,   dbias = sum of dy over the rows

The statistics of a row are computed again, since all of s is read anyway, and so is the dropout mask, from the seed.
Rows move once, as in the forward. Each team keeps its sums for dweight and dbias in registers over all its rows; its
row of a workspace of `Rows.parts` rows is added up by `column_sums.py`, in an order that never changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f32
from pykittens.interop import arrays
from pykittens.interop.arrays import describe
from pykittens.types import DTYPES

from . import norms
from .arguments import agree, alignment, like, machine, matrix, operand
from .column_sums import add_up
from .rows import FLOATS, WIDEST, Rows, plan, stream, teams

STREAMS = 2048  # such rows and wider ones stream

OPTIONS: dict[str, Any] = {
    "warps": lambda config, **_: config.warps,
    "grid": lambda s, config, **_: config.blocks(s.rows),
    "cluster": lambda config, **_: config.cluster,
    "blocks_per_sm": lambda config, **_: config.blocks_per_sm,
}


@pk.kernel(**OPTIONS)
def normalize_backward(
    s: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dy: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    ds: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    weight: Annotated[Tensor, FLOATS, pk.static("N")],
    dx: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dresidual: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dweight: Annotated[Tensor, f32, "G", pk.static("N")],
    dbias: Annotated[Tensor, f32, "G", pk.static("N")],
    seed: Annotated[Tensor, pk.i64, 1],
    eps: Annotated[Scalar, f32],
    keep: Annotated[Scalar, f32],
    threshold: Annotated[Scalar, pk.u32],
    seed0: Annotated[Scalar, pk.u32],
    seed1: Annotated[Scalar, pk.u32],
    *,
    centred: Any,
    dropout: Any,
    config: Any,
) -> None:
    """dx, dresidual, and each team's sums for dweight and dbias. `keep` is 1 / (1 - p), `threshold` p * 2^32."""
    mean, key = 1 / config.n, norms.seeds(seed, seed0, seed1)
    for team in teams(config, (s, dy, ds), (weight,)):
        to_weight, to_bias = (x if x is None else team.zeros() for x in (dweight, dbias))
        for mine in team.tiles():
            value, grad = mine.load(s), mine.load(dy)
            if to_bias is not None:
                to_bias += grad
            scaled = grad if weight is None else grad * mine.load_weight(weight).to(f32)
            if centred:
                average, shift = mine.sums(value, scaled)
                value = mine.cut(value - average * mean, 0.0)
            square, along = mine.sums(value, scaled, times=value)
            # Nothing comes of rows past the end.
            root = pk.where(mine.exists(s, value), pk.rsqrt(square * mean + eps), 0.0)
            value = value * root
            if to_weight is not None:
                to_weight[:] = pk.fma(grad, value, to_weight)
            slope = along * root * (root * -mean)
            rest = pk.fma(value, slope, shift * (root * -mean)) if centred else value * slope
            change = pk.fma(scaled, root, rest)
            if ds is not None:
                change = change + mine.load(ds)
            if dresidual is not None:
                mine.store(dresidual, change)
            if dropout:
                bits = pk.random_bits(value, key, row=mine.first * config.rows, col=mine.part * config.cols)
                change = pk.where(bits >= threshold, change * keep, 0.0)
            if dx is not None:
                mine.store(dx, change)
        for parts, total in ((dweight, to_weight), (dbias, to_bias)):
            if parts is not None:
                team.finish(parts, total)


def layernorm_backward(dy: Any, s: Any, weight: Any = None, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """(dx, dresidual, dweight, dbias) of `layernorm` for arrays of any framework; see `rmsnorm_backward`."""
    return _backward(True, dy, s, weight, **{"eps": 1e-5, **settings})


def rmsnorm_backward(dy: Any, s: Any, weight: Any = None, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """(dx, dresidual, dweight, dbias) of `rmsnorm` for arrays of any framework.

    dy: gradient of y, of its dtype; s: what was normalised, of any float dtype: the second result of the forward, or x
    where there was none. Settings: `ds`, the gradient of the second result; `eps`, `p` and `seed` as in the forward;
    `bias` and `residual`, dtypes of what the forward had of these (without, they have no gradient, and None stands for
    it); `config` overrides how rows are spread over the machine. dweight has the weight's dtype.
    """
    return _backward(False, dy, s, weight, **{"eps": 1e-6, **settings})


def _backward(
    centred: bool,
    dy: Any,
    s: Any,
    weight: Any,
    *,
    eps: float,
    ds: Any = None,
    p: float = 0.0,
    seed: int = 0,
    bias: str | None = None,
    residual: str | None = None,
    config: Rows | None = None,
) -> tuple[Any, Any, Any, Any]:
    norms.check(eps, p)
    for name, array in (("s", s), ("dy", dy), ("ds", ds)):
        if array is not None:
            agree(describe(s), name, matrix(array, name)[1], describe(s).shape)
    info = describe(dy)
    n = info.shape[-1]
    if weight is not None:
        agree(info, "weight", matrix(weight, "weight")[1], (n,))
    same = residual is not None and p == 0 and residual == info.dtype  # dx and dresidual are the same numbers
    made = ((info.shape, info.dtype), (info.shape, None if same else residual))
    sums = (((n,), None if weight is None else describe(weight).dtype), ((n,), bias))
    dx, dresidual, dweight, dbias = (
        None if dtype is None else arrays.empty(info.kind, tuple(shape), dtype, info.device)
        for shape, dtype in (*made, *sums)
    )
    operands = (s, dy, ds, weight, dx, dresidual, dweight, dbias, None, *norms.numbers(eps, p, seed))
    STEPS(*operands, config=config, centred=centred, dropout=p > 0)
    return dx, dx if same else dresidual, dweight, dbias


class Steps:
    """Both passes as one: called as a kernel is, with the sums themselves for the parts of them."""

    def __call__(
        self,
        s: Any,
        dy: Any,
        ds: Any,
        weight: Any,
        dx: Any,
        dresidual: Any,
        dweight: Any,
        dbias: Any,
        *numbers: Any,
        config: Rows | None = None,
        **statics: Any,
    ) -> None:
        (rows, info), (gradient, about) = matrix(s, "s"), matrix(dy, "dy")
        stream = None if ds is None else matrix(ds, "ds")[0]
        views, n = [x for x in (rows, gradient, stream) if x is not None], info.shape[-1]
        weights = [] if weight is None else [matrix(weight, "weight")[0]]
        inputs, kept = (sum(DTYPES[describe(view).dtype].size for view in some) for some in (views, weights))
        sums = [x is not None for x in (dweight, dbias)]
        config = config or plan_backward(
            n,
            DTYPES[about.dtype].size,
            alignment(*views, *weights),
            inputs=inputs,
            weights=kept,
            sums=sum(sums),
            **machine(info),
        )
        shape = (config.parts(rows.shape[0]), n)
        parts = [arrays.empty(info.kind, shape, "f32", info.device) if wanted else None for wanted in sums]
        given = [None if view is None else operand(view) for view in (rows, gradient, stream)]
        made = [None if x is None else operand(like(x, gradient)) for x in (dx, dresidual)]
        normalize_backward(*given, weight, *made, *parts, *numbers, config=config, **statics)
        if any(sums):
            add_up(parts[0], parts[1], dweight, dbias)


STEPS = Steps()


def plan_backward(
    n: int,
    size: int,
    align: int,
    *,
    inputs: int,
    weights: int = 0,
    sums: int = 0,
    clusters: bool = True,
    processors: int = 132,
    **settings: Any,
) -> Rows:
    """How rows are divided: a thread has 16 elements of a row, of each input and of each of `sums`. Where there are
    sums, blocks stay."""
    if STREAMS <= n <= WIDEST and clusters and align == 16:
        team, teams = (4, 3) if n <= 4096 else (8, 2) if n <= 8192 else (16, 1)
        part = 512 * team // (2 if inputs > 2 * size and n <= 32_768 else 1)  # columns of a block
        cluster = 1 << (-(-n // part) - 1).bit_length()
        return stream(
            n, size, inputs, weights, processors, **{"cluster": cluster, "team": team, "teams": teams, **settings}
        )
    config = plan(
        n, size, align, clusters=clusters, processors=processors, stays=sums > 0, **{"held": 16 * size, **settings}
    )
    registers = (48 if inputs <= 2 * size else 80) + 16 * (
        sums + inputs // size + -(-inputs // 4)
    )  # sums, inputs in float32, the next inputs as they are
    return replace(config, blocks_per_sm=max(1, 65536 // registers // 128 * 4 // config.warps))


def reference(
    dy: np.ndarray,
    s: np.ndarray,
    weight: Any = None,
    *,
    ds: Any = None,
    eps: float,
    p: float = 0.0,
    seed: int = 0,
    centred: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dresidual, dweight, dbias) in float64."""
    s, dy = s.astype(np.float64), dy.astype(np.float64)
    with np.errstate(all="ignore"):
        value = s - s.mean(-1, keepdims=True) if centred else s
        root = 1 / np.sqrt((value * value).mean(-1, keepdims=True) + eps)
        value = value * root
        scaled = dy if weight is None else dy * weight.astype(np.float64)
        change = scaled - value * (scaled * value).mean(-1, keepdims=True)
        change = (change - scaled.mean(-1, keepdims=True) if centred else change) * root
        change = change if ds is None else change + ds.astype(np.float64)
        dropped = change if p == 0 else np.where(norms.kept(s.shape, p, seed), change / (1 - p), 0)
        n = s.shape[-1]
        return dropped, change, (dy * value).reshape(-1, n).sum(0), dy.reshape(-1, n).sum(0)
