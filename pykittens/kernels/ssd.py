"""Mamba-2's recurrence (SSD), and every linear attention with a decay for each head that changes with time, forward.

    S_i = exp(dt_i A) S_(i - 1) + dt_i x_i B_i        y_i = (S_i C_i + D x_i) silu(z_i)        for each head, A < 0

Dao and Gu, "Transformers are SSMs" (2024): x_i and z_i have 64 or 128 elements, B_i and C_i, which the heads of a group
share, 64, 128 or 256; dt_i = softplus(dt_i + bias) where that is asked for. In chunks of 64 rows, with c_i the sum of
dt A from the chunk's beginning to row i (`chunks.py`), S the state before the chunk, and i, j counted inside it,

    y_i = exp(c_i) S C_i + sum_{j <= i} exp(c_i - c_j) dt_j (C_i . B_j) x_j
    S' = exp(c_63) S + sum_j exp(c_63 - c_j) dt_j x_j B_j

A block owns a head, 64 columns of x, and a part of a sequence. One warpgroup keeps the state in registers, as float32,
and hands it on, rounded, before it adds a chunk; `consumers` warpgroups take chunks in turn. What tensor cores take is
rounded to the operands' dtype: the state, the weights, and dt x; in f16, whose range is small, each row of the first
two is scaled on its way. Sums are float32. A NaN or infinity of x reaches all rows of its chunk.

reverse: G_i = exp(dt_(i + 1) A) G_(i + 1) + x_i B_i, the gradients of states, from the last row to the first.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f16, f32, i32, warp, warpgroup

from .chunks import CHUNK, part_of
from .sequences import DTYPES, store_terms, unit_of

E, N = pk.static("E"), pk.static("N")
CONFIGS: dict[int, dict[str, Any]] = {  # by N
    64: {"stages": 2, "states": 2, "consumers": 1, "blocks": 2},
    128: {"stages": 3, "states": 2},
    256: {"stages": 2, "states": 1, "consumers": 1},
}
STATES = tuple(CONFIGS)
REGISTERS = {
    (2, 1): (160, 168),
    (1, 1): (240, 240),
    (1, 2): (112, 104),
}  # of outputs and state, by consumers and blocks


def warps(c: Any = None, consumers: int = 2, **_: Any) -> int:
    """Warps of a block: who uses the state, who keeps it, who loads."""
    return 4 * (c is not None) * consumers + 8


@pk.kernel(
    warps=warps,
    grid=lambda x, parts, **_: (x.depth * (x.cols // CHUNK), parts, x.batch),
    blocks_per_sm=lambda blocks, **_: blocks,
)
def scan(
    x: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    b: Annotated[Tensor, DTYPES, "B", "G", "L", N],
    c: Annotated[Tensor, DTYPES, "B", "G", "L", N],
    sums: Annotated[Tensor, f32, "H", "M"],
    weights: Annotated[Tensor, f32, "H", "M"],
    left: Annotated[Tensor, f32, "H", "M"],
    d: Annotated[Tensor, f32, "H"],
    z: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    offsets: Annotated[Tensor, i32, "S"],
    before: Annotated[Tensor, f32, "P", "H", E, N],
    y: Annotated[Tensor, DTYPES, "B", "H", "L", E],
    after: Annotated[Tensor, f32, "P", "H", E, N],
    decays: Annotated[Tensor, f32, "H", "P"],
    every: Annotated[Tensor, DTYPES, "T", "H", E, N],
    units: Annotated[Tensor, f32, "T", "H", E],
    scale: Annotated[Scalar, f32],
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
    """y, from the states `before`, and the states `after`. Without `c` there is no y, but `every`: the states before
    each chunk (in f16, each row by its `units`); or `decays`: the logarithms, base 2, of all decays of a part. `split`:
    `before` and `after` are a part's, not a sequence's. `scale` goes with `c` (in reverse, `b`); `weights`, `d` and `z`
    may be None. With `left`, the sums of what comes later in a chunk, states are sums of products of float32 with b.
    """
    wide, dtype = x.cols // CHUNK, x.dtype
    head, col = pk.block_index.x // wide, pk.block_index.x % wide if wide > 1 else 0
    group = head // (x.depth // b.depth)
    me = part_of(x, offsets, pk.block_index.y, pk.block_index.z, each)
    place = me.number if split else me.sequence
    keys, values, line = pk.st(dtype, CHUNK, b.cols), pk.st(dtype, CHUNK, CHUNK), pk.sv(f32, CHUNK)
    scaled, uses = dtype is f16, c is not None or every is not None
    members: dict[str, Any] = {"x": values, "b": keys, "sums": line}
    members |= {} if c is None else {"c": keys}
    members |= {} if weights is None else {"weights": line}
    members |= {} if left is None else {"left": line}
    ring = pk.ring(stages, **members)
    past: Any = pk.ring(states, state=keys, unit=line, name="states") if uses else None
    result = pk.shared(values, count=consumers, name="result") if c is not None else None
    faded = pk.shared(values, count=2 if left is None else 4, name="faded")
    budget = REGISTERS[consumers, blocks] if c is not None else (0, 0)

    def chunk(i: Any) -> Any:
        """The chunk of step i, counted in its sequence."""
        return me.first + (me.count - 1 - i if reverse else i)

    def slot_of(i: Any) -> Any:
        """Its number among all."""
        return me.slot + (me.count - 1 - i if reverse else i)

    def use(i: Any, slot: Any, result: Any, score: Any, out: Any) -> None:
        """The rows of a chunk: what its own rows say does not wait for the state before it."""
        warpgroup.mm_ABt(score, slot.c, slot.b)
        own, other = warpgroup.load_col(slot.sums), warpgroup.load_row(slot.sums)
        fade = pk.exp2(own - other)
        if weights is not None:
            fade = fade * warpgroup.load_row(slot.weights)
        warpgroup.wait(score)
        score[:] = pk.where(pk.col_index(score) <= pk.row_index(score), score * fade, 0.0)
        lift: Any = pk.exp2(own)
        if scaled:
            unit = unit_of(score)
            shrink = 1.0 / unit
            score[:] = score * shrink
            lift = lift * shrink
        weight, last = score.to(dtype), past.read()
        warpgroup.mm_ABt(out, slot.c, last.state)
        warpgroup.wait(out)
        out[:] = out * lift
        if scaled:
            out[:] = out * warpgroup.load_row(last.unit)
        past.release()
        warpgroup.mma_AB(out, weight, slot.x)
        given = None if d is None else warpgroup.load(slot.x)
        warpgroup.wait(out)
        ring.release()
        out[:] = out * (unit * scale if scaled else scale)
        if d is not None:
            out[:] = pk.fma(given.to(f32), d[head], out)
        where = me.rows.tile(me.batch, head, chunk(i), CHUNK, col, CHUNK)
        if z is not None:
            gate = warpgroup.load(z, **where, rows=CHUNK, cols=CHUNK).to(f32)
            out[:] = out * (gate * pk.sigmoid(gate))
        warpgroup.tma.wait(read=True)
        warpgroup.sync()  # `result` has been read
        warpgroup.store(result, out.to(dtype))
        warpgroup.sync()
        warpgroup.tma.store(y, result, **where)
        warpgroup.tma.commit()

    if c is not None:
        with pk.role("outputs", warpgroups=consumers, registers=budget[0]) as mine:
            score, out = warpgroup.zeros(f32, CHUNK, CHUNK), warpgroup.zeros(f32, CHUNK, CHUNK)
            for i in pk.range(me.count):
                slot = ring.read()
                if consumers == 1:
                    use(i, slot, result, score, out)
                    continue
                with pk.when(i % consumers == mine):
                    use(i, slot, result[mine], score, out)
                with pk.otherwise():
                    past.read()
                    warpgroup.sync()  # all of its warps have seen the slots that it gives back
                    past.release()
                    ring.release()
            warpgroup.tma.wait()

    with pk.role("state", warpgroups=1, registers=budget[1]):
        state = first_state(before, (place, head, col, 0), b.cols)
        total = pk.var(f32, 0.0)

        def fade(i: Any, slot: Any) -> None:
            """x of a chunk, weighed and decayed until the chunk's end."""
            own, all = warpgroup.load_col(slot.sums), slot.sums[CHUNK - 1]
            weight = pk.exp2(own) * scale if reverse else pk.exp2(all - own)
            if left is not None:  # a difference does not know small sums beside large ones
                weight = pk.exp2(warpgroup.load_col(slot.left))
            if weights is not None:
                weight = weight * warpgroup.load_col(slot.weights)
            values = warpgroup.load(slot.x).to(f32) * weight
            if left is None:
                warpgroup.store(faded[i % 2], values.to(dtype))
            else:
                store_terms(faded[i % 2], faded[i % 2 + 2], values)

        for i in pk.range(me.count):
            if uses:
                hand_on(past, state, dtype)
            slot = ring.read()
            fade(i, slot)
            all = slot.sums[CHUNK - 1]
            state[:] = state * pk.exp2(all)
            total.set(total + all)
            warpgroup.sync()  # x is there, and all warps have done with the one before
            for term in (faded[i % 2],) if left is None else (faded[i % 2], faded[i % 2 + 2]):
                warpgroup.mma_AtB(state, term, slot.b)
            warpgroup.wait(state)
            ring.release()
        if after is not None:
            with pk.when(me.ends if not split else me.count > 0):
                warpgroup.store(after, state, (place, head, col, 0))
        if decays is not None:
            with pk.when(col == 0):
                warpgroup.set(decays, (head, me.number), total)

    with pk.role("load", warps=4, registers=0 if c is None else 24):
        with pk.role("rows", warps=1):
            for i in pk.range(me.count):
                with ring.fill() as slot:
                    rows = me.rows.tile(me.batch, group, chunk(i), CHUNK)
                    pk.tma.load(slot.x, x, **me.rows.tile(me.batch, head, chunk(i), CHUNK, col, CHUNK))
                    pk.tma.load(slot.b, b, **rows)
                    pk.tma.load(slot.sums, sums, (head, slot_of(i)))
                    if c is not None:
                        pk.tma.load(slot.c, c, **rows)
                    for name, source in (("weights", weights), ("left", left)):
                        if source is not None:
                            pk.tma.load(getattr(slot, name), source, (head, slot_of(i)))
        if every is not None:
            with pk.role("keep", warps=1):
                for i in pk.range(me.count):
                    keep_state(past, every, units, (slot_of(i), head, col))


# What the walk of `gla.py` has, too ---------------------------------------------------------------------------


def first_state(before: Any, where: Any, cols: int) -> Any:
    """The state that a walk begins with: zeros, or that `before`."""
    if before is None:
        return warpgroup.zeros(f32, CHUNK, cols)
    return warpgroup.load(before, where, rows=CHUNK)


def hand_on(past: Any, state: Any, dtype: Any) -> None:
    """Puts a state into a ring, rounded, in f16 with the factors of its rows."""
    with past.put() as next:
        if dtype is f16:
            unit = unit_of(state)
            warpgroup.store(next.unit, unit)
        warpgroup.store(next.state, (state / unit if dtype is f16 else state).to(dtype))


def keep_state(past: Any, every: Any, units: Any, where: Any) -> None:
    """Stores the next state of a ring, and in f16 the factors of its rows."""
    last = past.read()
    pk.tma.store(every, last.state, (*where, 0))
    pk.tma.commit()
    if every.dtype is f16:
        warp.store(units, warp.load_vec(last.unit), where)
    pk.tma.wait(read=True)
    past.release()
