"""torch.func's transforms of public functions: grad and vjp, jvp, vmap."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import ArgumentError
from .autograd import FORWARD_MODE, backward, keep, told_of
from .declaration import Function
from .torch_arguments import from_torch, split, to_torch


def recorded(
    function: Function, also: bool, operator: Any, arrays: Sequence[Tensor | None], settings: Sequence[Any]
) -> Any:
    """What an operator returns, so that torch.func's transforms know of its gradient, too."""
    if not _transformed(function, arrays):
        return operator(*arrays, *settings)
    result = _Transformed.apply(function, also, operator, settings, *arrays)
    return result[0] if len(result) == 1 else result


def refuse_tangents(function: Function, arrays: Sequence[Tensor | None]) -> None:
    """Below the dispatcher torch.func.jvp's are not to be seen any more, and would be lost."""
    if forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(x).tangent is not None for x in map(_innermost, arrays)
    ):
        fact = f"{function.name} has no derivative in forward mode, and an operand has a tangent"
        raise ArgumentError(fact, fix=FORWARD_MODE)


def _innermost(x: Tensor | None) -> Tensor | None:
    """What torch.vmap has wrapped."""
    while x is not None and torch._C._functorch.is_batchedtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def _transformed(function: Function, arrays: Sequence[Tensor | None]) -> bool:
    """Whether torch.func (grad, vjp, jacrev) records a gradient, as it does not of operators that a library registers.
    Raises `ArgumentError` where that cannot be.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    given = [x for x in arrays if x is not None]
    stack = getattr(torch._C._functorch, "get_interpreter_stack", lambda: None)()
    if not any(level.key() == torch._C._functorch.TransformType.Grad for level in stack or ()):
        return False
    if not any(x.requires_grad or _innermost(x) is not x for x in given):  # vmap hides who requires a gradient
        return False
    if function.written or (function.autocast and torch.is_autocast_enabled(given[0].device.type)):
        fact = f"{function.name} inside torch.func.grad or vjp, {'written over' if function.written else 'in autocast'}"
        raise ArgumentError(fact, fix="use torch.autograd.grad, or .backward()")
    return True


class _Transformed(torch.autograd.Function):  # type: ignore[misc]
    """An operator and its gradient, as the transforms of torch.func take them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Function, also: bool, operator: Any, settings: Sequence[Any], *arrays: Any) -> Any:
        result = operator(*arrays, *settings)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        function, also, _, settings, *arrays = inputs
        keep(ctx, told_of(function, also, [*map(from_torch, settings)]), arrays, output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ArgumentError(f"{ctx.told.function.name} has no derivative in forward mode", fix=FORWARD_MODE)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        seen = SimpleNamespace(
            told=ctx.told,
            saved_tensors=ctx.saved_tensors,
            buffers=getattr(ctx, "buffers", ()),
            needs_input_grad=ctx.needs_input_grad[4:],
        )
        return None, None, None, None, *backward(seen, *grads)


def one_by_one(
    function: Function, also: bool, operator: Any, info: Any, dims: tuple[int | None, ...], *arguments: Any
) -> Any:
    """torch.vmap's rule: each member of the batch by itself."""
    if any(dims[i] is None for i in function.written) and any(d is not None for d in dims):
        names = " and ".join(function.names[i] for i in function.written if dims[i] is None)
        fact = f"{function.name} under torch.vmap writes {names}, of which all members of the batch have the same"
        raise ArgumentError(fact, fix="pass one for each member: in_dims=0 for it, too")

    def made(given: Sequence[Any]) -> Any:
        arrays, settings = split(function, given)
        return recorded(function, also, operator, arrays, to_torch(function, settings))

    def members(i: int) -> list[Any]:
        return [x if d is None else x.select(d, i) for x, d in zip(arguments, dims, strict=False)]

    if info.batch_size:
        parts = [made(members(i)) for i in range(info.batch_size)]
        one, whole = parts[0], [torch.stack(x) for x in zip(*map(_results_of, parts), strict=True)]
    else:  # as a member would be, of which there is none
        first = next(x for x in arguments if isinstance(x, Tensor))
        one = made([_without_memory(x, d) for x, d in zip(arguments, dims, strict=False)])
        whole = [first.new_empty((0, *x.shape), dtype=x.dtype) for x in _results_of(one)]
    if one is None:
        return None, None
    return (whole[0], 0) if isinstance(one, Tensor) else (tuple(whole), (0,) * len(whole))


def _results_of(result: Any) -> tuple[Tensor, ...]:
    return () if result is None else (result,) if isinstance(result, Tensor) else tuple(result)


def _without_memory(x: Any, batched: int | None) -> Any:
    """An argument of one member of an empty batch."""
    if not isinstance(x, Tensor):
        return x
    shape = [n for i, n in enumerate(x.shape) if i != batched]
    return x.new_empty(shape, device="meta")
