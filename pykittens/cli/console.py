"""How the commands talk: answers on stdout, progress on stderr, one JSON object where `--json` asks for it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import KernelError
from ..gpu.compiler import CompileError, CompilerMissing
from ..gpu.libcuda import CudaError
from ..gpu.sass import DisassemblerMissing
from ..interop.base import Unsupported

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Answer = TypeVar("Answer", bound=Callable[..., Any])


class Refusal(Exception):
    """A command was asked for something it cannot do: the fact, and what to do instead."""

    def __init__(self, fact: str, fix: str = "") -> None:
        super().__init__(f"{fact}\n  fix: {fix}" if fix else fact)


_EXPECTED = (
    Refusal,
    KernelError,
    CompileError,
    CompilerMissing,
    CudaError,
    DisassemblerMissing,
    Unsupported,
    OSError,
    MemoryError,
)


def command(function: Answer) -> Answer:
    """A command whose failures are sentences: errors that a user can cause are printed, and the exit status is 1."""

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except _EXPECTED as error:
            said = _said(error)
            if named.get("as_json"):
                answer({"error": said, "kind": type(error).__name__})
            else:
                err.print(f"[bold red]error:[/] {escape(said)}", soft_wrap=True)
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]


def _said(error: Exception) -> str:
    """The sentence of an error; those of files come from Python, with a number and without a fix."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    fix = "name a file, in a folder, that is there" if isinstance(error, FileNotFoundError) else "name another file"
    return f"{error.strerror}: {str(error.filename)!r}\n  fix: {fix}"


def answer(facts: dict[str, Any]) -> None:
    """Prints a command's JSON object. JSON has no infinities and no NaN: null stands for them."""
    print(json.dumps(_finite(facts), indent=2, allow_nan=False))


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


@contextmanager
def progress(doing: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Shows that something long is going on; yields a function that says how much of `total` is done."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *([BarColumn()] if total else []),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.update(task, completed=done)
