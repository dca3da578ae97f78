"""Epilogues of matrix products: which number stands for which function, and the gradient through one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..call.identity import identity
from ..errors import ArgumentError, TraceError
from ..kernels import epilogue_backward as kernels
from ..trace.tile import Tile
from .declaration import Function, Result

MOST = 4  # operands of an epilogue
STRIPS = 32  # blocks that share the rows of 64 columns: enough for any GPU, and the same for all, as shapes must be

# Epilogues by number, so that operators can be told of them: the first of the same content, since a lambda is made anew
# for each call.
_numbers: dict[Any, int] = {}
_epilogues: list[Callable[..., Any]] = []


def number_of(epilogue: Callable[..., Any]) -> int:
    """The setting that stands for an epilogue."""
    if not callable(epilogue):
        raise ArgumentError(f"matmul: epilogue is {epilogue!r}", fix="pass a function of (x, row, col, *operands)")
    number = _numbers.setdefault(identity(epilogue, static=True), len(_epilogues))
    if number == len(_epilogues):
        _epilogues.append(_finishing(epilogue))
    return number


def epilogue_of(number: int) -> Callable[..., Any]:
    """The epilogue that a setting stands for."""
    return _epilogues[number]


def _finishing(epilogue: Callable[..., Any]) -> Callable[..., Any]:
    """An epilogue whose result is looked at."""

    def finishing(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        result = epilogue(x, row, col, *operands)
        wanted = (x[0] if isinstance(x, tuple) else x).shape
        if not isinstance(result, Tile) or result.shape != wanted:
            fix = (
                f"return a tile of {' x '.join(map(str, wanted))}, made of the first argument: "
                "lambda x, row, col: pk.relu(x)"
            )
            raise TraceError(f"the epilogue returns {result!r}", fix=fix)
        return result

    return finishing


def matrix_shape(shape: Sequence[Any]) -> tuple[Any, ...]:
    """An operand's shape as that of a matrix: a vector is one row."""
    return (1,) * (2 - len(shape)) + tuple(shape)


def _results(x: Any, dy: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, _, pair, wanted, dtype = rest
    (m, n), none = dy.shape, Result((0,), "f32")
    made = [Result((m, 2 * n if pair else n), dtype) if wanted & 1 else none]
    shapes = [matrix_shape(o.shape) for o in operands if o is not None]
    kinds = iter(kernels.kinds_of(shapes))
    for i, o in enumerate(operands):
        if o is None:
            made.append(none)
            continue
        kind = next(kinds)
        shape, held = kernels.part_shape(kind, m, n, STRIPS), o.dtype if kind == "tile" else "f32"
        made.append(Result(shape, held) if wanted >> (i + 1) & 1 else none)
    return tuple(made)


def _forward(x: Any, dy: Any, *rest: Any) -> Any:
    operands, made = rest[:MOST], rest[MOST : 2 * MOST + 1]
    number, pair, _, _ = rest[2 * MOST + 1 :]
    given = [o.reshape(matrix_shape(o.shape)) for o in operands if o is not None]
    doperands = [d for o, d in zip(operands, made[1:], strict=True) if o is not None]
    kinds = kernels.kinds_of([o.shape for o in given])
    n = dy.shape[1]
    halves = [[None, None] if z is None else [z[:, :n], z[:, n:]] if pair else [z] for z in (x, made[0])]
    products, dproducts = (z[: 1 + pair] for z in halves)
    return kernels.call(products, dy, given, dproducts, doperands, _epilogues[number], kinds, STRIPS)


EPILOGUE_BACKWARD = Function(
    "epilogue_backward",
    "Tensor? x, Tensor dy, " + ", ".join(f"Tensor? operand{i}=None" for i in range(MOST)),
    "int epilogue=0, bool pair=False, int wanted=1, ScalarType? dtype=None",
    outputs=("dx", *(f"d{i}" for i in range(MOST))),
    results=_results,
    forward=_forward,
)


def through_epilogue(
    number: int, x: Any, dy: Any, operands: Sequence[Any], needs: Sequence[bool], *, dtype: str, pair: bool = False
) -> tuple[Any, list[Any]]:
    """The gradients of the product(s) and of the operands that need one: torch code. `x` None: dx is not wanted.

    x: (m, n), or (m, 2 n) of a pair; dy: (m, n). dx has the shape of x and the dtype `dtype`.
    """
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    wanted = int(x is not None) | sum(1 << (i + 1) for i, need in enumerate(needs) if need)
    filled = (*operands, *[None] * (MOST - len(operands)))
    dx, *parts = EPILOGUE_BACKWARD((x, dy, *filled), (number, pair, wanted, dtype))
    found: list[Any] = []
    for o, need, part in zip(operands, needs, parts, strict=False):
        if not need:
            found.append(None)
            continue
        (rows, cols), total = matrix_shape(o.shape), part
        if rows == 1 and cols == 1:
            total = part.sum()
        elif rows == 1 or cols == 1:
            total = part.sum(0)
        found.append(total.to(o.dtype).reshape(o.shape))
    return dx, found
