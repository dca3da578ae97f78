"""Gradients of the causal convolution along time (`causal_conv1d.py`). With dz = dy silu'(z), inside of each sequence,

    dx[t, c] = sum_j weight[c, j] dz[t + (w - 1) - j, c]
    dweight[c, j] = sum_t dz[t, c] x[t - (w - 1) + j, c]        dbias[c] = sum_t dz[t, c]

A tile of rows of dx takes w - 1 rows of x before them and after them, makes z again and with it dz. The sums for the
weights stay in registers over some tiles, meet in shared memory, and `column_sums` adds up those of all blocks in a
fixed order: the same bits every time. The gradient of the last rows is added to what they are copies of. Everything
between is float32. A lane has runs of 8 bytes: registers are scarce.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

from ..interop import arrays
from ..interop.base import packed
from ..interop.views import View
from .arguments import KernelCall
from .causal_conv1d import (
    TAPS,
    WARPS,
    Window,
    columns,
    extended,
    grid,
    later,
    layout,
    operands,
    readable,
    rows_of,
    span_of,
    spans,
    summed,
    turned,
)
from .column_sums import add_up
from .rows import FLOATS
from .sequences import dense

LAPS, RUN = 8, 8  # how many tiles a warp has, and bytes of a lane's run


@pk.kernel(warps=1, grid=lambda weight, **_: pk.cdiv(weight.rows, 16))
def turn_back(
    taps: Annotated[Tensor, f32, TAPS, "C"],
    weight: Annotated[Tensor, FLOATS, "C", pk.static("W")],
    bias: Annotated[Tensor, FLOATS, "C"],
) -> None:
    """weight and bias of `taps`; the bias may be None."""
    tile = warp.load(taps, (0, pk.block_index.x), rows=16, cols=16).transpose()
    warp.store(weight, tile.to(weight.dtype), (pk.block_index.x, 0))
    if bias is not None:
        row = warp.load_vec(taps, (weight.cols, pk.block_index.x), length=16)
        warp.store(bias, row.to(bias.dtype), pk.block_index.x)


@pk.kernel(warps=WARPS, grid=lambda x, rows, laps, **_: grid(x, RUN, rows * laps))
def differentiate(
    x: Annotated[Tensor, FLOATS, "B", "N", "C"],
    dy: Annotated[Tensor, FLOATS, "B", "N", "C"],
    taps: Annotated[Tensor, f32, TAPS, "C"],
    state: Annotated[Tensor, FLOATS, "S", "K", "C"],
    dafter: Annotated[Tensor, FLOATS, "S", "K", "C"],
    bounds: Annotated[Tensor, i32, "M"],
    dx: Annotated[Tensor, FLOATS, "B", "N", "C"],
    parts: Annotated[Tensor, f32, "G", TAPS, "C"],
    *,
    activation: Any = None,
    rows: int = 16,
    laps: int = LAPS,
) -> None:
    """dx, and the sums of each block for the weights and the bias."""
    cols, width = columns(x.dtype.size, RUN), taps.rows - 1
    col, strip = pk.block_index.x * cols, (pk.block_index.y * WARPS + warp.index) * laps
    weights = rows_of(taps, col, cols)
    totals = [warp.zeros(f32, 1, cols, layout=layout(cols)) for _ in weights]
    for lap in pk.range(laps):
        first = (strip + lap) * rows
        for sequence, batch, window in spans(x, bounds, first, rows):
            where = col, cols, width
            given, up = around(x, dy, state, sequence, batch, window, first, rows, where)
            own: list[Any] = []  # dz, a row at a time: registers are scarce
            for row in range(rows + width - 1):
                own.append(slope_of(given[row : row + width, :], up[row : row + 1, :], weights, 1, activation))
                for j, total in enumerate(totals if row < rows else ()):
                    with_x = j < width
                    total[:] = (
                        pk.fma(own[row], given[row + j : row + j + 1, :].to(f32), total) if with_x else total + own[row]
                    )
                if row < width - 1:
                    continue
                spot = first + row - (width - 1)
                grad = pulled(own[row - (width - 1) :], weights)
                if dafter is not None:
                    with pk.when(spot >= window[1] - (width - 1)), pk.when(sequence < dafter.depth):
                        grad += later(dafter, sequence, spot - (window[1] - (width - 1)), 1, where)
                warp.store(dx, grad.to(dx.dtype), pk.at(batch, spot, col), within=window)
    sums = pk.shared(pk.sv(f32, cols), count=WARPS * len(totals), name="sums")
    for j, total in enumerate(totals):
        warp.store(sums[j * WARPS + warp.index], total.col_sum())
    pk.block.sync()
    for j in range(len(totals)):
        with pk.when(warp.index == j % WARPS):
            whole = warp.load_vec(sums[j * WARPS])
            for i in range(1, WARPS):
                whole += warp.load_vec(sums[j * WARPS + i])
            which = pk.block_index.z * pk.cdiv(x.rows, WARPS * rows * laps) + pk.block_index.y
            warp.store(parts, whole, pk.at(which, j, col))


@pk.kernel(warps=1, grid=lambda x, dstate, **_: (pk.cdiv(x.cols, columns(x.dtype.size, RUN)), dstate.depth))
def differentiate_state(
    x: Annotated[Tensor, FLOATS, "B", "N", "C"],
    dy: Annotated[Tensor, FLOATS, "B", "N", "C"],
    taps: Annotated[Tensor, f32, TAPS, "C"],
    state: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    dafter: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    bounds: Annotated[Tensor, i32, "M"],
    dstate: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    *,
    activation: Any = None,
) -> None:
    """dstate = the gradient of the rows before each sequence."""
    cols, kept, sequence = columns(x.dtype.size, RUN), dstate.rows, pk.block_index.y
    col, (batch, start, end) = pk.block_index.x * cols, span_of(x, bounds, sequence)
    weights, where = rows_of(taps, col, cols), (col, cols, kept + 1)
    given, up = around(x, dy, state, sequence, batch, (start, end), start - kept, kept, where)
    slope = slope_of(given, up, weights, 2 * kept, activation)
    grad = pulled([slope[j : j + kept, :] for j in range(kept + 1)], weights)
    if dafter is not None:
        grad = grad + later(dafter, sequence, start - end, kept, where)
    warp.store(dstate, grad.to(dstate.dtype), pk.at(sequence, 0, col))


def rows_of_tile(bounds: Any) -> int:
    """Rows of a warp's tile: fewer of packed sequences, whose bounds take registers."""
    return 16 if bounds is None else 8


def around(
    x: Any,
    dy: Any,
    state: Any,
    sequence: Any,
    batch: Any,
    window: Window,
    first: Any,
    rows: int,
    where: tuple[Any, int, int],
) -> tuple[Any, Any]:
    """The rows of x around `rows` rows of a sequence, and those of dy and the next w - 1: zero outside of it."""
    col, cols, width = where
    more = rows + width - 1
    given = extended(x, state, sequence, batch, window, first - (width - 1), more + width - 1, where)
    spot = pk.at(batch, first, col)
    return given, warp.load(dy, spot, rows=more, cols=cols, layout=layout(cols), within=window)


def slope_of(given: Any, up: Any, weights: list[Any], rows: int, activation: Any) -> Any:
    """dz of `rows` rows, from dy; `given` are those of x and the w - 1 before them."""
    slope = up.to(f32)
    if activation == "silu":
        z = summed(given, weights, rows)
        gate = pk.sigmoid(z)
        slope = slope * gate * pk.fma(z, 1.0 - gate, 1.0)
    return slope


def pulled(slope: list[Any], weights: list[Any]) -> Any:
    """The gradient of rows of x, from dz of these, of the next, and so on to the w - 1 after them."""
    *taps, _ = weights
    grad = slope[0] * taps[-1]
    for j, tap in enumerate(taps[:-1]):
        grad = pk.fma(slope[len(taps) - 1 - j], tap, grad)
    return grad


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
        each = rows_of_tile(bounds)
        taps, blocks = turned(weight, bias), batch * -(-n // (WARPS * each * LAPS))
        parts = arrays.empty(kind, (blocks, rows, channels), "f32", device)
        differentiate(x, dy, taps, state, dafter, bounds, dx, parts, activation=activation, rows=each)
        if dstate is not None:
            differentiate_state(x, dy, taps, state, dafter, bounds, dstate, activation=activation)
        total, lines = arrays.empty(kind, (rows, channels), "f32", device), (blocks, rows * channels)
        add_up(View(parts, lines, packed(lines)), None, View(total, lines[1:], (1,)), None)
        turn_back(total, dweight, dbias)


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
    given = (*operands(x, weight, bias, state, bounds), readable(dy), dense(dafter, "dafter"))
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
