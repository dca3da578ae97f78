"""Matrix products, with an epilogue where the caller has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..call.identity import identity
from ..errors import ArgumentError, TraceError
from ..kernels import matmul as kernels
from ..trace.tile import Tile
from ..types import DTYPES, DType
from .declaration import Function, Result

DTYPE_NAMES = ("bf16", "f16", "f32")
MOST = 4  # operands of an epilogue, scales included

# Epilogues by number, so that operators can be told of them: the first of the same content, since a lambda is made anew
# for each call.
_numbers: dict[Any, int] = {}
_epilogues: list[Callable[..., Any]] = []


def _results(a: Any, b: Any, scale_a: Any, scale_b: Any, dtype: str | None) -> tuple[Result, ...]:
    kernels.check({"a": a, "b": b})
    for name, scale in (("scale_a", scale_a), ("scale_b", scale_b)):
        if scale is not None and (scale.dtype != "f32" or any(n != 1 for n in scale.shape)):
            fix = "pass an array of one float32; scale rows or columns in an epilogue"
            raise ArgumentError(f"matmul: {name} is {scale.dtype} {tuple(scale.shape)}", fix=fix)
    return (Result((a.shape[0], b.shape[1]), dtype or ("bf16" if a.dtype[0] == "e" else a.dtype)),)


def _forward(a: Any, b: Any, scale_a: Any, scale_b: Any, out: Any, dtype: str | None, config: Any = None) -> Any:
    return kernels.call(a, b, out, scale_a=scale_a, scale_b=scale_b, config=config)


def _results_of_epilogue(a: Any, b: Any, scale_a: Any, scale_b: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, epilogue, dtype = rest
    results = _results(a, b, scale_a, scale_b, dtype)
    m, n = results[0].shape
    for i, x in enumerate(operands):
        shape = () if x is None else (1,) * (2 - len(x.shape)) + tuple(x.shape)
        if x is not None and (len(shape) != 2 or shape[0] not in (1, m) or shape[1] not in (1, n)):
            fix = f"pass one that broadcasts to the result's ({m}, {n}): ({n},), ({m}, {n}), ({m}, 1) or (1,)"
            raise ArgumentError(f"matmul: operand {i} of the epilogue has shape {tuple(x.shape)}", fix=fix)
    return results


def _forward_with_epilogue(a: Any, b: Any, scale_a: Any, scale_b: Any, *rest: Any, config: Any = None) -> Any:
    *operands, out, epilogue, dtype = rest
    given = [x for x in operands if x is not None]
    return kernels.call(a, b, out, _epilogues[epilogue], given, scale_a, scale_b, config)


MATMUL = Function(
    "matmul",
    "Tensor a, Tensor b, Tensor? scale_a=None, Tensor? scale_b=None",
    "ScalarType? dtype=None",
    results=_results,
    forward=_forward,
    autocast="low",
    cast=("a", "b"),
)
MATMUL_EPILOGUE = Function(
    "matmul_epilogue",
    f"{MATMUL.operands}, " + ", ".join(f"Tensor? operand{i}=None" for i in range(MOST)),
    "int epilogue=0, ScalarType? dtype=None",
    results=_results_of_epilogue,
    forward=_forward_with_epilogue,
    autocast="low",
    cast=("a", "b"),
)


def matmul(
    a: Any,
    b: Any,
    *,
    scale_a: Any = None,
    scale_b: Any = None,
    dtype: DType | None = None,
    epilogue: Callable[..., Any] | None = None,
    operands: Sequence[Any] = (),
) -> Any:
    """a (m, k) @ b (k, n), times `scale_a` and `scale_b` where given: a new array (m, n) of the same framework. For
    Hopper.

    a and b: both bf16, both f16, or 8-bit floats, stored by rows or by columns (b may be w.T). The scales are arrays of
    one float32. The result has a's dtype (bf16 for 8-bit floats), or `dtype`: pk.bf16, pk.f16 or pk.f32; sums are
    float32.

    `epilogue(x, row, col, *operands)` is traced into the kernel: x is a float32 tile of the product whose first element
    is (row, col) of the result, and the operands are tensors of one or two dimensions, such as a bias or a residual.
    torch.compile does not take it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    name = None if dtype is None else _dtype_name(dtype)
    if epilogue is None:
        if operands:
            fix = "pass epilogue=, which reads them, or leave operands= out"
            raise ArgumentError(f"matmul: {len(operands)} operands, and no epilogue that reads them", fix=fix)
        return MATMUL((a, b, scale_a, scale_b), (name,))
    if len(operands) + (scale_a is not None) + (scale_b is not None) > MOST:
        said = f"matmul: {len(operands)} operands of an epilogue beside the scales"
        raise ArgumentError(said, fix=f"at most {MOST}, scales included")
    filled = (*operands, *[None] * (MOST - len(operands)))
    return MATMUL_EPILOGUE((a, b, scale_a, scale_b, *filled), (number_of(epilogue), name))


def number_of(epilogue: Callable[..., Any]) -> int:
    """The setting that stands for an epilogue."""
    if not callable(epilogue):
        raise ArgumentError(f"matmul: epilogue is {epilogue!r}", fix="pass a function of (x, row, col, *operands)")
    number = _numbers.setdefault(identity(epilogue, static=True), len(_epilogues))
    if number == len(_epilogues):
        _epilogues.append(_finishing(epilogue))
    return number


def _finishing(epilogue: Callable[..., Any]) -> Callable[..., Any]:
    """An epilogue whose result is looked at."""

    def finishing(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        result = epilogue(x, row, col, *operands)
        if not isinstance(result, Tile) or result.shape != x.shape:
            fix = (
                f"return a tile of {' x '.join(map(str, x.shape))}, made of the first argument: lambda x, row, col: "
                "pk.relu(x)"
            )
            raise TraceError(f"the epilogue returns {result!r}", fix=fix)
        return result

    return finishing


def _dtype_name(dtype: Any) -> str:
    """One of our names for a result's dtype, whoever's it is: pk.f32, torch.float32, np.float32, "f32"."""
    name = (
        dtype
        if isinstance(dtype, str)
        else getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    )
    name = name.removeprefix("torch.")
    name = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(name, name)
    if name not in DTYPE_NAMES or name not in DTYPES:
        raise ArgumentError(f"matmul: dtype is {dtype!r}", fix="use pk.bf16, pk.f16 or pk.f32")
    return name
