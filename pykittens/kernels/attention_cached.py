"""Attention of a few queries on a cache of keys and values, with mma.sync and cp.async: a step of decoding.

    out = softmax(q @ k.T * scale) @ v        for each sequence and head, on the first `lengths` keys of its cache

A sequence has n queries, which stand at its last n keys. The heads that share a key head, and their queries, are rows
of one tile: q, o: (batch, key heads, rows, d), row = head * n + query. k, v: (batch, key heads, m, d) in place, any
strides with contiguous rows; or pages of keys, (pages, key heads, keys of a page, d), with the numbers of each
sequence's pages in `page_table`. Lengths and numbers stay on the GPU.

Work is cut as in Stream-K (Osama et al., 2023). The tiles of keys of all sequences and heads, one after another, are
dealt in equal shares to as many blocks as the GPU holds, so that all of them end together whatever the lengths are. An
item (the keys of a sequence, a head, a tile of rows) may lie in several shares. Each part leaves sums relative to its
own highest score (Dao et al., "Flash-Decoding", 2023), and whoever is last to do so adds them up, always in the order
of the keys. With `fixed` parts end at multiples of so many keys of their sequence: the result does not depend on what
else is in the batch.

A warp (more, where rows do not fit its registers) has keys of its own in every tile, brings them itself, and meets
others only at the end of a part. Loads run ahead of the work by `stages` - 1 tiles, across parts. Shared memory:
stages * keys * (d + dv) elements, and rows * dv * groups / 2 float32.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp

from .reference import attention
from .scale import magnitude, normalised, squashed
from .widths import widths

LOG2E = 1.4426950408889634
LOWEST = -3e38  # the peak of a row that has seen no key: finite, so that no difference is NaN
D, DV = pk.static("D"), pk.static("DV")
HALF = (bf16, f16)


class Work:
    """Where a block is in its share: `unit` is the next that it takes, of those that end before ends[batch] at most.
    A unit is a tile of keys of an item, or `fixed` tiles."""

    def __init__(self, items: Any, ends: Any, first: Any, last: Any, fixed: bool):
        self.items, self.ends, self.last, self.fixed = items, ends, last, fixed
        self.unit, self.batch = pk.var(i32, first), pk.var(i32, 0)

    def take(self) -> tuple[Any, Any, Any, Any, Any]:
        """The next part: its item among the sequence's, the units of that and the first of them, the part's first and
        how many it has."""
        for _ in pk.loop():
            pk.break_if(self.unit < self.ends[self.batch])
            self.batch.set(self.batch + 1)
        low = pk.where(self.batch > 0, self.ends[pk.maximum(self.batch - 1, 0)], 0)
        count = (self.ends[self.batch] - low) // self.items
        item = (self.unit - low) // count
        start = low + item * count
        done = self.unit - start
        taken = 1 if self.fixed else pk.minimum(count - done, self.last - self.unit)
        self.unit.set(self.unit + taken)
        return item, count, start, done, taken


@pk.kernel(
    warps=lambda groups, rows, height, **_: groups * (rows // height),
    blocks_per_sm=lambda blocks, **_: blocks,
    grid=lambda processors, blocks, **_: processors * blocks,
)
def attend(
    q: Annotated[Tensor, HALF, "B", "G", "R", D],
    k: Annotated[Tensor, HALF, "P", "G", "M", D],
    v: Annotated[Tensor, HALF, "P", "G", "M", DV],
    o: Annotated[Tensor, HALF, "B", "G", "R", DV],
    lengths: Annotated[Tensor, i32, "B"],
    scale: Annotated[Scalar, f32],
    parts: Annotated[Tensor, f32, "S", pk.static("L"), DV],
    logs: Annotated[Tensor, f32, "S", 2, pk.static("L")],
    arrived: Annotated[Tensor, i32, "I"],
    lse: Annotated[Tensor, f32, "B", "G", "R"] | None = None,
    page_table: Annotated[Tensor, i32, "B", "T"] | None = None,
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    softcap: Annotated[Scalar, f32] | None = None,
    sinks: Annotated[Tensor, (f32, *HALF), "H"] | None = None,
    *,
    n: int = 1,
    causal: bool = True,
    page: int = 0,
    fixed: int = 0,
    rows: int = 16,
    height: int = 16,
    groups: int = 4,
    stages: int = 3,
    blocks: int = 2,
    processors: int = 1,
    most: int = 128,
    least: int = 4,
) -> None:
    """o = softmax(q @ k.T * scale) @ v on the first `lengths` keys; query i of n stands at key i + length - n.

    `parts`, `logs`: scratch memory, two places of `rows` rows for each block, or one for each unit; `arrived`: a zero
    for each item, and zero again afterwards. causal, `left`, `right`, `softcap`, `sinks`: see `attention_hopper`.
    fixed: tiles of a part; 0 cuts shares anywhere. height: rows of a warp. least: tiles of a share, if there are many.
    most: what the batch is at most.
    """
    (d, wide), group = widths(q.cols, v.cols), pk.group(rows // height)
    mine, keys = group.index, 16 * groups
    side: Any = 0 if causal else right
    across = pk.cdiv(q.rows, rows)
    capacity = k.rows if page_table is None else page_table.cols * page
    c = (magnitude(scale) if softcap is None else softcap) * LOG2E

    def length(batch: Any) -> Any:
        given = lengths[batch]
        pk.assert_((given >= 0) & (given <= capacity), "a length is negative, or more than the cache holds")
        return pk.maximum(pk.minimum(given, capacity), 0)

    def span(batch: Any) -> Any:
        return pk.band(n, length(batch), left=left, right=side).key_tiles(0, n, keys)

    items = k.depth * across
    ends = pk.shared(pk.sv(i32, most), name="ends")
    with pk.when(warp.index == 0):  # where the units of each sequence end
        given = pk.maximum(pk.minimum(warp.load_vec(lengths, pk.at(0), length=most), capacity), 0)
        tiles = pk.band(n, given, left=left, right=side).key_tiles(0, n, keys)
        units = pk.cdiv(tiles.end - tiles.begin, fixed or 1) * items
        warp.store(ends, pk.where(pk.iota(units) < q.batch, units, 0).cumsum())
    pk.block.sync()
    every = ends[q.batch - 1]
    share = pk.cdiv(every, pk.grid_size.x)
    share = share if fixed else pk.maximum(share, least)
    first = pk.minimum(pk.block_index.x * share, every)
    last = pk.minimum(first + share, every)

    ring = [
        pk.shared(pk.st(k.dtype, 16, width), count=stages * groups, name=name)
        for width, name in ((d, "keys"), (wide, "values"))
    ]
    ahead, here = (Work(items, ends, first, last, bool(fixed)) for _ in range(2))
    tile, stop, head, seen, filled, used = (pk.var(i32, 0) for _ in range(6))

    def load() -> None:
        """The next tile of the share is on its way; none, at its end."""
        with pk.when((tile >= stop) & (ahead.unit < last)):
            item, _, _, done, taken = ahead.take()
            x = span(ahead.batch)
            tile.set(x.begin + done * (fixed or 1))
            stop.set(pk.minimum(tile + taken * (fixed or 1), x.end))
            head.set(item // across)
            seen.set(length(ahead.batch))
        with pk.when(tile < stop):
            key: Any = tile * keys + mine * 16
            place, end = ahead.batch, seen + 0
            if page_table is not None:
                i = pk.minimum(key // page, page_table.cols - 1)
                place = page_table[ahead.batch, i]
                exists = (place >= 0) & (place < k.batch)
                pk.assert_(exists | (key >= seen), "a page number is out of range")
                end = pk.where(exists, seen - i * page, 0)
                place, key = pk.where(exists, place, 0), key - i * page
            for tiles, tensor in zip(ring, (k, v), strict=True):
                to = tiles[filled * groups + mine]
                group.load_async(to, tensor, pk.at(place, head, key, 0), within=(0, end))
        group.commit()
        tile.set(tile + 1)
        filled.set(pk.where(filled == stages - 1, 0, filled + 1))

    ticket = pk.shared(pk.sv(i32, 4), name="ticket")
    peaks = pk.shared(pk.sv(f32, rows), count=groups, name="peaks")
    sums = pk.shared(pk.sv(f32, rows), count=groups, name="sums")
    others = pk.shared(pk.sv(f32, rows * wide), count=max(groups // 2, 2), name="others")
    peak, total = group.full_col(f32, rows, LOWEST), group.zeros_col(f32, rows, partial=True)
    score, out = group.zeros(f32, rows, 16), group.zeros(f32, rows, wide)

    def together(sum: Any) -> tuple[Any, Any]:
        """The first group gets everybody's output; peak and sum of all."""
        group.store(peaks[mine], peak)
        pk.block.sync()
        top = group.load_col(peaks[0])
        for i in range(1, groups):
            top = pk.maximum(top, group.load_col(peaks[i]))
        shrink = pk.exp2(peak - top)
        out[:] = out * shrink
        group.store(sums[mine], sum * shrink)
        half = groups // 2
        while half:  # a place is written by who reads it, or before anybody does
            back, on = (half, 0) if 2 * half == groups else (0, half)
            with pk.when((mine >= half) & (mine < 2 * half)):
                group.store(others[mine - back], out.registers())
            pk.block.sync()
            with pk.when(mine < half):
                out[:] = out + group.load_vec(others[mine + on]).tile(rows, wide)
            half //= 2
        all_of_it = group.load_col(sums[0])
        for i in range(1, groups):
            all_of_it = all_of_it + group.load_col(sums[i])
        return top, all_of_it

    def sink_of(sinks: Any, head: Any, row: Any) -> Any:
        """The sinks of a tile's rows."""
        first = head * (q.rows // n) + row // n
        if n == 1:
            return group.load_col(sinks, pk.at(first), length=rows, dtype=f32)
        found, which = group.full_col(f32, rows, -pk.inf), (pk.row_index(out) + row) // n - row // n
        for i in range(rows // n + 2):
            found = pk.where(which == i, pk.cast(sinks[pk.minimum(first + i, sinks.cols - 1)], f32), found)
        return found

    def write(place: Any, top: Any, sum: Any) -> None:
        """The result, and its log-sum-exp, from the sums of all keys."""
        batch, head, row = place
        factor, log = normalised(top, 1.0, sum, None if sinks is None else sink_of(sinks, head, row))
        unseen = sum == 0.0  # a row that sees no key is 0, even where a value is NaN
        group.store(o, pk.where(unseen, 0.0, out * factor).to(o.dtype), pk.at(batch, head, row, 0))
        if lse is not None:
            group.store(lse, log(), pk.at(batch, head, row))

    def add_up(place: Any, count: Any, slot: Any) -> None:
        """The result of an item from its parts, `slot(i)` of `count`: each group adds up some, then they `together`."""
        peak[:], out[:] = LOWEST, 0.0
        sum, at_once = group.zeros_col(f32, rows), 32 // height
        for i in pk.range(mine, count, at_once * groups):
            slots = [slot(pk.minimum(i + j * groups, count - 1)) for j in range(at_once)]
            tops, terms = ([group.load_col(logs, pk.at(at, e, 0), length=rows) for at in slots] for e in (0, 1))
            tiles = [group.load(parts, pk.at(at, 0, 0), rows=rows, cols=wide) for at in slots]
            for j, (top, term, part) in enumerate(zip(tops, terms, tiles, strict=True)):
                with pk.when(i + j * groups < count):
                    highest = pk.maximum(peak, top)
                    old, new = pk.exp2(peak - highest), pk.exp2(top - highest)
                    sum[:], out[:] = pk.fma(sum, old, term * new), pk.fma(part, new, out * old)
                    peak[:] = highest
        top, sum = together(sum)
        with pk.when(mine == 0):
            write(place, top, sum)

    for _ in range(stages - 1):
        load()
    for _ in pk.loop():
        pk.break_if(here.unit >= last)
        item, count, start, done, taken = here.take()
        batch, x = here.batch, span(here.batch)
        keys_seen = length(batch)
        place = (batch, item // across, item % across * rows)
        begin = x.begin + done * (fixed or 1)
        query = group.load(q, pk.at(*place, 0), rows=rows, cols=d)
        if softcap is None:
            query *= pk.where(scale > 0.0, 1.0, pk.where(scale < 0.0, -1.0, 0.0))
        peak[:], total[:], out[:] = LOWEST, 0.0, 0.0
        stands = keys_seen - n  # the first query's key
        for t in pk.range(begin, pk.minimum(begin + taken * (fixed or 1), x.end)):
            group.wait_loads(stages - 2)
            group.sync()
            load()
            slot = used * groups + mine
            key = t * keys + mine * 16
            group.mm_ABt(score, query, ring[0][slot])
            if softcap is not None:
                score[:] = squashed(score, scale / softcap)
            clear = key + 16 <= (keys_seen if side is None else pk.minimum(stands + side + 1, keys_seen))
            if left is not None:
                clear = clear & (key >= keys_seen - 1 - left)
            with pk.when(~clear):
                stand = (pk.row_index(score) + place[2]) % n + stands
                at = pk.minimum(stand + side, keys_seen - 1) if side is not None else keys_seen - 1
                visible = pk.col_index(score) <= at - key
                if left is not None:
                    visible = visible & (pk.col_index(score) >= stand - left - key)
                score[:] = pk.where(visible, score, -pk.inf)
            highest = pk.maximum(peak, score.row_max() * c)
            weight, shrink = pk.exp2(pk.fma(score, c, -highest)), pk.exp2(peak - highest)
            total[:] = pk.fma(total, shrink, weight.row_sum(partial=True))
            out *= shrink
            peak[:] = highest
            group.mma_AB(out, weight.to(k.dtype), ring[1][slot])
            used.set(pk.where(used == stages - 1, 0, used + 1))
        top, sum = together(total.total())
        before = start // share  # the block that has the item's first part
        pieces = count if fixed else (start + count - 1) // share - before + 1

        def slot_of(i: Any) -> Any:
            return start + i if fixed else 2 * (before + i) + pk.where(i == 0, 1, 0)

        with pk.when(pieces == 1), pk.when(mine == 0):
            write(place, top, sum)
        with pk.otherwise():
            with pk.when(mine == 0):
                to = slot_of(done if fixed else pk.block_index.x - before)
                group.store(parts, out, pk.at(to, 0, 0))
                group.store(logs, top, pk.at(to, 0, 0))
                group.store(logs, sum, pk.at(to, 1, 0))
                if rows > height:
                    group.sync()
            with pk.when(warp.index == 0):
                came = pk.atomic_add(arrived, batch * items + item, 1, order="acq_rel", by=warp)
                warp.set(ticket, 0, came)
            pk.block.sync()
            with pk.when(ticket[0] == pieces - 1):
                add_up(place, pieces, slot_of)
                pk.block.set(arrived, batch * items + item, 0)


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lengths: np.ndarray,
    scale: float,
    n: int = 1,
    page_table: np.ndarray | None = None,
    **settings: Any,
) -> np.ndarray:
    """The same in float64, on the operands of the kernel; settings: see `reference.attention`."""
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
