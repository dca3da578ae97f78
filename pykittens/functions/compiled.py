"""What torch.compile knows of a user's function that becomes a part of a kernel.

torch.compile runs what turns it into a number, and keeps the number (`told`). Before it runs what it has compiled, it
looks again at the function's code, and at nothing that a closure or defaults hold: another function of the same code
would get the first one's results. Globals may change: kernels see to these themselves (`call/reads.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

from ..errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])


def told(function: F) -> F:
    """What torch.compiler.assume_constant_result does: torch.compile runs it, and does not look inside."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def tracing() -> bool:
    """Whether torch.compile is tracing this."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def check_constant(function: Any, what: str) -> None:
    """Raises `ArgumentError` for a function of which torch.compile would not see that it is another one."""
    if not isinstance(function, FunctionType):
        fix = "pass a function, or call it outside of what is compiled"
        raise ArgumentError(f"torch.compile cannot tell whether {what} has changed: {function!r}", fix=fix)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    held = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if (function.__module__ or "").partition(".")[0] == __name__.partition(".")[0]:  # made anew from what was traced
        for x in held:
            if callable(x):
                check_constant(x, what)
    elif held:
        said = f"torch.compile does not see what the closure and the defaults of {what} hold"
        raise ArgumentError(said, fix="let it read globals, or pass it arrays as operands")
