"""Lists of the tiles of scores in which a mask lets something be seen: what attention's kernels go through.

    seen[i, j] = mask(batch, head, i, j) and within the window

n queries and m keys, in tiles of `rows` x `cols`. A list for each row of tiles, or with `down` for each column (see
`trace/visits.py`), int32; where the mask asks for neither batch nor head, one for all. A block makes a list: its
warps count what each tile shows, then find each tile's place, which is how many of its kind come before. A row of tiles
that shows nothing has one tile, in part, as its queries must know of nothing. Of packed sequences rows and columns of
tiles are numbered as `pk.packed` does, and the tiles of a list are its sequence's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp

from ..interop import arrays
from ..trace.scoring import TABLES, Scoring, Where

WARPS, HEIGHT, CHUNK = 8, 16, 128
NOTHING, PART, WHOLE = 0, 1, 2


@pk.kernel(warps=WARPS, grid=lambda lists, **_: (lists.rows, lists.depth, lists.batch))
def list_tiles(
    lists: Annotated[Tensor, i32, "B", "H", "T", "L"],
    kinds: Annotated[Tensor, i32, "B", "H", "T", "K"],
    n: Annotated[Scalar, i32],
    m: Annotated[Scalar, i32],
    left: Annotated[Scalar, i32] | None = None,
    right: Annotated[Scalar, i32] | None = None,
    o0: Annotated[Tensor, TABLES, "A0", "B0", "C0", "D0"] | None = None,
    o1: Annotated[Tensor, TABLES, "A1", "B1", "C1", "D1"] | None = None,
    o2: Annotated[Tensor, TABLES, "A2", "B2", "C2", "D2"] | None = None,
    o3: Annotated[Tensor, TABLES, "A3", "B3", "C3", "D3"] | None = None,
    q_offsets: Annotated[Tensor, i32, "S"] | None = None,
    k_offsets: Annotated[Tensor, i32, "S"] | None = None,
    *,
    scoring: Scoring,
    causal: bool,
    rows: int,
    cols: int,
    down: bool = False,
) -> None:
    """Writes `lists`; `kinds` is scratch, of a number for each tile."""
    line, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    own, sequence, tiles = line, batch, kinds.cols
    if q_offsets is not None:
        height, packed = (cols, pk.packed(k_offsets)) if down else (rows, pk.packed(q_offsets))
        sequence = packed.find(line, height)
        own = line - packed.first(sequence, height)
        n, m = (pk.packed(x)[sequence].rows for x in (q_offsets, k_offsets))
        tiles = pk.where(own * height < (m if down else n), pk.cdiv(n, rows) if down else pk.cdiv(m, cols), 0)
    band = pk.band(n, m, left=left, right=0 if causal else right)

    def share() -> Any:
        """The tiles of this warp: their numbers."""
        for i in pk.range(pk.cdiv(tiles - warp.index, WARPS)):
            yield i * WARPS + warp.index

    for j in share():
        query, key = (j * rows, own * cols) if down else (own * rows, j * cols)
        count = pk.var(f32, 0.0)  # of fewer than 2**24
        for i in pk.range(rows // HEIGHT):
            ones, first = warp.ones(f32, HEIGHT, cols), query + i * HEIGHT
            seen = scoring.seen(ones, Where(sequence, head, first, key), (o0, o1, o2, o3))
            inside = band.sees(ones, first, key) & (pk.row_index(ones) < n - first)
            count.set(count + pk.where(seen, pk.where(inside, ones, 0.0), 0.0).col_sum().sum())
        seen, whole = pk.cast(count, i32), pk.maximum(pk.minimum(rows, n - query), 0) * cols
        warp.set(kinds, (batch, head, line, j), pk.where(seen == 0, NOTHING, pk.where(seen < whole, PART, WHOLE)))
    pk.block.sync()

    def before(kind: Any, tile: Any) -> Any:
        """How many tiles of a kind come before one."""
        found = pk.var(i32, 0)
        for i in pk.range(pk.cdiv(tile, CHUNK)):
            some = warp.load_vec(kinds, (batch, head, line, i), length=CHUNK)
            counted = (some == kind) & (pk.iota(some) < tile - i * CHUNK)
            found.set(found + pk.where(counted, 1, 0).sum())
        return found + 0

    for j in share():
        kind = kinds[batch, head, line, j]
        with pk.when(kind != NOTHING):
            place = before(kind, j)
            at = pk.where(kind == WHOLE, 2 + place, lists.cols - 1 - place)
            warp.set(lists, (batch, head, line, at), j)
    with pk.when(warp.index == 0):
        whole, parts = (before(kind, tiles) for kind in (WHOLE, PART))
        alone = (whole + parts == 0) & (not down)
        with pk.when(alone):
            warp.set(lists, (batch, head, line, lists.cols - 1), 0)
        warp.set(lists, (batch, head, line, 0), whole)
        warp.set(lists, (batch, head, line, 1), pk.where(alone, 1, parts))


@dataclass(frozen=True)
class Lists:
    """How the lists of a call are made. alike: whether all of a batch, and all heads, have the same; tables: the
    operands of score and mask, with four dimensions; offsets: where packed sequences begin, of queries and of keys."""

    scoring: Scoring
    scores: Any
    alike: tuple[bool, bool]
    tables: Sequence[Any]
    offsets: tuple[Any, Any] = (None, None)

    def __call__(self, q: Any, k: Any, rows: int, cols: int, down: bool = False) -> Any:
        """Those for tiles of rows x cols of the scores of q and k."""
        info, m = arrays.describe(q), k.shape[2]
        batch, heads, n, _ = info.shape
        across, along = -(-n // rows), -(-m // cols)
        lines, tiles = (along, across) if down else (across, along)
        if self.offsets[0] is not None:  # some numbers of tiles are nobody's
            lines = (m // cols if down else n // rows) + self.offsets[0].shape[0] - 1
        outer = (1 if self.alike[0] else batch, 1 if self.alike[1] else heads, lines)
        lists, kinds = (arrays.empty(info.kind, (*outer, x), "i32", info.device) for x in (2 + tiles, tiles))
        tables = [*self.tables, *[None] * (4 - len(self.tables))]
        how: Any = {"causal": self.scores.causal, "rows": rows, "cols": cols, "down": down}
        scoring = self.scoring._replace(score=None)
        list_tiles(lists, kinds, n, m, *self.scores.band[:2], *tables, *self.offsets, scoring=scoring, **how)
        return lists


@dataclass(frozen=True)
class Listed:
    """A forward kernel after that which makes its lists, its last operand: called as the kernel is, without them."""

    kernel: Any
    lists: Lists
    rows: int
    cols: int

    def __call__(self, q: Any, k: Any, *rest: Any, **static: Any) -> None:
        self.kernel(q, k, *rest, self.lists(q, k, self.rows, self.cols), **static)
