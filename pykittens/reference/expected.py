"""What the vocabulary must contain: every name of ThunderKittens, and what people miss beside other tile languages.

The rows are in `expected.txt`: how each is written here, or why it is not there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple


class Expected(NamedTuple):
    """A name that somebody looks for. `ours`: how it is written here, words separated by blanks, or "" with a `why`."""

    source: str
    group: str
    name: str
    ours: str
    why: str = ""


@functools.cache
def expected() -> tuple[Expected, ...]:
    """All rows of the file, in its order."""
    found, source, group = [], "", ""
    for line in Path(__file__).with_name("expected.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            source, group = line.strip("[]"), ""
        elif line.startswith("## "):
            group = line[3:]
        elif line and not line.startswith("#"):
            name, ours, why = (part.strip() for part in (line + " | |").split("|")[:3])
            found.append(Expected(source, group, name, ours, why))
    return tuple(found)
