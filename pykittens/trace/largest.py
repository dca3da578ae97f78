"""The largest elements of rows or columns, wherever they lie: within a warp at once, in several warps by keys that are
reduced like other integers. Of int64, which fills a key, first the element, then the first place where it stands.
"""

from __future__ import annotations

from typing import Any, Literal

from ..ops.fill import Fill, Positions
from ..ops.masks import Select
from ..ops.sort_keys import FromKeys, SortKeys
from ..ops.top_k import TopK, check_count, spread
from ..types import RegisterTile, i32, i64, with_dtype
from .recorder import record, result, scope_of

LEAST = -(2**63)  # below all keys


def best(x: Any, k: int, to: Literal["col", "row"], largest: bool = True) -> tuple[Any, ...]:
    """The `k` largest (smallest) elements of each row ("col") or column ("row") of `x`, then their places."""
    type = x.type
    if isinstance(type, RegisterTile) and type.dtype is i64:
        return _of_int64(x, k, to, largest)
    if not (isinstance(type, RegisterTile) and spread(type, to)):
        return record(TopK(scope_of(type.warps), x, k, to, largest)).results
    scope, found, top = scope_of(type.warps), [], None
    keys = result(SortKeys(scope, x, to, largest))
    for _ in range(check_count(k, type.cols if to == "col" else type.rows)):
        if top is not None:
            keys = result(Select(scope, keys < top, keys, LEAST))
        top = keys.row_max() if to == "col" else keys.col_max()
        found.append(record(FromKeys(scope, top, type.dtype, largest)).results)
    return (*(value for value, _ in found), *(place for _, place in found))


def _of_int64(x: Any, k: int, to: Literal["col", "row"], largest: bool) -> tuple[Any, ...]:
    scope, type, last = scope_of(x.type.warps), x.type, 2**31 - 1

    def reduced(tile: Any, kind: str) -> Any:
        return getattr(tile, f"{'row' if to == 'col' else 'col'}_{kind}")()

    values, places = [], []
    free = result(Fill(scope, with_dtype(type, i32), 0))  # the place of each element, `last` of those that are taken
    free = free + result(Positions(scope, type.vector("row" if to == "col" else "col", i32)))
    for _ in range(check_count(k, type.cols if to == "col" else type.rows)):
        values.append(reduced(x, "max" if largest else "min"))
        places.append(reduced(result(Select(scope, x == values[-1], free, last)), "min"))
        taken = free == places[-1]
        free = result(Select(scope, taken, last, free))
        x = result(Select(scope, taken, LEAST if largest else -1 - LEAST, x))
    return (*values, *places)
