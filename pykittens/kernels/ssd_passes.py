"""How passes over chunks are launched: operands seen by heads, decays, and parts of sequences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..interop import arrays
from ..interop.base import packed
from ..interop.views import View
from .arguments import machine
from .chunks import CHUNK, accumulate, carry, slots
from .sequences import loadable
from .ssd import CONFIGS, scan
from .ssd_backward import STAGES, add_shares, differentiate

COLUMNS = (64, 128)  # of x
LEAST_CHUNKS = 4  # of a part


class PassCall(NamedTuple):
    """What all passes over some sequences share. `sequences`: None where they are not packed."""

    kind: str
    device: int | None
    shape: tuple[int, int, int, int]  # of x, by heads: batch, heads, rows, columns
    sequences: int
    offsets: Any
    processors: int
    each: int
    parts: int  # of a sequence; of all where they are packed

    @property
    def tiles(self) -> int:
        """How many parts are numbered."""
        return self.parts if self.offsets is not None else self.parts * self.sequences

    @property
    def split(self) -> bool:
        """Whether sequences may have several parts."""
        return self.parts > 1 and not (self.offsets is not None and self.parts <= self.sequences)

    @property
    def chunks(self) -> int:
        """How many chunks are numbered."""
        return slots(self.shape[2], self.sequences, self.offsets is not None)

    def empty(self, shape: tuple[int, ...], dtype: str = "f32") -> Any:
        """Memory beside the operands."""
        return arrays.empty(self.kind, shape, dtype, self.device)


def call_of(x: Any, offsets: Any) -> PassCall:
    """What passes over x (by heads) share: parts such that there is one for each multiprocessor, at least."""
    info = arrays.describe(x)
    batch, heads, n, cols = info.shape
    sequences = batch if offsets is None else arrays.describe(offsets).shape[0] - 1
    chunks = -(-n // CHUNK) if offsets is None else n // CHUNK + 1
    processors = machine(info)["processors"]
    wanted = processors // (heads * cols // CHUNK * sequences)
    parts = max(1, min(wanted, -(-chunks // LEAST_CHUNKS)))
    each = -(-chunks // parts)
    if offsets is not None:
        parts = slots(n, sequences, True, each * CHUNK)
    else:
        parts = max(1, -(-chunks // each))
    return PassCall(info.kind, info.device, (batch, heads, n, cols), sequences, offsets, processors, each, parts)


def by_heads(x: Any, name: str) -> Any:
    """(batch, rows, heads, columns) as (batch, heads, rows, columns), in place where TMA can read it; None for None."""
    if x is None:
        return None
    info = arrays.describe(x)
    (batch, n, heads, cols), (sb, sn, sh, last) = info.shape, info.strides
    view = View(x, (batch, heads, n, cols), (sb, sh, sn, last))
    return view if loadable(arrays.describe(view)) else by_heads(arrays.dense_copy(x, name), name)


def by_rows(dt: Any) -> View:
    """(batch, rows, heads) as (batch, 1, rows, heads), in place."""
    info = arrays.describe(dt)
    (batch, n, heads), (sb, sn, sh) = info.shape, info.strides
    return View(dt, (batch, 1, n, heads), (sb, 0, sn, sh))


def single(x: Any, offsets: Any) -> bool:
    """Whether there is one row of each sequence of x (by heads)."""
    return offsets is None and arrays.describe(x).shape[2] == 1


def of_one_row(x: Any, axis: int) -> View:
    """What each head has of its one row, which `axis` counts, as (batch, heads)."""
    info = arrays.describe(x)
    batch, heads = (n for i, n in enumerate(info.shape) if i != axis)
    strides = tuple(s for i, s in enumerate(info.strides) if i != axis)
    if heads > 1 and strides[1] != 1:
        x, strides = arrays.dense_copy(x, "decay"), (heads, 1)
    return View(x, (batch, heads), strides)


def lines(x: Any, count: int = 0) -> View:
    """The memory of a dense array, however its dimensions are ordered: a line, or `count` of them."""
    shape = arrays.describe(x).shape
    size = math.prod(shape) // (count or 1)
    memory = x.array if isinstance(x, View) else x
    return View(memory, (count, size), (size, 1)) if count else View(memory, (size,), (1,))


def alike(call: PassCall, x: Any, count: int) -> View | None:
    """Room for `count` arrays of float32, each of which lies in memory as the dense x does, as one of so many batches;
    None where the batches of x do not lie one behind the other.
    """
    info = arrays.describe(x)
    size = math.prod(info.shape[1:])
    if info.shape[0] > 1 and info.strides[0] != size:
        return None
    shape = (count * info.shape[0], *info.shape[1:])
    return View(call.empty((shape[0] * size,)), shape, (size, *info.strides[1:]))


def decays_of(call: PassCall, dt: Any, a: Any, bias: Any, soft: bool, exact: bool = False) -> tuple[Any, Any, Any]:
    """The sums of the decays in each chunk, what rows are weighed with, and with `exact` the sums behind each row."""
    line = (arrays.describe(dt).shape[2], call.chunks * CHUNK)
    sums, weights, left = (call.empty(line) if made else None for made in (True, a is not None, exact))
    accumulate(by_rows(dt), a, bias, call.offsets, sums, weights, left, soft=soft)
    return sums, weights, left


def run(
    call: PassCall,
    x: Any,
    b: Any,
    c: Any = None,
    sums: Any = None,
    weights: Any = None,
    d: Any = None,
    z: Any = None,
    before: Any = None,
    y: Any = None,
    after: Any = None,
    every: Any = None,
    units: Any = None,
    scale: float = 1.0,
    reverse: bool = False,
    left: Any = None,
) -> None:
    """The pass over all chunks, from part to part where sequences are split."""
    keys, (_, heads, _, cols) = arrays.describe(b).shape[3], call.shape
    setting = (call.each, call.parts if call.offsets is not None or call.split else 1)
    options = {**CONFIGS[keys], "reverse": reverse}
    if call.split:
        state = (call.tiles, heads, cols, keys)
        local, starts, decays = call.empty(state), call.empty(state), call.empty((heads, call.tiles))
        nothing = (None, None)
        states = (None, None, local, decays, None, None)
        scan(x, b, None, sums, weights, left, *nothing, call.offsets, *states, scale, *setting, split=True, **options)
        lines = [None if s is None else lined(s) for s in (before, local, starts, after)]
        carry(*lines[:2], decays, call.offsets, *lines[2:], call.each, call.sequences, reverse=reverse)
        before, after = starts, None
        if y is None and every is None:
            return
    states = (before, y, after, None, every, units)
    scan(x, b, c, sums, weights, left, d, z, call.offsets, *states, scale, *setting, split=call.split, **options)


def pull(
    call: PassCall,
    dy: Any,
    dafter: Any,
    x: Any,
    b: Any,
    c: Any,
    sums: Any,
    weights: Any,
    d: Any,
    z: Any,
    ungated: Any,
    state: Any,
    made: tuple[Any, ...],
    scale: float,
) -> tuple[Any, ...]:
    """The passes for gradients: writes those of x, z, b, c and the state, `made`, and returns the dot products of rows
    that the gradients of decays (and of d) are made of."""
    dx, dz, db, dc, dstate = made
    (_, heads, _, cols), (_, groups, _, keys) = call.shape, arrays.describe(b).shape
    dtype = arrays.describe(x).dtype
    kept, wide = (call.chunks, heads, cols, keys), heads * cols // CHUNK
    states, slopes = (call.empty(kept, dtype) for _ in range(2))
    units = [call.empty(kept[:3]) if dtype == "f16" else None for _ in range(2)]
    run(call, x, b, None, sums, weights, before=state, every=states, units=units[0])
    more = {"before": dafter, "after": dstate, "every": slopes, "units": units[1]}
    run(call, dy, c, None, sums, None, **more, scale=scale, reverse=True)
    # among how many blocks the heads of a group are shared out, so that there is work for all multiprocessors
    shares = max(1, min(wide // groups, 2 * call.processors // (call.chunks * groups)))
    sum_b, sum_c = (alike(call, x, shares) for x in (db, dc))
    if shares == 1 or sum_b is None or sum_c is None:
        shares, sum_b, sum_c = 1, db, dc
    wanted = (True, True, True, d is not None, weights is not None)
    dots = [call.empty((wide, call.chunks * CHUNK)) if x else None for x in wanted]
    given = (sums, weights, d, z, ungated, call.offsets, states, slopes, *units, dx, dz, sum_b, sum_c)
    differentiate(x, dy, b, c, *given, *dots, scale, shares, stages=STAGES[keys])
    if shares > 1:
        for parts, whole in ((sum_b, db), (sum_c, dc)):
            add_shares(lines(parts, shares), lines(whole))
    return tuple(dots)


def lined(state: Any) -> View:
    """States with the elements of each in a line."""
    a, b, c, d = arrays.describe(state).shape
    return View(state, (a, b, c * d), packed((a, b, c * d)))
