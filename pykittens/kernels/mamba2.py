"""Mamba-2 on arrays of any framework: the launches of its forward and backward passes.

    S_i = exp(dt_i A) S_(i - 1) + dt_i x_i B_i        y_i = (S_i C_i + D x_i) silu(z_i)        for each head, A < 0

The kernels: `chunks.py` (decays), `ssd.py` (states and rows), `ssd_step.py` (one row), `ssd_backward.py`
(gradients).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..interop import arrays
from ..interop.views import View
from .arguments import KernelCall
from .chunks import CHUNK
from .column_sums import add_up
from .sequences import check_decays, check_place, contiguous_rows, dense, readable_offsets
from .ssd_backward import finish, gate
from .ssd_passes import PassCall, by_heads, by_rows, call_of, decays_of, of_one_row, pull, run, single
from .ssd_step import advance


class ForwardSteps:
    """The launches of the forward pass as one: called as a kernel is."""

    def __call__(
        self,
        x: Any,
        dt: Any,
        a: Any,
        b: Any,
        c: Any,
        d: Any,
        z: Any,
        bias: Any,
        state: Any,
        offsets: Any,
        y: Any,
        after: Any,
        scale: float,
        *,
        soft: bool,
        exact: bool,
    ) -> None:
        if single(x, offsets):
            advance(x, of_one_row(dt, 1), a, b, c, d, z, bias, None, state, y, after, scale, soft=soft)
            return
        call = call_of(x, offsets)
        sums, weights, left = decays_of(call, dt, a, bias, soft, exact)
        run(call, x, b, c, sums, weights, d, z, state, y, after, scale=scale, left=left)

    def launcher(self, *operands: Any, **static: Any) -> None:
        """None: such a call is not one launch, to be done again by itself."""


class BackwardSteps(ForwardSteps):
    """Those of the backward pass."""

    def __call__(  # type: ignore[override]
        self,
        dy: Any,
        dafter: Any,
        x: Any,
        dt: Any,
        a: Any,
        b: Any,
        c: Any,
        d: Any,
        z: Any,
        bias: Any,
        state: Any,
        offsets: Any,
        dx: Any,
        ddt: Any,
        da: Any,
        db: Any,
        dc: Any,
        dd: Any,
        dz: Any,
        dbias: Any,
        dstate: Any,
        scale: float,
        *,
        soft: bool,
    ) -> None:
        call = call_of(x, offsets)
        sums, weights, _ = decays_of(call, dt, a, bias, soft)
        ungated = None
        if z is not None:
            batch, heads, n, cols = call.shape
            ungated, dy = dy, by_heads(call.empty((batch, n, heads, cols), arrays.describe(x).dtype), "dy")
            gate(ungated, z, dy)
        made = (dx, dz, db, dc, dstate)
        dots = pull(call, dy, dafter, x, b, c, sums, weights, d, z, ungated, state, made, scale)
        finish_decays(call, dt, a, bias, sums, weights, dots, (ddt, da, dbias, dd), soft)


FORWARD, BACKWARD = ForwardSteps(), BackwardSteps()


def finish_decays(
    call: PassCall, dt: Any, a: Any, bias: Any, sums: Any, weights: Any, dots: Any, made: Any, soft: bool
) -> None:
    """Writes the gradients of dt, A, the bias and D, `made`; of the last three where they are not None."""
    heads = arrays.describe(sums).shape[0]
    parts, m = call.shape[3] // CHUNK, call.chunks * CHUNK
    seen = [None if x is None else View(x, (parts, heads, m), (m, parts * m, 1)) for x in dots]
    ddt, *wholes = made
    pieces = [None if x is None else call.empty((call.chunks, heads)) for x in wholes]
    finish(
        by_rows(dt),
        a,
        bias,
        call.offsets,
        sums if weights is None else weights,
        *seen,
        by_rows(ddt),
        *pieces,
        soft=soft,
    )
    for x, whole in zip(pieces, wholes, strict=True):
        if x is not None:
            add_up(x, None, whole, None)


def prepared(x: Any, dt: Any, a: Any, b: Any, c: Any, d: Any, z: Any, bias: Any, state: Any) -> tuple[Any, ...]:
    """The operands as the kernels read them."""
    rows = (
        by_heads(x, "x"),
        contiguous_rows(dt, "dt"),
        dense(a, "A"),
        by_heads(b, "B"),
        by_heads(c, "C"),
        dense(d, "D"),
    )
    return *rows, by_heads(z, "z"), dense(bias, "dt_bias"), dense(state, "state")


def call(
    x: Any,
    dt: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    z: Any,
    bias: Any,
    state: Any,
    offsets: Any,
    y: Any,
    after: Any,
    soft: bool,
    exact: bool = False,
) -> KernelCall:
    """What writes y, and the states after the last rows into `after` unless that is None."""
    offsets = readable_offsets("mamba2", offsets, arrays.describe(x).shape[1])
    if arrays.describe(x).shape[1] != 1 or offsets is not None:  # the kernel of one row runs everywhere
        check_place("mamba2", x)
    check_decays("mamba2", "A", a)
    y = arrays.empty_like(x) if y is None else y
    given = (*prepared(x, dt, a, b, c, d, z, bias, state), offsets)
    made = (by_heads(y, "y"), dense(after, "after"), 1.0)
    return KernelCall(FORWARD, (*given, *made), {"soft": soft, "exact": exact})  # type: ignore[arg-type]


def call_backward(
    dy: Any,
    x: Any,
    dt: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    z: Any,
    bias: Any,
    state: Any,
    offsets: Any,
    dafter: Any,
    *gradients: Any,
) -> KernelCall:
    """What writes the gradients of x to state in their order; of D, z, the bias and the state where they are given."""
    *made, soft = gradients
    dx, ddt, da, db, dc, dd, dz, dbias, dstate = made
    check_place("mamba2", x)
    offsets = readable_offsets("mamba2", offsets, arrays.describe(x).shape[1])
    given = (*prepared(x, dt, a, b, c, d, z, bias, state), offsets)
    before = (by_heads(dy, "dy"), dense(dafter, "dafter"))
    out = (by_heads(dx, "dx"), ddt, da, by_heads(db, "dB"), by_heads(dc, "dC"), dd)
    more = (by_heads(dz, "dz"), dbias, dense(dstate, "dstate"), 1.0)
    return KernelCall(BACKWARD, (*before, *given, *out, *more), {"soft": soft})  # type: ignore[arg-type]


def reference(
    x: np.ndarray,
    dt: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    *,
    d: np.ndarray | None = None,
    z: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    soft: bool = False,
    state: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, state) by the recurrence, row by row, in float64."""
    if bounds is not None:
        made = []
        for s, (i, j) in enumerate(pairwise(bounds)):
            rows = [v[:, i:j] for v in (x, dt, b, c)]
            more: Any = {
                "d": d,
                "bias": bias,
                "soft": soft,
                "z": None if z is None else z[:, i:j],
                "state": None if state is None else state[s : s + 1],
            }
            made.append(reference(rows[0], rows[1], a, rows[2], rows[3], **more))
        return np.concatenate([y for y, _ in made], 1), np.concatenate([after for _, after in made])
    x, dt, a, b, c = (v.astype(np.float64) for v in (x, dt, a, b, c))
    (batch, n, heads, cols), each = x.shape, x.shape[2] // b.shape[2]
    dt = dt + (0 if bias is None else bias.astype(np.float64))
    dt = np.logaddexp(dt, 0) if soft else dt
    b, c = (v.repeat(each, 2) for v in (b, c))
    state = np.zeros((batch, heads, cols, b.shape[3])) if state is None else state.astype(np.float64)
    y = np.empty_like(x)
    for i in range(n):
        added = dt[:, i, :, None, None] * x[:, i, :, :, None] * b[:, i, :, None, :]
        state = state * np.exp(dt[:, i] * a)[..., None, None] + added
        y[:, i] = (state @ c[:, i, :, :, None])[..., 0]
    y += 0 if d is None else x * d.astype(np.float64)[:, None]
    return y if z is None else y * z / (1 + np.exp(-z.astype(np.float64))), state
