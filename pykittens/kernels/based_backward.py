"""Gradients of Based: the forward's kernel in reverse for v, and for q and k what multiplies the features' derivatives.

With s_ij = q_i . k_j / 4 and o_i = sum_{j <= i} (1 + s_ij + s_ij^2 / 2) v_j (`based.py`),

    dv_j = sum_{i >= j} (1 + s_ij + s_ij^2 / 2) do_i              Based of (k, q, do), from the last row to the first
    dq_i = sum_{j <= i} (do_i . v_j) (1 + s_ij) k_j / 4           dk_j = sum_{i >= j} (v_j . do_i) (1 + s_ij) q_i / 4

The last two are one sum, x_i' = sum_j (a_i . b_j) (1 + s_ij) y_j / 4, over j <= i or j >= i. In chunks of 64 rows (see
`based.py`, whose state S of (y, b) this is): with F = a_i S, each feature times its factor in the result,

    x_c' = F_c + sum_m (F_(c, m) x_(c + m) + F_(c - m, m) x_(c - m))   of the features x_c and x_c x_(c + m), m = 0 .. 8

and the chunk's own weights are (a b^T) (1 + s) / 4, in two 16-bit terms. The second part of the sum is
roll(F_8 x + ...): one step to the right a term, in float32. A block owns one head and 64 columns of the values; of 128
columns both halves add up in `combine`. Gradients of states have the layout of states.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f16, f32, warp, warpgroup

from ..interop import arrays
from .arguments import KernelCall
from .based import CHUNK, CONFIG, FEATURES, SQUARES, Config, D, add, attend, begin, features, put, shares
from .sequences import DTYPES, dense, operands, readable, terms, unit_of


@pk.kernel(warps=8, blocks_per_sm=2, grid=lambda x, a, **_: (a.cols // CHUNK, x.depth, x.batch))
def differentiate(
    x: Annotated[Tensor, DTYPES, "B", "H", "N", D],
    y: Annotated[Tensor, DTYPES, "B", "H", "N", D],
    a: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    b: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    o: Annotated[Tensor, (*DTYPES, f32), "B", "H", "N", pk.static("P")],
    before: Annotated[Tensor, f32, "B", "H", pk.static("E"), FEATURES],
    *,
    config: Any = CONFIG,
    reverse: bool = False,
) -> None:
    """o_i = sum_j (a_i . b_j) (1 + x_i . y_j / 4) y_j / 4 over j <= i, or over j >= i: for each 64 columns of a and b.

    `before`: the state (of reverse: the gradient of the state) that the sum goes on from, or None.
    """
    part, head, batch = pk.block_index.x if a.cols > CHUNK else 0, pk.block_index.y, pk.block_index.z
    dtype, chunks, scaled = x.dtype, pk.cdiv(x.rows, CHUNK), x.dtype is f16
    rows, values = pk.st(dtype, CHUNK, D), pk.st(dtype, CHUNK, CHUNK)
    ring = pk.ring(config.stages, q=rows, k=rows, a=values, v=values)
    wide, narrow = (pk.st(dtype, CHUNK, cols, swizzle=32) for cols in (FEATURES, 2 * D))
    states = pk.ring(config.states, high=wide, low=narrow, unit=pk.sv(f32, CHUNK), name="states")

    def at(i: Any) -> Any:
        """The chunk of step i."""
        return chunks - 1 - i if reverse else i

    def load(i: Any) -> None:
        with pk.when(i < chunks), ring.fill() as slot:
            pk.tma.load(slot.q, x, (batch, head, at(i), 0))
            pk.tma.load(slot.k, y, (batch, head, at(i), 0))
            pk.tma.load(slot.a, a, (batch, head, at(i), part))
            pk.tma.load(slot.v, b, (batch, head, at(i), part))

    with pk.role("differentiate", warpgroups=1):
        for i in range(config.stages):
            load(i)
        score, weight = warpgroup.zeros(f32, CHUNK, CHUNK), warpgroup.zeros(f32, CHUNK, CHUNK)
        out = warpgroup.zeros(f32, CHUNK, D)
        later, earlier = pk.row_index(score), pk.col_index(score)
        seen = earlier >= later if reverse else earlier <= later
        for i in pk.range(chunks):
            slot = ring.read()
            warpgroup.mm_ABt(score, slot.q, slot.k)
            warpgroup.mm_ABt(weight, slot.a, slot.v)
            warpgroup.wait()
            weight[:] = pk.where(seen, weight * pk.fma(score, 1 / 16, 1 / 4), 0.0)
            high, low, unit = split(weight, dtype)
            warpgroup.mm_AB(out, high, slot.k)
            warpgroup.mma_AB(out, low, slot.k)
            past = states.read()
            left: list[Any] = [slot.a]
            if scaled:
                *left, left_unit = split(warpgroup.load(slot.a).to(f32) * warpgroup.load_row(past.unit), dtype)
            value = warpgroup.load(slot.q).to(f32)
            found = derivatives(value, left, past, score)
            out[:] = out * unit + found * left_unit if scaled else out + found
            ring.release()
            states.release()
            load(i + config.stages)
            warpgroup.store(o, out.to(o.dtype), (batch, head, at(i), part))

    with pk.role("state", warpgroups=1):
        second, first = begin(before, (batch, head, part), reverse)
        tiles = [pk.shared(wide, name="features")]
        for i in pk.range(chunks):
            with states.put() as slot:
                put(slot, second, first, scaled)
            slot = ring.read()
            add(second, first, slot, tiles)
            ring.release()
            warpgroup.sync()  # all warps have done with the features


def split(x: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """A float32 tile as two 16-bit terms, and what they are to be multiplied with: None unless f16 needs it."""
    unit = unit_of(x) if dtype is f16 else None
    return *terms(x if unit is None else x * (1.0 / unit), dtype), unit


def derivatives(value: Any, left: Any, past: Any, sums: Any) -> Any:
    """The gradient of the rows `value`, from `left` times the state, through the features. `sums` are registers."""
    near: Any = None  # what is in place
    turned: Any = None  # what is still to be rolled by one step
    for first in (SQUARES, 4 * D, 0):
        cols = min(FEATURES - first, 4 * D)
        whole = sums if cols == sums.cols else warpgroup.zeros(f32, CHUNK, cols)
        for i, term in enumerate(left):
            multiply = warpgroup.mma_AB if i else warpgroup.mm_AB
            multiply(whole, term, past.high[:, first : first + cols])
            if first == SQUARES:
                warpgroup.mma_AB(whole, term, past.low)
        warpgroup.wait()
        whole[:] = whole * shares(whole, first)
        if first == SQUARES:
            eighth = pk.where(pk.col_index(value) < D // 2, whole[:, :D], 0.0)
            near = pk.fma(eighth, roll(value, D // 2), whole[:, D:])
            turned = roll(eighth * value, D - 1)
            continue
        for m in reversed(range(first // D, first // D + 4)):
            term = whole[:, m * D - first : (m + 1) * D - first]
            near = pk.fma(term, roll(value, m) if m else value, near)
            turned = pk.fma(term, value, turned)
            turned = roll(turned, D - 1) if m else turned
    return near + turned


def roll(x: Any, distance: int) -> Any:
    """Column c is column c + distance, round 16 columns."""
    return pk.rolls(x, (distance,))[0]


@pk.kernel(warps=4, grid=lambda o, **_: (pk.cdiv(o.rows, CHUNK), o.depth, o.batch))
def combine(
    parts: Annotated[Tensor, f32, "B", "H", "N", 2 * D], o: Annotated[Tensor, DTYPES, "B", "H", "N", D]
) -> None:
    """o = the sum of two halves of a gradient."""
    at = (pk.block_index.z, pk.block_index.y, pk.block_index.x * 4 + warp.index)
    left, right = (warp.load(parts, (*at, i), rows=16, cols=D) for i in range(2))
    warp.store(o, (left + right).to(o.dtype), (*at, 0))


class Steps:
    """The launches as one: called as a kernel is."""

    def __call__(
        self,
        do: Any,
        dafter: Any,
        q: Any,
        k: Any,
        v: Any,
        state: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        dstate: Any,
        *,
        config: Config = CONFIG,
    ) -> None:
        info = arrays.describe(q)
        wide = (*info.shape[:3], v.shape[3] // CHUNK * D)
        for x, y, a, b, o, before, reverse in ((q, k, do, v, dq, state, False), (k, q, v, do, dk, dafter, True)):
            whole = v.shape[3] == CHUNK
            made = o if whole else arrays.empty(info.kind, wide, "f32", info.device)
            differentiate(x, y, a, b, made, before, config=config, reverse=reverse)
            if not whole:
                combine(made, o)
        attend(k, q, do, dv, dafter, dstate, config=config, reverse=True)


STEPS = Steps()


def call(do: Any, dafter: Any, q: Any, k: Any, v: Any, state: Any, *gradients: Any) -> KernelCall:
    """What writes the gradients of q, k, v and state, of which the last may be None."""
    q, k, v, _ = operands("based", q, k, v, None)
    do, dafter, state = readable(do, "do"), dense(dafter, "dafter"), dense(state, "state")
    return KernelCall(STEPS, (do, dafter, q, k, v, state, *gradients), {})  # type: ignore[arg-type]


def reference(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    state: np.ndarray | None = None,
    dafter: np.ndarray | None = None,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, ...]:
    """(dq, dk, dv, dstate) from the sums over rows, and through the features from the states."""
    do, q, k, v = (x.astype(dtype) for x in (do, q, k, v))
    factor = np.where(np.arange(FEATURES) < SQUARES + D // 2, dtype(1 / 16), dtype(1))  # of each feature in the result
    factor[FEATURES - D :], factor[:D] = 1 / 4, 1 / 32
    shape = (*v.shape[:2], v.shape[-1], FEATURES)
    state, dafter = (np.zeros(shape, dtype) if x is None else x.astype(dtype) for x in (state, dafter))
    with np.errstate(all="ignore"):
        s = q @ k.swapaxes(2, 3) / 4
        weight, slope = np.tril(1 + s + s * s / 2), np.tril((do @ v.swapaxes(2, 3)) * (1 + s) / 4)
        dq = slope @ k + derivative(q, do @ state * factor)
        dk = slope.swapaxes(2, 3) @ q + derivative(k, v @ dafter)
        dv = weight.swapaxes(2, 3) @ do + features(k) @ dafter.swapaxes(2, 3)
        dstate = dafter + do.swapaxes(2, 3) @ (features(q) * factor)
    return dq, dk, dv, dstate


def derivative(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The gradient of x from that of its features: each is a product of two elements, or one of them, or 1."""
    out = slope[..., FEATURES - D :].copy()
    for m in range(D // 2 + 1):
        for c in range(D if m < D // 2 else D // 2):
            out[..., c] += slope[..., m * D + c] * x[..., (c + m) % D]
            out[..., (c + m) % D] += slope[..., m * D + c] * x[..., c]
    return out
