"""The public functions: on NumPy, torch, CuPy and JAX arrays, on their GPU or on the simulated one.

torch tensors go through torch's operators (`operators.py`), so that the functions work under `torch.compile`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .types import DType

_OPERATORS = (
    __package__ + ".operators"
)  # which imports torch; looked up rather than imported, since a call's import costs 1 us


def attention(
    q: Any, k: Any, v: Any, *, causal: bool = False, scale: float | None = None, return_lse: bool = False
) -> Any:
    """softmax(q @ k.T * scale) @ v for each batch and head; with `return_lse`, also the log-sum-exp of each row's scores.

    q: (batch, heads, n, d), k and v: (batch, key heads, m, d), bf16 or f16, where the heads are a multiple of the key
    heads (grouped-query attention) and d is 64, 128 or, on Hopper, 256. Any strides: a transposed (batch, n, heads, d)
    is read in place. causal: row i sees the keys up to i + m - n; a row that sees none is zero. `scale` is 1 / sqrt(d)
    unless given. The result is a new array of the same framework and dtype; log-sum-exp is float32 (batch, heads, n).
    """
    if (
        (torch := sys.modules.get("torch"))
        and isinstance(q, torch.Tensor)
        and isinstance(k, torch.Tensor)
        and isinstance(v, torch.Tensor)
    ):
        operators = sys.modules.get(_OPERATORS) or import_module(_OPERATORS)
        return operators.attention(q, k, v, causal, scale, return_lse)
    from .interop import arrays
    from .kernels import attention as kernels

    about = kernels.describe(q, k, v)
    arch = kernels.check(about)
    out = arrays.empty_like(q, "q")
    lse = arrays.empty(about["q"].kind, about["q"].shape[:3], "f32", about["q"].device) if return_lse else None
    kernels.run(about, arch, q, k, v, out, lse, causal, scale)
    return (out, lse) if return_lse else out


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
    """a (m, k) @ b (k, n), times `scale_a` and `scale_b` where given: a new array (m, n) of the same framework. For Hopper.

    a and b: both bf16, both f16, or 8-bit floats, stored by rows or by columns (b may be w.T). The scales are arrays of
    one float32. The result has a's dtype (bf16 for 8-bit floats), or `dtype`: pk.bf16, pk.f16 or pk.f32; sums are
    float32.

    `epilogue(x, row, col, *operands)` is traced into the kernel: x is a float32 tile of the product whose first element
    is (row, col) of the result, and the operands are tensors of one or two dimensions, such as a bias or a residual.
    torch.compile does not take it.
    """
    if (
        (torch := sys.modules.get("torch"))
        and isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and epilogue is None
        and not operands
    ):
        operators = sys.modules.get(_OPERATORS) or import_module(_OPERATORS)
        return operators.matmul(a, b, scale_a, scale_b, dtype)
    from .kernels import matmul as kernels

    name = None if dtype is None else dtype.name
    return kernels.run(a, b, epilogue=epilogue, operands=operands, scale_a=scale_a, scale_b=scale_b, dtype=name)
