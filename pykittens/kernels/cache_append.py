"""Rows at the end of caches: keys, turned by their positions' angles on request, and values.

    k_cache[i, head, lengths[i] - n + j] = rotary(k[i, head, j]),        v_cache[...] = v[i, head, j]

k, v: (batch, key heads, n, d), n rows that each sequence gets; lengths: (batch,), how many it has then. Caches are
contiguous, (batch, key heads, m, d), or pages, (pages, key heads, keys of a page, d) with a page_table (batch, pages of
a sequence). cos, sin: (positions, r / 2); queries at the same positions, (batch, heads, n, d), are turned with them:
see `rotary`. A warp takes one row. What has no place in the cache (or no angles) is not written. Caches of 8-bit floats
get the numbers divided by a scale, of all or of the key head, and the largest for what is larger.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, e4m3, f16, f32, i32, warp
from pykittens.errors import ArgumentError
from pykittens.interop import arrays
from pykittens.interop.arrays import ArrayInfo
from pykittens.interop.views import View
from pykittens.types import DTYPES

from . import rotary
from .arguments import KernelCall, alignment, matrix, operand, values_of
from .attention import loadable
from .eight_bits import eight_bits, vector

HALF = (bf16, f16)
D, DV = pk.static("D"), pk.static("DV")
WARPS = 4


@pk.kernel(
    warps=WARPS,
    grid=lambda k, lengths, q=None, **_: pk.cdiv((k.depth + (0 if q is None else q.depth)) * k.rows, WARPS) * k.batch,
)
def append(
    k: Annotated[Tensor, HALF, "B", "G", "N", D],
    v: Annotated[Tensor, HALF, "B", "G", "N", DV],
    k_cache: Annotated[Tensor, (*HALF, e4m3), "P", "G", "M", D],
    v_cache: Annotated[Tensor, (*HALF, e4m3), "P", "G", "M", DV],
    lengths: Annotated[Tensor, i32, "B"],
    page_table: Annotated[Tensor, i32, "B", "T"] | None = None,
    cos: Annotated[Tensor, (*HALF, f32), "A", pk.static("HALF")] | None = None,
    sin: Annotated[Tensor, (*HALF, f32), "A", pk.static("HALF")] | None = None,
    q: Annotated[Tensor, HALF, "B", "H", "N", D] | None = None,
    turned: Annotated[Tensor, HALF, "B", "H", "N", D] | None = None,
    k_scale: Annotated[Tensor, f32, "KS"] | None = None,
    v_scale: Annotated[Tensor, f32, "VS"] | None = None,
    *,
    config: Any = None,
    plain: Any = (),
) -> None:
    """Rows of `k` and `v` into the caches; `turned` = rotary(q). config: how rows that turn are read, see `rotary`;
    plain: layouts of keys and values that do not.
    """
    heads = k.depth + (0 if q is None else q.depth)
    blocks = pk.cdiv(heads * k.rows, WARPS)
    batch, one = pk.block_index.x // blocks, pk.block_index.x % blocks * WARPS + warp.index
    head, row = one // k.rows, one % k.rows
    position = lengths[batch] - k.rows + row
    place, to, capacity = batch + 0, position + 0, k_cache.rows
    if page_table is not None:
        capacity = page_table.cols * k_cache.rows
        i = pk.maximum(pk.minimum(position // k_cache.rows, page_table.cols - 1), 0)
        place, to = page_table[batch, i], position - i * k_cache.rows
    mine = head < k.depth
    fits = (position >= 0) & (position < capacity) & (place >= 0) & (place < k_cache.batch)
    pk.assert_(~mine | fits, "there is no place in the cache for a row, or a page number is out of range")
    place = pk.where(fits, place, 0)

    def load(x: Any, head: Any, col: int, cols: int, layout: Any, dtype: Any = f32) -> Any:
        at, within = pk.at(batch, head, row, col), (row, row + 1)
        return warp.load(x, at, rows=32 // layout.lanes, cols=cols, layout=layout, dtype=dtype, within=within)

    def rotated(x: Any, head: Any) -> list[tuple[int, Any]]:
        """The row in pieces, with their first columns."""
        if cos is None or sin is None:
            return [(0, load(x, head, 0, x.cols, plain[0], x.dtype))]
        half, layout, tables = config.r // 2, config.turning, (cos, sin)
        angles = pk.coalesced(layout.lanes, layout.width // 2) if config.interleaved else layout
        c, s = (
            warp.load(
                t, pk.at(pk.maximum(position, 0), 0), rows=32 // angles.lanes, cols=half, layout=angles, dtype=f32
            )
            for t in tables
        )
        c = pk.where(position < tables[0].rows, c, 1.0)  # past the tables nothing turns; zeros would take the key away
        if config.interleaved:
            a, b = load(x, head, 0, config.r, layout).split_pairs()
            pieces = [(0, pk.join_pairs(pk.fma(a, c, -(b * s)), pk.fma(b, c, a * s)))]
        else:
            a, b = (load(x, head, first, half, layout) for first in (0, half))
            pieces = [(0, pk.fma(a, c, -(b * s))), (half, pk.fma(b, c, a * s))]
        if config.r < config.d:
            held = x.dtype if config.passing.width > 1 else f32  # of 16 bits, registers hold pairs
            pieces.append((config.r, load(x, head, config.r, config.d - config.r, config.passing, held)))
        return pieces

    def put(target: Any, pieces: list[tuple[int, Any]], batch: Any, head: Any, row: Any, scales: Any = None) -> None:
        for col, x in pieces:
            if scales is not None:
                x = x.to(f32) / scales[pk.minimum(head, scales.cols - 1)]
            held = f32 if target.dtype is e4m3 else target.dtype  # registers hold no 8-bit floats
            warp.store(target, x.to(held), pk.at(batch, head, row, col), within=(row, row + 1))

    with pk.when(mine & fits):
        put(k_cache, rotated(k, head), place, head, to, k_scale)
        put(v_cache, [(0, load(v, head, 0, v.cols, plain[1], v.dtype))], place, head, to, v_scale)
    if q is not None:
        with pk.when((head >= k.depth) & (head < heads)):
            put(turned, rotated(q, head - k.depth), batch, head - k.depth, row)


def call(
    k: Any,
    v: Any,
    caches: tuple[Any, Any],
    lengths: Any,
    table: Any,
    angles: tuple[Any, Any],
    q: Any,
    scales: tuple[Any, Any],
    turned: Any,
    interleaved: bool,
) -> KernelCall:
    """What writes the rows, for operands that `check` takes."""
    _look(lengths, table, k.shape[2], caches[0].shape)
    k, v, q = (x if x is None or loadable(arrays.describe(x)) else arrays.dense_copy(x, "rows") for x in (k, v, q))
    cos, sin = (None if x is None else operand(matrix(x, "cos")[0]) for x in angles)
    d, config = k.shape[3], None
    if cos is not None and sin is not None:
        align = alignment(*(View(x, x.shape, arrays.describe(x).strides) for x in (cos, sin)))
        size = DTYPES[arrays.describe(cos).dtype].size
        config = rotary.plan(d, 2, min(16, align * 2 // size), 2 * cos.shape[1], interleaved)
    plain = tuple(rotary.layout_of(x.shape[3], 8) for x in (k, v))
    operands = (k, v, *caches, lengths, table, cos, sin, q, turned, *map(vector, scales))
    return KernelCall(append, operands, {"config": config, "plain": plain})


def _look(lengths: Any, table: Any, n: int, cache: tuple[int, ...]) -> None:
    """Raises `ArgumentError` where a row has no place, as far as that may be looked at."""
    if (ends := values_of(lengths)) is None:
        return
    capacity = cache[2] * (1 if table is None else table.shape[1])
    if ((ends < n) | (ends > capacity)).any():
        fact = f"cache_append: lengths are {ends.tolist()} for {n} new rows and a cache of {capacity}"
        raise ArgumentError(fact, fix="pass how many keys each sequence has, the new ones included")
    if table is not None and (pages := values_of(table)) is not None:
        at = (ends[:, None] - n + np.arange(n)) // cache[2]
        numbers = np.take_along_axis(pages, at, 1)
        if (wrong := (numbers < 0) | (numbers >= cache[0])).any():
            i, j = (int(x[0]) for x in np.nonzero(wrong))
            fact = f"cache_append: page {at[i, j]} of sequence {i} is number {numbers[i, j]} of {cache[0]} pages"
            raise ArgumentError(fact, fix=f"the numbers of pages in use are from 0 to {cache[0] - 1}")
        rows = (numbers.astype(np.int64) * cache[2] + (ends[:, None] - n + np.arange(n)) % cache[2]).ravel()
        places, counts = np.unique(rows, return_counts=True)
        if (counts > 1).any():
            page, row = divmod(int(places[counts.argmax()]), cache[2])
            fact = f"cache_append: row {row} of page {page} is where several new rows go"
            raise ArgumentError(fact, fix="give each sequence pages of its own to write")


def check(infos: dict[str, ArrayInfo | None]) -> None:
    """One `ArgumentError` for what the kernel does not take."""
    k, v, k_cache, v_cache, lengths, table, cos, sin, q, *scales = infos.values()
    assert k and v and k_cache and v_cache and lengths
    shapes = [x.shape for x in (k, v, k_cache, v_cache)]
    problem = ""
    if any(len(x) != 4 for x in shapes):
        fix = "k and v have four dimensions, batch, key heads, rows, head dimension; caches as many"
    elif (
        k.dtype not in ("bf16", "f16")
        or v.dtype != k.dtype
        or k_cache.dtype != v_cache.dtype
        or k_cache.dtype not in (k.dtype, "e4m3")
    ):
        problem, fix = (
            "these dtypes are not supported",
            "pass k and v as bf16 or f16, caches as the same or as e4m3",
        )
    elif bad := eight_bits(k_cache, v_cache, *scales):
        problem, fix = bad
    elif k.shape[:3] != v.shape[:3] or any(x[3] % 8 for x in shapes):
        problem, fix = "the shapes do not go together", "pass rows of one shape, with a multiple of 8 elements each"
    elif k_cache.shape[:3] != v_cache.shape[:3] or any(
        x.shape[1] != y.shape[1] or x.shape[3] != y.shape[3] for x, y in ((k, k_cache), (v, v_cache))
    ):
        problem, fix = "the shapes do not go together", "caches have the key heads and the head dimensions of the rows"
    elif table is None and k_cache.shape[0] != k.shape[0]:
        problem, fix = "the batches differ", "pass caches with the batch of the rows, or a page_table"
    elif not all(map(loadable, (k_cache, v_cache))):
        problem, fix = "a cache has rows that are not contiguous", "pass rows of contiguous elements, at 16 bytes"
    elif lengths.dtype != "i32" or tuple(lengths.shape) != (k.shape[0],):
        problem, fix = f"lengths are {lengths.dtype} {tuple(lengths.shape)}", f"pass i32 ({k.shape[0]},)"
    elif table is not None and (table.dtype != "i32" or len(table.shape) != 2 or table.shape[0] != k.shape[0]):
        problem = f"the page_table is {table.dtype} {tuple(table.shape)}"
        fix = f"pass a row of 32-bit page numbers for each sequence, ({k.shape[0]}, pages)"
    elif (cos is None) != (sin is None) or (q is not None and cos is None):
        problem, fix = "angles are missing", "pass cos and sin, or neither of them nor q"
    elif (
        cos is not None
        and sin is not None
        and (
            len(cos.shape) != 2
            or cos.shape != sin.shape
            or not 0 < 2 * cos.shape[1] <= k.shape[3]
            or cos.dtype != sin.dtype
        )
    ):
        problem = f"cos is {cos.dtype} {tuple(cos.shape)}, sin {sin.dtype} {tuple(sin.shape)}"
        fix = f"pass two tables (positions, r / 2), r at most {k.shape[3]}, of one dtype"
    elif q is not None and (
        len(q.shape) != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or q.dtype != k.dtype
    ):
        problem, fix = (
            f"q is {q.dtype} {tuple(q.shape)}",
            "pass queries at the positions of the keys, (batch, heads, n, d)",
        )
    else:
        return
    names = ("k", "v", "k_cache", "v_cache")
    said = ", ".join(f"{name} {infos[name].dtype} {tuple(infos[name].shape)}" for name in names)  # type: ignore[union-attr]
    raise ArgumentError(f"cache_append of {said}" + (f": {problem}" if problem else ""), fix=fix)


def reference(
    k: np.ndarray,
    lengths: np.ndarray,
    cos: np.ndarray | None = None,
    sin: np.ndarray | None = None,
    scale: Any = 1.0,
    **settings: Any,
) -> np.ndarray:
    """The rows of keys in float64, turned by the angles of their positions, over a scale (of each key head)."""
    from .rotary import reference as turn

    out, n = k.astype(np.float64), k.shape[2]
    for i, length in enumerate(lengths):
        if cos is not None and sin is not None:
            at = np.arange(length - n, length)[:, None]
            c, s = (
                np.where(at < len(x), x[np.minimum(at[:, 0], len(x) - 1)], past) for x, past in ((cos, 1), (sin, 0))
            )
            out[i] = turn(k[i], c, s, **settings)
    return out / np.reshape(scale, (-1, 1, 1))
