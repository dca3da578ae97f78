"""Scans of any associative operator, of one tile or several: `x.row_cumsum()` and its like are faster for theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from ..errors import TypeRuleError
from ..types import RegisterTile
from .elementwise import col_index, rolls, where
from .tile import Tile


def associative_scan(
    f: Callable[[Any, Any], Any],
    tiles: Tile | tuple[Tile, ...],
    *,
    along: Literal["row", "col"] = "row",
    reverse: bool = False,
) -> Any:
    """Each element of a row (`along` "row") or column ("col") of `tiles` combined by `f` with all before it; `reverse`:
    with all behind it.

    `tiles`: one tile of numbers, or several of one shape, which f combines together: f(a, b) is given what has
    been combined already and what comes next, each a tile or a tuple of tiles, and returns the like. It has to be
    associative; so is, for the recurrence h = g h + x, `lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])` of (g, x). It
    is traced for each doubling of the distance (Hillis and Steele, "Data parallel algorithms", 1986).

    Raises `TypeRuleError` for what is no tile, and for an f that returns other types than it is given.
    """
    several = isinstance(tiles, tuple)
    given: tuple[Any, ...] = tiles if isinstance(tiles, tuple) else (tiles,)
    if not given or not all(isinstance(x, Tile) and isinstance(x.type, RegisterTile) for x in given):
        raise TypeRuleError(f"a scan of {tiles!r}", fix="pass a register tile, or a tuple of them")
    if along not in ("row", "col"):
        raise TypeRuleError(f"a scan along {along!r}", fix='use along="row" or along="col"')
    own = given[0].type.layout
    lines = tuple(x.swap_layout("row") if along == "row" else x.transpose(layout="row") for x in given)
    length, col = lines[0].cols, col_index(lines[0])
    distance = 1
    while distance < length:
        before = tuple(rolls(x, (distance if reverse else length - distance,))[0] for x in lines)
        found = f(before if several else before[0], lines if several else lines[0])
        both = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if [getattr(x, "type", x) for x in both] != [x.type for x in lines]:
            listed = ", ".join(str(getattr(x, "type", repr(x))) for x in both)
            fix = f"return what it is given: {', '.join(str(x.type) for x in lines)}"
            raise TypeRuleError(f"the function of a scan returned {listed}", fix=fix)
        inside = col < length - distance if reverse else col >= distance
        lines = tuple(where(inside, new, old) for new, old in zip(both, lines, strict=True))
        distance *= 2
    out = tuple(x.swap_layout(own) if along == "row" else x.transpose(layout=own) for x in lines)
    return out if several else out[0]
