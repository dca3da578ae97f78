"""What a word is given, it uses or refuses: an option that means nothing in a call is an error, not ignored."""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError


def unused(call: str, fix: str, **options: Any) -> None:
    """Raises where one of the options was given that this form of the call does not take; None, False and "" are not
    given.
    """
    given = [name for name, x in options.items() if not (x is None or x is False or (isinstance(x, str) and not x))]
    if given:
        raise TypeRuleError(f"{call} takes no {' or '.join(given)}", fix=fix)


def unless(value: Any, whole: Any) -> Any:
    """None for what only says what is so anyway."""
    return None if isinstance(value, int) and value == whole else value
