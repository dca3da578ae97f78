"""Epilogues of matrix products: which number stands for which function, and the gradient through one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..call.identity import identity
from ..errors import ArgumentError, TraceError, defined
from ..kernels import epilogue_backward as kernels
from ..kernels.matmul import readable
from ..trace.tile import Tile
from ..trace.wrong_calls import check_takes
from .compiled import check_constant, told
from .declaration import Function, Result

MOST = 4  # operands of an epilogue
STRIPS = 32  # blocks that share the rows of 64 columns: enough for any GPU, and the same for all, as shapes must be

# Epilogues by number, so that operators can be told of them: the first of the same content, since a lambda is made anew
# for each call.
_numbers: dict[Any, int] = {}
_epilogues: list[Callable[..., Any]] = []


@told
def number_of(epilogue: Callable[..., Any], compiled: bool = False) -> int:
    """The setting that stands for an epilogue. compiled: it is kept in a graph of torch's compiler."""
    if not callable(epilogue):
        raise ArgumentError(f"matmul: epilogue is {epilogue!r:.60}", fix="pass a function of (x, row, col, *operands)")
    if compiled:
        check_constant(epilogue, "the epilogue")
    number = _numbers.setdefault(identity(epilogue, static=True), len(_epilogues))
    if number == len(_epilogues):
        _epilogues.append(_finishing(epilogue))
    return number


def epilogue_of(number: int) -> Callable[..., Any]:
    """The epilogue that a setting stands for."""
    return _epilogues[number]


def _finishing(epilogue: Callable[..., Any]) -> Callable[..., Any]:
    """An epilogue whose arguments and whose result are looked at."""

    def finishing(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        named = ["x", "row", "col", *(f"operand{i}" for i in range(len(operands)))]
        check_takes(epilogue, "the epilogue", named)
        result = epilogue(x, row, col, *operands)
        check_tile(epilogue, result, x, "the epilogue", "lambda x, row, col: pk.relu(x)")
        return result

    return finishing


def check_tile(function: Callable[..., Any], result: Any, x: Any, what: str, example: str) -> None:
    """Raises `TraceError` where a user's function of a tile returned none of its shape."""
    if not isinstance(result, Tile) or result.shape != x.shape:
        fix = f"return a tile of {' x '.join(map(str, x.shape))}, made of the first argument: {example}"
        raise TraceError(f"{what} returns {result!r}", fix=fix, location=defined(function))


def matrix_shape(shape: Sequence[Any]) -> tuple[Any, ...]:
    """An operand's shape as that of a matrix: a vector is one row."""
    return (1,) * (2 - len(shape)) + tuple(shape)


def _results(dy: Any, x: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, _, wanted, dtype = rest
    (m, n), none = dy.shape, Result((0,), "f32")
    made = [Result((m, n), dtype) if wanted & 1 else none]
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


def _forward(dy: Any, x: Any, *rest: Any) -> Any:
    operands, (dx, *made), number = rest[:MOST], rest[MOST : 2 * MOST + 1], rest[2 * MOST + 1]
    given = [readable(o).reshape(matrix_shape(o.shape)) for o in operands if o is not None]
    doperands = [d for o, d in zip(operands, made, strict=True) if o is not None]
    kinds = kernels.kinds_of([o.shape for o in given])
    return kernels.call(x, dy, given, dx, doperands, _epilogues[number], kinds, STRIPS)


EPILOGUE_BACKWARD = Function(
    "epilogue_backward",
    "Tensor dy, Tensor? x, " + ", ".join(f"Tensor? operand{i}=None" for i in range(MOST)),
    "int epilogue=0, int wanted=1, ScalarType? dtype=None",
    outputs=("dx", *(f"d{i}" for i in range(MOST))),
    results=_results,
    forward=_forward,
)


def through_epilogue(
    number: int, x: Any, dy: Any, operands: Sequence[Any], needs: Sequence[bool], *, dtype: str
) -> tuple[Any, list[Any]]:
    """The gradients of the product x, in the dtype `dtype`, and of the operands that need one: torch code."""
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    wanted = 1 + sum(1 << (i + 1) for i, need in enumerate(needs) if need)
    filled = (*operands, *[None] * (MOST - len(operands)))
    dx, *parts = EPILOGUE_BACKWARD((dy, x, *filled), (number, wanted, dtype))
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
