"""Watching which kernels a piece of code calls, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

Watcher = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]

watchers: dict[int, Watcher] = {}  # by thread; asked at every call of a kernel


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within it, each call of a kernel by this thread becomes `watcher(kernel, args, named)`, which makes the call
    itself.
    """
    thread = get_ident()

    def call(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        del watchers[thread]
        try:
            watcher(kernel, args, named)
        finally:
            watchers[thread] = call

    watchers[thread] = call
    try:
        yield
    finally:
        del watchers[thread]
