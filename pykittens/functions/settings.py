"""Settings of public functions: of which Python types they may be, by their schema."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError

LARGEST = float(np.finfo(np.float32).max)


def _is_float(x: Any) -> bool:  # not converted: a tensor on a GPU would have to be waited for
    other = isinstance(x, (bool, np.bool_, str, bytes)) or (isinstance(x, (int, float)) and LARGEST < abs(x) < math.inf)
    return not other and hasattr(type(x), "__float__") and getattr(x, "ndim", 0) == 0


def _is_int(x: Any) -> bool:
    if isinstance(x, (bool, np.bool_)):
        return False
    try:
        operator.index(x)
    except TypeError:
        return False
    return True


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "float": (_is_float, "a number that float32 holds"),
    "int": (_is_int, "a whole number"),
    "SymInt": (_is_int, "a whole number"),
    "bool": (lambda x: isinstance(x, (bool, np.bool_)), "True or False"),
    "str": (lambda x: isinstance(x, str), "a string"),
}


NOTHING: tuple[Any, ...] = ()  # of which there is one, in Python


def check_setting(function: str, schema: str, value: Any) -> None:
    """Raises `ArgumentError` for a setting, "float p", that is nothing of the kind: where it decides before the
    operator is asked.
    """
    if fix := unsuitable(schema, value):
        raise ArgumentError(f"{function}: {schema.split()[1]} is {value!r:.60}", fix=fix)


def check_operands(function: str, **given: Any) -> None:
    """Raises `ArgumentError` for operands of a user's function that are no tuple or list."""
    for name, operands in given.items():
        if not isinstance(operands, (tuple, list)):
            raise ArgumentError(f"{function}: {name} is {operands!r:.60}", fix=f"pass a tuple of arrays: {name}=(x,)")


def unsuitable(schema: str, value: Any) -> str:
    """What to pass for a setting, "float? scale=None", where `value` is nothing of the kind; else ""."""
    kind = schema.split()[0]
    suits, meant = KINDS.get(kind.removesuffix("?"), (None, ""))
    symbolic = type(value).__name__.startswith("Sym")  # torch's, of a length that is not known yet
    if suits is None or symbolic or (kind.endswith("?") and value is None) or suits(value):
        return ""
    return f"pass {meant}{' or None' if kind.endswith('?') else ''}"
