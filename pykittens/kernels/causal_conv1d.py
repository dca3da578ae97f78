"""Causal convolution along time, each channel by itself.

    z[t, c] = bias[c] + sum_{j < w} weight[c, j] x[t - (w - 1) + j, c]        y = z, or silu(z) = z / (1 + exp(-z))

x: (batch, n, channels), bf16, f16 or f32, rows contiguous; weight: (channels, w) with w from 2 to 4. What comes before
the first row is zero, or the rows of `state`: (batch, w - 1, channels). Packed sequences: x (1, total, channels) and
where each of them begins, `bounds`, int32 (sequences + 1,); they may be empty.

A warp has 128 channels of a few rows, with the w - 1 before them, which L1 or L2 still have: each byte comes from
memory once. Blocks that run together have neighbouring rows, as those of a copy: where each walked through rows of its
own, memory gave 0.87 of a copy's bytes, whatever was computed. In registers a row more or less is another register, so
that nothing is shuffled. Everything between is float32. Speed beside a device copy: docs/benchmarks.md, measured by
`pykittens bench sequences`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

from ..interop import arrays
from .arguments import KernelCall, may_overlap
from .rows import FLOATS
from .sequences import contiguous_rows, dense, readable_offsets, sequence_of

WARPS, COLS = 4, 128  # of a block; channels of a warp
PIECE = 4  # rows that are float32 at once
WIDTHS = (2, 3, 4)
TAPS, C = pk.static("J"), pk.static("C")  # w, and one more for the bias; known channels need no test where they end
Wide = Annotated[Tensor, pk.gl(FLOATS, "B", "N", C, dense=True)]
Window = tuple[Any, Any]
Where = tuple[Any, int, int]  # the first channel of a warp, how many it has, and w


def layout(cols: int) -> Any:
    """Rows of a warp."""
    return pk.coalesced(32, cols // 32)


@pk.kernel(warps=1, grid=lambda weight, **_: pk.cdiv(weight.rows, 16))
def turn(
    weight: Annotated[Tensor, FLOATS, "C", pk.static("W")],
    bias: Annotated[Tensor, FLOATS, "C"],
    taps: Annotated[Tensor, f32, TAPS, "C"],
    *,
    dependent: bool = False,
) -> None:
    """taps = the transposed weights, and a row of the bias or zeros. `dependent`: the next kernel may begin."""
    if dependent:
        pk.launch_next()
    tile = warp.load(weight, (pk.block_index.x, 0), rows=16, cols=16, dtype=f32).transpose()
    if bias is not None:
        row = warp.load_row(bias, pk.block_index.x, length=16, dtype=f32, layout="col")
        tile = pk.where(pk.row_index(tile) == weight.cols, row, tile)
    warp.store(taps, tile, (0, pk.block_index.x))


@pk.kernel(
    warps=WARPS,
    grid=lambda x, rows, **_: grid(x, rows),
    blocks_per_sm=lambda x, state, bounds, **_: resident(x, state, bounds),
    pdl=lambda dependent=False, **_: dependent,
)
def convolve(
    x: Wide,
    taps: Annotated[Tensor, f32, TAPS, C],
    state: Annotated[Tensor, FLOATS, "S", "K", C],
    bounds: Annotated[Tensor, i32, "M"],
    y: Wide,
    *,
    activation: Any = None,
    rows: int = 8,
    dependent: bool = False,
) -> None:
    """y of x; `state` and `bounds` may be None. `dependent`: the kernel ahead may still run."""
    width = taps.rows - 1
    col, first = pk.block_index.x * COLS, (pk.block_index.y * WARPS + warp.index) * rows
    if dependent:
        pk.wait_for_previous()
    weights = rows_of(taps, col, COLS)
    for sequence, batch, window in spans(x, bounds, first, rows, pk.block_index.z):
        given = surrounded(x, state, bounds, sequence, batch, window, first, rows, (col, COLS, width))
        inside = None if bounds is None else window
        for row in range(0, rows, PIECE):
            z = summed(given[row : row + PIECE + width - 1, :], weights, PIECE)
            z = z * pk.sigmoid(z) if activation == "silu" else z
            warp.store(y, z.to(y.dtype), pk.at(batch, first + row, col), within=inside)


@pk.kernel(warps=1, grid=lambda x, after, **_: (pk.cdiv(x.cols, COLS), after.depth))
def keep(
    x: Annotated[Tensor, FLOATS, "B", "N", "C"],
    state: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
    bounds: Annotated[Tensor, i32, "M"],
    after: Annotated[Tensor, FLOATS, "S", pk.static("K"), "C"],
) -> None:
    """after = the last rows of each sequence, those of `state` before its own."""
    kept, sequence = after.rows, pk.block_index.y
    col, (batch, start, end) = pk.block_index.x * COLS, span_of(x, bounds, sequence)
    last = extended(x, state, sequence, batch, (start, end), end - kept, kept, (col, COLS, kept + 1))
    warp.store(after, last, pk.at(sequence, 0, col))


# What they are made of --------------------------------------------------------------------------------------


def resident(x: Any, *rest: Any) -> int:
    """Blocks of a multiprocessor: as many as leave enough registers."""
    if not simple(x):
        return 3
    return 8 if all(operand is None for operand in rest) else 5


def simple(x: Any) -> bool:
    """Whether rows take few registers: of 16 bits, and of whole runs."""
    return x.dtype.size == 2 and x.cols % (COLS // 32) == 0


def grid(x: Any, rows: int) -> tuple[Any, Any, Any]:
    """Blocks over channels, rows and batches."""
    return pk.cdiv(x.cols, COLS), pk.cdiv(x.rows, rows * WARPS), x.depth


def rows_of(taps: Any, col: Any, cols: int) -> list[Any]:
    """The weights of each row, and the bias, of some channels."""
    return [warp.load_row(taps, pk.at(j, col), length=cols, layout=layout(cols)) for j in range(taps.rows)]


def spans(x: Any, bounds: Any, first: Any, rows: int, entry: Any) -> Iterator[tuple[Any, Any, Window]]:
    """The sequences that have some of the rows from `first` on of a batch's entry: (sequence, batch, its first row and
    the one behind).
    """
    if bounds is None:
        yield entry, entry, (0, x.rows)
        return
    last = sequence_of(bounds, pk.minimum(first + rows, x.rows) - 1)
    for sequence in pk.range(sequence_of(bounds, first), pk.where(first < x.rows, last + 1, 0)):
        batch, start, end = span_of(x, bounds, sequence)
        yield sequence, batch, (start, end)


def span_of(x: Any, bounds: Any, sequence: Any) -> tuple[Any, Any, Any]:
    """(batch, first row, the row behind the last) of a sequence; what is behind all of them counts as one more."""
    if bounds is None:
        return sequence, 0, x.rows
    last = bounds.cols - 1
    end = pk.where(sequence < last, bounds[pk.minimum(sequence + 1, last)], x.rows)
    return 0, bounds[sequence], end


def extended(x: Any, state: Any, sequence: Any, batch: Any, window: Window, first: Any, rows: int, where: Where) -> Any:
    """The rows from `first` on of a sequence; those before its beginning are the state's, or zero."""
    col, cols, width = where
    given = warp.load(x, pk.at(batch, first, col), rows=rows, cols=cols, layout=layout(cols), within=window)
    if state is not None:
        with pk.when(first < window[0]), pk.when(sequence < state.depth):
            given += later(state, sequence, first - window[0] + (width - 1), rows, where).to(given.dtype)
    return given


def surrounded(
    x: Any, state: Any, bounds: Any, sequence: Any, batch: Any, window: Window, first: Any, rows: int, where: Where
) -> Any:
    """Some rows of a sequence with the w - 1 before them: only of the latter may some lie before a first row that is no
    packed sequence's.
    """
    col, cols, before = where[0], where[1], where[2] - 1
    if bounds is not None:
        return extended(x, state, sequence, batch, window, first - before, rows + before, where)
    own = warp.load(
        x, pk.at(batch, first, col), rows=rows, cols=cols, layout=layout(cols)
    )  # which are not before the first
    return pk.stack(extended(x, state, sequence, batch, window, first - before, before, where), own)


def later(state: Any, sequence: Any, first: Any, rows: int, where: Where) -> Any:
    """The rows from `first` on of a state, in float32."""
    col, cols, width = where
    spot, kept = pk.at(sequence, first, col), (0, width - 1)
    return warp.load(state, spot, rows=rows, cols=cols, layout=layout(cols), within=kept, dtype=f32)


def summed(given: Any, weights: list[Any], rows: int) -> Any:
    """z of `rows` rows; `given` has those before them, too."""
    *taps, z = weights
    for j, tap in enumerate(taps):
        z = pk.fma(given[j : j + rows, :].to(f32), tap, z)
    return z


# Calls ------------------------------------------------------------------------------------------------------


class Steps:
    """The launches as one: called as a kernel is."""

    def __call__(
        self, x: Any, weight: Any, bias: Any, state: Any, bounds: Any, y: Any, after: Any, *, activation: Any
    ) -> None:
        if y is not None:
            dependent = may_overlap(arrays.describe(x))
            taps = turned(weight, bias, dependent)
            convolve(x, taps, state, bounds, y, activation=activation, dependent=dependent)
        if after is not None:
            keep(x, state, bounds, after)


STEPS = Steps()


def turned(weight: Any, bias: Any, dependent: bool) -> Any:
    """The weights and the bias as rows of channels, float32."""
    info = arrays.describe(weight)
    channels, width = info.shape
    taps = arrays.empty(info.kind, (width + 1, channels), "f32", info.device)
    turn(weight, bias, taps, dependent=dependent)
    return taps


def call(
    x: Any, weight: Any, bias: Any, state: Any, bounds: Any, y: Any, after: Any, activation: str | None
) -> KernelCall:
    """What writes y, and the last rows into `after`; either may be None."""
    given = operands(x, weight, bias, state, bounds)
    return KernelCall(STEPS, (*given, y, after), {"activation": activation})  # type: ignore[arg-type]


def operands(x: Any, weight: Any, bias: Any, state: Any, bounds: Any) -> tuple[Any, ...]:
    """The operands as the kernels read them: copies where they could not."""
    rest = (("weight", weight), ("bias", bias), ("state", state))
    offsets = readable_offsets("causal_conv1d", bounds, arrays.describe(x).shape[1])
    return (contiguous_rows(x, "x"), *(dense(array, name) for name, array in rest), offsets)


# The reference ----------------------------------------------------------------------------------------------


def reference(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    state: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, after) in float64, a sequence at a time."""
    if bounds is not None:
        given = [None if state is None else state[i : i + 1] for i in range(len(bounds) - 1)]
        spans = [slice(*pair) for pair in pairwise(bounds)]
        made = [
            reference(x[:, span], weight, bias, activation=activation, state=s)
            for span, s in zip(spans, given, strict=True)
        ]
        return np.concatenate([y for y, _ in made], 1), np.concatenate([after for _, after in made])
    batch, n, channels = x.shape
    width = weight.shape[1]
    before = np.zeros((batch, width - 1, channels)) if state is None else state.astype(np.float64)
    whole, weight = np.concatenate([before, x.astype(np.float64)], 1), weight.astype(np.float64)
    z = np.zeros((batch, n, channels)) + (0 if bias is None else bias.astype(np.float64))
    for j in range(width):
        z = z + whole[:, j : j + n] * weight[:, j]
    return z / (1 + np.exp(-z)) if activation == "silu" else z, whole[:, n:]
