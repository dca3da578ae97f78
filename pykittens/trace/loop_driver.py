"""Who goes through a loop of the kernel: a `for` statement, or what would take its two recordings for its passes.

`[f(i) for i in pk.range(n)]`, `sum(1 for _ in pk.range(n))`, `list(pk.range(n))` and `next(...)` collect what they are
given, `itertools.islice` and `zip` count it, while the kernel is traced; no name holds what they find, so that nothing
else would see it. A generator or a `__next__` of the author's hands on: who goes through that is asked. Where the
bytecode looks unlike that of Python 3.10 to 3.13, nothing is refused.
"""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from types import CodeType, FrameType

from ..errors import Frame, is_user_file
from .bytecode import instructions

_COLLECTS = ("CALL", "UNPACK_", "LIST_EXTEND", "SET_UPDATE", "CONTAINS_OP")
_NOTHING = ("CACHE", "EXTENDED_ARG", "NOP", "RESUME", "PRECALL")
_INLINE = "SWAP"  # before the loop of a comprehension that is part of its function's code (Python 3.12 and later)


@lru_cache(maxsize=1024)
def _collects(code: CodeType, at: int) -> bool:
    """Whether the instruction at an offset keeps all that an iterator gives."""
    if code.co_name in ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"):
        return True
    names = [i.opname for i in instructions(code) if i.offset <= at and i.opname not in _NOTHING]  # or at a cache of it
    running, before = (*names[:-3:-1], "", "")[:2]
    return running.startswith(_COLLECTS) or (running == "FOR_ITER" and before == _INLINE)


@lru_cache(maxsize=1024)
def targets(code: CodeType) -> frozenset[str]:
    """The names that `for` statements of some code bind."""
    found, follows = set[str](), False
    for i in instructions(code):
        if i.opname == "FOR_ITER":
            follows = True
        elif follows and i.opname.startswith("STORE_"):
            found.update((i.argval,) if isinstance(i.argval, str) else i.argval)
        elif not i.opname.startswith(("UNPACK_", "EXTENDED_ARG", "CACHE")):
            follows = False
    return frozenset(found)


def collected() -> tuple[Frame, ...]:
    """The line of the author's that collects what the loop that begins now gives; nothing where a `for` statement goes
    through it.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        hands_on = code.co_name == "__next__"
        if is_user_file(code.co_filename) and not hands_on and _collects(code, frame.f_lasti):
            return (Frame(code.co_filename, frame.f_lineno, code.co_name),)
        if not hands_on and (not code.co_flags & inspect.CO_GENERATOR or code.co_name == "<genexpr>"):
            return ()
        frame = frame.f_back
    return ()
