"""Linear layers with what follows them: bias, activation or gate, residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import ArgumentError
from ..interop.frameworks import torch_names
from ..kernels import activation_backward, matmul
from ..kernels import linear as kernels
from ..trace.wrong_calls import check_takes
from .compiled import check_constant, told, tracing
from .declaration import ADDED, Backward, Function, Result
from .epilogues import check_tile, number_of
from .product import ADDMM_, MATMUL, MATMUL_EPILOGUE, _sum

STRIPS = 32  # blocks that share the rows of some columns: enough for any GPU, and the same for all, as shapes must be
# Activations that are functions of the caller's, by number: what a setting can say.
_activations: dict[str, Callable[[Any], Any]] = {}


def _split(activation: str | None) -> tuple[Callable[[Any], Any] | None, bool]:
    """The function that an activation's name stands for, and whether it is a gate."""
    if activation is None:
        return None, False
    name = kernels.GATES.get(activation, activation)
    found = kernels.ACTIVATIONS.get(name) or _activations.get(name)
    if found is None:
        fix = f"use one of {', '.join((*kernels.ACTIVATIONS, *kernels.GATES))}, or a function of a tile"
        raise ArgumentError(f"linear: activation is {activation!r:.60}", fix=fix)
    return found, activation in kernels.GATES


def _results(
    x: Any, weight: Any, weight2: Any, bias: Any, residual: Any, grad_buffer: Any, activation: str | None
) -> tuple[Result, ...]:
    _, gated = _split(activation)
    said = f"linear: x {x.dtype} {tuple(x.shape)}, weight {weight.dtype} {tuple(weight.shape)}"
    if not x.shape or len(weight.shape) != 2 or x.shape[-1] != weight.shape[1]:
        raise ArgumentError(said, fix="x is (..., k) and weight (n, k), as torch.nn.Linear has it")
    if x.dtype not in ("bf16", "f16") or weight.dtype != x.dtype:
        fix = "pass both as bf16 or both as f16, or call it under torch.autocast"
        raise ArgumentError(f"{said}: tensor cores multiply bf16 by bf16 or f16 by f16", fix=fix)
    rows = weight.shape[0]
    if weight2 is not None and (not gated or tuple(weight2.shape) != tuple(weight.shape) or weight2.dtype != x.dtype):
        fix = "pass two weights of one shape and dtype for a gate (swiglu, geglu), else one"
        raise ArgumentError(f"{said}, and {weight2.dtype} {tuple(weight2.shape)}, activation {activation}", fix=fix)
    if gated and weight2 is None and rows % 2:
        raise ArgumentError(f"{said}, activation {activation}", fix="stack the gate's rows on as many others: (2 n, k)")
    n = rows // 2 if gated and weight2 is None else rows
    both = 2 * n if gated else n
    shape = (*x.shape[:-1], n)
    for name, given, wanted in (("bias", bias, (both,)), ("residual", residual, shape)):
        if given is not None and (tuple(given.shape) != tuple(wanted) or given.dtype not in ("bf16", "f16", "f32")):
            what = f"linear: {name} is {given.dtype} {tuple(given.shape)}"
            raise ArgumentError(what, fix=f"pass one of bf16, f16 or f32 and shape {tuple(wanted)}")
    if grad_buffer is not None and (grad_buffer.dtype != "f32" or tuple(grad_buffer.shape) != tuple(weight.shape)):
        what = f"linear: grad_buffer is {grad_buffer.dtype} {tuple(grad_buffer.shape)}"
        raise ArgumentError(what, fix=f"pass one of float32 and the weight's shape {tuple(weight.shape)}")
    if grad_buffer is not None and not _writable(grad_buffer):
        what = f"linear: grad_buffer has strides {tuple(grad_buffer.strides)}"
        raise ArgumentError(what, fix="pass one with contiguous rows, each of its own")
    if grad_buffer is not None and weight2 is not None:
        raise ArgumentError("linear: grad_buffer of two weights", fix="stack them to one of (2 n, k)")
    kept = (_product(x.shape[:-1]), both) if activation is not None else (0, both)
    return Result(shape, x.dtype), Result(kept, x.dtype)


def _writable(info: Any) -> bool:
    """Whether a kernel may write into a matrix: rows are contiguous and do not overlap."""
    (rows, cols), (stride, step) = info.shape, info.strides
    return bool((step == 1 or cols == 1) and (stride >= cols or rows == 1))


def _rows(x: Any) -> Any:
    return x.reshape(_product(x.shape[:-1]), x.shape[-1])


def _product(lengths: Any) -> Any:
    """Of integers, or of torch's symbols for them."""
    found = 1
    for length in lengths:
        found = found * length
    return found


def _halves(x: Any, gated: bool) -> list[Any]:
    """A bias as the operands of the epilogue."""
    return [] if x is None else [x[: len(x) // 2], x[len(x) // 2 :]] if gated else [x]


def _forward(
    x: Any,
    weight: Any,
    weight2: Any,
    bias: Any,
    residual: Any,
    grad_buffer: Any,
    out: Any,
    product: Any,
    activation: str | None,
    config: Any = None,
) -> Any:
    function, gated = _split(activation)
    n = out.shape[-1]
    first, second = (weight[:n], weight[n:]) if gated and weight2 is None else (weight, weight2)
    operands = [*_halves(bias, gated), *([] if residual is None else [_rows(residual)])]
    more = [] if product is None else [product[:, :n], product[:, n:]] if gated else [product]
    if more:
        given: Callable[..., Any] | None = kernels.keeping(function, gated, bias is not None, residual is not None)
    else:
        whole = activation is not None or operands
        given = kernels.finish(function, gated, bias is not None, residual is not None) if whole else None
    pair = second.T if gated else None
    return matmul.call(_rows(x), first.T, _rows(out), given, operands, config=config, b2=pair, more=more)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """What the activation was of is kept, in the operands' dtype: to make it again would be half a backward pass more,
    and y would not do for a gate or with a residual. It is kept with its bias: rounding is relative to its size, and
    where it is small activations have their slope.
    """
    activation, found = settings.activation, dict[str, Any]()
    _, gated = _split(activation)
    dtype = torch_names()[saved.x.dtype]
    x, weight, dy = _rows(saved.x), saved.weight, _rows(grads.out)
    if needs.residual:
        found["residual"] = grads.out.to(saved.residual.dtype)
    made = dy
    if activation is not None or needs.bias:
        rows = dy if dy.stride(1) == 1 else dy.contiguous()
        z = None if activation is None else saved.product
        dz, parts = ACTIVATION_BACKWARD((rows, z), (activation, needs.bias))
        made = dy if activation is None else dz
        if needs.bias:
            found["bias"] = parts.sum(0).to(saved.bias.dtype)
    n = weight.shape[0]
    if needs.x and saved.weight2 is None:
        found["x"] = MATMUL((made, weight, None, None), (None,)).reshape(saved.x.shape)
    elif needs.x:
        part = MATMUL((made[:, n:], saved.weight2, None, None), ("f32",))
        operands = (made[:, :n], weight, None, None, part, None, None, None)
        found["x"] = MATMUL_EPILOGUE(operands, (number_of(_sum), dtype)).reshape(saved.x.shape)
    if saved.grad_buffer is not None and needs.weight:
        ADDMM_((made.T, x, saved.grad_buffer))
        found["weight"] = ADDED
    elif needs.weight:
        found["weight"] = MATMUL((made[:, :n].T, x, None, None), (None,))
    if needs.weight2:
        found["weight2"] = MATMUL((made[:, n:].T, x, None, None), (None,))
    return found


def _results_backward(dy: Any, z: Any, activation: str | None, sums: bool) -> tuple[Result, ...]:
    _, gated = _split(activation)
    (m, n), none = dy.shape, Result((0,), "f32")
    both = 2 * n if gated else n
    return none if z is None else Result((m, both), dy.dtype), Result((STRIPS, both), "f32") if sums else none


def _forward_backward(dy: Any, z: Any, dz: Any, parts: Any, activation: str | None, sums: bool) -> Any:
    function, gated = _split(activation)
    n = dy.shape[1]
    given = ([None] if x is None else [x[:, :n], x[:, n:]] if gated else [x] for x in (z, dz, parts))
    z, dz, parts = (x + [None] * (1 + gated - len(x)) for x in given)
    return activation_backward.call(z, dy, dz, parts, function, STRIPS)


ACTIVATION_BACKWARD = Function(
    "activation_backward",
    "Tensor dy, Tensor? z",
    "str? activation, bool sums",
    outputs=("dz", "parts"),
    results=_results_backward,
    forward=_forward_backward,
)
LINEAR = Function(
    "linear",
    "Tensor x, Tensor weight, Tensor? weight2=None, Tensor? bias=None, Tensor? residual=None, Tensor? grad_buffer=None",
    "str? activation=None",
    also="product",
    results=_results,
    forward=_forward,
    backward=Backward(("x", "weight", "weight2", "bias", "residual", "product"), _gradients, buffers=("grad_buffer",)),
    autocast="low",
    cast=("x", "weight", "weight2"),
    summed={"x": -1, "weight": -1, "weight2": -1},
)


def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    activation: str | Callable[[Any], Any] | None = None,
    residual: Any = None,
    *,
    grad_buffer: Any = None,
) -> Any:
    """activation(x @ weight.T + bias) + residual: a new array (..., n) of the same framework, in one kernel.

    x: (..., k), weight: (n, k) as `torch.nn.Linear` has it, both bf16 or both f16; bias: (n,), residual: (..., n), each
    bf16, f16 or f32. The result has the dtype of x; sums and arithmetic are float32.

    activation: "relu", "gelu", "gelu_tanh", "silu"; or a function of a float32 tile, which is traced and differentiated
    (`lambda x: pk.relu(x) * x`). Gates multiply an activated product by another one: "swiglu" (silu), "geglu" (gelu),
    "geglu_tanh", "reglu" (relu). Their weight is a pair (gate, up) of (n, k), or both stacked as (2 n, k), the gate's
    rows first, as transformers stores gate_up_proj; their bias is (2 n,).

    torch's gradients of x, weight, bias and residual have float32 sums. For the backward pass of an activation the
    product is kept, (rows, n) in the dtype of x. `grad_buffer`: float32, of the weight's shape; the backward pass adds
    the weight's gradient to it, and the weight's own `grad` stays as it is.

    Raises `ArgumentError` for operands that no kernel takes.
    """
    weight, *rest = weight if isinstance(weight, (tuple, list)) else (weight, None)
    if len(rest) != 1:
        raise ArgumentError(f"linear: {1 + len(rest)} weights", fix="pass one, or a pair (gate, up)")
    (weight2,) = rest
    return LINEAR((x, weight, weight2, bias, residual, grad_buffer), (_name(activation, tracing()),))


@told
def _name(activation: Any, compiled: bool = False) -> str | None:
    """What a setting says for an activation. compiled: it is kept in a graph of torch's compiler."""
    if activation is None or isinstance(activation, str):
        return activation
    if not callable(activation):
        raise ArgumentError(f"linear: activation is {activation!r:.60}", fix="pass a name, or a function of a tile")
    if compiled:
        check_constant(activation, "the activation")
    name = f"function {number_of(activation)}"
    _activations.setdefault(name, partial(_activated, activation))
    return name


def _activated(activation: Callable[[Any], Any], x: Any) -> Any:
    """A user's activation, whose arguments and whose result are looked at."""
    check_takes(activation, "the activation", ["x"])
    result = activation(x)
    check_tile(activation, result, x, "the activation", "lambda x: pk.relu(x)")
    return result
