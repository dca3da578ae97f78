"""Based: causal linear attention with the Taylor feature map of the exponential, to second order; forward.

    o_i = sum_{j <= i} (1 + s_ij + s_ij^2 / 2) v_j,   s_ij = q_i . k_j / sqrt(16)        for each batch and head

Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff" (2024), section 4; the
scaling and the absence of a normaliser are those of the published kernel (ThunderKittens, kernels/based: s = q k / 4).

q, k: (batch, heads, n, 16), v, o: (batch, heads, n, e), bf16 or f16, e 64 or 128, any n, any strides with contiguous
rows. State: float32 (batch, heads, e, 160), the sum of v_j f(k_j) before the first and after the last row, where
(indices modulo 16)

    f(x) = (x_c x_(c + m) for m = 0 .. 7 and c = 0 .. 15;   x_c x_(c + 8) for c = 0 .. 7, 1, seven zeros;   x_0 .. x_15)

A square is symmetric: these 136 products do what 256 do in the published kernel. With z = q / 4, those of m = 0
counting half,

    1 + s + s^2 / 2 = f(z) . f(k) - (1 / 2) sum_c z_c^2 k_c^2

Chunks of 64 rows (see linear_attention.py). A block owns one head and 64 columns of the values. One warpgroup keeps the
state in registers: it puts it into a ring as 16-bit numbers, those of 1 and x, most of the sum, in two terms; then it
writes f(k) of a chunk to shared memory and adds v^T f(k), f(k) in two terms, exactly, where the last state is asked
for. The other makes f(z) in registers, and adds f(z) S and the chunk's own masked weights (two terms) times v; it also
loads, with TMA. In f16, whose range is small, the rows of the state and of the weights are scaled on their way; |k|
stays below 256 and |q| below 1,024, for their products are f16 too. A NaN or infinity of v reaches all rows of its
chunk. Two blocks share a multiprocessor: shared memory 92 KiB, 112 KiB with the last state.

Speed, operations as the published kernel counts them: docs/benchmarks.md, measured by `pykittens bench linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f16, f32, warpgroup
from pykittens.errors import ArgumentError

from .arguments import KernelCall
from .sequences import DTYPES, operands, store_terms, terms, unit_of

CHUNK = 64  # rows of a step, and value columns of a block
D = 16
SQUARES = 8 * D  # features before those that 1 is among
FEATURES = SQUARES + 2 * D


@dataclass(frozen=True)
class Config:
    """How many chunks and states are under way."""

    stages: int = 3
    states: int = 1

    def __post_init__(self) -> None:
        if self.stages < 1 or self.states < 1:
            raise ArgumentError(f"based with {self}", fix="at least one stage and one state")


CONFIG = Config()  # made once, since a static value is recognised by identity


@pk.kernel(warps=8, blocks_per_sm=2, grid=lambda q, v, **_: (v.cols // CHUNK, q.depth, q.batch))
def attend(
    q: Annotated[Tensor, DTYPES, "B", "H", "N", D],
    k: Annotated[Tensor, DTYPES, "B", "H", "N", D],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    o: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    before: Annotated[Tensor, f32, "B", "H", pk.static("E"), FEATURES],
    after: Annotated[Tensor, f32, "B", "H", pk.static("E"), FEATURES],
    *,
    config: Any = Config(),
    reverse: bool = False,
) -> None:
    """o and the state `after`; without `before` it begins at zero.

    reverse: the sum is over j >= i, from the last row to the first, and the states are gradients of states.
    """
    part, head, batch = pk.block_index.x if v.cols > CHUNK else 0, pk.block_index.y, pk.block_index.z
    dtype, chunks, scaled, exact = q.dtype, pk.cdiv(q.rows, CHUNK), q.dtype is f16, after is not None
    rows, values = pk.st(dtype, CHUNK, D), pk.st(dtype, CHUNK, CHUNK)
    ring = pk.ring(config.stages, q=rows, k=rows, v=values)
    wide, narrow = (pk.st(dtype, CHUNK, cols, swizzle=32) for cols in (FEATURES, 2 * D))
    states = pk.ring(config.states, high=wide, low=narrow, unit=pk.sv(f32, CHUNK), name="states")
    result = pk.shared(values, name="result")

    first, last, step = (chunks - 1, -1, -1) if reverse else (0, chunks, 1)

    def load(i: Any) -> None:
        with pk.when(i > last if reverse else i < last), ring.fill() as slot:
            pk.tma.load(slot.q, q, (batch, head, i, 0))
            pk.tma.load(slot.k, k, (batch, head, i, 0))
            pk.tma.load(slot.v, v, (batch, head, i, part))

    with pk.role("attend", warpgroups=1):
        for i in range(config.stages):
            load(first + i * step)
        score, out = warpgroup.zeros(f32, CHUNK, CHUNK), warpgroup.zeros(f32, CHUNK, CHUNK)
        later, earlier = pk.row_index(score), pk.col_index(score)
        seen = earlier >= later if reverse else earlier <= later
        for i in pk.range(first, last, step):
            slot = ring.read()
            warpgroup.mm_ABt(score, slot.q, slot.k)
            x = warpgroup.load(slot.q) * 0.25
            near, rest = pk.join(*products(x, range(4), 0.5)), pk.join(half(products(x, [8])[0], 1.0), x)
            past = states.read()
            warpgroup.wait(score)
            warpgroup.mm_ABt(out, near, past.high[:, : 4 * D])
            warpgroup.mma_ABt(out, rest, past.high[:, SQUARES:])
            warpgroup.mma_ABt(out, rest, past.low)
            score[:] = pk.where(seen, pk.fma(score, pk.fma(score, 1 / 32, 1 / 4), 1.0), 0.0)
            warpgroup.wait(rest)  # whose registers are needed
            if scaled:
                weight_unit = unit_of(score)
                shrink = 1.0 / weight_unit
                score[:] = score * shrink
            high, low = terms(score, dtype)
            far = pk.join(*products(x, range(4, 8)))
            warpgroup.mma_ABt(out, far, past.high[:, 4 * D : SQUARES])
            if scaled:
                warpgroup.wait(out)
                out[:] = out * shrink * warpgroup.load_row(past.unit)
            warpgroup.mma_AB(out, high, slot.v)
            warpgroup.mma_AB(out, low, slot.v)
            warpgroup.wait()
            ring.release()
            states.release()
            load(i + config.stages * step)
            warpgroup.tma.wait(read=True)
            warpgroup.sync()  # `result` has been read
            warpgroup.store(result, (out * weight_unit if scaled else out).to(dtype))
            warpgroup.sync()
            warpgroup.tma.store(o, result, (batch, head, i, part))
            warpgroup.tma.commit()
        warpgroup.tma.wait()

    with pk.role("state", warpgroups=1):
        second, single = begin(before, (batch, head, part), reverse)
        tiles = [pk.shared(wide, name=name) for name in ("features", "remainders")[: 1 + exact]]
        if exact:
            warpgroup.store(tiles[1][:, FEATURES - D :], warpgroup.zeros(dtype, CHUNK, D))  # x needs no more
        for i in pk.range(first, last, step):
            with states.put() as slot:
                put(slot, second, single, scaled)
            slot = ring.read()
            add(second, single, slot, tiles)
            ring.release()
            warpgroup.sync()  # all warps have done with the features
        if after is not None:
            for sums, column in ((second, 0), (single, SQUARES)):
                where = pk.at(batch, head, part * CHUNK, column)
                warpgroup.store(after, sums * shares(sums, column) if reverse else sums, where)


def begin(before: Any, at: Any, reverse: bool) -> Any:
    """The state before the first chunk: the sums for the products, and for 1 and x.

    A gradient of the state has the factors of its features in the result, which the sums do not have.
    """
    batch, head, part = at
    made = []
    for first, cols in ((0, SQUARES), (SQUARES, 2 * D)):
        if before is None:
            made.append(warpgroup.zeros(f32, CHUNK, cols))
            continue
        sums = warpgroup.load(before, pk.at(batch, head, part * CHUNK, first), rows=CHUNK, cols=cols)
        made.append(sums / shares(sums, first) if reverse else sums)
    return made


def shares(sums: Any, first: int) -> Any:
    """The factor of each feature in the result, from column `first` on; of those that are zero any other than 0."""
    column = pk.col_index(sums)
    if first == SQUARES:
        return pk.where(column >= D, 1 / 4, pk.where(column == D // 2, 1.0, 1 / 16))
    return pk.where(column < D - first, 1 / 32, 1 / 16)


def put(slot: Any, second: Any, first: Any, scaled: bool) -> None:
    """The state as 16-bit numbers in shared memory."""
    if scaled:
        unit = unit_of(second, first)
        warpgroup.store(slot.unit, unit)
    warpgroup.store(slot.high[:, :SQUARES], (second / unit if scaled else second).to(slot.high.dtype))
    store_terms(slot.high[:, SQUARES:], slot.low, first / unit if scaled else first)


def add(second: Any, first: Any, slot: Any, tiles: Any) -> None:
    """Adds the products of a chunk's values and the features of its keys, which go through `tiles`."""
    for make, one, tile in zip((products, remainders), (1.0, 0.0), tiles):
        x = warpgroup.load(slot.k)  # for each anew: registers are scarce
        *several, last = make(x, range(9))
        for m, term in enumerate([*several, half(last, one)]):
            warpgroup.store(tile[:, m * D : (m + 1) * D], term)
    warpgroup.store(tiles[0][:, FEATURES - D :], x)
    warpgroup.sync()
    for tile in tiles:
        warpgroup.mma_AtB(second, slot.v, tile[:, :SQUARES])
        warpgroup.mma_AtB(first, slot.v, tile[:, SQUARES:])
    warpgroup.wait()


def products(x: Any, distances: Any, share: float = 1.0) -> Any:
    """x_c x_(c + m) of rows of 16, for each distance m; those of distance 0 count `share`."""
    return [
        (x * share if m == 0 and share != 1.0 else x) * rolled for m, rolled in zip(distances, pk.rolls(x, distances))
    ]


def remainders(x: Any, distances: Any) -> Any:
    """What rounding the products to 16 bits leaves, which 16 bits hold exactly."""
    minus = -x
    return [pk.fma(x, rolled, minus * rolled) for rolled in pk.rolls(x, distances)]


def half(x: Any, one: Any) -> Any:
    """The first 8 columns of 16, then `one`, then zeros."""
    column = pk.col_index(x)
    return pk.where(column == D // 2, one, pk.where(column < D // 2, x, 0.0))


def call(q: Any, k: Any, v: Any, state: Any, o: Any, after: Any, config: Config | None = None) -> KernelCall:
    """What writes o, and the state after the last row into `after` unless that is None."""
    q, k, v, state = operands("based", q, k, v, state)
    return KernelCall(attend, (q, k, v, o, state, after), {"config": config or CONFIG})


def features(x: np.ndarray) -> np.ndarray:
    """f(x) of rows of 16."""
    rolled = np.stack([x * np.roll(x, -m, axis=-1) for m in range(D // 2 + 1)], axis=-2)
    rolled[..., -1, D // 2 :] = np.arange(D // 2) == 0
    return np.concatenate([rolled.reshape(*x.shape[:-1], -1), x], axis=-1)


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, state: np.ndarray | None = None, dtype: Any = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """(o, state) by the recurrence, row by row, in float64 (or another dtype)."""
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    share = np.where(np.arange(FEATURES) < D, dtype(0.5), dtype(1.0))  # of each feature in the sum
    state = np.zeros((*v.shape[:2], v.shape[-1], FEATURES), dtype) if state is None else state.astype(dtype)
    o = np.empty(v.shape, dtype)
    with np.errstate(all="ignore"):
        for i in range(q.shape[2]):
            state = state + v[:, :, i, :, None] * features(k[:, :, i])[:, :, None, :]
            o[:, :, i] = (state @ (features(q[:, :, i] / dtype(4)) * share)[..., None])[..., 0]
    return o, state
