"""Calls with arguments that are not taken: of words, and of functions that the user passes."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

from ..errors import Frame, KernelError, TraceError, defined, is_user_file

_CALL = re.compile(r"(?:(\w+)\.)?(\w+)\(\) (missing|got|takes) ")
_ANNOTATION = re.compile(r"""(?<=: )("[^"]*"|'[^']*')(?=[,)]| = )""")  # which `inspect` shows as text
_ATTRIBUTE = ("__getattr__", "_of_registers")  # who says that a value has none of that name
# What Python raises.
MISTAKES = TypeError, AttributeError, ValueError, LookupError, AssertionError, ArithmeticError, RecursionError
_PACKAGE = __name__.partition(".")[0]


def explain(error: Exception) -> None:
    """Raises an error that says how a word is called: where Python found no way to call one as the kernel does, and
    where one came upon what it cannot do with what it was given.
    """
    frames = [(x.tb_frame, x.tb_lineno) for x in _entries(error.__traceback__)]
    lines = [n for n, (frame, _) in enumerate(frames) if not _is_ours(frame) and is_user_file(frame.f_code.co_filename)]
    if not lines or isinstance(error, KernelError):
        return
    if isinstance(error, RecursionError):
        fix = "end it by a Python number, f(n - 1) if n else ...; what the kernel finds out goes on in a pk.loop()"
        said = "a function calls itself without end while the kernel is traced"
        raise TraceError(said, fix=fix, location=_here(*frames[lines[-1]])) from None
    if behind := [frame for frame, _ in frames[lines[-1] + 1 :] if _is_ours(frame)]:
        if not isinstance(error, AttributeError) or behind[0].f_code.co_name not in _ATTRIBUTE:
            _not_taken(error, *frames[lines[-1]], behind)
        if behind[-1].f_code.co_name != "made":  # what words of loops and regions are called through
            return
    if isinstance(error, TypeError) and (found := _CALL.match(str(error))) and (word := _word(found[1], found[2])):
        parameters = [p.replace(annotation=p.empty) for p in inspect.signature(word).parameters.values()]
        said = f"{found[2]}() {str(error)[found.end(2) + 3 :]}"
        raise TraceError(said, fix=_parameters(found[2], parameters), location=_here(*frames[lines[-1]])) from None


def _not_taken(error: Exception, user: FrameType, line: int, frames: list[FrameType]) -> None:
    """Raises an error of the word that the author's line called, with what it was given."""
    words = [(frame, word) for frame in frames if (word := _called(frame)) is not None]
    frame, word = next(
        (x for x in words if not x[0].f_code.co_name.startswith("_")), words[0] if words else (None, None)
    )
    if frame is None or word is None:
        return
    name, parameters = frame.f_code.co_name, list(inspect.signature(word).parameters.values())
    held = {p.name: frame.f_locals[p.name] for p in parameters if p.name != "self" and p.name in frame.f_locals}
    given = ", ".join(f"{n}={held[n]!r:.60}" for p in parameters if (n := p.name) in held and held[n] is not p.default)
    said = f"{name}({given}): {error}"
    raise TraceError(said, fix=_parameters(name, parameters), location=_here(user, line)) from error


def _parameters(name: str, parameters: list[inspect.Parameter]) -> str:
    signature = str(inspect.Signature([p for p in parameters if p.name != "self"]))
    return f"its parameters are {name}{_ANNOTATION.sub(lambda found: found[1][1:-1], signature)}"


def _here(frame: FrameType, line: int) -> tuple[Frame, ...]:
    return (Frame(frame.f_code.co_filename, line, frame.f_code.co_name),)


def _entries(entry: TracebackType | None) -> Iterator[TracebackType]:
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _is_ours(frame: FrameType) -> bool:
    """Whether this package's code runs in a frame, but for its kernels."""
    module = str(frame.f_globals.get("__name__", "")).split(".")
    return module[0] == _PACKAGE and module[1:2] != ["kernels"]


def _called(frame: FrameType) -> Any:
    """The function that runs in a frame of this package, if it has a name there."""
    code, self = frame.f_code, frame.f_locals.get("self")
    for owner in (type(self), sys.modules.get(frame.f_globals["__name__"])):
        found = inspect.unwrap(x) if callable(x := getattr(owner, code.co_name, None)) else None
        if getattr(found, "__code__", None) is code:
            return found
    return None


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
