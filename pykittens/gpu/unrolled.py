"""Loops of a fixed length, written out before the compiler sees them.

The text of a tile is a loop over its registers,

    PK_UNROLL for (int i = 0; i < 2; i++) v_2[i] = v_1[i] * 2.0f;

which is short to read. But each is a loop to NVVM, which goes through the function again whenever it has unrolled one:
a kernel with a thousand of them takes four times as long to compile as the same with

    v_2[0] = v_1[0] * 2.0f; v_2[1] = v_1[1] * 2.0f;

in their place. Where they are few, little is gained, and the text is compiled as it was written. What stays a loop:
one whose bounds are no numbers (a template's), one that is left from within, and a long one, each pass of which would
be read and simplified by itself.
"""

from __future__ import annotations

import re

__all__ = ["prepared", "written_out"]

MANY = 300  # loops: NVVM's time for them grows with the square
LONGEST = 16  # passes

_HEAD = re.compile(r"PK_UNROLL for \(int (\w+) = (\d+); \1 < (\d+); \1\+\+\)")
_QUOTED = r'R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//[^\n]*|/\*.*?\*/'
_LOOP = re.compile(rf"{_QUOTED}|\bPK_UNROLL\b", re.DOTALL)
_MARK = re.compile(rf"{_QUOTED}|[][(){{}};]", re.DOTALL)
_BLANK = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r"(?:PK_UNROLL|for|while|if|else|switch)\b")
_LEFT = re.compile(r"\b(?:break|continue|goto)\b")


def prepared(source: str) -> str:
    """The source as it compiles fastest: its loops written out where they are many."""
    return written_out(source) if source.count("PK_UNROLL for") > MANY else source


def written_out(source: str) -> str:
    """The source with the statements of such loops one after another, numbers in place of their variables."""
    out, done = [], 0
    for found in _LOOP.finditer(source):
        if found[0] != "PK_UNROLL" or found.start() < done or not (head := _HEAD.match(source, found.start())):
            continue
        numbers = range(int(head[2]), int(head[3]))
        if len(numbers) > LONGEST:
            continue
        end = _end(source, head.end())
        name, body = head[1], written_out(source[head.end() : end]).strip()
        if _LEFT.search(body) or re.search(rf"\bint {name}\b", body):
            continue
        if "//" not in body and "#" not in body:
            body = body.replace("\n", " ")
        parts = _around(name, body)
        out += [source[done : found.start()], "{ ", " ".join(str(i).join(parts) for i in numbers), " }"]
        done = end
    return "".join([*out, source[done:]])


def _around(name: str, body: str) -> list[str]:
    """What stands between the places where a variable is named."""
    parts, done = [], 0
    for found in re.finditer(rf"{_QUOTED}|(?<![\w.]){name}\b", body, re.DOTALL):
        if found[0] == name:
            parts.append(body[done : found.start()])
            done = found.end()
    return [*parts, body[done:]]


def _end(source: str, at: int) -> int:
    """Where the statement ends that begins there."""
    at = _behind_blank(source, at)
    if source[at] == "{":
        return _closed(source, at)
    if word := _WORD.match(source, at):
        at = _behind_blank(source, word.end())
        if word[0] in ("for", "while", "if", "switch"):
            at = _closed(source, at)
        at = _end(source, at)
        other = _WORD.match(source, _behind_blank(source, at))
        return _end(source, other.start()) if word[0] == "if" and other and other[0] == "else" else at
    depth = 0
    for mark in _MARK.finditer(source, at):
        if mark[0] == ";" and not depth:
            return mark.end()
        depth += (mark[0] in "([{") - (mark[0] in ")]}")
    return len(source)


def _closed(source: str, at: int) -> int:
    """Where the bracket is closed that opens there."""
    depth = 0
    for mark in _MARK.finditer(source, at):
        depth += (mark[0] in "([{") - (mark[0] in ")]}")
        if not depth:
            return mark.end()
    return len(source)


def _behind_blank(source: str, at: int) -> int:
    found = _BLANK.match(source, at)
    assert found is not None
    return found.end()
