"""Pictures of layouts, drawn by the functions that the compiler and the simulator use: in the terminal, and as SVG.

    owners(pk.rt(pk.bf16, 16, 16))      # the thread of each element
    draw(parse("st(bf16, 16, 64)"))     # a picture: title, rows of cells, each with a number and what it counts

A register tile or vector shows who holds what; a shared tile which of the 8 groups of four banks each 16 bytes lie in.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from ..errors import ArgumentError
from ..layouts import fragment, shared_offset, vector_element
from ..types import DTYPES, Coalesced, RegisterTile, RegisterVector, SharedTile

Drawn = Union[RegisterTile, RegisterVector, SharedTile]
MAKERS: dict[str, Any] = {
    "rt": RegisterTile,
    "rv": RegisterVector,
    "st": SharedTile,
    "coalesced": Coalesced,
    **{name: lambda *given, name=name: RegisterTile(*given).vector(name[:3]) for name in ("col_vec", "row_vec")},
}
FIX = 'write a type as in a kernel: "rt(bf16, 16, 16)", "rt(f32, 4, 64, coalesced(8, 4))", "st(bf16, 16, 64)"'
MOST = 1 << 14  # cells of a picture


@dataclass(frozen=True)
class Picture:
    """Cells row by row: `group` colours a cell (a thread, a group of banks), `text` is what it says."""

    title: str
    counts: str
    group: np.ndarray
    text: np.ndarray

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return svg(self)


def parse(text: str) -> Drawn:
    """The type that a text means. Raises `ArgumentError` for what is none that can be drawn."""
    try:
        found = _value(ast.parse(text.replace("pk.", ""), mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ArgumentError(f"{text!r} is no type of a tile or vector: {error}", fix=FIX) from None
    if not isinstance(found, (RegisterTile, RegisterVector, SharedTile)):
        raise ArgumentError(f"{text!r} is no type of a tile or vector", fix=FIX)
    return found


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
        return MAKERS[node.func.id](*map(_value, node.args), **{str(k.arg): _value(k.value) for k in node.keywords})
    if isinstance(node, ast.Name) and node.id in DTYPES:
        return DTYPES[node.id]
    if isinstance(node, ast.Name) and node.id in ("row", "col", "naive"):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, str)):
        return node.value
    raise ValueError(f"{ast.unparse(node)} is no dtype, size, or layout")


def _held(type: RegisterTile | RegisterVector) -> tuple[np.ndarray, np.ndarray]:
    """The first thread that holds each element, and in which register."""
    shape = (1, type.length) if isinstance(type, RegisterVector) else (type.rows, type.cols)
    thread, held = np.full(shape, -1), np.full(shape, -1)
    warp, lane, register = np.ogrid[: type.warps, :32, : type.registers]
    if isinstance(type, RegisterTile):
        row, col = fragment(type, warp, lane, register)
    else:
        row, col = np.zeros_like(lane), vector_element(type, warp, lane, register)
    row, col, w, la, r = np.broadcast_arrays(row, col, warp, lane, register)
    for i in reversed(range(row.size)):  # the first thread is written last
        if col.flat[i] < shape[1]:
            thread[row.flat[i], col.flat[i]] = 32 * w.flat[i] + la.flat[i]
            held[row.flat[i], col.flat[i]] = r.flat[i]
    return thread, held


def owners(type: RegisterTile | RegisterVector) -> np.ndarray:
    """The thread that holds each element; of a vector, whose elements several threads may hold, the first."""
    return _held(type)[0]


def draw(type: Drawn) -> Picture:
    """The picture of a type. Raises `ArgumentError` where it would have too many cells to be read."""
    cells = type.length if isinstance(type, RegisterVector) else type.rows * type.cols
    if cells > MOST:
        raise ArgumentError(f"{type} has {cells} elements", fix=f"draw one of at most {MOST}: layouts repeat")
    if isinstance(type, SharedTile):
        row, chunk = np.ogrid[: type.rows, : type.cols * type.dtype.size // 16]
        offset = np.asarray(shared_offset(type, row, chunk * (16 // type.dtype.size)))
        group = offset // 16 % 8
        text = np.vectorize(lambda g: f"{4 * g}-{4 * g + 3}")(group)
        return Picture(str(type), "the four banks that each 16 bytes lie in", group, text)
    thread, held = _held(type)
    text = np.char.add(np.char.add(np.char.add("t", thread.astype(str)), ":"), held.astype(str))
    return Picture(str(type), "thread:register of each element", thread, text)


def in_text(picture: Picture, *, cols: int = 0) -> str:
    """The picture as lines of text; `cols`: only so many columns, if not all."""
    text = picture.text[:, :cols] if cols else picture.text
    width = max(len(x) for x in text.ravel()) + 1
    lines = [f"{picture.title}: {picture.counts}", *("".join(x.rjust(width) for x in row) for row in text)]
    return "\n".join(line.rstrip() for line in lines)


def svg(picture: Picture) -> str:
    """The picture as an SVG document, with colours that threads (or banks) have in common."""
    wide, high, top = 46, 20, 26
    rows, cols = picture.text.shape
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {cols * wide + 2} {rows * high + top + 2}" '
        f'font-family="monospace" font-size="11" role="img" aria-label="{_escaped(picture.title)}">',
        f'<text x="1" y="16" font-size="13">{_escaped(picture.title)}: {picture.counts}</text>',
    ]
    for r in range(rows):
        for c in range(cols):
            colour = f"hsl({int(picture.group[r, c]) * 47 % 360}, 65%, {78 - int(picture.group[r, c]) % 3 * 7}%)"
            x, y = c * wide + 1, r * high + top
            out.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" fill="{colour}" stroke="#fff"/>')
            out.append(f'<text x="{x + wide / 2}" y="{y + 14}" text-anchor="middle">{picture.text[r, c]}</text>')
    return "\n".join([*out, "</svg>\n"])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
