"""Causal linear attention in chunks, plain or with a decay for each head, forward.

    o_i = scale * sum_{j <= i} exp(g (i - j)) (q_i . k_j) v_j    for each batch and head; g = 0 where there is no decay

Katharopoulos et al., "Transformers are RNNs" (2020); the decay is log gamma in Sun et al., "Retentive Network" (2023),
and minus the slope in Qin et al., "Lightning Attention-2" (2024). Chunks of 64 rows turn the recurrence into matrix
products (Hua et al. 2022, "FLASH"): with S the state before a chunk, and i, j counted inside it,

    o_i = scale * (exp(g (i + 1)) q_i S + sum_{j <= i} exp(g (i - j)) (q_i . k_j) v_j)
    S' = exp(64 g) S + sum_j exp(g (63 - j)) k_j v_j

q, k: (batch, heads, n, d), v, o: (batch, heads, n, e), bf16 or f16, d and e 64 or 128, any n, any strides with
contiguous rows. State: float32 (batch, heads, e, d), the sum of v_j k_j with its decay, before the first and after the
last row. Where it is given, the rows continue an earlier call's.

A block owns one head and 64 columns of the values. One warpgroup keeps the state in registers (accumulators of wgmma)
and puts it into a ring before it adds a chunk; the other adds the chunk's own masked weights times v to q S, and loads,
with TMA, what comes when it has done with a chunk. Nothing but the result is rounded to 16 bits: the state, the
weights, and k where it decays are sums of two 16-bit terms. In f16, whose range is small, each row of the state and of
the weights is scaled on its way. A NaN or infinity of v reaches all rows of its chunk. Shared memory: `stages` chunks
of q, k, v and `states` states, the decayed k, the output; 88 to 104 KiB at d = 64.

Speed beside a device copy: docs/benchmarks.md, measured by `pykittens bench linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, warpgroup
from pykittens.errors import ArgumentError

from .arguments import KernelCall
from .sequences import DTYPES, check_decays, dense, operands, store_terms, terms, unit_of

LOG2E = 1.4426950408889634
CHUNK = 64  # rows of a step, and value columns of a block
DIMS = (64, 128)


@dataclass(frozen=True)
class Config:
    """How many chunks and states are under way, and how many blocks share a multiprocessor."""

    stages: int = 2
    states: int = 2
    blocks_per_sm: int = 2

    def __post_init__(self) -> None:
        if self.stages < 1 or self.states < 1 or self.blocks_per_sm not in (1, 2):
            fix = "at least one stage and one state, and 1 or 2 blocks per multiprocessor"
            raise ArgumentError(f"linear attention with {self}", fix=fix)


CONFIGS = {
    64: Config(),
    128: Config(blocks_per_sm=1),
}  # by the features; made once, since a static value is recognised by identity
OPTIONS: dict[str, Any] = {
    "warps": 8,
    "grid": lambda q, v, **_: (v.cols // CHUNK, q.depth, q.batch),
    "blocks_per_sm": lambda config, **_: config.blocks_per_sm,
    "pdl": lambda beside=False, **_: beside,
}


@pk.kernel(**OPTIONS)
def attend(
    q: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    o: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    log_decay: Annotated[Tensor, f32, "H"],
    before: Annotated[Tensor, f32, "B", "H", pk.static("E"), pk.static("D")],
    after: Annotated[Tensor, f32, "B", "H", pk.static("E"), pk.static("D")],
    along: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    dots: Annotated[Tensor, f32, "B", "H", "P", "M"],
    scale: Annotated[Scalar, f32],
    *,
    config: Any = Config(),
    reverse: bool = False,
    first: bool = False,
    beside: bool = False,
) -> None:
    """o and the state `after`; without `before` it begins at zero. With `along`, `dots`: the rows of o times those,
    for each 64 columns; M is n in whole chunks.

    reverse: the sum is over j >= i, from the last row to the first, and states have `scale` in them:

        o_i = (before exp(g (n - 1 - i)) + scale * sum_{j >= i} exp(g (j - i)) v_j k_j) q_i
        after = before exp(g n) + scale * sum_j exp(g (j + 1)) v_j k_j

    Of passes that have nothing to do with one another the `first` lets the next begin, and so on: those `beside` it
    take multiprocessors as they become free, and end after it.
    """
    if first or beside:
        pk.launch_next()
    part, head, batch = pk.block_index.x if v.cols > CHUNK else 0, pk.block_index.y, pk.block_index.z
    dtype, d, chunks = q.dtype, q.cols, pk.cdiv(q.rows, CHUNK)
    decays, scaled = log_decay is not None, dtype is f16
    rows, values = pk.st(dtype, CHUNK, d), pk.st(dtype, CHUNK, CHUNK)
    ring = pk.ring(config.stages, q=rows, k=rows, v=values)
    states = pk.ring(config.states, high=rows, low=rows, unit=pk.sv(f32, CHUNK), name="states")
    result = pk.shared(values, name="result")
    g = pk.maximum(log_decay[head] * LOG2E, -1e30) if decays else 0.0  # -inf times a distance of 0 would be NaN

    def at(i: Any) -> Any:
        """The chunk of step i."""
        return chunks - 1 - i if reverse else i

    def length(i: Any) -> Any:
        """How many rows it has."""
        return pk.minimum(q.rows - at(i) * CHUNK, CHUNK)

    def load(i: Any) -> None:
        with pk.when(i < chunks), ring.fill() as slot:
            pk.tma.load(slot.q, q, (batch, head, at(i), 0))
            pk.tma.load(slot.k, k, (batch, head, at(i), 0))
            pk.tma.load(slot.v, v, (batch, head, at(i), part))
            if dots is not None:
                pk.tma.prefetch(along, (batch, head, at(i), part), result)

    with pk.role("attend", warpgroups=1):
        for i in range(config.stages):
            load(i)
        score, out = warpgroup.zeros(f32, CHUNK, CHUNK), warpgroup.zeros(f32, CHUNK, CHUNK)
        row, column = pk.row_index(score), pk.col_index(score)
        later, earlier = (column, row) if reverse else (row, column)
        if decays:
            fade = pk.exp2(pk.maximum(later - earlier, 0).to(f32) * g)
            lift: Any = None if reverse else pk.exp2((row + 1).to(f32) * g)  # from where the state is
        for i in pk.range(chunks):
            slot = ring.read()
            if decays and reverse:
                lift = pk.exp2(pk.maximum(length(i) - 1 - row, 0).to(f32) * g)
            warpgroup.mm_ABt(score, slot.q, slot.k)
            past = states.read()
            warpgroup.mm_ABt(out, slot.q, past.high)
            warpgroup.mma_ABt(out, slot.q, past.low)
            warpgroup.wait(score)
            score[:] = pk.where(earlier <= later, score * fade if decays else score, 0.0)
            if scaled:
                weight_unit = unit_of(score)
                shrink = 1.0 / weight_unit
                score[:] = score * shrink
            high, low = terms(score, dtype)
            warpgroup.wait(out)
            if decays or scaled:
                out[:] = out * (lift * shrink if decays and scaled else lift if decays else shrink)
            if scaled:
                out[:] = out * warpgroup.load_row(past.unit)
            states.release()
            warpgroup.mma_AB(out, high, slot.v)
            warpgroup.mma_AB(out, low, slot.v)
            warpgroup.wait()
            ring.release()
            load(i + config.stages)
            unit = weight_unit * scale if scaled else scale
            if dots is not None:
                other = warpgroup.load(along, (batch, head, at(i), part), rows=CHUNK, cols=CHUNK)
                warpgroup.store(dots, out.row_dot(other.to(f32)) * unit, (batch, head, part, at(i)))
            warpgroup.tma.wait(read=True)
            warpgroup.sync()  # `result` has been read
            warpgroup.store(result, (out * unit).to(dtype))
            warpgroup.sync()
            warpgroup.tma.store(o, result, (batch, head, at(i), part))
            warpgroup.tma.commit()
        warpgroup.tma.wait()

    with pk.role("state", warpgroups=1):
        state = (
            warpgroup.zeros(f32, CHUNK, d)
            if before is None
            else warpgroup.load(before, (batch, head, part, 0), rows=CHUNK)
        )
        if reverse and before is not None:
            state[:] = state * (1.0 / scale)
        faded: Any = pk.shared(rows, count=2, name="faded") if decays else None
        position: Any = pk.row_index(state) if decays else None
        for i in pk.range(chunks):
            with states.put() as next:
                if scaled:
                    unit = unit_of(state)
                    warpgroup.store(next.unit, unit)
                store_terms(next.high, next.low, state / unit if scaled else state)
            slot = ring.read()
            if decays:  # row j by the decay from there to where the state will be
                distance = position + 1 if reverse else pk.maximum(length(i) - 1 - position, 0)
                away, all = distance.to(f32) * g, pk.cast(length(i), f32) * g
                store_terms(faded[0], faded[1], warpgroup.load(slot.k).to(f32) * pk.exp2(away))
                state[:] = state * pk.exp2(all)
                warpgroup.sync()
            for keys in (faded[0], faded[1]) if decays else (slot.k,):
                warpgroup.mma_AtB(state, slot.v, keys)
            warpgroup.wait()
            ring.release()
            if decays:
                warpgroup.sync()  # all warps have done with the decayed keys
        if after is not None:
            warpgroup.store(after, state * scale if reverse else state, (batch, head, part, 0))
        if beside:
            mine = (q, k, v, o, log_decay, before, after, along, dots)
            pk.wait_for_previous(independent=tuple(x for x in mine if x is not None))


def call(
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    o: Any,
    after: Any,
    scale: float,
    config: Config | None = None,
) -> KernelCall:
    """What writes o, and the state after the last row into `after` unless that is None."""
    q, k, v, state = operands("linear attention", q, k, v, state)
    check_decays("linear_attention", "log_decay", log_decay)
    operands_ = (q, k, v, o, dense(log_decay, "log_decay"), state, after, None, None, scale)
    return KernelCall(attend, operands_, {"config": config or CONFIGS[q.shape[-1]]})


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    log_decay: np.ndarray | None = None,
    scale: float | None = None,
    state: np.ndarray | None = None,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """(o, state) by the recurrence, row by row, in float64 (or another dtype)."""
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    batch, heads, n, d = q.shape
    decay = np.exp(np.zeros(heads, dtype) if log_decay is None else log_decay.astype(dtype))[:, None, None]
    state = np.zeros((batch, heads, v.shape[-1], d), dtype) if state is None else state.astype(dtype)
    o = np.empty(v.shape, dtype)
    with np.errstate(all="ignore"):
        for i in range(n):
            state = state * decay + v[:, :, i, :, None] * k[:, :, i, None, :]
            o[:, :, i] = (state @ q[:, :, i, :, None])[..., 0] * dtype(d**-0.5 if scale is None else scale)
    return o, state
