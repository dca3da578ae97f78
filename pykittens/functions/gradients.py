"""Gradients of the public functions by a call, for torch's tensors and anybody's arrays."""

from __future__ import annotations

import inspect
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..interop.arrays import Unsupported, as_numpy, describe
from ..interop.base import dtype_name
from ..interop.frameworks import torch_dtype


def gradients(
    function: Callable[..., Any], *arrays: Any, grad: Any = None, of: Sequence[str] = (), **settings: Any
) -> Any:
    """The gradients of a function's operands, from that of its result, as a named tuple by the names of operands.

        dq, dk, dv = pk.gradients(pk.attention, q, k, v, grad=do, causal=True)
        pk.gradients(pk.rmsnorm, x, weight, residual=r, grad=(dy, ds)).weight
        pk.gradients(pk.rotary, x, cos, sin, grad=do, of=["x"])

    function: a public function (or one that calls some), called with `arrays` and `settings`, which may be arrays, too.
    grad: an array of the result's shape; for a function of several results a tuple, with None for one that does not
    count; not needed for one number, such as a loss. of: the operands that are asked about; all arrays of floats
    unless given. The arrays are NumPy's, torch's, CuPy's or JAX's, and stay where they are; the gradients are of the
    same kind, shapes and dtypes. It is torch's autograd that calls the kernels of the backward pass, so that torch has
    to be installed, and on a GPU able to use it.

    Raises `ArgumentError` for operands without a gradient, for a `grad` that does not fit, and for arrays of several
    frameworks.
    """
    try:
        torch = import_module("torch")
    except ImportError:
        raise ArgumentError("pk.gradients without torch, whose autograd it asks", fix="pip install torch") from None
    if not callable(function):
        raise ArgumentError(f"gradients of {function!r:.60}", fix="pass a function first: pk.gradients(pk.rmsnorm, x)")
    bound = inspect.signature(function).bind(*arrays, **settings)
    kinds = {name: kind for name, x in bound.arguments.items() if (kind := _kind(x))}
    if len({*kinds.values()}) > 1:
        said = ", ".join(f"{name} of {kind}" for name, kind in kinds.items())
        raise ArgumentError(f"gradients of arrays {said}", fix="pass arrays of one framework")
    tensors = {name: _tensor(torch, bound.arguments[name]) for name in kinds}
    floats = [name for name, x in tensors.items() if x.is_floating_point()]
    if not isinstance(of, (str, tuple, list)) or not all(isinstance(name, str) for name in of):
        raise ArgumentError(f"gradients of {of!r:.60}", fix='pass names of operands: of=["x"]')
    unknown = [name for name in of if name not in floats]
    if unknown or not floats:
        said = f"gradients of {', '.join(unknown) or 'no array'}"
        raise ArgumentError(said, fix=f"the arrays of floats are {', '.join(floats) or 'none: pass some'}")
    wanted = [*of] or floats
    for name in wanted:
        tensors[name].requires_grad_()
    bound.arguments.update(tensors)
    with torch.enable_grad():
        results = function(*bound.args, **bound.kwargs)
    pairs = _pairs(torch, results if isinstance(results, (tuple, list)) else (results,), grad)
    try:
        found = torch.autograd.grad(
            [x for x, _ in pairs], [tensors[x] for x in wanted], [g for _, g in pairs], allow_unused=True
        )
    except NotImplementedError as error:
        fix = f"name the operands whose gradients you want: of={wanted[:1]}"
        raise ArgumentError(str(error).partition(":")[0], fix=fix) from None
    filled = (torch.zeros_like(tensors[x]) if g is None else g for x, g in zip(wanted, found, strict=True))
    return namedtuple("Gradients", wanted)(*[_BACK[kinds[wanted[0]]](x) for x in filled])


def _kind(x: Any) -> str:
    """The framework of an array that autograd can be asked about; "" for what is no array."""
    try:
        kind = describe(x).kind
    except Unsupported:
        return ""
    return kind if kind in _BACK else ""


# From a tensor on the same memory: what the framework of the operands calls it.
_BACK: dict[str, Callable[[Any], Any]] = {
    "torch": lambda x: x,
    "numpy": as_numpy,
    "cupy": lambda x: sys.modules["cupy"].from_dlpack(x.detach().contiguous()),
    "jax": lambda x: sys.modules["jax"].dlpack.from_dlpack(x.detach().contiguous()),
}


def _pairs(torch: Any, results: Sequence[Any], grad: Any) -> list[tuple[Any, Any]]:
    """The results that count, each with its gradient."""
    given = grad if isinstance(grad, (tuple, list)) else [grad]
    if grad is None and results[0].numel() == 1:
        given = [torch.ones_like(results[0]), *[None] * (len(results) - 1)]
    shapes = ", ".join(str(tuple(x.shape)) for x in results)
    if len(given) != len(results) or all(g is None for g in given):
        what = "one gradient for each" if len(results) > 1 else "its gradient"
        raise ArgumentError(f"results of shape {shapes}, and grad={type(grad).__name__}", fix=f"pass {what} as grad=")
    pairs = []
    for x, g in zip(results, given, strict=True):
        if g is not None:
            if tuple(g.shape) != tuple(x.shape):
                raise ArgumentError(f"grad of shape {tuple(g.shape)}", fix=f"the results have shape {shapes}")
            pairs.append((x, _tensor(torch, g).to(x.dtype)))
    return pairs


def _tensor(torch: Any, x: Any) -> Any:
    """A tensor that autograd sees for the first time, on the same memory where that is possible."""
    if isinstance(x, torch.Tensor):
        return x.detach()
    if not isinstance(x, np.ndarray):
        return torch.from_dlpack(x)
    dtype = torch_dtype(dtype_name(x.dtype))
    if not x.flags.writeable or any(stride < 0 for stride in x.strides):
        x = x.copy()
    same_size = {1: np.uint8, 2: np.int16}.get(x.dtype.itemsize) if x.dtype.kind not in "fiub" else None
    return torch.from_numpy(x if same_size is None else x.view(same_size)).view(dtype)
