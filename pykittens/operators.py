"""torch operators: `torch.ops.pykittens.attention` and the like, for eager code, `torch.compile`, export and CUDA graphs.

Importing this module registers them; `pykittens.attention` does so when it first sees tensors. They are registered with
`torch.library.Library`, whose calls cost 6 us where those of `torch.library.custom_op` cost 17. Eager calls on ordinary
tensors that look like earlier ones go past the operators; a profiler then sees their kernels, not the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .call.launch import Launch
from .call.memory import Plans
from .interop.base import ArrayInfo
from .interop.frameworks import torch_dtype, torch_names
from .kernels import attention as kernels
from .kernels import matmul as products
from .types import DType

# Whether this torch can be asked what `_direct` and `_plain` ask. One that cannot always calls the operators.
_ASKABLE = all(
    hasattr(torch._C, name)
    for name in ("_is_torch_function_mode_enabled", "_len_torch_dispatch_stack", "_functorch", "_dispatch_keys")
)
_library: Any = torch.library.Library("pykittens", "DEF")


class _Plan(NamedTuple):
    """How to do again what an operator did."""

    launch: Launch
    numbers: tuple[Any, ...]  # for the launch, where the call gives no others
    makers: list[Callable[[], Tensor]]  # of the results
    at: int  # where their pointers stand among those of the operands
    graded: bool  # some operand requires its gradient


_attentions: Plans[_Plan] = Plans()
_products: Plans[_Plan] = Plans()


def attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None, return_lse: bool = False
) -> Any:
    """`pykittens.attention` on tensors."""
    operator = torch.ops.pykittens.attention_lse if return_lse else torch.ops.pykittens.attention
    if torch.compiler.is_dynamo_compiling():
        return operator(q, k, v, causal, scale)
    operands, key = (q, k, v), (causal, return_lse)
    if made := _again(_attentions, operands, key, () if scale is None else (float(scale),)):
        return tuple(made) if return_lse else made[0]
    result = operator(q, k, v, causal, scale)
    if _plain(operands):
        out, lse = result if return_lse else (result, None)
        if launch := kernels.launcher(q, k, v, out, lse, causal):
            makers = [_maker(out), _maker(lse)] if return_lse else [_maker(out)]
            _attentions.keep(operands, key, _Plan(launch, (q.shape[-1] ** -0.5,), makers, 3, _graded(operands)))
    return result


def matmul(a: Tensor, b: Tensor, scale_a: Tensor | None, scale_b: Tensor | None, dtype: DType | None) -> Tensor:
    """`pykittens.matmul` on tensors."""
    key = None if dtype is None else torch_dtype(dtype.name)
    if torch.compiler.is_dynamo_compiling():
        return torch.ops.pykittens.matmul(a, b, scale_a, scale_b, key)
    operands = (a, b, scale_a, scale_b)
    if made := _again(_products, operands, key):
        return made[0]
    result: Tensor = torch.ops.pykittens.matmul(a, b, scale_a, scale_b, key)
    given = [x for x in operands if x is not None]
    if _plain(given) and (found := products.launcher(a, b, result, scale_a, scale_b)):
        _products.keep(operands, key, _Plan(*found, [_maker(result)], 2, _graded(given)))
    return result


def _again(
    plans: Plans[_Plan], operands: Sequence[Tensor | None], key: Any, numbers: tuple[Any, ...] = ()
) -> list[Tensor] | None:
    """The results, where there is a plan for such operands: the dispatcher and all that an operator asks cost five times as much."""
    if not _direct() or not (found := plans.find(operands, key)):
        return None
    (launch, usual, makers, at, graded), pointers = found
    if graded and torch.is_grad_enabled():
        return None
    made = [make() for make in makers]
    pointers[at:at] = [x.data_ptr() for x in made]
    return made if launch(pointers, numbers or usual) else None


def _maker(x: Tensor) -> Callable[[], Tensor]:
    """What makes tensors like this one."""
    return partial(torch.empty_strided, tuple(x.shape), x.stride(), dtype=x.dtype, device=x.device)


def _direct() -> bool:
    """Whether no mode wants to see calls of operators; those of the dispatcher change its keys, which plans are found by."""
    return _ASKABLE and not torch._C._is_torch_function_mode_enabled()


def _graded(tensors: Sequence[Tensor]) -> bool:
    return any(x.requires_grad for x in tensors)


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether an operator does with such tensors no more than its function: they are ordinary, no mode is on, no gradient wanted."""
    if not _direct() or torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return False
    if torch.is_grad_enabled() and _graded(tensors):
        return False
    with torch.inference_mode(False):
        ordinary = torch._C._dispatch_keys(torch.empty(0, device=tensors[0].device))
    return all((torch._C._dispatch_keys(x) | ordinary).raw_repr() == ordinary.raw_repr() for x in tensors)


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> Tensor:
    about = kernels.describe(q, k, v)
    arch, out = kernels.check(about), _output(q)
    kernels.run(about, arch, q, k, v, out, None, causal, scale)
    return out


def _attention_lse(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    about = kernels.describe(q, k, v)
    arch, out, lse = kernels.check(about), _output(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    kernels.run(about, arch, q, k, v, out, lse, causal, scale)
    return out, lse


def _fake_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> Tensor:
    kernels.check({"q": _about(q), "k": _about(k), "v": _about(v)})
    return _output(q)


def _fake_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    kernels.check({"q": _about(q), "k": _about(k), "v": _about(v)})
    return _output(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _matmul(
    a: Tensor, b: Tensor, scale_a: Tensor | None = None, scale_b: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    out: Tensor = products.run(
        a, b, scale_a=scale_a, scale_b=scale_b, dtype=None if dtype is None else torch_names()[dtype]
    )
    return out


def _fake_matmul(
    a: Tensor, b: Tensor, scale_a: Tensor | None = None, scale_b: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    products.check({"a": _about(a), "b": _about(b)})
    return a.new_empty((a.shape[0], b.shape[1]), dtype=dtype or (torch.bfloat16 if a.dtype.itemsize == 1 else a.dtype))


def _output(q: Tensor) -> Tensor:
    """A tensor for the result, laid out as q: transposed queries give a transposed result."""
    return torch.empty_like(q) if q.stride(-1) == 1 else torch.empty_like(q, memory_format=torch.contiguous_format)


def _about(x: Tensor) -> ArrayInfo:
    """What can be known of a tensor without memory."""
    return ArrayInfo(
        0, x.shape, x.stride(), torch_names().get(x.dtype, str(x.dtype)), x.get_device() if x.is_cuda else None, "torch"
    )


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
_register(
    "matmul",
    "(Tensor a, Tensor b, Tensor? scale_a=None, Tensor? scale_b=None, ScalarType? dtype=None) -> Tensor",
    _matmul,
    _fake_matmul,
)
