"""What a block of an attention goes through: tiles of queries, and for each the tiles of keys that it sees, or the
other way round. Which those are says a band (`band.py`), or a list that was made of a mask:

    lists: pk.gl(i32, "B", "H", "T", "L")     # of T rows of tiles; B and H may be 1: the same for all

A list has L = 2 + tiles elements: how many tiles are seen as a whole, how many in part, then the whole ones by number,
and from the end backwards those seen in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from ..program import Operand
from . import flow
from .band import Band, Span
from .dynamic import dynamic
from .elementwise import maximum, minimum, where
from .packed import packed, stretch
from .scalar import cdiv
from .schedule import rectangle, to_and_fro, triangle

Hidden = Literal["", "any", "before", "after"]  # which keys: those before what a query sees, those after it


class TileList:
    """The list of one row of tiles; its places are those of `span`. parts_first: tiles seen in part come first in it,
    else last.
    """

    def __init__(self, lists: Any, batch: Operand, head: Operand, row: Operand, parts_first: bool = False):
        self.lists, self.parts_first = lists, parts_first
        self.at = (minimum(batch, lists.batch - 1), minimum(head, lists.depth - 1), row)
        self.whole, self.parts = (lists[(*self.at, i)] for i in (0, 1))
        self.count = self.whole + self.parts

    @property
    def span(self) -> Span:
        """The places of the list, as a `pk.band` has those of its tiles."""
        if self.parts_first:
            return Span(0, self.parts, self.count, self.count)
        return Span(0, 0, self.whole, self.count)

    def __getitem__(self, place: Any) -> Any:
        """The number of the tile at a place."""
        if self.parts_first:
            at = where(place < self.parts, self.lists.cols - 1 - place, 2 + place - self.parts)
        else:
            at = where(place < self.whole, 2 + place, self.lists.cols - 1 - (place - self.whole))
        return self.lists[(*self.at, at)]


class Work(NamedTuple):
    """A tile of queries: where it is, and which tiles of keys it sees."""

    block: Any
    head: Any
    batch: Any
    sequence: Any
    part: Any  # of the keys
    queries: Any  # the rows of its sequence
    keys: Any
    band: Any
    span: Any
    real: Any = True  # False for a part without keys
    listed: TileList | None = None  # the tiles of keys, whose places in it `span` then has

    def tile(self, place: Any) -> Any:
        """The number of a tile of keys."""
        return place if self.listed is None else self.listed[place]

    def divided(self, splits: Any) -> Work:
        """The tiles of keys that this part has: one at least, though it may be another part's."""
        begin, count = self.span.begin, self.span.end - self.span.begin
        first, end = begin + self.part * count // splits, begin + (self.part + 1) * count // splits
        clear, full = maximum(self.span.clear, first), maximum(self.span.full, first)
        span = self.span._replace(begin=first, clear=clear, full=full, end=maximum(end, first + 1))
        return self._replace(span=span, real=end > first)

    def every_tile(self) -> Iterator[Any]:
        """The tiles of keys, the last first: it needs the mask."""
        for place in flow.range(self.span.end - 1, self.span.begin - 1, -1):
            yield self.tile(place)

    def last_tile(self) -> Any:
        """The first of them in that order, which may always need a mask."""
        return self.tile(self.span.end - 1)

    def other_tiles(self) -> Iterator[tuple[Any, Hidden]]:
        """Those after it, and which of their keys may be hidden."""
        span, low = self.span, self.band.low is not None and self.listed is None
        if self.band.high is not None or self.listed is not None:
            last = maximum(span.full, span.begin) if low else span.full
            for place in flow.range(span.end - 2, last - 1, -1):
                yield self.tile(place), "any"
        for place in flow.range(minimum(span.end - 2, span.full - 1), span.clear - 1, -1):
            yield self.tile(place), ""
        if low:
            for place in flow.range(minimum(span.end - 2, minimum(span.full, span.clear) - 1), span.begin - 1, -1):
                yield self.tile(place), "before"


class QueryTiles:
    """The tiles of `rows` queries that each block of an attention has, one after another.

    left, right: the sides of the window; stay: whether blocks do (else each has one tile); q_offsets and k_offsets: of
    packed sequences, or None; splits: into how many parts the keys of a tile are divided, or None; lists: see
    `TileList`, or None; room: rows of keys and values that L2 holds; order: packed sequences' tiles one after another,
    and whose each is; counter: of `pk.dynamic`, from which blocks that stay take them; head_rows: queries of each of
    the heads that q has one after another as one, or None.
    """

    def __init__(
        self,
        q: Any,
        k: Any,
        rows: int,
        keys: int,
        *,
        left: Any = None,
        right: Any = None,
        stay: bool = False,
        q_offsets: Any = None,
        k_offsets: Any = None,
        splits: Any = None,
        lists: Any = None,
        order: Any = None,
        counter: Any = None,
        room: int = 0,
        head_rows: Any = None,
    ):
        self.q, self.k, self.rows, self.keys, self.left, self.right, self.stay = q, k, rows, keys, left, right, stay
        self.q_offsets, self.k_offsets, self.splits, self.lists = q_offsets, k_offsets, splits, lists
        self.order, self.room, self.head_rows = order, room, head_rows
        self.triangular = left is None and right is not None and lists is None and head_rows is None
        # Whoever comes takes the longest tile that is left: with an end on the right, that of the last rows.
        self.turned = (self.triangular and not stay) if counter is None else right is not None
        if counter is None:
            self.work = None
        else:
            tiles = cdiv(q.rows, rows) * q.batch if q_offsets is None else packed(q_offsets).tiles(q.rows, rows)
            self.work = dynamic(counter, tiles * q.depth)

    def __iter__(self) -> Iterator[Work]:
        return self._dense() if self.q_offsets is None else self._packed()

    def _dense(self) -> Iterator[Work]:
        q, k, rows, keys, splits = self.q, self.k, self.rows, self.keys, self.splits
        several, causal = self.head_rows is not None, isinstance(self.right, int) and self.right == 0
        band = Band(self.head_rows if several else q.rows, k.rows, self.left, self.right, several)
        all_q, all_k, tiles = stretch(q), stretch(k), cdiv(q.rows, rows)
        count = q.depth * q.batch if splits is None else q.depth * q.batch * splits
        if self.triangular and not self.turned:
            walk = triangle(tiles, count)
        elif self.left is not None and causal and self.stay and self.work is None and self.lists is None:
            walk = to_and_fro(tiles, count)
        else:
            walk = rectangle(tiles, count, self._together() if self.turned else 1, self._taken())
        for tile, head, real in walk:
            block = tiles - 1 - tile if self.turned else tile
            batch, part = head // q.depth, 0
            if splits is not None:
                batch, part = batch % q.batch, batch // q.batch
            listed = None if self.lists is None else TileList(self.lists, batch, head % q.depth, block)
            span = band.key_tiles(block * rows, rows, keys, real) if listed is None else listed.span
            work = Work(block, head % q.depth, batch, batch, part, all_q, all_k, band, span, listed=listed)
            yield work if splits is None else work.divided(splits)

    def _packed(self) -> Iterator[Work]:
        """Where sequences lie one after another; some numbers of tiles are nobody's."""
        rows, q_rows, k_rows = self.rows, packed(self.q_offsets), packed(self.k_offsets)
        tiles = q_rows.tiles(self.q.rows, rows)
        if self.work is None:
            walk = ((tile, head) for tile, head, _ in rectangle(tiles, self.q.depth))
        else:
            walk = ((number % tiles, number // tiles) for number in self._taken())
        for place, head in walk:
            tile, i = (place, q_rows.find(place, rows)) if self.order is None else self._ordered(place, q_rows.count)
            mine, theirs = q_rows[i], k_rows[i]
            place, count = tile - q_rows.first(i, rows), cdiv(mine.rows, rows)
            for _ in flow.range(where((place >= 0) & (place < count), 1, 0)):
                block = count - 1 - place if self.triangular or self.turned else place
                band = Band(mine.rows, theirs.rows, self.left, self.right)
                listed = None if self.lists is None else TileList(self.lists, 0, head, tile - place + block)
                span = band.key_tiles(block * rows, rows, self.keys) if listed is None else listed.span
                yield Work(block, head, 0, i, 0, mine, theirs, band, span, listed=listed)

    def _together(self) -> Any:
        """The heads of which L2 holds what tiles of the same rows see: their longest tiles are taken first."""
        q, k, right = self.q, self.k, self.right
        seen = k.rows
        if self.left is not None:  # each side by itself: together they may be more than 32 bits hold
            seen = minimum(seen, minimum(self.left, seen) + minimum(right, seen) + self.rows)
        return maximum(self.room // maximum(seen, 1), 1) * (q.depth // k.depth)

    def _taken(self) -> Any:
        """Numbers of tiles, or None without a counter: the role that asks first takes them, and hands them on."""
        return None if self.work is None else self.work if self.work.taken else self.work.take()

    def _ordered(self, place: Any, sequences: Any) -> tuple[Any, Any]:
        """The tile at a place, and its sequence: one that exists, whatever offsets made of the order."""
        return self.order[0, place], maximum(minimum(self.order[1, place], sequences - 1), 0)


class Share:
    """Of the work on a tile of keys, what block number `which` has, where several divide it: one of `heads` parts of
    the heads, and of that one of `queries` parts of the queries. `owner`: (head of the keys, batch).

    sums: where their sums go, (gradients * heads * B, queries * G, tiles, elements), for k (B, G, M, D); None if each
    tile is one block's.
    """

    def __init__(self, which: Any, k: Any, sums: Any, gradients: int = 2):
        self.k, self.whole = k, sums is None
        if not self.whole:
            self.heads, self.queries = sums.batch // (gradients * k.batch), sums.depth // k.depth
            self.head, self.query = which // self.queries % self.heads, which % self.queries
            which = which // (self.queries * self.heads)
        self.owner = which % k.depth, which // k.depth

    @staticmethod
    def count(k: Any, sums: Any, gradients: int = 2) -> Any:
        """How many blocks there are for the same tile of all heads of keys."""
        return k.depth * k.batch if sums is None else sums.depth * sums.batch // gradients

    def place(self, gradient: int, tile: Any) -> tuple[Any, ...]:
        """Where in the sums those of a tile are."""
        head, batch = self.owner
        part = (gradient * self.heads + self.head) * self.k.batch + batch
        return part, self.query * self.k.depth + head, tile, 0

    def heads_of(self, count: Any) -> tuple[Any, Any]:
        """The first of `count` heads that it has, and the one behind its last."""
        return (0, count) if self.whole else _part(self.head, self.heads, count)

    def queries_of(self, first: Any, end: Any) -> tuple[Any, Any]:
        """The same of the tiles of queries from `first` to `end`."""
        if self.whole:
            return first, end
        begin, last = _part(self.query, self.queries, maximum(end - first, 0))
        return first + begin, first + last


def _part(i: Any, parts: Any, count: Any) -> tuple[Any, Any]:
    return i * count // parts, (i + 1) * count // parts


class KeyTile:
    """The tiles of `rows` queries that see a tile of `keys` keys, of the heads that share it.

    share: gives what the block has of them, where that is asked for; exists: whether the tile has keys, unless it
    always does; lists: see `TileList` (those of keys), or None; line: which of the lists is the tile's, unless that of
    its number.
    """

    def __init__(
        self,
        band: Any,
        tile: Any,
        keys: int,
        rows: int,
        shared_by: Any,
        share: Callable[[], Share],
        exists: Any = None,
        lists: Any = None,
        line: Any = None,
    ):
        self.line = tile if line is None else line
        span = band.query_tiles(tile * keys, keys, rows)  # those from clear to full see all of these keys
        if exists is not None:
            span = span._replace(end=where(exists, span.end, span.begin))
        self.heads = share().heads_of(shared_by)
        begin, end = share().queries_of(span.begin, span.end)
        span = span._replace(begin=begin, end=end)
        clear = where(tile * keys + keys <= band.keys, maximum(minimum(span.clear, span.end), span.begin), span.end)
        full = span.end if band.low is None else maximum(minimum(span.full, span.end), clear)
        self.span, self.two_sided = span._replace(clear=clear, full=full), band.low is not None
        self.tile, self.shared_by, self.share, self.lists = tile, shared_by, share, lists

    def listed(self, h: Any) -> TileList:
        """The list of the h-th head that shares the keys."""
        head, batch = self.share().owner
        return TileList(self.lists, batch, head * self.shared_by + h, self.line, parts_first=True)

    def every_tile(self) -> Iterator[tuple[Any, Any, Any]]:
        """Head after head: (batch, head, tile)."""
        head, batch = self.share().owner
        first, last = self.heads
        if self.lists is None:
            for h in flow.range(head * self.shared_by + first, head * self.shared_by + last):
                for j in flow.range(self.span.begin, self.span.end):
                    yield batch, h, j
            return
        for h in flow.range(first, last):
            found = self.listed(h)
            for place in flow.range(found.count):
                yield batch, head * self.shared_by + h, found[place]

    def tiles_of(self, h: Any) -> Iterator[tuple[Any, bool]]:
        """Those of the h-th head, and whether some of their queries may not see some of the keys."""
        if self.lists is not None:
            found = self.listed(h)
            for place in flow.range(found.parts):
                yield found[place], True
            for place in flow.range(found.parts, found.count):
                yield found[place], False
            return
        for j in flow.range(self.span.begin, self.span.clear):
            yield j, True
        for j in flow.range(self.span.clear, self.span.full):
            yield j, False
        if self.two_sided:
            for j in flow.range(self.span.full, self.span.end):
                yield j, True
