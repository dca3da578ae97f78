"""Gradients of the public functions by a call, for torch's tensors and anybody's arrays."""

from __future__ import annotations

import inspect
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import partial
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

    function: a public function (or one that calls some), called with `arrays` and `settings`, which may be arrays, too,
    or tuples of some, such as the operands of an epilogue: their gradients are a tuple, with None for what has none.
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
    kinds = {name: found for name, x in bound.arguments.items() if (found := {_kind(y) for y in _members(x)} - {""})}
    if len(frameworks := {kind for found in kinds.values() for kind in found}) > 1:
        said = ", ".join(f"{name} of {' and '.join(sorted(found))}" for name, found in kinds.items())
        raise ArgumentError(f"gradients of arrays {said}", fix="pass arrays of one framework")
    with torch.inference_mode(False), torch.enable_grad():
        given = {name: _mapped(partial(_tensor, torch), bound.arguments[name]) for name in kinds}
        leaves = {name: [x for x in _members(given[name]) if _is_leaf(torch, x)] for name in kinds}
        floats = [name for name, found in leaves.items() if found]
        if not isinstance(of, (str, tuple, list)) or not all(isinstance(name, str) for name in of):
            raise ArgumentError(f"gradients of {of!r:.60}", fix='pass names of operands: of=["x"]')
        wanted = [*dict.fromkeys([of] if of and isinstance(of, str) else of)]
        unknown = [name for name in wanted if name not in floats]
        if unknown or not floats:
            said = f"gradients of {', '.join(unknown) or 'no array'}"
            raise ArgumentError(said, fix=f"the arrays of floats are {', '.join(floats) or 'none: pass some'}")
        wanted = wanted or floats
        tensors = [x.requires_grad_() for name in wanted for x in leaves[name]]
        bound.arguments.update(given)
        results = function(*bound.args, **bound.kwargs)
        pairs = _pairs(torch, results if isinstance(results, (tuple, list)) else (results,), grad)
        try:
            found = torch.autograd.grad([x for x, _ in pairs], tensors, [g for _, g in pairs], allow_unused=True)
        except NotImplementedError as error:
            fix = f"name the operands whose gradients you want: of={wanted[:1]}"
            raise ArgumentError(str(error).partition(":")[0], fix=fix) from None
    back = _BACK[frameworks.pop()]
    made = {id(x): back(torch.zeros_like(x) if g is None else g) for x, g in zip(tensors, found, strict=True)}
    return namedtuple("Gradients", wanted)(*[_mapped(lambda x: made.get(id(x)), given[name]) for name in wanted])


def _members(x: Any) -> list[Any]:
    """What an argument holds: itself, or the members of a tuple such as the operands of an epilogue."""
    return [*x] if isinstance(x, (tuple, list)) else [*x.values()] if isinstance(x, dict) else [x]


def _mapped(what: Callable[[Any], Any], x: Any) -> Any:
    """An argument with something else in the place of each of its arrays."""
    if isinstance(x, dict):
        return {name: _mapped(what, y) for name, y in x.items()}
    return tuple(what(y) for y in x) if isinstance(x, (tuple, list)) else what(x)


def _is_leaf(torch: Any, x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


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
    if not all(isinstance(x, torch.Tensor) for x in results) or not any(x.requires_grad for x in results):
        said = ", ".join(type(x).__name__ for x in results)
        fix = "pass a function that returns what torch differentiates: a public function, or one that calls some"
        raise ArgumentError(f"gradients of a function that returns {said}, made of none of the arrays", fix=fix)
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
            if not _kind(g):
                raise ArgumentError(f"grad is {g!r:.60}", fix=f"pass an array of shape {tuple(x.shape)}")
            if tuple(g.shape) != tuple(x.shape):
                raise ArgumentError(f"grad of shape {tuple(g.shape)}", fix=f"the results have shape {shapes}")
            pairs.append((x, _tensor(torch, g).to(x.dtype)))
    return pairs


def _tensor(torch: Any, x: Any) -> Any:
    """A tensor that autograd sees for the first time, on the same memory where that is possible; of what is no array,
    itself.
    """
    if not _kind(x):
        return x
    if isinstance(x, torch.Tensor):
        return x.clone() if x.is_inference() else x.detach()
    if not isinstance(x, np.ndarray):
        return torch.from_dlpack(x)
    dtype = torch_dtype(dtype_name(x.dtype))
    if not x.flags.writeable or any(stride < 0 for stride in x.strides):
        x = x.copy()
    same_size = {1: np.uint8, 2: np.int16}.get(x.dtype.itemsize) if x.dtype.kind not in "fiub" else None
    return torch.from_numpy(x if same_size is None else x.view(same_size)).view(dtype)
