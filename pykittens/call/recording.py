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
    watchers[thread] = _Unwatched(thread, watcher)
    try:
        yield
    finally:
        del watchers[thread]


class _Unwatched:
    """Calls a watcher, and what that calls is not watched. No function within `watching`, which would know itself:
    arrays that the watcher keeps would live until Python looks for such circles.
    """

    def __init__(self, thread: int, watcher: Watcher) -> None:
        self.thread, self.watcher = thread, watcher

    def __call__(self, kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        del watchers[self.thread]
        try:
            self.watcher(kernel, args, named)
        finally:
            watchers[self.thread] = self
