"""Others' kernels, where they can be imported: nothing here is a dependency."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any


@cache
def load(module: str) -> Any:
    """A module, or None where it is not installed or does not import here."""
    try:
        return importlib.import_module(module)
    except Exception:  # some fail on import without the GPU or the compiler they want
        return None


def function(module: str, name: str) -> Any:
    """A function of a module, or None."""
    return getattr(load(module), name, None)


def first(result: Any) -> Any:
    """The output of a function that may return more than that."""
    return result[0] if isinstance(result, (tuple, list)) else result
