"""Attention backward on arrays of any framework: three launches, of which the first and the last are here.

    delta = rowsum(do * o) - dlse        prepare: delta, the log-sum-exp in powers of two, zeros where dq needs them
    dq, dk, dv                           the products: `attention_backward_hopper`, `attention_backward_ampere`
    dq = dq * scale                      finish: from float32 in the order of registers to rows of the operands' dtype

Rows are padded to whole tiles. Those past the end, and those that see no key, get a log-sum-exp of +inf: their weights
are 0. `P` is the padded length; `dq` has a row of `L` elements, the registers of a 64-row tile, for each of `T` tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp, warpgroup

from ..interop import arrays
from ..trace.scoring import Scoring
from . import attention_backward_ampere as ampere
from . import attention_backward_divided as divided
from . import attention_backward_hopper as hopper
from . import attention_backward_wide as wide
from .arguments import KernelCall
from .attention import Scores, loadable, machine_of, processors_of, table
from .attention_packed import owners_of
from .tile_lists import Lists
from .widths import backward_width

LOG2E = 1.4426950408889634
D = pk.static("D")
HALF = (bf16, f16)
ROWS = 64  # of a block
PADDED = 128  # rows are a multiple of this, and so of every tile's
PIECE = 4096  # elements of a part of dq
CHUNK = 2048  # rows at a time of a sum over all


@pk.kernel(grid=lambda delta, o, **_: delta.cols // ROWS * o.depth * o.batch)
def prepare(
    o: Annotated[Tensor, HALF, "B", "H", "N", D],
    do: Annotated[Tensor, HALF, "B", "H", "N", D],
    lse: Annotated[Tensor, f32, "B", "H", "N"],
    dlse: Annotated[Tensor, f32, "B", "H", "N"],
    scaled: Annotated[Tensor, f32, "B", "H", "P"],
    delta: Annotated[Tensor, f32, "B", "H", "P"],
    dq: Annotated[Tensor, f32, "B", "H", "T", pk.static("L")],
    turns: Annotated[Tensor, i32, "B", "H", "T"] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    *,
    clear: bool = True,
) -> None:
    """`scaled` = lse * log2(e), `delta`, and zeros in `turns` and, if `clear`, in `dq`; `dlse` and `turns` may be
    None.
    """
    blocks = delta.cols // ROWS
    block, rest = pk.block_index.x % blocks, pk.block_index.x // blocks
    cols = backward_width(o.cols, o.cols)
    head, batch, layout = rest % o.depth, rest // o.depth, pk.coalesced(cols // 8, 8)
    at = (batch, head, block * 4 + warp.index)
    rows, tile, parts = pk.stretch(o), at[2], dq.rows // blocks
    if q_offsets is not None:
        unit = block * ROWS // PADDED
        i = pk.packed(q_offsets).owner(unit, PADDED, owners)
        rows, first = pk.packed(q_offsets)[i], pk.packed(q_offsets).first(i, PADDED)
        tile = at[2] - first * (PADDED // 16)
        parts = pk.where((unit - first) * PADDED < rows.rows, parts, 0)  # else nobody's: nothing is added there
    x, y = (
        warp.load(z, **rows.tile(batch, head, tile, 16), rows=16, cols=cols, layout=layout).to(f32) for z in (o, do)
    )
    run = rows.run(batch, head, tile, 16)
    sums, logs = (x * y).row_sum(), warp.load_col(lse, **run, length=16, layout=layout)
    if dlse is not None:
        sums = sums - warp.load_col(dlse, **run, length=16, layout=layout)
    seen = (logs != -pk.inf) & (pk.row_index(x) < rows.rows - tile * 16)
    warp.store(delta, pk.where(seen, sums, 0.0), at)
    warp.store(scaled, pk.where(seen, logs * LOG2E, pk.inf), at)
    nothing = warpgroup.full_vec(f32, dq.cols, 0.0, width=4) if clear else None
    for i in pk.range(parts):
        part = batch, head, block * (dq.rows // blocks) + i
        if nothing is not None:
            warpgroup.store(dq, nothing, (*part, 0))
        if turns is not None:
            warpgroup.set(turns, part, 0)


@pk.kernel(grid=lambda dq, **_: dq.rows * dq.depth * dq.batch)
def finish(
    dq: Annotated[Tensor, f32, "B", "H", "T", pk.static("L")],
    scaled: Annotated[Tensor, f32, "B", "H", "P"],
    out: Annotated[Tensor, HALF, "B", "H", "N", D],
    scale: Annotated[Scalar, f32],
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    owners: Annotated[Tensor, i32, "O"] | None = None,
    added: Annotated[Tensor, i32, "B", "H", "T"] | None = None,
    *,
    width: int | None = None,
) -> None:
    """out = dq * scale, and 0 where a row sees no key. width: of the tiles, unless it is that of `out`; added: 0 where
    nobody has added to a tile, which then holds anything.
    """
    part, rest = pk.block_index.x % dq.rows, pk.block_index.x // dq.rows
    head, batch, cols = rest % out.depth, rest // out.depth, dq.cols // ROWS
    across = (width or out.cols) // cols
    row, col = part // across, part % across
    staged = pk.shared(pk.st(out.dtype, ROWS, cols), name="staged")
    rows, base, exists = pk.stretch(out), 0, None
    if q_offsets is not None:
        i = pk.packed(q_offsets).owner(row * ROWS // PADDED, PADDED, owners)
        rows, base = pk.packed(q_offsets).covering(i, out.rows), pk.packed(q_offsets).padded(i, ROWS)
        exists = (row - base) * ROWS < rows.rows
    with nullcontext() if exists is None else pk.when(exists):
        x = warpgroup.load_vec(dq, (batch, head, part, 0)).tile(ROWS, cols)
        hidden = warpgroup.load_col(scaled, (batch, head, row), length=ROWS) == pk.inf
        if added is not None:
            hidden = hidden | (added[batch, head, part] == 0)
        warpgroup.store(staged, pk.where(hidden, 0.0, x * scale).to(out.dtype))
        warpgroup.sync()
        warpgroup.store(out, staged, **rows.tile(batch, head, row - base, ROWS, col, cols))


@pk.kernel(grid=lambda sinks, **_: sinks.cols)
def differentiate_sinks(
    scaled: Annotated[Tensor, f32, "B", "H", "P"],
    delta: Annotated[Tensor, f32, "B", "H", "P"],
    sinks: Annotated[Tensor, (f32, *HALF), "H"],
    dsinks: Annotated[Tensor, (f32, *HALF), "H"],
) -> None:
    """dsinks = -sum(exp(sink - lse) * delta) over the rows of a head, always in the same order."""
    head = pk.block_index.x
    sink, total = pk.cast(sinks[head], f32) * LOG2E, warpgroup.full_vec(f32, CHUNK, 0.0, width=4)
    for batch in pk.range(scaled.depth):  # of three dimensions, the first
        for i in pk.range(pk.cdiv(scaled.cols, CHUNK)):
            logs, slopes = (warpgroup.load_vec(x, (batch, head, i), length=CHUNK) for x in (scaled, delta))
            total[:] = pk.fma(pk.exp2(pk.minimum(sink - logs, 0.0)), slopes, total)  # past the end, slopes are 0
    warpgroup.set(dsinks, (head,), -total.sum())


def scratch(n: int, d: int, sequences: int | None = None) -> tuple[int, tuple[int, int]]:
    """The padded length of n rows (of packed sequences), and the parts of dq's sums with their elements."""
    padded = (-(-n // PADDED) if sequences is None else n // PADDED + sequences) * PADDED
    return padded, (padded * d // PIECE, PIECE)


def first_stores(d: int, m: int, sides: tuple[int | None, int | None], fixed: bool) -> bool:
    """Whether who comes first to a tile of dq stores, so that nobody writes zeros before; for sequences of m keys.

    sides: of the window; fixed: additions have an order. To know who is first costs each of a tile's blocks, on an H200
    1 to 2 % of its time, or 7 % where it adds in its turn; zeros are a tile's, as long as two thirds of a block's time
    for it. Where all queries see all keys, all blocks begin with the same tile, and would wait for the first.
    """
    left, right = sides
    if d > 128 or (left is right is None and not fixed):
        return False
    seen = m if left is None or right is None else min(m, left + right + 1)
    return -(-seen // hopper.keys_of(d)) <= (8 if fixed else 32)


class Steps:
    """The three launches as one: called as a kernel is. mma_sync: bytes of shared memory of a block, where mma.sync
    makes the products; processors: among how many the work on a tile of keys may be divided, in a fourth launch.
    """

    def __call__(
        self,
        do: Any,
        q: Any,
        k: Any,
        v: Any,
        o: Any,
        lse: Any,
        dlse: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        scale: float,
        left: int | None = None,
        right: int | None = None,
        softcap: float | None = None,
        sinks: Any = None,
        dsinks: Any = None,
        q_offsets: Any = None,
        k_offsets: Any = None,
        tables: Sequence[Any] = (None,) * 4,
        gradients: Sequence[Any] = (None,) * 4,
        *,
        lists: Lists | None = None,
        deterministic: bool = False,
        mma_sync: int = 0,
        processors: int = 0,
        **static: Any,
    ) -> None:
        kind, device = (info := arrays.describe(q)).kind, info.device
        batch, heads, n, d = info.shape
        d = backward_width(d, v.shape[-1])
        padded, parts = scratch(n, d, None if q_offsets is None else q_offsets.shape[0] - 1)
        cut = ampere.configuration(d, mma_sync)
        if mma_sync:
            parts = ampere.parts(padded, d, cut["rows"], cut["warps"])
        scaled, delta = (arrays.empty(kind, (batch, heads, padded), "f32", device) for _ in range(2))
        sums = arrays.empty(kind, (batch, heads, *parts), "f32", device)
        many = 1 if q_offsets is None else max(q_offsets.shape[0] - 1, 1)
        sides = left, 0 if static["causal"] else right
        clear = bool(mma_sync) or lists is not None or not first_stores(d, -(-k.shape[2] // many), sides, deterministic)
        flags = arrays.empty(kind, (batch, heads, parts[0]), "i32", device) if deterministic or not clear else None
        turns = flags if deterministic else None
        q_owners = k_owners = None
        if q_offsets is not None:
            keys = ampere.KEYS if mma_sync else hopper.keys_of(d)
            same = k_offsets is q_offsets and keys == PADDED and k.shape[2] == n
            q_owners = owners_of(q_offsets, n, PADDED)
            k_owners = q_owners if same else owners_of(k_offsets, k.shape[2], keys)
        prepare(o, do, lse, dlse, scaled, delta, sums, flags, q_offsets, q_owners, clear=clear)
        more = (left, right, softcap, q_offsets, k_offsets)
        for x in gradients:
            if x is not None:
                arrays.fill(x, 0.0)
        theirs = (*tables, *(x if x is None else table(x) for x in gradients))
        if sinks is not None:
            differentiate_sinks(scaled, delta, sinks, dsinks)
        if lists is not None:
            rows, keys = (cut["rows"], ampere.KEYS) if mma_sync else (static.get("rows", 64), hopper.keys_of(d))
            theirs = (*theirs, lists(q, k, rows, keys, down=True))
        if mma_sync:
            shared, m = k.shape[1:3]
            splits = ampere.divided(batch, shared, heads // max(shared, 1), n, m, d, cut, processors)
            keys_sums = None
            if splits > 1 and q_offsets is None:
                keys_sums = arrays.empty(kind, (2 * splits * batch, shared, m, d), "f32", device)
            given = (q, k, v, do, scaled, delta, sums, dk, dv, scale, turns, *more, *theirs)
            ampere.differentiate(*given, owners=k_owners, sums=keys_sums, **static, **cut)
            if keys_sums is not None:
                ampere.merge(keys_sums, dk, dv, scale)
            ampere.finish(sums, scaled, dq, scale, q_offsets, q_owners, width=d, rows=cut["rows"], warps=cut["warps"])
        else:
            paired = info.shape[-1] == v.shape[-1] == 256 and all(x is None for x in (*more, static.get("scoring")))
            cuts, keys_sums = (1, 1), None
            shared, m = k.shape[1], k.shape[2]
            if processors:
                known = left is right is None and lists is None  # how many tiles see each tile of keys
                # Of packed sequences as if all were as long.
                group = (batch * many, heads, shared, -(-n // many), -(-m // many), d)
                shape = divided.Shape(*group, known and static["causal"], deterministic or not known, paired)
                cuts = divided.cut(shape, processors)
            if cuts != (1, 1):
                keys = hopper.keys_of(d)
                length = m if q_offsets is None else (m // keys + many) * keys
                keys_sums = arrays.empty(kind, divided.parts_of(batch, shared, length, d, *cuts), "f32", device)
            together = None
            if static["causal"] or right is not None or deterministic:
                own = n if many == 1 else 2 * n // many  # rows of the sequence that a row is in, of random ones
                together = hopper.at_once(batch * shared * cuts[0] * cuts[1], min(own, n), d)
            if paired:
                by_keys = (batch * k.shape[1], heads // k.shape[1])
                scaled, delta, sums = (x.reshape(*by_keys, *x.shape[2:]) for x in (scaled, delta, sums))
                turns = None if turns is None else turns.reshape(*by_keys, parts[0])
                given = (q, k, v, do, scaled, delta, sums, dk, dv, scale, turns, keys_sums, together)
                wide.differentiate(*given, causal=static["causal"])
                scaled, sums = (x.reshape(batch, heads, *x.shape[2:]) for x in (scaled, sums))
            else:
                given = (q, k, v, do, scaled, delta, sums, dk, dv, scale, turns, *more, *theirs)
                last = {"owners": k_owners, "together": together, "claims": None if clear else flags}
                hopper.differentiate(*given, sums=keys_sums, **last, **static)
            if keys_sums is not None:
                divided.merge(keys_sums, dk, dv, scale, k_offsets, k_owners, width=d)
            finish(sums, scaled, dq, scale, q_offsets, q_owners, None if clear else flags, width=d)


STEPS = Steps()


def configuration(dim: int, softcap: bool = False) -> dict[str, Any]:
    """The measured choice for a head dimension: what differs from `attention_backward_hopper.differentiate`'s
    defaults. The derivative of a cap takes registers, of which the later order needs fewer.
    """
    found: dict[int, dict[str, Any]] = {
        64: {"rows": 128, "early": False},
        128: {"early": not softcap},
        256: {"direct": True},
    }
    return found[dim]


def call(
    given: Sequence[Any],
    gradients: Sequence[Any],
    scores: Scores,
    deterministic: bool,
    offsets: tuple[Any, Any] = (None, None),
    scoring: Scoring | None = None,
    tables: Sequence[Any] = (),
    dtables: Sequence[Any] = (),
    alike: tuple[bool, bool] = (False, False),
) -> KernelCall:
    """What writes the gradients of q, k, v and sinks. `given`: do, q, k, v, o, lse, and dlse and sinks or None.
    offsets: where packed sequences begin. scoring: functions with `tables`, whose gradients `dtables` become, float32,
    where they are not None; alike: whether the mask shows all of a batch, and all heads, the same."""
    *rows, lse, dlse, sinks = given
    rows = [x if loadable(arrays.describe(x)) else arrays.dense_copy(x, "operand") for x in rows]
    vectors = [
        x if x is None or arrays.describe(x).strides[-1] == 1 else arrays.dense_copy(x, "row")
        for x in (lse, dlse, sinks)
    ]
    static: dict[str, Any] = {"causal": scores.causal, "scoring": scoring}
    static["deterministic"] = bool(deterministic)
    static["processors"] = processors_of(arrays.describe(given[1]).device)
    machine, d = machine_of(arrays.describe(given[1]).device), backward_width(given[1].shape[-1], given[3].shape[-1])
    if "wgmma" in machine.features:
        static |= configuration(d, scores.softcap is not None)
    else:
        static["mma_sync"] = machine.shared_bytes
    *gradients, dsinks = gradients
    operands = (*rows, *vectors[:2], *gradients, scores.scale, *scores.band, vectors[2], dsinks, *offsets)
    if scoring is not None:
        missing = [None] * (4 - len(tables))
        operands = (*operands, [*map(table, tables), *missing], [*dtables, *missing])
        shared = alike[1] or given[1].shape[1] == given[2].shape[1]  # heads that share keys, the same tiles of queries
        if scoring.mask is not None and not deterministic and (shared or "wgmma" in machine.features):
            static["lists"] = Lists(scoring, scores, alike, [*map(table, tables)], offsets)
    return KernelCall(STEPS, operands, static)  # type: ignore[arg-type]
