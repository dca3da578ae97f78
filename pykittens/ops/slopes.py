"""The derivatives of functions of one number, for tiles (`unary.py`) and scalars (`scalar_functions.py`).

Each takes the words of derivatives, the cotangent c of y = f(x), x and y, and gives c f'(x). Where a function has a
corner (abs, relu) it is torch's choice; NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..program import Derivation

SLOPES: dict[str, Callable[[Derivation, Any, Any, Any], Any]] = {
    "neg": lambda d, c, x, y: -c,
    "abs": lambda d, c, x, y: d.where(x > 0, c, d.where(x < 0, -c, x * 0.0)),
    "exp": lambda d, c, x, y: c * y,
    "exp2": lambda d, c, x, y: c * (y * math.log(2)),
    "log": lambda d, c, x, y: c / x,
    "log2": lambda d, c, x, y: c / (x * math.log(2)),
    "relu": lambda d, c, x, y: d.where(x <= 0, 0.0, c),
    "sqrt": lambda d, c, x, y: c * 0.5 / y,
    "rsqrt": lambda d, c, x, y: c * (y * y * y * -0.5),
    "rcp": lambda d, c, x, y: -c * (y * y),
    "tanh": lambda d, c, x, y: c * (1.0 - y * y),
    "sigmoid": lambda d, c, x, y: c * (y * (1.0 - y)),
    "erf": lambda d, c, x, y: c * (d.unary("exp", -(x * x)) * (2 / math.sqrt(math.pi))),
    "sin": lambda d, c, x, y: c * d.unary("cos", x),
    "cos": lambda d, c, x, y: -c * d.unary("sin", x),
    **dict.fromkeys(("round", "floor", "ceil", "trunc"), lambda d, c, x, y: d.where(x == x, 0.0, x)),
}


def slope(d: Derivation, kind: str, cotangent: Any, x: Any, y: Any) -> Any:
    """The share of x in the cotangent of y = kind(x)."""
    return SLOPES[kind](d, cotangent, x, y)


def binary_shares(d: Derivation, kind: str, c: Any, a: Any, b: Any) -> Any:
    """Operands of a binary operation with what gives their shares of its cotangent c; a tie of max or min is shared."""
    x, y = d.wide(a), d.wide(b)
    if kind == "add":
        return (a, lambda: c), (b, lambda: c)
    if kind == "sub":
        return (a, lambda: c), (b, lambda: -c)
    if kind == "mul":
        return (a, lambda: c * y), (b, lambda: c * x)
    if kind == "div":
        return (a, lambda: c / y), (b, lambda: -c * (x / (y * y)))
    if kind == "mod":
        return (a, lambda: c), (b, lambda: -c * (x // y))
    if kind == "pow":
        return (a, lambda: _of_base(d, c, x, y)), (b, lambda: d.where(x == 0, 0.0, c * (x**y * d.unary("log", x))))
    if kind not in ("max", "min"):
        return ()  # steps: comparisons, //

    def chosen(one: Any, other: Any) -> Any:
        return d.where(one < other if kind == "max" else one > other, 0.0, d.where(one == other, c * 0.5, c))

    return (a, lambda: chosen(x, y)), (b, lambda: chosen(y, x))


def _of_base(d: Derivation, c: Any, x: Any, y: Any) -> Any:
    """The share of x in x ** y; a zeroth power has none, of 0 neither."""
    if isinstance(y, (int, float)):
        return c * (y * x ** (y - 1)) if y else c * 0.0
    return d.where(y == 0, 0.0, c * (y * x ** (y - 1)))
