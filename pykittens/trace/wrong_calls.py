"""Calls with arguments that are not taken: of words, and of functions that the user passes."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import Frame, TraceError, defined

_CALL = re.compile(r"(?:(\w+)\.)?(\w+)\(\) (missing|got|takes) ")
_PACKAGE = __name__.partition(".")[0]


def explain(error: TypeError) -> None:
    """Raises an error that says how a word is called, where Python found no way to call one as the kernel does."""
    found, last = _CALL.match(str(error)), error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if not found or last is None or str(last.tb_frame.f_globals.get("__name__", "")).startswith(f"{_PACKAGE}."):
        return
    word = _word(found[1], found[2])
    if word is None:
        return
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(word).parameters.values()]
    shown = inspect.Signature([p for p in parameters if p.name != "self"])
    code = last.tb_frame.f_code
    raise TraceError(
        f"{found[2]}() {str(error)[found.end(2) + 3 :]}",
        fix=f"its parameters are {found[2]}{shown}",
        location=(Frame(code.co_filename, last.tb_lineno, code.co_name),),
    ) from None


def _word(owner: str | None, name: str) -> Any:
    """The function or method of this package that Python calls so."""
    for module in [m for n, m in sys.modules.items() if n.startswith((f"{_PACKAGE}.trace.", f"{_PACKAGE}.types"))]:
        found = getattr(getattr(module, owner, None), name, None) if owner else vars(module).get(name)
        if inspect.isfunction(found):
            return found
    return None


def check_takes(function: Callable[..., Any], what: str, names: Sequence[str]) -> None:
    """Raises `TraceError` where a user's function does not take as many arguments as it is called with."""
    try:
        inspect.signature(function).bind(*names)
    except TypeError as error:
        raise TraceError(
            f"{what} is called with {len(names)} arguments: {error}",
            fix=f"take {', '.join(names)}",
            location=defined(function),
        ) from None
    except ValueError:  # a builtin without a signature
        return
