"""Attention on a cache, on arrays of any framework: what is checked, how the work is cut, and scratch memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..architectures import Architecture
from ..errors import ArgumentError
from ..gpu import driver
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..interop.views import View
from ..trace.unpacking import in_registers
from ..types import DTYPES
from . import attention_cached
from .arguments import KernelCall
from .attention import DTYPE_NAMES, WIDEST, Scores, loadable, machine_of
from .eight_bits import eight_bits, vector
from .widths import widths

QUERIES = 16  # of a sequence at most; more are attention's work
PAGE = 16  # keys of a page are a multiple of this
LONGEST = 1 << 24  # tiles of a part: more than any cache has whose keys are counted in 31 bits
_SIMULATED_PROCESSORS = 2


class Cut(NamedTuple):
    """How tiles are cut: what differs from one to the other call of `attention_cached.attend`."""

    rows: int  # of a tile: heads of a group and their queries, 16 for each warp of a group
    groups: int  # of warps, each with keys of its own
    each: int  # how many keys of a tile a group has
    stages: int

    @property
    def keys(self) -> int:
        """Of a tile."""
        return self.each * self.groups


def vector_of(batch: int) -> int:
    """How many sequences a kernel has room for that takes `batch`: few kernels serve batches of all sizes."""
    return max(128, 1 << (batch - 1).bit_length())


def cut(
    rows: int,
    d: int,
    dv: int,
    size: int,
    arch: Architecture,
    page: int = 0,
    batch: int = 1,
    parts: int = 1,
    blocks: int = 1,
) -> Cut:
    """For `rows` rows that share their keys, which have elements of `size` bytes; those of 1 are unpacked to 2. What a
    group has of a tile lies in one page of `page` keys. parts: of an item, which groups add up one after another;
    blocks: of a multiprocessor. Raises `ArgumentError` for more sequences than have room."""
    wide, narrow = widths(d, dv)
    talls = [x for x in (64, 32, 16) if x < 2 * rows or x == 16][wide > 128 and rows > 32 :]
    sizes = (128, 64, 32, 16)[wide > 128 :]
    # Few groups of many keys: what belongs to a tile is done less often. One group alone leaves its warps to wait.
    orders = (4, 8, 2) if parts <= 8 else (8, 4, 2)
    ways = [(tall, x, y) for tall in talls for x in sizes for y in orders] + [(16, x, 1) for x in sizes]
    room = (arch.shared_bytes + 1024) // blocks - 1024  # 1 KiB of each block is the system's
    for tall, keys, groups in ways:
        warps = 8 if wide <= 128 else tall // 4  # as many as the registers of a multiprocessor are enough for
        found = Cut(tall, groups, keys // groups, 2)
        fixed = max(groups, 2) * tall * (narrow * 4 + 8) + tall * wide * 2
        fixed += 512 + 3 * 4 * vector_of(batch) + max(groups * tall // 16, 2) * narrow * 4
        fixed += keys * wide * 2 if size == 1 and not in_registers(tall // 16) else 0
        stages = (room - fixed) // (keys * (wide + narrow) * size)
        each = 16 <= found.each <= (64 if wide <= 128 else 16) and page % found.each == 0
        if each and groups * tall // 16 <= warps and stages >= 2:
            return found._replace(stages=min(stages, 4))
    fix = "pass them in several calls: shared memory holds three numbers for each sequence"
    raise ArgumentError(f"attention_cached of {batch} sequences on {arch}", fix=fix)


def plan(
    rows: int,
    d: int,
    dv: int,
    size: int,
    arch: Architecture,
    processors: int,
    items: int,
    capacity: int,
    page: int,
    batch: int,
    split: int | None,
) -> tuple[Cut, int]:
    """How `items` items are cut, the rows of a key head of each sequence, on caches of `capacity` keys; and among how
    many blocks. With `split` it does not depend on the batch, as results do not, up to 4096 sequences.

    Many small items of 8 bits go to two blocks a multiprocessor, where both have room for tiles as large: one loads
    while the other ends an item.
    """
    if split is not None:
        return cut(rows, d, dv, size, arch, page, max(batch, 4096)), processors
    parts = min(-(-capacity // 128), -(-processors // max(items, 1)))
    one = cut(rows, d, dv, size, arch, page, batch, parts)
    if size == 1 and rows <= 16 and max(d, dv) <= 128 and items >= 2 * processors:
        two = cut(rows, d, dv, size, arch, page, batch, blocks=2)
        if two.keys == one.keys:
            return two, 2 * processors
    return one, processors


class Attend:
    """The kernel with its scratch memory: called as a kernel is."""

    def __call__(self, *operands: Any, cut: Cut, processors: int, fixed: int, page: int, **static: Any) -> None:
        q, k, v, o, lengths, scale, lse, page_table, *more = operands
        info = arrays.describe(q)
        (batch, heads, rows, _), device = info.shape, info.device
        tiles = -(-rows // cut.rows)
        capacity = k.shape[2] if page_table is None else page_table.shape[1] * page
        units = -(-capacity // (fixed * cut.keys)) if fixed else 0
        places = batch * heads * tiles * max(units, 1) if fixed else 2 * processors
        held = min(cut.rows, rows)
        parts = arrays.empty(info.kind, (places, held, widths(q.shape[3], v.shape[3])[1]), "f32", device)
        logs = arrays.empty(info.kind, (places, 2, held), "f32", device)
        count = batch * heads * tiles if fixed else processors
        arrived = View(arrays.empty(info.kind, (count, 2), "i32", device), (count,), (1,), dtype="i64")
        dependent = bool(fixed) and "dependent launch" in machine_of(device).features
        if fixed:
            attention_cached.clear(arrived, dependent=dependent)
        attention_cached.attend(
            q,
            k,
            v,
            o,
            lengths,
            scale,
            parts,
            logs,
            arrived,
            lse,
            page_table,
            *more,
            page=page,
            fixed=fixed,
            dependent=dependent,
            processors=processors,
            across=tiles,
            most=vector_of(batch),
            **cut._asdict(),
            **static,
        )

    def launcher(self, *operands: Any, **static: Any) -> None:
        """None: such a call is not one launch of operands and results, to be done again by itself."""


ATTEND = Attend()


def call(
    q: Any,
    k: Any,
    v: Any,
    lengths: Any,
    page_table: Any,
    sinks: Any,
    scales: tuple[Any, Any],
    out: Any,
    lse: Any,
    scores: Scores,
    split: int | None,
    **overrides: Any,
) -> KernelCall:
    """What writes the output, and the log-sum-exp unless that is None, for operands that `check` takes."""
    info = arrays.describe(q)
    (batch, heads, n, d), groups = info.shape, k.shape[1]
    k, v = (x if loadable(arrays.describe(x)) else arrays.dense_copy(x, name) for x, name in ((k, "k"), (v, "v")))
    page = 0 if page_table is None else k.shape[2]
    capacity = page_table.shape[1] * page if page else k.shape[2]
    _look(lengths, page_table, k.shape[0], capacity)
    shared, size = heads // groups, DTYPES[arrays.describe(k).dtype].size
    processors = _SIMULATED_PROCESSORS if info.device is None else driver.multiprocessors(info.device)
    where = machine_of(info.device), processors, batch * groups, capacity, page, batch, split
    how, processors = plan(shared * n, d, v.shape[3], size, *where)
    how = how._replace(**{name: overrides.pop(name) for name in [*overrides] if name in Cut._fields})
    static = {
        "cut": how,
        "processors": processors,
        "fixed": 0 if split is None else min(-(-split // how.keys), LONGEST),
        "n": n,
        "causal": scores.causal,
        "page": page,
        **overrides,
    }
    logs = None if lse is None else View(lse, (batch, groups, shared * n), (heads * n, shared * n, 1))
    queries = _rows(q, groups, "q"), k, v, _rows(out, groups, "out")
    places = _dense(lengths, "lengths"), scores.scale, logs, None if not page else _dense(page_table, "page_table")
    last = (x if x is None else _dense(x, "scale") for x in (sinks, *map(vector, scales)))
    given = (*queries, *places, *scores.band, *last)
    return KernelCall(ATTEND, given, static)  # type: ignore[arg-type]


def _rows(x: Any, groups: int, name: str) -> View:
    """(batch, heads, n, d) as (batch, key heads, rows, d): the heads of a key head and their queries are one
    dimension."""
    info = arrays.describe(x, name)
    batch, heads, n, d = info.shape
    a, b, c, _ = info.strides
    if not loadable(info) or not (n == 1 or heads == groups or b == n * c):
        x, (a, b, c) = arrays.dense_copy(x, name), (heads * n * d, n * d, d)
    shared = heads // groups
    return View(x, (batch, groups, shared * n, d), (a, shared * b, b if n == 1 else c, 1))


def _dense(x: Any, name: str) -> Any:
    info = arrays.describe(x, name)
    return x if loadable(info) or info.strides[-1:] == (1,) and len(info.shape) == 1 else arrays.dense_copy(x, name)


def _look(lengths: Any, page_table: Any, pages: int, capacity: int) -> None:
    """What lies on the CPU can be looked at; on a GPU nothing lies outside of the cache that is read."""
    if arrays.describe(lengths).device is not None:
        return
    given = np.asarray(arrays.as_numpy(lengths)).astype(np.int64)
    if ((given < 0) | (given > capacity)).any():
        fix = "pass how many keys of its cache each sequence has, those of its queries included"
        raise ArgumentError(f"attention_cached: lengths are {given.tolist()} for a cache of {capacity} keys", fix=fix)
    if page_table is not None:
        table, page = np.asarray(arrays.as_numpy(page_table)).astype(np.int64), capacity // page_table.shape[1]
        used = np.arange(table.shape[1]) * page < given[:, None]
        if (wrong := used & ((table < 0) | (table >= pages))).any():
            sequence, i = (int(x[0]) for x in np.nonzero(wrong))
            fact = f"attention_cached: page {i} of sequence {sequence} is number {table[sequence, i]} of {pages} pages"
            raise ArgumentError(fact, fix=f"the numbers of pages in use are from 0 to {pages - 1}")


def check(
    q: ArrayInfo,
    k: ArrayInfo,
    v: ArrayInfo,
    lengths: ArrayInfo,
    page_table: ArrayInfo | None,
    sinks: ArrayInfo | None,
    k_scale: ArrayInfo | None,
    v_scale: ArrayInfo | None,
    split: int | None,
) -> None:
    """One `ArgumentError` for what no kernel takes."""
    if len(q.shape) != 4 or len(k.shape) != 4 or len(v.shape) != 4:
        problem, fix = "", "q has four dimensions, batch, heads, queries, head dimension; a cache as many"
    elif q.dtype not in DTYPE_NAMES or k.dtype != v.dtype or k.dtype not in (q.dtype, "e4m3"):
        problem, fix = (
            "these dtypes are not supported",
            "pass q as bf16 or f16, and caches as the same or as e4m3",
        )
    elif bad := eight_bits(k, v, k_scale, v_scale):
        problem, fix = bad
    elif k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3] or (page_table is None and q.shape[0] != k.shape[0]):
        problem, fix = "the shapes do not go together", "the caches have one shape, with the head dimension of q"
        fix += "" if page_table is not None else " and its batch; pages need a page_table"
    elif q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        problem, fix = f"{q.shape[1]} query heads share {k.shape[1]} key heads", "pass a multiple of the key heads"
    elif q.shape[2] > QUERIES:
        problem, fix = f"{q.shape[2]} queries of a sequence", f"up to {QUERIES} are supported; pk.attention takes more"
    elif any(x.shape[3] % 8 or x.shape[3] > WIDEST for x in (q, v)) or 0 < q.shape[3] < v.shape[3]:
        problem = f"there is no kernel for head dimension {q.shape[3]}"
        problem += "" if v.shape[3] == q.shape[3] else f", and {v.shape[3]} of values"
        fix = f"multiples of 8 up to {WIDEST} are supported, for values no more than for keys"
    elif page_table is not None and (k.shape[2] % PAGE or not k.shape[2]):
        problem, fix = f"pages of {k.shape[2]} keys", f"pages have a multiple of {PAGE} keys"
    elif lengths.dtype != "i32" or tuple(lengths.shape) != (q.shape[0],):
        problem = f"lengths are {lengths.dtype} {tuple(lengths.shape)}"
        fix = f"pass one 32-bit integer for each sequence, ({q.shape[0]},)"
    elif page_table is not None and (
        page_table.dtype != "i32" or len(page_table.shape) != 2 or page_table.shape[0] != q.shape[0]
    ):
        problem = f"the page_table is {page_table.dtype} {tuple(page_table.shape)}"
        fix = f"pass a row of 32-bit page numbers for each sequence, ({q.shape[0]}, pages)"
    elif split is not None and split < 1:
        problem, fix = f"split={split}", "pass how many keys a part has, or None"
    elif sinks is not None and (tuple(sinks.shape) != tuple(q.shape[1:2]) or sinks.dtype not in ("f32", q.dtype)):
        problem = f"sinks are {sinks.dtype} {tuple(sinks.shape)}"
        fix = f"pass one number for each of the {q.shape[1]} query heads, as f32 or {q.dtype}"
    else:
        return
    said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in (("q", q), ("k_cache", k), ("v_cache", v)))
    raise ArgumentError(f"attention_cached of {said}" + (f": {problem}" if problem else ""), fix=fix)
