"""Gradients of the causal convolution along time (`causal_conv1d.py`). With dz = dy silu'(z), inside of each sequence,

    dx[t, c] = sum_j weight[c, j] dz[t + (w - 1) - j, c]
    dweight[c, j] = sum_t dz[t, c] x[t - (w - 1) + j, c]        dbias[c] = sum_t dz[t, c]

A tile of rows of dx takes w - 1 rows of x before them and after them, makes z again and with it dz. The sums for the
weights stay in registers over some tiles, meet in shared memory, and `gather` adds up those of all blocks in a fixed
order: the same bits every time. The gradient of the last rows is added to what they are copies of. Everything between
is float32.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp

from ..interop import arrays
from ..interop.views import View
from .arguments import KernelCall, machine, may_overlap
from .causal_conv1d import (
    TAPS,
    WARPS,
    C,
    Wide,
    extended,
    later,
    layout,
    operands,
    simple,
    span_of,
    spans,
    summed,
    surrounded,
)
from .rows import FLOATS
from .sequences import contiguous_rows, dense

COLS = 64  # channels of a warp: fewer than of the forward pass, for more warps
UNIT = -math.log2(math.e)
ROWS, LAPS, FEW = 16, 8, 2  # of a warp's tile; tiles of a warp of most blocks, and of the last
RESIDENT = 6  # blocks of a multiprocessor, about
GATHERING, TOGETHER = 8, 16  # warps of a block that adds up, and blocks' sums that each of them takes at once


@pk.kernel(
    warps=WARPS,
    grid=lambda x, parts, **_: (pk.cdiv(x.cols, COLS), parts.depth),
    blocks_per_sm=lambda x, state, dafter, bounds, **_: resident(x, state, dafter, bounds),
    pdl=lambda dependent=False, **_: dependent,
)
def differentiate(
    x: Wide,
    dy: Wide,
    weight: Annotated[Tensor, FLOATS, C, pk.static("W")],
    bias: Annotated[Tensor, FLOATS, C],
    state: Annotated[Tensor, FLOATS, "S", "K", C],
    dafter: Annotated[Tensor, FLOATS, "S", "K", C],
    bounds: Annotated[Tensor, i32, "M"],
    dx: Wide,
    parts: Annotated[Tensor, f32, "G", TAPS, C],
    large: Annotated[Scalar, i32],
    laps: Annotated[Scalar, i32],
    few: Annotated[Scalar, i32],
    *,
    activation: Any = None,
    rows: int = ROWS,
    dependent: bool = False,
) -> None:
    """dx, and the sums of each block for the weights and the bias. `parts` has room for the blocks that there are, of
    which `large` take `laps` tiles and the others, which end together, `few`. `dependent`: the kernel ahead may still
    run, and the next begin.
    """
    width, col = weight.cols, pk.block_index.x * COLS
    if dependent:
        pk.wait_for_previous()
        pk.launch_next()
    weights, where, halo = scaled(weight, bias, col, activation), (col, COLS, width), width - 1
    totals = [warp.zeros(f32, 1, COLS, layout=layout(COLS)) for _ in weights]
    # All blocks work on neighbouring rows, then on the next such.
    tiles, block = pk.cdiv(x.rows, WARPS * rows), pk.block_index.y
    begin = pk.where(block < large, block, block + large * (laps - 1))
    stride = pk.where(block < large, large, pk.grid_size.y - large)
    entry, tile = pk.var(i32, begin // tiles), pk.var(i32, begin % tiles)
    further, over = stride // tiles, stride % tiles
    for _ in pk.range(pk.minimum(pk.where(block < large, laps, few), pk.cdiv(tiles * x.depth - begin, stride))):
        first = (tile * WARPS + warp.index) * rows
        for sequence, batch, window in spans(x, bounds, first, rows, entry):
            inside = None if bounds is None else window
            given = surrounded(x, state, bounds, sequence, batch, window, first, rows + halo, where)
            up = warp.load(
                dy, pk.at(batch, first, col), rows=rows + halo, cols=COLS, layout=layout(COLS), within=inside
            )
            own: list[Any] = []  # dz, a row at a time: registers are scarce
            for row in range(rows + halo):
                near = given[row : row + width, :]
                own.append(slope_of(near, up[row : row + 1, :], weights, 1, activation))
                for j, total in enumerate(totals if row < rows else ()):
                    total[:] = pk.fma(own[row], near[j : j + 1, :].to(f32), total) if j < width else total + own[row]
                if row < halo:
                    continue
                spot = first + (row - halo)  # one address, and constants
                grad = pulled(own[row - halo :], weights)
                if dafter is not None:
                    with pk.when(spot >= window[1] - halo), pk.when(sequence < dafter.depth):
                        grad += later(dafter, sequence, spot - (window[1] - halo), 1, where)
                warp.store(dx, grad.to(dx.dtype), pk.at(batch, spot, col), within=inside)
        past = tile + over >= tiles
        entry.set(entry + further + pk.where(past, 1, 0))
        tile.set(tile + over - pk.where(past, tiles, 0))
    sums = pk.shared(pk.sv(f32, COLS), count=WARPS * len(totals), name="sums")
    for j, total in enumerate(totals):
        warp.store(sums[j * WARPS + warp.index], (total * UNIT if activation == "silu" else total).col_sum())
    pk.block.sync()
    for j in range(len(totals)):
        with pk.when(warp.index == j % WARPS):
            whole = added(sums, j * WARPS, WARPS)
            warp.store(parts, whole, pk.at(block, j, col))


@pk.kernel(
    warps=GATHERING,
    grid=lambda parts, **_: (pk.cdiv(parts.cols, 32), parts.depth),
    pdl=lambda dependent=False, **_: dependent,
)
def gather(
    parts: Annotated[Tensor, f32, TAPS, "G", C],
    weight: Annotated[Tensor, FLOATS, C, pk.static("W")],
    bias: Annotated[Tensor, FLOATS, C],
    *,
    dependent: bool = False,
) -> None:
    """weight and bias as the sums of what blocks found, in an order that is always the same; the bias may be None.
    `dependent`: the kernel ahead may still run.
    """
    tap, col, layout = pk.block_index.y, pk.block_index.x * 32, pk.coalesced(32, 1)
    total = warp.zeros(f32, TOGETHER, 32, layout=layout)
    if dependent:
        pk.wait_for_previous()
    for lap in pk.range(pk.cdiv(parts.rows, GATHERING * TOGETHER)):
        at = pk.at(tap, (lap * GATHERING + warp.index) * TOGETHER, col)
        total += warp.load(parts, at, rows=TOGETHER, cols=32, layout=layout)
    sums = pk.shared(pk.sv(f32, 32), count=GATHERING, name="sums")
    warp.store(sums[warp.index], total.col_sum())
    pk.block.sync()
    with pk.when(warp.index == 0):
        whole = added(sums, 0, GATHERING)
        with pk.when(tap < weight.cols):
            warp.store(weight, whole.to(weight.dtype), pk.at(pk.iota(whole) + col, tap))
        if bias is not None:
            with pk.when(tap == weight.cols):
                warp.store(bias, whole.to(bias.dtype), pk.block_index.x)


@pk.kernel(warps=1, grid=lambda x, dstate, **_: (pk.cdiv(x.cols, COLS), dstate.depth))
def differentiate_state(
    x: Annotated[Tensor, FLOATS, "B", "N", "C"],
    dy: Annotated[Tensor, FLOATS, "B", "N", "C"],
    weight: Annotated[Tensor, FLOATS, "C", pk.static("W")],
    bias: Annotated[Tensor, FLOATS, "C"],
    state: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    dafter: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    bounds: Annotated[Tensor, i32, "M"],
    dstate: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    *,
    activation: Any = None,
) -> None:
    """dstate = the gradient of the rows before each sequence."""
    kept, sequence = dstate.rows, pk.block_index.y
    col, (batch, start, end) = pk.block_index.x * COLS, span_of(x, bounds, sequence)
    weights, where, first = scaled(weight, bias, col, activation), (col, COLS, kept + 1), start - kept
    given = extended(x, state, sequence, batch, (start, end), first - kept, 3 * kept, where)
    up = warp.load(dy, pk.at(batch, first, col), rows=2 * kept, cols=COLS, layout=layout(COLS), within=(start, end))
    slope = slope_of(given, up, weights, 2 * kept, activation)
    grad = pulled([slope[j : j + kept, :] for j in range(kept + 1)], weights)
    if dafter is not None:
        grad = grad + later(dafter, sequence, start - end, kept, where)
    warp.store(dstate, grad.to(dstate.dtype), pk.at(sequence, 0, col))


def resident(x: Any, *rest: Any) -> int:
    """Blocks of a multiprocessor: as many as leave enough registers."""
    if not simple(x):
        return 3
    return 6 if all(operand is None for operand in rest) else 5


def added(sums: Any, first: int, many: int) -> Any:
    """The sum of some vectors of shared memory, one after another."""
    whole = warp.load_vec(sums[first])
    for i in range(first + 1, first + many):
        whole += warp.load_vec(sums[i])
    return whole


def scaled(weight: Any, bias: Any, col: Any, activation: Any) -> list[Any]:
    """The weights of each row, and the bias, of some channels; with silu those that give the exponent of its 1 / (1 +
    2^e), so that no row needs a multiplication for it.
    """
    channel = warp.iota_row(COLS, layout=layout(COLS)) + col
    weights = [weight[channel, j] for j in range(weight.cols)]
    weights.append(warp.zeros_row(f32, COLS, layout=layout(COLS)) if bias is None else bias[channel])
    return [tap * UNIT for tap in weights] if activation == "silu" else weights


def slope_of(given: Any, up: Any, weights: list[Any], rows: int, activation: Any) -> Any:
    """dz of `rows` rows from dy, in units in which products with scaled weights are gradients; `given` are the rows of
    x and the w - 1 before them.
    """
    slope = up.to(f32)
    if activation == "silu":
        e = summed(given, weights, rows)  # z is e / UNIT
        gate = pk.rcp(1.0 + pk.exp2(e))
        slope = slope * gate * pk.fma(e, pk.fma(gate, -(UNIT**-2), UNIT**-2), 1 / UNIT)
    return slope


def pulled(slope: list[Any], weights: list[Any]) -> Any:
    """The gradient of rows of x, from dz of these, of the next, and so on to the w - 1 after them."""
    *taps, _ = weights
    grad = slope[0] * taps[-1]
    for j, tap in enumerate(taps[:-1]):
        grad = pk.fma(slope[len(taps) - 1 - j], tap, grad)
    return grad


def divided(tiles: int, at_once: int) -> tuple[int, int, int, int]:
    """(blocks, large ones, their tiles, those of the others) for so many tiles of some channels, of which `at_once`
    blocks work at a time: the last are dealt out in small shares, half as many as large ones have in hand, so that all
    end together.
    """
    large = max(0, tiles - at_once * LAPS // 2) // LAPS
    rest = tiles - large * LAPS
    few = max(1, min(FEW, rest // at_once))
    return large - (-rest // few), large, LAPS, few


class Steps:
    """The launches as one: called as a kernel is."""

    def __call__(
        self,
        x: Any,
        weight: Any,
        bias: Any,
        state: Any,
        bounds: Any,
        dy: Any,
        dafter: Any,
        dx: Any,
        dweight: Any,
        dbias: Any,
        dstate: Any,
        *,
        activation: Any,
    ) -> None:
        kind, device = (info := arrays.describe(x)).kind, info.device
        (batch, n, channels), rows = info.shape, weight.shape[1] + 1
        strip = RESIDENT * machine(info)["processors"] // -(-channels // COLS)
        blocks, *shares = divided(batch * -(-n // (WARPS * ROWS)), max(1, strip))
        parts = arrays.empty(kind, (blocks, rows, channels), "f32", device)
        some = {"activation": activation, "dependent": may_overlap(info)}
        differentiate(x, dy, weight, bias, state, dafter, bounds, dx, parts, *shares, **some)
        by_tap = View(parts, (rows, blocks, channels), (channels, rows * channels, 1))
        gather(by_tap, dweight, dbias, dependent=some["dependent"])
        if dstate is not None:
            differentiate_state(x, dy, weight, bias, state, dafter, bounds, dstate, activation=activation)


STEPS = Steps()


def call(
    dy: Any,
    x: Any,
    weight: Any,
    bias: Any,
    state: Any,
    bounds: Any,
    dafter: Any,
    *gradients: Any,
    activation: str | None,
) -> KernelCall:
    """What writes the gradients of x, weight, bias and state, of which the last two may be None."""
    given = (*operands(x, weight, bias, state, bounds), contiguous_rows(dy, "dy"), dense(dafter, "dafter"))
    return KernelCall(STEPS, (*given, *gradients), {"activation": activation})  # type: ignore[arg-type]


def reference(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    state: np.ndarray | None = None,
    dafter: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """(dx, dweight, dbias, dstate) in float64, of sequences of one length."""
    (batch, n, channels), width = x.shape, weight.shape[1]
    zeros = np.zeros((batch, width - 1, channels))
    whole = np.concatenate([zeros if state is None else state.astype(np.float64), x.astype(np.float64)], 1)
    weight = weight.astype(np.float64)
    dz = dy.astype(np.float64)
    if activation == "silu":
        z = sum(whole[:, j : j + n] * weight[:, j] for j in range(width))
        z = z if bias is None else z + bias.astype(np.float64)
        gate = 1 / (1 + np.exp(-z))
        dz = dz * gate * (1 + z * (1 - gate))
    dwhole = np.concatenate([np.zeros((batch, n, channels)), zeros if dafter is None else dafter.astype(np.float64)], 1)
    for j in range(width):
        dwhole[:, j : j + n] += dz * weight[:, j]
    dweight = np.stack([(dz * whole[:, j : j + n]).sum((0, 1)) for j in range(width)], 1)
    return dwhole[:, width - 1 :], dweight, dz.sum((0, 1)), dwhole[:, : width - 1]
