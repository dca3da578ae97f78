"""Gated linear attention with a gate for each channel of the keys (GLA), forward.

    S_i = S_(i-1) diag(exp(g_i)) + v_i k_i        o_i = scale * S_i q_i        for each batch and head, g_i <= 0

Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2024). In chunks of 64 rows, with
c_i the sum of g, a vector, from the chunk's beginning to row i, and S the state before the chunk,

    o_i = scale * (S (exp(c_i) q_i) + sum_{j <= i} P_ij v_j)        P_ij = sum_d q_id k_jd exp(c_id - c_jd)
    S' = S diag(exp(c_63)) + sum_j v_j (exp(c_63 - c_j) k_j)

`prepare` makes P as `channel_decays.py` says, and queries and keys as they meet states, all chunks at once; each warp
of a block has a fourth of the channels. `walk` goes through the chunks of a part of a sequence, like `ssd.scan`: one
warpgroup keeps 64 rows of a state in registers, as float32, and hands it on, rounded, before it adds a chunk. Nothing
there is left to decay but the state. In f16, whose range is small, rows of P and of the state are scaled on their way.

The gradients are the same walk (`gla_backward.py`): in reverse, of do, k and q in the place of v, q and k, with P
transposed, o is the gradient of v, and the states are the gradients of states.

log_decay: float32 (batch, heads, n, d). All else is as in `gated_linear_attention.py`, which calls this.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, block, f16, f32, i32, warp, warpgroup

from ..interop import arrays
from .channel_decays import WIDTH, Products
from .chunks import CHUNK, LEAST, LOG2E, later, part_of, rows_of
from .sequences import DTYPES, terms, unit_of
from .ssd import REGISTERS, first_state, hand_on, keep_state, warps
from .ssd_passes import PassCall

E, N = pk.static("E"), pk.static("N")
WARPS, ROWS = 4, 16
CONFIGS: dict[int, dict[str, Any]] = {  # by N
    64: {"stages": 2, "states": 2, "consumers": 1, "blocks": 2},
    128: {"stages": 3, "states": 2},
}


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray,
    *,
    scale: float | None = None,
    state: np.ndarray | None = None,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """(o, state) by the recurrence, row by row, in float64 (or another dtype). A gate a channel, or a head."""
    q, k, v, decay = (x.astype(dtype) for x in (q, k, v, np.exp(log_decay.astype(dtype))))
    decay = decay if decay.ndim == 4 else decay[..., None]
    batch, heads, n, d = q.shape
    state = np.zeros((batch, heads, v.shape[-1], d), dtype) if state is None else state.astype(dtype)
    o = np.empty(v.shape, dtype)
    with np.errstate(all="ignore"):
        for i in range(n):
            state = state * decay[:, :, i, None] + v[:, :, i, :, None] * k[:, :, i, None, :]
            o[:, :, i] = (state @ q[:, :, i, :, None])[..., 0] * dtype(d**-0.5 if scale is None else scale)
    return o, state


@pk.kernel(warps=WARPS, grid=lambda asking, **_: (asking.rows // CHUNK, asking.depth))
def prepare(
    q: Annotated[Tensor, DTYPES, "B", "H", "L", N],
    k: Annotated[Tensor, DTYPES, "B", "H", "L", N],
    log_decay: Annotated[Tensor, f32, "B", "H", "L", N],
    offsets: Annotated[Tensor, i32, "S"],
    asking: Annotated[Tensor, DTYPES, "H", "M", N],
    lasting: Annotated[Tensor, DTYPES, "H", "M", N],
    rest: Annotated[Tensor, DTYPES, "H", "M", N],
    p: Annotated[Tensor, DTYPES, "H", "M", CHUNK],
    units: Annotated[Tensor, f32, "H", "M"],
    decays: Annotated[Tensor, f32, "H", "T", N],
    scale: Annotated[Scalar, f32],
    *,
    flip: bool = False,
) -> None:
    """P (`flip`: transposed; in f16, each row by its `units`); scale * exp(c) q (`asking`); exp(c_63 - c) k (`lasting`,
    and, unless that is None, what its rounding left out, `rest`); c_63, base 2 (`decays`).
    """
    slot, head, dtype, d = pk.block_index.x, pk.block_index.y, q.dtype, q.cols
    rows, batch, chunk = rows_of(q.rows, offsets, slot)
    tile = pk.st(dtype, CHUNK, d)
    queries, keys, landed = pk.shared(tile, name="queries"), pk.shared(tile, name="keys"), pk.barrier()
    shares = pk.shared(pk.sv(f32, ROWS * CHUNK), count=WARPS * WARPS, name="shares")  # 16 rows of P, of each warp
    pk.tma.expect(landed, queries, keys)
    for to, source in ((queries, q), (keys, k)):
        pk.tma.load(to, source, barrier=landed, **rows.tile(batch, head, chunk, CHUNK))
    product = Products.zeros(flip)
    pk.wait(landed, 0)
    for step in pk.range(d // (WARPS * WIDTH)):
        col = warp.index * (d // (WARPS * WIDTH)) + step
        g = warp.load(log_decay, **rows.tile(batch, head, chunk, CHUNK, col, WIDTH), rows=CHUNK, cols=WIDTH)
        sums = pk.maximum(g * LOG2E, LEAST).col_cumsum()
        own_q, own_k = (x.part(0, col * WIDTH, CHUNK, WIDTH) for x in (queries, keys))
        query, key = warp.load(own_q), warp.load(own_k)
        product.add(sums, query, key)
        warp.store(own_q, (query.to(f32) * pk.exp2(sums) * scale).to(dtype))
        ends = pk.row_index(sums) == CHUNK - 1
        warp.store(decays, pk.where(ends, sums, 0.0).col_sum(), (head, slot, col))
        if rest is None:
            warp.store(own_k, (key.to(f32) * pk.exp2(sums.take_rows([CHUNK - 1] * CHUNK) - sums)).to(dtype))
        else:
            high, low = terms(key.to(f32) * pk.exp2(later(pk.maximum(g * LOG2E, LEAST))), dtype)
            warp.store(own_k, high)
            warp.store(rest, low, (head, slot, col))
    for i, share in enumerate(product.rows()):
        warp.store(shares[warp.index * WARPS + i], share.registers())
    block.sync()
    pk.tma.store(asking, queries, (head, slot, 0))
    pk.tma.store(lasting, keys, (head, slot, 0))
    pk.tma.commit()
    total = warp.zeros(f32, ROWS, CHUNK)
    for i in range(WARPS):
        total += warp.load_vec(shares[i * WARPS + warp.index]).tile(ROWS, CHUNK)
    at = slot * (CHUNK // ROWS) + warp.index
    total[:] = total * scale
    if dtype is f16:
        unit = unit_of(total)
        warp.store(units, unit, (head, at))
        total[:] = total / unit
    warp.store(p, total.to(dtype), (head, at, 0))
    pk.tma.wait(read=True)


@pk.kernel(
    warps=warps,
    grid=lambda x, parts, **_: (x.depth * (x.cols // CHUNK), parts, x.batch),
    blocks_per_sm=lambda blocks, **_: blocks,
)
def walk(
    x: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    b: Annotated[Tensor, DTYPES, "H", "M", N],
    rest: Annotated[Tensor, DTYPES, "H", "M", N],
    c: Annotated[Tensor, DTYPES, "H", "M", N],
    p: Annotated[Tensor, DTYPES, "H", "M", CHUNK],
    p_units: Annotated[Tensor, f32, "H", "M"],
    decays: Annotated[Tensor, f32, "H", "T", N],
    offsets: Annotated[Tensor, i32, "S"],
    before: Annotated[Tensor, f32, "P", "H", E, N],
    y: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    after: Annotated[Tensor, f32, "P", "H", E, N],
    totals: Annotated[Tensor, f32, "H", "P", N],
    every: Annotated[Tensor, DTYPES, "T", "H", E, N],
    units: Annotated[Tensor, f32, "T", "H", E],
    each: Annotated[Scalar, i32],
    parts: Annotated[Scalar, i32],
    *,
    split: bool = False,
    stages: int = 2,
    states: int = 2,
    consumers: int = 2,
    blocks: int = 1,
    reverse: bool = False,
) -> None:
    """y = p x + c S, and the states S of x and b (+ `rest`, unless that is None) from those `before`, to those `after`.
    Without `c` there is no y. `every`: the states before each chunk (in f16, each row by its `units`); `totals`: the
    sums of `decays` of a part. `split`: `before` and `after` are a part's, not a sequence's.
    """
    wide, dtype = x.cols // CHUNK, x.dtype
    head, col = pk.block_index.x // wide, pk.block_index.x % wide if wide > 1 else 0
    me = part_of(x, offsets, pk.block_index.y, pk.block_index.z, each)
    place = me.number if split else me.sequence
    keys, values, line = pk.st(dtype, CHUNK, b.cols), pk.st(dtype, CHUNK, CHUNK), pk.sv(f32, CHUNK)
    scaled, uses = dtype is f16, c is not None or every is not None
    members: dict[str, Any] = {"x": values, "b": keys, "decays": pk.sv(f32, b.cols)}
    members |= {} if rest is None else {"rest": keys}
    members |= {} if c is None else {"c": keys, "p": values}
    members |= {"unit": line} if scaled and c is not None else {}
    ring = pk.ring(stages, **members)
    past: Any = pk.ring(states, state=keys, unit=line, name="states") if uses else None
    result = pk.shared(values, count=consumers, name="result") if c is not None else None
    budget = REGISTERS[consumers, blocks] if c is not None else (0, 0)

    def numbers(i: Any) -> tuple[Any, Any]:
        """The chunk of step i, counted in its sequence and among all."""
        at = me.count - 1 - i if reverse else i
        return me.first + at, me.slot + at

    def use(i: Any, result: Any, out: Any) -> None:
        """The rows of a chunk."""
        slot, last = ring.read(), past.read()
        warpgroup.mm_ABt(out, slot.c, last.state)
        if scaled:
            warpgroup.wait(out)
            unit = warpgroup.load_col(slot.unit)
            out[:] = out * warpgroup.load_row(last.unit) * (1.0 / unit)
        warpgroup.mma_AB(out, slot.p, slot.x)
        warpgroup.wait(out)
        past.release()
        ring.release()
        if scaled:
            out[:] = out * unit
        warpgroup.tma.wait(read=True)
        warpgroup.sync()  # `result` has been read
        warpgroup.store(result, out.to(dtype))
        warpgroup.sync()
        warpgroup.tma.store(y, result, **me.rows.tile(me.batch, head, numbers(i)[0], CHUNK, col, CHUNK))
        warpgroup.tma.commit()

    if c is not None:
        with pk.role("outputs", warpgroups=consumers, registers=budget[0]) as mine:
            out = warpgroup.zeros(f32, CHUNK, CHUNK)
            for i in pk.range(me.count):
                if consumers == 1:
                    use(i, result, out)
                    continue
                with pk.when(i % consumers == mine):
                    use(i, result[mine], out)
                with pk.otherwise():
                    ring.read()
                    past.read()
                    warpgroup.sync()  # all of its warps have seen the slots that it gives back
                    past.release()
                    ring.release()
            warpgroup.tma.wait()

    with pk.role("state", warpgroups=1, registers=budget[1]):
        state = first_state(before, (place, head, col, 0), b.cols)
        total = warpgroup.zeros_row(f32, b.cols) if totals is not None else None
        for i in pk.range(me.count):
            if uses:
                hand_on(past, state, dtype)
            slot = ring.read()
            decay = warpgroup.load_row(slot.decays)
            state[:] = state * pk.exp2(decay)
            if total is not None:
                total += decay
            for term in (slot.b,) if rest is None else (slot.b, slot.rest):
                warpgroup.mma_AtB(state, slot.x, term)
            warpgroup.wait(state)
            ring.release()
        if after is not None:
            with pk.when(me.ends if not split else me.count > 0):
                warpgroup.store(after, state, (place, head, col, 0))
        if total is not None:
            with pk.when(col == 0):
                warpgroup.store(totals, total, (head, me.number, 0))

    with pk.role("load", warps=4, registers=0 if c is None else 24):
        with pk.role("rows", warps=1):
            for i in pk.range(me.count):
                chunk, number = numbers(i)
                with ring.fill() as slot:
                    pk.tma.load(slot.x, x, **me.rows.tile(me.batch, head, chunk, CHUNK, col, CHUNK))
                    pk.tma.load(slot.decays, decays, (head, number, 0))
                    for name, source in (("b", b), ("rest", rest), ("c", c), ("p", p)):
                        if name in members:
                            pk.tma.load(getattr(slot, name), source, (head, number, 0))
                    if "unit" in members:
                        pk.tma.load(slot.unit, p_units, (head, number))
        if every is not None:
            with pk.role("keep", warps=1):
                for i in pk.range(me.count):
                    keep_state(past, every, units, (numbers(i)[1], head, col))


@pk.kernel(warps=WARPS, grid=lambda local, sequences, **_: (local.rows // (WARPS * ROWS), local.depth, sequences))
def carry(
    before: Annotated[Tensor, f32, "S", "H", E, N],
    local: Annotated[Tensor, f32, "P", "H", E, N],
    totals: Annotated[Tensor, f32, "H", "P", N],
    offsets: Annotated[Tensor, i32, "S1"],
    starts: Annotated[Tensor, f32, "P", "H", E, N],
    after: Annotated[Tensor, f32, "S", "H", E, N],
    each: Annotated[Scalar, i32],
    sequences: Annotated[Scalar, i32],
    *,
    reverse: bool = False,
) -> None:
    """starts = the state at the beginning of each part, from what each adds to it (`local`), as `chunks.carry` does."""
    piece, head, sequence = pk.block_index.x * WARPS + warp.index, pk.block_index.y, pk.block_index.z
    layout = pk.coalesced(local.cols // 4, 4)
    if offsets is None:
        parts = local.batch // sequences
        first = sequence * parts
    else:
        packed = pk.packed(offsets)
        first, parts = packed.first(sequence, each * CHUNK), pk.cdiv(packed[sequence].rows, each * CHUNK)
    if before is None:
        state = warp.zeros(f32, ROWS, local.cols, layout=layout)
    else:
        state = warp.load(before, (sequence, head, piece, 0), rows=ROWS, layout=layout)
    for i in pk.range(parts):
        part = first + (parts - 1 - i if reverse else i)
        warp.store(starts, state, (part, head, piece, 0))
        added = warp.load(local, (part, head, piece, 0), rows=ROWS, layout=layout)
        decay = warp.load_row(totals, (head, part, 0), length=local.cols, layout=layout)
        state[:] = pk.fma(state, pk.exp2(decay), added)
    if after is not None:
        warp.store(after, state, (sequence, head, piece, 0))


class Chunks(NamedTuple):
    """What `prepare` makes."""

    asking: Any
    lasting: Any
    rest: Any
    p: Any
    units: Any
    decays: Any


def chunks_of(
    call: PassCall, q: Any, k: Any, log_decay: Any, scale: float, exact: bool = False, flip: bool = False
) -> Any:
    """The chunks of q, k and log_decay as `walk` takes them."""
    info = arrays.describe(q)
    heads, d = info.shape[1], info.shape[3]
    line, dtype = (heads, call.chunks * CHUNK), info.dtype
    asking, lasting, rest = (call.empty((*line, d), dtype) if given else None for given in (True, True, exact))
    units = call.empty(line) if dtype == "f16" else None
    decays, p = call.empty((heads, call.chunks, d)), call.empty((*line, CHUNK), dtype)
    made = Chunks(asking, lasting, rest, p, units, decays)
    prepare(q, k, log_decay, call.offsets, *made, scale, flip=flip)
    return made


def run(
    call: PassCall,
    x: Any,
    b: Any,
    made: Chunks,
    c: Any = None,
    before: Any = None,
    y: Any = None,
    after: Any = None,
    every: Any = None,
    units: Any = None,
    rest: Any = None,
    reverse: bool = False,
) -> None:
    """The walk over all chunks, from part to part where sequences are split."""
    heads, d = call.shape[1], arrays.describe(b).shape[2]
    setting = (call.each, call.parts if call.offsets is not None or call.split else 1)
    options = {**CONFIGS[d], "reverse": reverse} | ({} if rest is None else {"stages": 2})
    if call.split:
        shape = (call.tiles, heads, call.shape[3], d)
        local, starts, totals = call.empty(shape), call.empty(shape), call.empty((heads, call.tiles, d))
        states = (None, None, local, totals, None, None)
        walk(x, b, rest, None, None, None, made.decays, call.offsets, *states, *setting, split=True, **options)
        carry(before, local, totals, call.offsets, starts, after, call.each, call.sequences, reverse=reverse)
        before, after = starts, None
        if y is None and every is None:
            return
    rows = (c, None, None) if c is None else (c, made.p, made.units)
    states = (before, y, after, None, every, units)
    walk(x, b, rest, *rows, made.decays, call.offsets, *states, *setting, split=call.split, **options)
