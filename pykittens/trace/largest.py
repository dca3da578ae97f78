"""The largest elements of rows or columns, wherever they lie: within a warp at once, in several warps by keys that are
reduced like other integers.
"""

from __future__ import annotations

from typing import Any, Literal

from ..ops.masks import Select
from ..ops.sort_keys import FromKeys, SortKeys
from ..ops.top_k import TopK, check_count, spread
from ..types import RegisterTile
from .recorder import record, result, scope_of

LEAST = -(2**63)  # below all keys


def best(x: Any, k: int, to: Literal["col", "row"], largest: bool = True) -> tuple[Any, ...]:
    """The `k` largest (smallest) elements of each row ("col") or column ("row") of `x`, then their places."""
    type = x.type
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
