"""Words of the command line: a name out of those that there are, and names with values, `N=4096`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from .console import Refusal


def unknown(fact: str, name: str, known: Iterable[str]) -> Refusal:
    """That there is no such `name`, with the `known` ones that are written alike, or all of them."""
    listed = list(known)
    close = get_close_matches(name, listed, n=3)
    fix = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(listed)}"
    return Refusal(f"{fact} {name!r}", fix=fix)


def assignments(words: Sequence[str]) -> dict[str, str]:
    """Names with values; none of them twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise Refusal(f"{word!r} gives nothing a value", fix="write NAME=VALUE, such as N=4096")
        if name in found:
            raise Refusal(f"{name} is given twice, as {found[name]} and {value}", fix="give it once")
        found[name] = value
    return found
