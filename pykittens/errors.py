"""What can go wrong, in the user's words: the line, the values, and the fix.

Every error of PyKittens is a `KernelError`. It carries the user's frames (innermost first): the frames
outside this package, or inside `pykittens/kernels`, whose authors are users of the language too.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
import site
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FrameType, TracebackType
from typing import ParamSpec, TypeVar

from .loading import dataclass
from .suggestions import NoSuchWord

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = _PACKAGE + "kernels" + os.sep
_COMMANDS = _PACKAGE + "cli" + os.sep  # who calls a command is no part of a kernel
_STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


@dataclass(frozen=True)
class Frame:
    """One line of the user's program. `line` counts from 1."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def text(self) -> str:
        """The source line, or nothing where the file cannot be read (a notebook cell that is gone)."""
        return linecache.getline(self.file, self.line).strip()


@cache
def _is_standard(file: str) -> bool:
    """Whether `file` is of Python itself, which stands between us and the user: `contextlib`, `copy`, `threading`."""
    return file.startswith(_STANDARD) and "-packages" not in file


@cache
def is_user_file(file: str) -> bool:
    """Whether `file` is the user's: outside of Python and the package, or one of its library kernels."""
    return not _is_standard(file) and (not file.startswith(_PACKAGE) or file.startswith(_LIBRARY))


@cache
def _libraries() -> tuple[str, ...]:
    """Folders of the interpreter's and of installed packages; `sysconfig` would load all that Python was built with."""
    installed_in = [x for x in site.getsitepackages() if x.endswith("-packages")]  # on Windows the whole prefix is one
    return _STANDARD, *installed_in


@cache
def installed(file: str) -> bool:
    """Whether a file is the interpreter's or an installed package's."""
    return file.startswith(_libraries())


def module_of(cls: type) -> str:
    """The name of the module that a class says it is of; none of a metaclass of Cython's."""
    return name if isinstance(name := cls.__module__, str) else ""


@cache
def is_authors(file: str) -> bool:
    """Whether `file` is of a kernel's author: neither ours nor of an installed package."""
    return _of(file) == "user" and not installed(file)


def user_frame_objects(limit: int = 8, until: FrameType | None = None) -> list[FrameType]:
    """The running Python frames that are the user's, innermost first; those that frame `until` has called."""
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    tracing = (
        getattr(_made, "errors", None) is not None
    )  # else a library file's frame is a host function, not its author's kernel
    while frame is not None and frame is not until:
        code = frame.f_code
        known = _owners.get(id(code))
        if known is None:
            if len(_owners) > _MOST_OWNERS:
                _owners.clear()
            known = _owners[id(code)] = (_owner(frame), code)
        of = known[0]
        if of == "package":
            if found:
                break  # back inside the package: what called the kernel function is no part of it
        elif of == "user" or (of == "library" and tracing):
            found.append(frame)
            if len(found) == limit:
                break
        elif of == "command" or (of == "library" and found):
            break
        frame = frame.f_back
    return found


_owners: dict[int, tuple[str, CodeType]] = {}  # by the code's id, whose it then stays
_MOST_OWNERS = 4096


def _owner(frame: FrameType) -> str:
    """Whose the code of a frame is: see `_of`."""
    of = _of(frame.f_code.co_filename)
    return "between" if of == "user" and _between(frame) else of


@cache
def _of(file: str) -> str:
    """Whose a file is: "user", "library" (our kernels), "between", "command" or "package"."""
    if _is_standard(file):
        return "between"
    if file.startswith(_COMMANDS):
        return "command"
    if not is_user_file(file) or file.startswith("<frozen"):
        return "package"
    return "library" if file.startswith(_LIBRARY) else "user"


def _between(frame: FrameType) -> bool:
    """Whether a frame is torch's, or one without a file that runs what `dataclasses` wrote for a class of ours."""
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith("torch.") or (
        frame.f_code.co_filename == "<string>" and module.startswith(f"{__package__}.")
    )


def user_frames(limit: int = 8) -> tuple[Frame, ...]:
    """Where the user's program stands now, innermost first."""
    frames = user_frame_objects(limit)
    return tuple(Frame(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames)


def defined(function: object) -> tuple[Frame, ...]:
    """Where a function that the user passed is written, and where the program stands."""
    while isinstance(function, functools.partial):
        function = function.func
    for found in (function, getattr(function, "__func__", None), vars(type(function)).get("__call__")):
        code = getattr(found, "__code__", None)
        if code is not None and is_user_file(code.co_filename):
            return (Frame(code.co_filename, code.co_firstlineno, code.co_name), *user_frames())
    return user_frames()


def shortened(error: E) -> E:
    """The error with the user's frames only in its traceback: a function that users call raises it anew, so that the
    user's line is the last, or the last but for that function.

    Also an error of the user's own, within a kernel. One that comes out of the package and is no `KernelError` is left
    as it is, as all are with PYKITTENS_TRACEBACK=full in the environment.
    """
    entries, entry = list[TracebackType](), error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    if os.environ.get("PYKITTENS_TRACEBACK") == "full" or not entries:
        return error
    if not isinstance(error, (KernelError, NoSuchWord)) and _owner(entries[-1].tb_frame) not in ("user", "library"):
        return error
    shown = {frame.file for frame in getattr(error, "location", ())}
    kept: TracebackType | None = None
    for entry in reversed(entries):
        of = _owner(entry.tb_frame)
        if of == "user" or (of == "library" and entry.tb_frame.f_code.co_filename in shown):
            kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return error.with_traceback(kept)


def public(function: Callable[P, T]) -> Callable[P, T]:
    """A function that users call: what it raises is `shortened`."""

    @functools.wraps(function)
    def called(*args: P.args, **named: P.kwargs) -> T:
        try:
            return function(*args, **named)
        except Exception as error:
            raise shortened(error)  # noqa: B904  # it is itself

    return called


_made = threading.local()


@contextlib.contextmanager
def errors_made(found: list[KernelError]) -> Iterator[None]:
    """Appends every error that is made inside to `found`: a kernel that swallows one must not be compiled."""
    before, _made.errors = getattr(_made, "errors", None), found
    try:
        yield
    finally:
        _made.errors = before


class KernelError(Exception):
    """A fact about the user's program, and how to mend it.

    `fact` names the values; `fix` says what to write instead; `where` is the user's line (innermost
    frame first), found from the running frames when it is not given.
    """

    def __init__(
        self,
        fact: str,
        fix: str = "",
        location: tuple[Frame, ...] | None = None,
        also: dict[str, tuple[Frame, ...]] | None = None,
    ):
        self.fact, self.fix = fact, fix
        self.location = user_frames() if location is None else location
        self.also = also or {}
        super().__init__(fact)
        made = getattr(_made, "errors", None)
        if made is not None:
            made.append(self)

    def __str__(self) -> str:
        lines = [self.fact]
        for i, frame in enumerate(self.location[:3]):
            lines.append(
                f"  {'at' if i == 0 else 'called from'} {frame} in {frame.function}"
                + (f"\n      {frame.text}" if frame.text else "")
            )
        for label, frames in self.also.items():
            for frame in frames[:1]:
                lines.append(f"  {label} {frame} in {frame.function}" + (f"\n      {frame.text}" if frame.text else ""))
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class TypeRuleError(KernelError, TypeError):
    """An operation was given operands it does not take."""


class TraceError(KernelError):
    """The Python around the operations cannot be recorded as a kernel."""


class ResourceError(KernelError):
    """A kernel asks for more than the machine has: shared memory, registers, barriers, warps."""


class ArgumentError(KernelError, ValueError):
    """A kernel was called with arrays or values that it does not take."""


class Diagnosis(KernelError):
    """What the simulated GPU found wrong while it ran a kernel."""


class RaceError(Diagnosis):
    """Two accesses to the same bytes, at least one a write, that nothing orders."""


class DeadlockError(Diagnosis):
    """Every warp waits for something that can no longer happen."""


class UninitializedError(Diagnosis):
    """A value was read that nothing wrote."""


class OutOfBoundsError(Diagnosis):
    """An access outside its tensor or tile."""


class BarrierError(Diagnosis):
    """A barrier was used against its protocol: wrong count, wrong bytes, wrong phase."""


class InFlightError(Diagnosis):
    """A value was touched while an asynchronous operation still reads or writes it."""


class KernelAssertionError(Diagnosis, AssertionError):
    """`pk.assert_` failed."""
