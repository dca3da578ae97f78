"""The public functions: on NumPy, torch, CuPy and JAX arrays, on their GPU or on the simulated one.

torch tensors go through torch's operators (`interop/torch.py`), so that the functions work under `torch.compile`.
"""

from __future__ import annotations

import sys
from typing import Any


def attention(q: Any, k: Any, v: Any, *, causal: bool = False, scale: float | None = None, return_lse: bool = False) -> Any:
    """softmax(q @ k.T * scale) @ v for each batch and head; with `return_lse`, also the log-sum-exp of each row's scores.

    q: (batch, heads, n, d), k and v: (batch, key heads, m, d), bf16 or f16, where the heads are a multiple of the key
    heads (grouped-query attention) and d is 64, 128 or, on Hopper, 256. Any strides: a transposed (batch, n, heads, d)
    is read in place. causal: row i sees the keys up to i + m - n; a row that sees none is zero. `scale` is 1 / sqrt(d)
    unless given. The result is a new array of the same framework and dtype; log-sum-exp is float32 (batch, heads, n).
    """
    if _of_torch(q, k, v):
        from .interop import torch as operators

        return operators.attention(q, k, v, causal, scale, return_lse)
    from .interop import arrays
    from .kernels import attention as kernels

    about = kernels.describe(q, k, v)
    kernels.check(about)
    out = arrays.empty_like(q, "q")
    lse = arrays.empty(about["q"].kind, about["q"].shape[:3], "f32", about["q"].device) if return_lse else None
    kernels.run(q, k, v, out, lse, causal, scale)
    return (out, lse) if return_lse else out


def _of_torch(*operands: Any) -> bool:
    """Whether all of them are tensors, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and all(isinstance(x, torch.Tensor) for x in operands)
