"""How long a kernel is: the lines a reader has to read to know all that it does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from ..call.kernel import Kernel
from ..call.reads import global_names

_LIBRARY = __package__ + "."  # the shipped kernels' helpers, which may lie in a file of their own


def count_lines(kernel: Kernel) -> int:
    """Lines of the kernel function, decorators and docstring included, and of every helper it uses.

    A helper is a function or class of the kernel's own module or of this folder, reached by name from the kernel, from
    its grid, or from another helper. Blank lines count; a line that holds two things counts once.
    """
    roots = [kernel.function, *(option for option in kernel.options.values() if isinstance(option, FunctionType))]
    lines: set[tuple[str, int]] = set()
    seen: set[int] = set()
    todo: list[Any] = roots
    while todo:
        item = todo.pop()
        if id(item) in seen or not _counts(item, kernel.function.__module__):
            continue
        seen.add(id(item))
        lines |= _lines(item)
        functions = (
            [item]
            if isinstance(item, FunctionType)
            else [f for f in vars(item).values() if isinstance(f, FunctionType)]
        )
        for function in functions:
            todo += _mentions(function)
    return len(lines)


@functools.cache
def _lines(item: Any) -> frozenset[tuple[str, int]]:
    """Where a function or class stands: each of its lines as file and number."""
    text, first = inspect.getsourcelines(item)
    file = inspect.getsourcefile(item) or ""
    return frozenset((file, first + i) for i in range(len(text)))


def _counts(item: Any, home: str) -> bool:
    if not isinstance(item, (FunctionType, type)):
        return False
    if isinstance(item, FunctionType) and item.__code__.co_filename == "<string>":  # written by @dataclass
        return False
    module = item.__module__
    return module == home or module.startswith(_LIBRARY)


def _mentions(function: FunctionType) -> Iterator[Any]:
    """What a function refers to by name: globals, closure cells, members of the modules among them, classes of its
    defaults."""
    found = [function.__globals__[name] for name in global_names(function.__code__) if name in function.__globals__]
    found += map(type, (function.__kwdefaults__ or {}).values())
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    for item in found:
        if isinstance(item, Kernel):
            yield item.function
        elif isinstance(item, ModuleType):
            yield from (vars(item)[name] for name in function.__code__.co_names if name in vars(item))
        else:
            yield item
