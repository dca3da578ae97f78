"""Which keys the queries of an attention see: a band along the diagonal that ends at the last query and the last key.

With both sides unlimited it is the whole matrix, with `right` 0 the lower triangle (causal), with both sides given a
sliding window. A kernel asks which tiles it must visit, which of them need no mask, and what the others' mask is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..program import Operand
from .elementwise import col_index, maximum, minimum, row_index, where
from .scalar import cdiv


class Span(NamedTuple):
    """Tiles from `begin` to `end` (excluded) hold something that is seen; those from `clear` to `full` nothing else."""

    begin: Any
    clear: Any
    full: Any
    end: Any


class Band:
    """Query i of n sees the keys from i + m - n - left to i + m - n + right of m; a side that is None is unlimited.

    repeats: there are several heads' queries one after another, and query i is a head's query i % n.
    """

    def __init__(
        self,
        queries: Operand,
        keys: Operand,
        left: Operand | None = None,
        right: Operand | None = None,
        repeats: bool = False,
    ):
        self.queries, self.keys, self.repeats = queries, keys, repeats
        self.diagonal: Any = keys - queries  # query i stands at key i + diagonal
        self.low: Any = None if left is None else self.diagonal - left
        self.high = None if right is None else self.diagonal if _zero(right) else self.diagonal + right

    def key_tiles(self, query: Operand, queries: int, keys: int, real: Operand = 1) -> Span:
        """The tiles of `keys` keys that the `queries` queries from `query` on see: one at least, whatever it holds.

        real: 0 for queries that do not exist (see `pk.triangle`), which have that one.
        """
        clear, full = 0, self.keys
        begin, end = self.key_range(query, queries, keys, real)
        first, behind = self._of_head(query, queries)
        if self.high is not None:
            full = minimum(first + self.high + 1, self.keys)  # keys that the first query sees
        if self.low is not None:
            clear = cdiv(maximum(behind - 1 + self.low, 0), keys)
        return Span(begin, clear, maximum(full, 0) // keys, end)

    def key_range(self, query: Operand, queries: int, keys: int, real: Operand = 1) -> tuple[Any, Any]:
        """The first of `key_tiles`, and the one behind the last; of vectors of lengths, too."""
        begin, end = 0, self.keys
        first, behind = self._of_head(query, queries)
        if self.high is not None:
            end = minimum(behind + self.high, self.keys)  # that the last query sees
        if self.low is not None:
            begin = maximum(first + self.low, 0) // keys
        return begin, maximum(cdiv(end, keys) * real, begin + 1)

    def _of_head(self, query: Operand, queries: int) -> tuple[Any, Any]:
        """The first and the one behind the last of the queries from `query` on; all of a head where two heads meet."""
        if not self.repeats:
            return query, query + queries
        first = query % self.queries
        both = first + queries > self.queries
        return where(both, 0, first), where(both, self.queries, first + queries)

    def _at(self, tile: Any, query: Operand, more: Operand) -> Any:
        """`more` than the queries of a tile's rows."""
        if self.repeats:
            return (row_index(tile) + query) % self.queries + more
        return row_index(tile) + (query + more)

    def query_tiles(self, key: Operand, keys: int, queries: int) -> Span:
        """The tiles of `queries` queries that see some of the `keys` keys from `key` on; perhaps none."""
        tiles = cdiv(self.queries, queries)
        begin, clear, full, end = 0, 0, tiles, tiles
        if self.high is not None:
            begin = maximum(key - self.high, 0) // queries
            clear = cdiv(maximum(key + keys - 1 - self.high, 0), queries)
        if self.low is not None:
            full = maximum(key + 1 - self.low, 0) // queries
            end = minimum(maximum(key + keys - 1 - self.low + queries, 0) // queries, tiles)
        return Span(begin, clear, full, end)

    def turn(self, tile: Operand, queries: int, key_tile: Operand, keys: int, key_tiles: Operand) -> Operand:
        """How many of `key_tiles` tiles of keys come before `key_tile` to a tile of queries which it sees, where they
        take turns: by increasing keys, or decreasing ones if the right side is limited.
        """
        if self.high is not None:
            return minimum((tile * queries + queries - 1 + self.high) // keys, key_tiles - 1) - key_tile
        return key_tile if self.low is None else key_tile - maximum(tile * queries + self.low, 0) // keys

    def sees(self, tile: Any, query: Operand, key: Operand, side: str = "any", down: bool = False) -> Any:
        """A bool tile like `tile`, whose rows are queries from `query` on and whose columns keys from `key` on.

        side: "before" hides only keys before what a query sees, "after" only those after it. down: the rows are keys,
        and the columns queries.
        """
        if side == "before":
            return col_index(tile) >= self._at(tile, query, self.low - key)
        if down:
            position = row_index(tile) + key
            seen = position < self.keys
            if self.high is not None:
                seen = seen & (position - (query + self.high) <= col_index(tile))
            if self.low is not None:
                seen = seen & (position - (query + self.low) >= col_index(tile))
            return seen
        last = self.keys - 1
        if self.high is not None:
            last = minimum(self._at(tile, query, self.high), last)
        seen = col_index(tile) <= last - key
        if self.low is not None and side != "after":
            seen = seen & self.sees(tile, query, key, "before")
        return seen


def band(queries: Operand, keys: Operand, *, left: Operand | None = None, right: Operand | None = None) -> Band:
    """Query i of n `queries` sees the keys from i + m - n - `left` to i + m - n + `right` of m `keys`; a side that is
    None is unlimited.
    """
    return Band(queries, keys, left, right)


def _zero(x: Operand) -> bool:
    return isinstance(x, int) and x == 0
