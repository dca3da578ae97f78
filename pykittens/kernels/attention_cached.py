"""Attention of a few queries on a cache of keys and values, with mma.sync and cp.async: a step of decoding.

    out = softmax(q @ k.T * scale) @ v        for each sequence and head, on the first `lengths` keys of its cache

A sequence has n queries, which stand at its last n keys. The heads that share a key head, and their queries, are rows
of one tile: q, o: (batch, key heads, rows, d), row = head * n + query. k, v: (batch, key heads, m, d) in place, any
strides with contiguous rows; or pages of keys, (pages, key heads, keys of a page, d), with the numbers of each
sequence's pages in `page_table`. Lengths and numbers stay on the GPU. Caches may be 8-bit floats (e4m3), each times
the scale of all or of its key head: k in the scores, v in the result.

Work is cut as in Stream-K (Osama et al., 2023). The tiles of keys of all sequences and heads, one after another, are
dealt in equal shares to as many blocks as the GPU holds, so that all of them end together whatever the lengths are. An
item (the keys of a sequence, a head, a tile of rows) may lie in several shares. Each part leaves sums relative to its
own highest score (Dao et al., "Flash-Decoding", 2023). Blocks whose share ends with a part wait a while for the others,
and each adds up some rows of the item; whoever comes last adds up all of them, if one has not waited that long: nothing
depends on whether blocks run at the same time. The order is that of the parts' numbers. With `fixed` parts end at
multiples of so many keys of their sequence: the result does not depend on what else is in the batch.

A warp (more, where rows do not fit its registers) has `each` keys of its own in every tile, brings them itself, and
meets others only at the end of a part. Loads run ahead of the work by `stages` - 1 tiles, across parts. What has 8 bits
becomes f16 on its way to the tensor cores: in a warp's registers, even and odd columns apart (`load_pairs`), or, where
several warps share the keys, in shared memory. Shared memory: stages * keys * (d + dv) elements, and rows * dv * groups
float32; of 8-bit caches and several warps, keys * d 16-bit floats more.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, e4m3, f16, f32, i32, i64, warp

from ..trace.shares import OF_ITEM, open_counter
from ..trace.softmax_parts import merged
from ..trace.unpacking import Unpacked
from .reference import attention
from .scale import normalised, squashed
from .widths import widths

LOG2E = 1.4426950408889634
LOWEST = -3e38  # the peak of a row that has seen no key: finite, so that no difference is NaN
AT_ONCE = 4  # parts of a row that a warp loads
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)


@pk.kernel(grid=lambda arrived, **_: pk.cdiv(arrived.cols, 128))
def clear(arrived: Annotated[Tensor, i64, "I"], *, dependent: bool = True) -> None:
    """Counters of nothing before `attend` with `fixed`, which begins at the same time."""
    if dependent:
        pk.launch_next()
    pk.block.store(arrived, pk.block.full_vec(i64, 128, OF_ITEM.nothing), pk.block_index.x)


@pk.kernel(
    warps=lambda groups, rows, **_: groups * rows // 16,
    grid=lambda processors, **_: processors,
    pdl=lambda dependent, **_: dependent,
)
def attend(
    q: Annotated[Tensor, HALF, "B", "G", "R", D],
    k: Annotated[Tensor, (*HALF, e4m3), "P", "G", "M", D],
    v: Annotated[Tensor, (*HALF, e4m3), "P", "G", "M", DV],
    o: Annotated[Tensor, HALF, "B", "G", "R", DV],
    lengths: Annotated[Tensor, i32, "B"],
    scale: Annotated[Scalar, f32],
    parts: Annotated[Tensor, f32, "S", "L", pk.static("WIDE")],
    logs: Annotated[Tensor, f32, "S", 2, "L"],
    arrived: Annotated[Tensor, i64, "I"],
    lse: Annotated[Tensor, f32, "B", "G", "R"] | None = None,
    page_table: Annotated[Tensor, i32, "B", "T"] | None = None,
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    sinks: Annotated[Tensor, (f32, *HALF), "H"] | None = None,
    k_scale: Annotated[Tensor, f32, "KS"] | None = None,
    v_scale: Annotated[Tensor, f32, "VS"] | None = None,
    *,
    n: int = 1,
    causal: bool = True,
    page: int = 0,
    fixed: int = 0,
    rows: int = 16,
    groups: int = 4,
    each: int = 16,
    stages: int = 3,
    processors: int = 1,
    most: int = 128,
    across: int = 1,
    dependent: bool = False,
) -> None:
    """o = softmax(q @ k.T * scale) @ v on the first `lengths` keys; query i of n stands at key i + length - n.

    `parts`, `logs`: scratch memory, two places for each block or one for each unit; `arrived`: too, a word for each
    block; with `fixed` for each item, by `clear` (`dependent`: it may still run). causal, ..., sinks: as in attention.
    fixed: tiles of a part; 0 cuts shares anywhere. most: what the batch is at most. across: tiles of rows.
    """
    (d, wide), group, warps = widths(q.cols, v.cols), pk.group(rows // 16), groups * rows // 16
    mine, keys = group.index, each * groups
    side: Any = 0 if causal else right
    items, capacity = k.depth * across, k.rows if page_table is None else page_table.cols * page
    ends, units, seen = (pk.shared(pk.sv(i32, most), name=name) for name in ("ends", "units", "seen"))

    def span(length: Any) -> tuple[Any, Any]:
        return pk.band(n, length, left=left, right=side).key_range(0, n, keys)

    with pk.when(warp.index == 0):  # how many keys each sequence has, and where its units end
        given = warp.load_vec(lengths, pk.at(0), length=most)
        kept = pk.maximum(pk.minimum(given, capacity), 0)
        off = pk.maximum(given - kept, kept - given).max()
        pk.assert_(off == 0, "a length is negative, or more than the cache holds")
        warp.store(seen, kept)
        begin, end = span(kept)
        count = pk.cdiv(end - begin, fixed or 1)
        warp.store(units, count)
        warp.store(ends, pk.where(pk.iota(count) < q.batch, count * items, 0).cumsum())
    if not fixed:
        open_counter(arrived, warps - 1)
    pk.block.sync()
    shares = pk.shares(units, ends, q.batch, items, single=bool(fixed), blocks=processors)
    ring = [pk.shared(pk.st(k.dtype, each, width), count=stages * groups, name="ring") for width in (d, wide)]
    ahead, here = shares.walk(), shares.walk()
    tile, stop, batch, head, filled, used = (pk.var(i32, 0) for _ in range(6))

    def tiles_of(part: Any) -> tuple[Any, Any]:
        """The first tile of keys of a part, and the one behind its last."""
        (begin, end), unit = span(seen[part.group]), fixed or 1
        first = begin + part.begin * unit
        return first, pk.minimum(first + part.taken * unit, end)

    def load() -> None:
        """The next tile of the share is on its way; none, at its end."""
        with pk.when((tile >= stop) & ~ahead.done):
            part = ahead.take()
            for x, y in zip((tile, stop, batch, head), (*tiles_of(part), part.group, part.item // across), strict=True):
                x.set(y)
        with pk.when(tile < stop):
            key: Any = tile * keys + mine * each
            place, end = batch + 0, seen[batch]
            if page_table is not None:
                place = page_table[batch, i := pk.minimum(key // page, page_table.cols - 1)]
                exists = (place >= 0) & (place < k.batch)
                pk.assert_(exists | (key >= end), "a page number is out of range")
                end = pk.where(exists, end - i * page, 0)
                place, key = pk.where(exists, place, 0), key - i * page
            for tiles, tensor in zip(ring, (k, v), strict=True):
                group.load_async(tiles[filled * groups + mine], tensor, pk.at(place, head, key, 0), within=(0, end))
        group.commit()
        tile.set(tile + 1)
        filled.set(pk.where(filled == stages - 1, 0, filled + 1))

    operand = Unpacked(group, groups, pk.st(f16 if k.dtype is e4m3 else q.dtype, each, d), k.dtype)
    slices = max(x for x in range(1, groups + 1) if wide % (operand.least * x) == 0)  # of columns, that groups add up
    cols = wide // slices
    queries = pk.shared(pk.st(q.dtype, rows, d), name="queries")
    peaks, sums = (pk.shared(pk.sv(f32, rows), count=max(groups, 2), name=name) for name in ("peaks", "sums"))
    others = pk.shared(pk.sv(f32, rows * cols), count=max(groups * slices, 2), name="others")
    lines = pk.shared(pk.sv(f32, wide), count=max(warps, 2), name="lines")
    peak, total = group.full_col(f32, rows, LOWEST), group.zeros_col(f32, rows, partial=True)
    score, out = group.zeros(f32, rows, each), operand.zeros(rows, wide)

    def scale_of(scales: Any, head: Any) -> Any:
        return 1.0 if scales is None else scales[pk.minimum(head, scales.cols - 1)]

    def together() -> tuple[Any, Any, Any]:
        """What all groups have of the same rows: each has a slice of columns of it."""
        group.store(peaks[mine], peak)
        group.store(sums[mine], total.total())
        for i, x in enumerate(operand.joined(out, cols)):
            group.store(others[mine * slices + i], x.registers())
        pk.block.sync()
        held = [others[i * slices + pk.minimum(mine, slices - 1)] for i in range(groups)]
        tiles = [group.load_vec(x).tile(rows, cols, layout=operand.layout) for x in held]
        tops, totals = ([group.load_col(x[i], layout=operand.layout) for i in range(groups)] for x in (peaks, sums))
        return merged(list(zip(tops, totals, tiles, strict=True)))

    def write(scope: Any, found: Any, batch: Any, head: Any, row: Any, col: Any = 0) -> None:
        """The result of rows, and its log-sum-exp: by groups those of a tile, by a warp one."""
        top, whole, result = found
        at = 0 if sinks is None else head * (q.rows // n) + (row if scope is warp else pk.row_index(result) + row) // n
        factor, log = normalised(top, 1.0, whole, None if sinks is None else sinks[pk.minimum(at, sinks.cols - 1)])
        result = result * (factor * scale_of(v_scale, head))  # 0 where a row sees no key, even where a value is NaN
        scope.store(o, pk.where(whole == 0.0, 0.0, result).to(o.dtype), pk.at(batch, head, row, col))
        if lse is not None and scope is warp:
            warp.set(lse, (batch, head, row), log())
        elif lse is not None:
            with pk.when(mine == 0):
                group.store(lse, log(), pk.at(batch, head, row))

    def of_parts(begin: Any, count: Any, row: Any, first: Any, step: int) -> tuple[Any, Any, Any]:
        """What parts `first`, `first + step`, ... of an item have of a row."""
        top, whole, result = pk.var(f32, LOWEST), pk.var(f32, 0.0), warp.full_vec(f32, wide, 0.0).as_vec(width=4)
        for i in pk.range(first, count, step * AT_ONCE):
            found = [(top + 0.0, whole + 0.0, result)]
            for number in (i + j * step for j in range(AT_ONCE)):
                at = begin + pk.minimum(number, count - 1)
                output = warp.load_vec(parts, pk.at(at, row, 0), length=wide)
                found.append((pk.where(number < count, logs[at, 0, row], LOWEST), logs[at, 1, row], output))
            higher, more, result[:] = merged(found)
            top.set(higher)
            whole.set(more)
        return top, whole, result

    def add_up(begin: Any, count: Any, first: Any, step: Any, batch: Any, head: Any, row: Any) -> None:
        """Rows `first`, `first + step`, ... of an item from all its parts: a warp a row, or all warps the only one."""
        left = (pk.minimum(rows, q.rows - row) - first + step - 1) // step
        with pk.when(left > 1):
            for i in pk.range(warp.index, left, warps):
                write(warp, of_parts(begin, count, first + i * step, 0, 1), batch, head, row + first + i * step)
        with pk.when(left == 1):
            top, whole, result = of_parts(begin, count, first, warp.index, warps)
            warp.set(peaks[0], warp.index, top)
            warp.set(sums[0], warp.index, whole)
            warp.store(lines[warp.index], result)
            pk.block.sync()
            with pk.when(warp.index == 0):
                found = [(peaks[0][i], sums[0][i], warp.load_vec(lines[i])) for i in range(warps)]
                write(warp, merged(found), batch, head, row + first)

    for _ in pk.range(stages - 1):
        load()
    if dependent:
        pk.wait_for_previous(independent=(k, v, lengths, *([] if page_table is None else [page_table])))
    for _ in pk.loop():
        pk.break_if(here.done)
        part = here.take()
        keys_seen, place = seen[part.group], (part.group, part.item // across, part.item % across * rows)
        pk.block.load_into(queries, q, pk.at(*place, 0))
        pk.block.sync()
        query, unit = operand.beside(queries, scale * scale_of(k_scale, place[1]))
        peak[:], total[:] = LOWEST, 0.0
        for x in out:
            x[:] = 0.0
        stands, c = keys_seen - n, (unit if softcap is None else softcap) * LOG2E  # `stands`: the first query's key
        for t in pk.range(*tiles_of(part)):
            group.wait_loads(stages - 2)
            group.sync()
            load()
            slot, key = used * groups + mine, t * keys + mine * each
            operand.mm_ABt(score, query, ring[0][slot])
            score[:] = (score if softcap is None else squashed(score, unit / softcap)) * c
            clear = key + each <= (keys_seen if side is None else pk.minimum(stands + side + 1, keys_seen))
            clear = clear & (left is None or key >= keys_seen - 1 - left)
            with pk.when(~clear):
                stand = (pk.row_index(score) + place[2]) % n + stands
                at = pk.minimum(stand + side, keys_seen - 1) if side is not None else keys_seen - 1
                visible = pk.col_index(score) <= at - key
                visible = visible if left is None else visible & (pk.col_index(score) >= stand - left - key)
                score[:] = pk.where(visible, score, -pk.inf)
            highest = pk.maximum(peak, score.row_max())
            weight, shrink = pk.exp2(score - highest), pk.exp2(peak - highest)
            total[:] = pk.fma(total, shrink, weight.row_sum(partial=True))
            peak[:] = highest
            operand.mma_AB(out, weight, ring[1][slot], shrink)
            used.set(pk.where(used == stages - 1, 0, used + 1))
        found, begin = together(), shares.slot(part, 0)
        with pk.when((part.taken == part.units) & (mine < slices)):
            write(group, found, *place, mine * cols)
        with pk.when(part.taken < part.units):
            at = begin + shares.number(part)
            with pk.when(mine < slices):
                group.store(parts, found[2], pk.at(at, 0, mine * cols))
            with pk.when(mine == 0):
                group.store(logs, found[0], pk.at(at, 0, 0))
                group.store(logs, found[1], pk.at(at, 1, 0))
            add_up(begin, shares.pieces(part), *shares.deal(part, arrived), *place)


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lengths: np.ndarray,
    scale: float,
    n: int = 1,
    page_table: np.ndarray | None = None,
    k_scale: Any = 1.0,
    v_scale: Any = 1.0,
    **settings: Any,
) -> np.ndarray:
    """The same in float64, on the operands of the kernel; settings: see `reference.attention`."""
    k, v = (x.astype(np.float64) * np.reshape(y, (-1, 1, 1)) for x, y in ((k, k_scale), (v, v_scale)))
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for i, length in enumerate(lengths):
        if length:
            used = [x[i, :, :length] if page_table is None else _in_order(x, page_table[i], length) for x in (k, v)]
            heads = [x.repeat(q.shape[2] // n, 0)[None] for x in used]
            query = q[i].reshape(1, -1, n, q.shape[3])
            out[i] = attention(query, *heads, scale=scale, **settings).reshape(out[i].shape)
    return out


def _in_order(pages: np.ndarray, numbers: np.ndarray, length: int) -> np.ndarray:
    """The keys (or values) of a sequence, (key heads, length, d)."""
    used = pages[numbers[: -(-length // pages.shape[2])]]
    return used.swapaxes(0, 1).reshape(pages.shape[1], -1, pages.shape[3])[:, :length]
