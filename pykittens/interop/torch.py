"""torch operators: `torch.ops.pykittens.attention` and the like, for eager code, `torch.compile`, export and CUDA graphs.

Importing this module registers them; `pykittens.attention` does so when it first sees tensors. They are registered with
`torch.library.Library`, whose calls cost 6 us where those of `torch.library.custom_op` cost 17.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import attention as kernels
from ..kernels import matmul as products
from ..types import DType
from .base import ArrayInfo
from .frameworks import torch_dtype, torch_names

_library: Any = torch.library.Library("pykittens", "DEF")


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None, return_lse: bool = False) -> Any:
    """`pykittens.attention` on tensors."""
    if return_lse:
        return torch.ops.pykittens.attention_lse(q, k, v, causal, scale)
    return torch.ops.pykittens.attention(q, k, v, causal, scale)


def matmul(a: Tensor, b: Tensor, scale_a: Tensor | None, scale_b: Tensor | None, dtype: DType | None) -> Tensor:
    """`pykittens.matmul` on tensors."""
    return torch.ops.pykittens.matmul(a, b, scale_a, scale_b, None if dtype is None else torch_dtype(dtype.name))


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> Tensor:
    about = kernels.describe(q, k, v)
    arch, out = kernels.check(about), _output(q)
    kernels.run(about, arch, q, k, v, out, None, causal, scale)
    return out


def _attention_lse(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> tuple[Tensor, Tensor]:
    about = kernels.describe(q, k, v)
    arch, out, lse = kernels.check(about), _output(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    kernels.run(about, arch, q, k, v, out, lse, causal, scale)
    return out, lse


def _fake_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> Tensor:
    kernels.check({"q": _about(q), "k": _about(k), "v": _about(v)})
    return _output(q)


def _fake_attention_lse(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> tuple[Tensor, Tensor]:
    kernels.check({"q": _about(q), "k": _about(k), "v": _about(v)})
    return _output(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _matmul(a: Tensor, b: Tensor, scale_a: Tensor | None = None, scale_b: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    out: Tensor = products.run(a, b, scale_a=scale_a, scale_b=scale_b, dtype=None if dtype is None else torch_names()[dtype])
    return out


def _fake_matmul(a: Tensor, b: Tensor, scale_a: Tensor | None = None, scale_b: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    products.check({"a": _about(a), "b": _about(b)})
    return a.new_empty((a.shape[0], b.shape[1]), dtype=dtype or (torch.bfloat16 if a.dtype.itemsize == 1 else a.dtype))


def _output(q: Tensor) -> Tensor:
    """A tensor for the result, laid out as q: transposed queries give a transposed result."""
    return torch.empty_like(q) if q.stride(-1) == 1 else torch.empty_like(q, memory_format=torch.contiguous_format)


def _about(x: Tensor) -> ArrayInfo:
    """What can be known of a tensor without memory."""
    return ArrayInfo(0, x.shape, x.stride(), torch_names().get(x.dtype, str(x.dtype)), x.get_device() if x.is_cuda else None, "torch")


def _register(name: str, schema: str, run: Any, fake: Any) -> None:
    """An operator for tensors on the CPU (the simulated GPU) and on CUDA devices; its backward is a sentence."""

    def backward(context: Any, *gradients: Any) -> Any:
        raise NotImplementedError(f"pykittens.{name} has no backward yet: call it under torch.no_grad()")

    _library.define(f"{name}{schema}")
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"pykittens::{name}", fake, lib=_library)
    torch.library.register_autograd(f"pykittens::{name}", backward, lib=_library)


_QKV = "Tensor q, Tensor k, Tensor v, bool causal=False, float? scale=None"
_register("attention", f"({_QKV}) -> Tensor", _attention, _fake_attention)
_register("attention_lse", f"({_QKV}) -> (Tensor, Tensor)", _attention_lse, _fake_attention_lse)
_register("matmul", "(Tensor a, Tensor b, Tensor? scale_a=None, Tensor? scale_b=None, ScalarType? dtype=None) -> Tensor", _matmul, _fake_matmul)
