"""Matrix products, with an epilogue where the caller has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from ..interop.frameworks import torch_names
from ..kernels import matmul as kernels
from ..trace.hopper import warpgroup
from ..trace.memory import at
from ..types import DTYPES, DType
from .compiled import tracing
from .declaration import Backward, Function, Result
from .epilogues import MOST, epilogue_of, matrix_shape, number_of, through_epilogue
from .settings import NOTHING, check_operands

DTYPE_NAMES = ("bf16", "f16", "f32")


def _results(a: Any, b: Any, scale_a: Any, scale_b: Any, dtype: str | None) -> tuple[Result, ...]:
    kernels.check({"a": a, "b": b})
    for name, scale in (("scale_a", scale_a), ("scale_b", scale_b)):
        if scale is not None and (scale.dtype != "f32" or any(n != 1 for n in scale.shape)):
            fix = "pass an array of one float32; scale rows or columns in an epilogue"
            raise ArgumentError(f"matmul: {name} is {scale.dtype} {tuple(scale.shape)}", fix=fix)
    return (Result((a.shape[0], b.shape[1]), dtype or ("bf16" if a.dtype[0] == "e" else a.dtype)),)


def _forward(a: Any, b: Any, scale_a: Any, scale_b: Any, out: Any, dtype: str | None, config: Any = None) -> Any:
    return kernels.call(a, b, out, scale_a=scale_a, scale_b=scale_b, config=config)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """Those of the operands are products with the same scales; those of the scales follow from one without."""
    scales = [x for x in (saved.scale_a, saved.scale_b) if x is not None]
    found = product_gradients(saved.a, saved.b, grads.out, needs.a, needs.b, saved.scale_a, saved.scale_b)
    if needs.scale_a or needs.scale_b:  # d scale_a = scale_b * sum(dc * (a @ b)) = scale_b * sum((dc @ b.T) * a)
        whole = (MATMUL((like(grads.out, saved.a), saved.b.T, None, None), ("f32",)) * saved.a).sum()
        for name, other in (("scale_a", saved.scale_b), ("scale_b", saved.scale_a)):
            if (own := getattr(saved, name)) is not None:
                found[name] = (whole if len(scales) == 1 else whole * other.reshape(())).reshape(own.shape)
    return found


def product_gradients(
    a: Any, b: Any, dc: Any, need_a: bool, need_b: bool, scale_a: Any = None, scale_b: Any = None
) -> dict[str, Any]:
    """The gradients of the operands of a @ b, torch tensors of 16-bit floats, in their dtypes: the wanted ones."""
    names = torch_names()
    if names[a.dtype][0] == "e":
        fix = "multiply bf16 or f16 where a gradient is wanted, and convert to 8 bits for inference"
        raise ArgumentError("matmul of 8-bit floats has no gradient", fix=fix)
    dc, found = like(dc, a), {}
    if need_a:
        found["a"] = MATMUL((dc, b.T, scale_a, scale_b), (names[a.dtype],))
    if need_b:
        found["b"] = MATMUL((a.T, dc, scale_a, scale_b), (names[b.dtype],))
    return found


def like(gradient: Any, operand: Any) -> Any:
    """A result's gradient in the dtype of the operands: what tensor cores multiply."""
    return gradient if gradient.dtype == operand.dtype else gradient.to(operand.dtype)


def _results_of_epilogue(a: Any, b: Any, scale_a: Any, scale_b: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, epilogue, dtype = rest
    results = _results(a, b, scale_a, scale_b, dtype)
    m, n = results[0].shape
    for i, x in enumerate(operands):
        shape = () if x is None else matrix_shape(x.shape)
        if x is not None and (len(shape) != 2 or shape[0] not in (1, m) or shape[1] not in (1, n)):
            fix = f"pass one that broadcasts to the result's ({m}, {n}): ({n},), ({m}, {n}), ({m}, 1) or (1,)"
            raise ArgumentError(f"matmul: operand {i} of the epilogue has shape {tuple(x.shape)}", fix=fix)
    return results[0], results[0]


def _forward_with_epilogue(a: Any, b: Any, scale_a: Any, scale_b: Any, *rest: Any, config: Any = None) -> Any:
    *operands, out, product, epilogue, dtype = rest
    given = [
        x for x in (*operands, *(x if x is None else x.reshape(1, 1) for x in (scale_a, scale_b))) if x is not None
    ]
    whole = _scaled(epilogue, sum(x is not None for x in (scale_a, scale_b)))
    if product is None:
        return kernels.call(a, b, out, whole, given, config=config)

    def keeping(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        return whole(x, row, col, *operands), x

    return kernels.call(a, b, out, keeping, given, config=config, more=(product,))


def _scaled(number: int, scales: int) -> Callable[..., Any]:
    """An epilogue whose last operands are scales, which it multiplies by first."""
    epilogue = epilogue_of(number)
    if not scales:
        return epilogue

    def scaled(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        for scale in operands[len(operands) - scales :]:
            x = x * scale[0, 0]
        return epilogue(x, row, col, *operands[: len(operands) - scales])

    return scaled


def _gradients_with_epilogue(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    names = [f"operand{i}" for i in range(MOST)]
    given = [x for x in (*names, "scale_a", "scale_b") if getattr(saved, x) is not None]
    whole = number_of(_scaled(settings.epilogue, sum(x.startswith("scale") for x in given)))
    wanted = [getattr(needs, x) for x in given]
    needed = needs.a or needs.b
    dtype = torch_names()[saved.a.dtype]
    operands = [getattr(saved, x) for x in given]
    dx, found = through_epilogue(
        whole, saved.product, grads.out, operands, wanted, dtype="bf16" if dtype[0] == "e" else dtype
    )
    products = product_gradients(saved.a, saved.b, dx, needs.a, needs.b) if needed else {}
    return products | dict(zip(given, found, strict=True))


MATMUL = Function(
    "matmul",
    "Tensor a, Tensor b, Tensor? scale_a=None, Tensor? scale_b=None",
    "ScalarType? dtype=None",
    results=_results,
    forward=_forward,
    backward=Backward(("a", "b", "scale_a", "scale_b"), _gradients),
    autocast="low",
    cast=("a", "b"),
)
OPERANDS = ", ".join(f"Tensor? operand{i}=None" for i in range(MOST))
MATMUL_EPILOGUE = Function(
    "matmul_epilogue",
    f"{MATMUL.operands}, {OPERANDS}",
    "int epilogue=0, ScalarType? dtype=None",
    also="product",
    results=_results_of_epilogue,
    forward=_forward_with_epilogue,
    backward=Backward(
        ("a", "b", "scale_a", "scale_b", *(f"operand{i}" for i in range(MOST)), "product"), _gradients_with_epilogue
    ),
    autocast="low",
    cast=("a", "b"),
    summed={"a": 1, "b": 0},
)


def _sum(x: Any, row: Any, col: Any, total: Any) -> Any:
    """The epilogue that adds to what is there."""
    return x + warpgroup.load(total, at(row, col), rows=x.rows, cols=x.cols)


def _results_of_addmm(a: Any, b: Any, total: Any) -> tuple[Result, ...]:
    (result,) = _results(a, b, None, None, "f32")
    if total.dtype != "f32" or tuple(total.shape) != tuple(result.shape):
        said = f"addmm_: the total is {total.dtype} {tuple(total.shape)}"
        raise ArgumentError(said, fix=f"pass one of float32 {tuple(result.shape)}")
    return (result._replace(nothing="total"),)


ADDMM = Function(
    "addmm",
    "Tensor a, Tensor b, Tensor total",
    results=_results_of_addmm,
    forward=lambda a, b, total, out: kernels.call(a, b, out, _sum, (total,)),
    backward=Backward(
        ("a", "b"),
        lambda saved, grads, settings, needs: {
            "total": grads.out,
            **product_gradients(saved.a, saved.b, grads.out, needs.a, needs.b),
        },
    ),
    autocast="low",
    cast=("a", "b"),
)
ADDMM_ = Function(
    "addmm_",
    "Tensor a, Tensor b, Tensor(a!) total",
    outputs=(),
    results=lambda a, b, total: _results_of_addmm(a, b, total)[:0],
    forward=lambda a, b, total: kernels.call(a, b, total, _sum, (total,)),
    functional=ADDMM,
    autocast="low",
    cast=("a", "b"),
)


def addmm_(total: Any, a: Any, b: Any) -> None:
    """total += a @ b, where `total` (m, n) holds float32: gradients of weights over several passes.

    a (m, k) and b (k, n): both bf16 or both f16, stored by rows or by columns (`dy.T`), of any framework; `total` is
    written. As torch's functions that write into an operand, it has no gradient and refuses operands that require one.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    ADDMM_((a, b, total))


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
    """a (m, k) @ b (k, n), times `scale_a` and `scale_b` where given: a new array (m, n) of the same framework.

    a and b: both bf16, both f16, or 8-bit floats, stored by rows or by columns (b may be w.T). The scales are arrays of
    one float32. The result has a's dtype (bf16 for 8-bit floats), or `dtype`: pk.bf16, pk.f16 or pk.f32; sums are
    float32.

    `epilogue(x, row, col, *operands)` is traced into the kernel: x is a float32 tile of the product whose first element
    is (row, col) of the result, and the operands are tensors of one or two dimensions, such as a bias or a residual:
    `x + pk.warpgroup.load_row(bias, pk.at(0, col), length=x.cols, dtype=pk.f32)`. torch.compile takes functions without
    closures and defaults.

    torch's gradients are those of a, b, the scales, and the operands, as far as the epilogue reads them at (row, col),
    or at 0 along a dimension of length 1; the epilogue's derivative is traced (`pk.vjp`). For it the product is kept,
    in the result's dtype. 8-bit floats have no gradient. Their products need Hopper; 16 bits, sm_80 or newer.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    name = None if dtype is None else _dtype_name(dtype)
    if operands is not NOTHING:
        check_operands("matmul", operands=operands)
    if epilogue is None:
        if operands:
            fix = "pass epilogue=, which reads them, or leave operands= out"
            raise ArgumentError(f"matmul: {len(operands)} operands, and no epilogue that reads them", fix=fix)
        return MATMUL((a, b, scale_a, scale_b), (name,))
    if len(operands) + (scale_a is not None) + (scale_b is not None) > MOST:
        said = f"matmul: {len(operands)} operands of an epilogue beside the scales"
        raise ArgumentError(said, fix=f"at most {MOST}, scales included")
    filled = (*operands, *[None] * (MOST - len(operands)))
    return MATMUL_EPILOGUE((a, b, scale_a, scale_b, *filled), (number_of(epilogue, tracing()), name))


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
        raise ArgumentError(f"matmul: dtype is {dtype!r:.60}", fix="use pk.bf16, pk.f16 or pk.f32")
    return name
