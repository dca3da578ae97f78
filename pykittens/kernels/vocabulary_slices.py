"""How linear cross-entropy divides a vocabulary: which columns of the logits are worked on at a time, and where the
forward pass leaves exponentials for the backward pass.

The gradient of the weight (v, h) has room for columns of m rows before it is made. So the forward pass may take its
memory early, and fill its end with slices, each an (m, wide) matrix:

    [ .......... | slice 0 | slice 1 | ... | slice s ]      v h elements, of which m c belong to the c columns held

The backward pass goes through the slices in order. It takes one out, to the workspace, as gradients of logits, and only
then writes the rows of the gradient that belong to its columns, from the beginning. After the first f of c columns it
has written f h elements, and what is still held begins at v h - m (c - f). That is further on for f = 0 and for f = c
(v h is at least m c, and v at least c), so for all f between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

KEPT = 528 << 20  # bytes of exponentials that the forward pass keeps in memory of their own
WORKSPACE = 264 << 20  # bytes of a slice of the logits' gradient; both are whole rounds of tiles at 8192 rows
STEP = 256  # a slice has a multiple of so many columns
LINE = 64  # elements of 16 bits, to a multiple of which a slice in the gradient's memory begins
ROWS = 128  # of a tile of the products


class Slice(NamedTuple):
    """Columns of the logits. offset: where they are held in the memory of the weight's gradient; None: they are not."""

    first: int
    wide: int
    offset: int | None = None


def kept_of(m: Any, v: Any, most: int | None = None) -> Any:
    """How many of v columns' exponentials are kept in memory of their own. Of integers, or of torch's symbols for
    them.
    """
    columns = max(STEP, (KEPT if most is None else most) // (2 * max(m, 1)) // STEP * STEP)
    return v if v <= columns else columns


def held_of(m: int, h: int, v: int, most: int | None = None) -> int:
    """How many of the other columns' exponentials the memory of the gradient of a weight (v, h) holds."""
    others = -(-(v - kept_of(m, v, most)) // STEP) * STEP
    return min(others, v * h // max(m, 1) // STEP * STEP)


def slices_of(
    m: int, h: int, v: int, held: int, kept: int, workspace: int = WORKSPACE, processors: int = 1
) -> list[Slice]:
    """The slices of the vocabulary: of columns held in the gradient's memory, of those kept elsewhere, of the others.

    Where there is room they have as many columns as tiles of the gradient fill all processors; else about the same.
    """
    most, found, end = max(STEP, workspace // (2 * m) // STEP * STEP), [], 0
    round = ROWS * (processors + processors % 2)
    for columns in (held, kept, v - held - kept):
        begin, end, parts = end, end + columns, max(-(-columns // most), 1)
        wide = most // round * round or max(-(-columns // (parts * STEP)), 1) * STEP
        for first in range(begin, end, wide):
            place = (v * h - m * held) // LINE * LINE + m * first if first < held else None
            found.append(Slice(first, min(wide, end - first), place))
    return found


class Areas(NamedTuple):
    """Where gradients of logits that are made in the forward pass are, `rows` of x at a time: those of the first `held`
    columns in the memory of the weight's gradient, of the next in memory of their own, of those from `again` nowhere:
    they are made in a matrix of `spare` columns for these rows. `below`: below the held columns is room for the terms
    of as many rows' losses.
    """

    rows: int
    held: int
    again: int
    spare: int
    below: bool
    slices: list[Slice]


ROOM = 1016 << 20  # bytes that a pass takes beside the gradients, but for some numbers of each row
PIECE = 64  # columns, of which each row has some terms in float32
AT_ONCE = 1024  # rows, where not all fit
MOST = 16  # slices that are not held
ROUND = 4224  # columns whose tiles, of so many rows, are whole rounds on 132 multiprocessors (H100 SXM, H200)


def areas_of(m: int, h: int, v: int, early: bool, kept: bool, terms: int = 4, scaled: bool = False) -> Areas | None:
    """`early`: the memory of the weight's gradient may be taken; `kept`: the backward pass needs the logits' gradients;
    `scaled`: and a copy of x. None where there is not enough room.

    The held columns are slices one behind another up to the memory's end, each an (m, wide) matrix. The rows of the
    gradient that belong to a slice are written from the matrix itself, so they must end before it begins: after f of
    the c held columns the slice may have (v h - m (c - f)) / h - f columns. This grows with f where m > h, up to twice
    as much a slice for m = 2 h, and shrinks where m < h, so that c is what leaves room at both ends.
    """

    def noted(rows: int) -> int:
        return rows * 4 * terms * -(-v // PIECE)

    copy = 2 * m * h if scaled and kept else 0
    rows, most, fewest = m, ROOM if kept else ROOM // 2, AT_ONCE if kept else ROWS
    while max(noted(rows), copy) + 2 * (m if kept else rows) * v > most:
        if rows <= fewest:
            break
        rows = max(-(-rows // (2 * ROWS)) * ROWS, fewest)
    else:
        return Areas(rows, 0, v if kept else 0, 0 if kept else -(-v // 8) * 8, False, [Slice(0, v)])
    if not kept:
        return None
    step = ROUND if v >= 16 * ROUND else STEP  # of the held columns
    least = step if step == ROUND else STEP * max(1, v // (32 * STEP))
    below, room = early and noted(rows) <= 2 * least * h, ROOM - 4 * rows * h  # sums of x's gradient
    others = -(-max(0, v - max(0, room) // (2 * m) // STEP * STEP) // step) * step
    held = max(0, min((v - least) * h // m, v - least, others) // step * step) if early else 0
    below = below and held > 0
    room -= 2 * rows * (v - held) + (0 if below else noted(rows))  # what all others take, of some rows
    own = min(room // (2 * max(m - rows, 1)) // STEP * STEP, (ROOM - copy) // (2 * m) // STEP * STEP, v - held)
    if own * MOST < v - held:  # each slice is some launches for every few rows
        return None
    base, slices, end = (v * h - m * held) // LINE * LINE, [], 0
    while end < held:
        wide = min(((base + m * end) // h - end) // step * step, held - end)
        slices.append(Slice(end, wide, base + m * end))
        end += wide
    again = held + own
    slices += [Slice(i, min(own, v - i)) for i in range(held, v, own)]
    return Areas(rows, held, again, -(-(v - again) // 8) * 8, below, slices)
