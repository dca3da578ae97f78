"""Pictures of what follows one after another: the tiles that each block of a schedule takes, and the phases of a ring.

    schedule("triangle", 8, 2, blocks=4)    # rows: blocks, columns: turns
    ring(3, 8)                              # rows: slots, columns: fills

A schedule is run, on the simulated GPU, by a kernel that writes down who took what.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, i32, warp

from ..errors import ArgumentError
from .picture import Picture, draw, parse

SCHEDULES = {"persistent": 1, "grouped": 3, "rectangle": 2, "triangle": 2}  # and how many numbers each takes
TURNS, MOST = 256, 256  # of a picture
EXAMPLES = (
    '"ring(3, 8)"',
    '"persistent(20, blocks=4)"',
    '"grouped(8, 6, 4, blocks=12)"',
    '"rectangle(5, 3, blocks=4)"',
    '"triangle(8, 2, blocks=4)"',
)


@pk.kernel(warps=1, grid=lambda found, **_: found.depth)
def write_down(found: Annotated[Tensor, i32, "P", pk.static("T"), 3], *, name: str, sizes: tuple[int, ...]) -> None:
    """found[block, turn] = tile, its second coordinate, and 1 (0 where there is none)."""
    turn = pk.var(i32, 0)
    for tile in getattr(pk, name)(*sizes):
        row, col, real = (
            (*(tile if isinstance(tile, tuple) else (tile,)), 0, 1)[:3] if name != "grouped" else (*tile, 1)
        )
        for i, x in enumerate((row, col, real)):
            warp.set(found, (pk.block_index.x, turn, i), x)
        turn.set(turn + 1)


def schedule(name: str, *sizes: int, blocks: int) -> Picture:
    """Who takes which tile when: `persistent(count)`, `grouped(rows, cols, group)`, `rectangle(rows, count)` or
    `triangle(rows, count)` of `pk`, on a GPU where so many `blocks` run at once.
    """
    found = np.full((blocks, TURNS, 3), -1, np.int32)
    write_down(found, name=name, sizes=sizes)
    turns = int((found[:, :, 2] >= 0).sum(1).max())
    found = found[:, :turns]
    pairs = name != "persistent"
    text = np.array([[_label(row, col, real, pairs) for row, col, real in block] for block in found.tolist()])
    colour = np.where(found[:, :, 2] > 0, found[:, :, 1 if name in ("rectangle", "triangle") else 0], 0)
    what = "row, matrix" if name in ("rectangle", "triangle") else "row, column" if pairs else "tile"
    title = f"{name}({', '.join(map(str, sizes))}) by {blocks} blocks"
    return Picture(title, f"{what} of each block (down) at each turn (across)", colour, text)


def _label(row: int, col: int, real: int, pairs: bool) -> str:
    return "" if real <= 0 else f"{row},{col}" if pairs else str(row)


def ring(slots: int, fills: int) -> Picture:
    """Which tile each slot of a `pk.ring` holds after each fill, and the parity of the phase that readers wait for."""
    shape = (slots, fills)
    text, colour = np.full(shape, "", "<U12"), np.zeros(shape, np.int64)
    for now in range(fills):
        for tile in range(max(now - slots + 1, 0), now + 1):  # the last ones are still there
            text[tile % slots, now] = f"{tile}:{tile // slots % 2}" + ("*" if tile == now else "")
            colour[tile % slots, now] = tile
    return Picture(
        f"ring of {slots}", "tile:parity of each slot (down) at each fill (across), * the new one", colour, text
    )


def drawn(text: str) -> Picture:
    """The picture of a text: a schedule, a ring, or else a type of a tile or vector (`picture.parse`). Raises
    `ArgumentError` for what is none of them.
    """
    name, _, rest = text.replace("pk.", "").strip().partition("(")
    if name not in SCHEDULES and name != "ring":
        return draw(parse(text))
    numbers, _, blocks = rest.rstrip(")").partition("blocks=")
    sizes = [x.strip() for x in numbers.split(",") if x.strip()]
    given = [int(x) for x in (*sizes, blocks or "1") if x.isdecimal() and 0 < int(x) <= MOST]
    wanted = 2 if name == "ring" else SCHEDULES[name]
    if len(given) != wanted + 1 or len(sizes) != wanted or bool(blocks) == (name == "ring"):
        raise ArgumentError(f"{text!r} is no schedule or ring", fix=f"numbers are 1 to {MOST}: {', '.join(EXAMPLES)}")
    return ring(*given[:2]) if name == "ring" else schedule(name, *given[:-1], blocks=given[-1])
