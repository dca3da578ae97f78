"""How passes over chunks are launched: operands seen by heads, decays, and parts of sequences.

Columns of x are taken 64 at a time: heads of 128 are two, with one decay.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..interop import arrays
from ..interop.base import packed
from ..interop.views import View
from .arguments import machine
from .chunks import CHUNK, accumulate, carry, slots
from .sequences import dense, loadable
from .ssd import CONFIGS, scan

COLUMNS = (64, 128)  # of x
LEAST_CHUNKS = 4  # of a part


class Call(NamedTuple):
    """What all passes over some sequences share. `sequences`: None where they are not packed."""

    kind: str
    device: int | None
    shape: tuple[int, int, int, int]  # of x, by heads: batch, heads (of 64 columns), rows, columns
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


def call_of(x: Any, offsets: Any) -> Call:
    """What passes over x (by heads) share: parts such that there is one for each multiprocessor, at least."""
    info = arrays.describe(x)
    batch, heads, n, _ = info.shape
    sequences = batch if offsets is None else arrays.describe(offsets).shape[0] - 1
    chunks = -(-n // CHUNK) if offsets is None else n // CHUNK + 1
    processors = machine(info)["processors"]
    wanted = processors // (heads * sequences)
    parts = max(1, min(wanted, -(-chunks // LEAST_CHUNKS)))
    each = -(-chunks // parts)
    if offsets is not None:
        parts = slots(n, sequences, True, each * CHUNK)
    else:
        parts = max(1, -(-chunks // each))
    return Call(info.kind, info.device, (batch, heads, n, CHUNK), sequences, offsets, processors, each, parts)


def by_heads(x: Any, name: str) -> Any:
    """(batch, rows, heads, columns) as (batch, heads, rows, 64 columns), in place where TMA can read it."""
    if x is None:
        return None
    info = arrays.describe(x)
    (batch, n, heads, cols), (sb, sn, sh, last) = info.shape, info.strides
    count = cols // CHUNK
    if last == 1 and (count == 1 or heads == 1 or sh == cols):
        view = View(x, (batch, heads * count, n, CHUNK), (sb, sh if count == 1 else CHUNK, sn, 1))
        if loadable(arrays.describe(view)):
            return view
    return by_heads(arrays.dense_copy(x, name), name)


def by_groups(x: Any, name: str) -> Any:
    """(batch, rows, groups, columns) as (batch, groups, rows, columns), in place where TMA can read it."""
    info = arrays.describe(x)
    (batch, n, groups, cols), (sb, sn, sg, last) = info.shape, info.strides
    view = View(x, (batch, groups, n, cols), (sb, sg, sn, last))
    return view if loadable(arrays.describe(view)) else by_groups(arrays.dense_copy(x, name), name)


def states_of(x: Any, name: str) -> Any:
    """(sequences, heads, columns, N) as (sequences, heads, 64 columns, N)."""
    if x is None:
        return None
    x = dense(x, name)
    sequences, heads, cols, n = arrays.describe(x).shape
    shape = (sequences, heads * cols // CHUNK, CHUNK, n)
    return View(x, shape, packed(shape))


def by_rows(dt: Any) -> View:
    """(batch, rows, heads) as (batch, 1, rows, heads), in place."""
    info = arrays.describe(dt)
    (batch, n, heads), (sb, sn, sh) = info.shape, info.strides
    return View(dt, (batch, 1, n, heads), (sb, 0, sn, sh))


def lines(x: Any, count: int = 0) -> View:
    """The memory of a dense array, however its dimensions are ordered: a line, or `count` of them."""
    shape = arrays.describe(x).shape
    size = math.prod(shape) // (count or 1)
    return View(x.array, (count, size), (size, 1)) if count else View(x.array, (size,), (1,))


def decays_of(call: Call, dt: Any, a: Any, bias: Any, soft: bool) -> tuple[Any, Any]:
    """The sums of the decays in each chunk, and what rows are weighed with."""
    heads = arrays.describe(dt).shape[2]
    sums = call.empty((heads, call.chunks * CHUNK))
    weights = None if a is None else call.empty((heads, call.chunks * CHUNK))
    accumulate(by_rows(dt), a, bias, call.offsets, sums, weights, soft=soft)
    return sums, weights


def run(
    call: Call,
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
) -> None:
    """The pass over all chunks, from part to part where sequences are split."""
    setting = (call.each, call.parts if call.offsets is not None or call.split else 1)
    options = {**CONFIGS[arrays.describe(b).shape[3]], "reverse": reverse}
    if call.split:
        state = (call.tiles, call.shape[1], CHUNK, arrays.describe(b).shape[3])
        local, starts, decays = call.empty(state), call.empty(state), call.empty((call.shape[1], call.tiles))
        nothing = (None, None)
        states = (None, None, local, decays, None, None)
        scan(x, b, None, sums, weights, *nothing, call.offsets, *states, scale, *setting, split=True, **options)
        lines = [None if s is None else lined(s) for s in (before, local, starts, after)]
        carry(*lines[:2], decays, call.offsets, *lines[2:], call.each, call.sequences, reverse=reverse)
        before, after = starts, None
        if y is None and every is None:
            return
    states = (before, y, after, None, every, units)
    scan(x, b, c, sums, weights, d, z, call.offsets, *states, scale, *setting, split=call.split, **options)


def lined(state: Any) -> View:
    """States with the elements of each in a line."""
    a, b, c, d = arrays.describe(state).shape
    return View(state, (a, b, c * d), packed((a, b, c * d)))
