"""LayerNorm and RMSNorm, with dropout and a residual stream before them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..interop.frameworks import torch_names
from ..kernels import norms as kernels
from ..kernels import norms_backward
from ..kernels.arguments import KernelCall, check_rows, check_shape
from .declaration import Backward, Function, Result


def _results(
    name: str, x: Any, residual: Any, weight: Any, bias: Any, seeds: Any, eps: float, p: float, seed: int
) -> tuple[Result, ...]:
    kernels.check(eps, p)
    _check_seeds(name, seeds)
    check_rows(name, "x", x)
    for what, info, shape in (
        ("residual", residual, x.shape),
        ("weight", weight, x.shape[-1:]),
        ("bias", bias, x.shape[-1:]),
    ):
        if info is not None:
            check_rows(name, what, info)
            check_shape(name, what, info, shape)
    return Result(x.shape, x.dtype), Result(x.shape, x.dtype if residual is None else residual.dtype)


def _check_seeds(name: str, seeds: Any) -> None:
    if seeds is not None and (seeds.dtype != "i64" or any(n != 1 for n in seeds.shape)):
        said = f"{name}: the seed is an array of {seeds.dtype} {tuple(seeds.shape)}"
        raise ArgumentError(said, fix="pass one int64, such as torch.randint(2**62, (1,), device=x.device), or an int")


def _numbers(
    x: Any, residual: Any, weight: Any, bias: Any, seeds: Any, eps: float, p: float, seed: int
) -> tuple[Any, ...]:
    kernels.check(eps, p)
    return kernels.numbers(eps, p, seed)


def _forward(
    centred: bool,
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    seeds: Any,
    y: Any,
    s: Any,
    eps: float,
    p: float,
    seed: int,
    **config: Any,
) -> Any:
    drawn, numbers = kernels.in_memory(seeds if p > 0 else None), kernels.numbers(eps, p, seed)
    return kernels.call(x, residual, weight, bias, y, s, drawn, numbers, centred=centred, dropout=p > 0, **config)


def _results_backward(
    name: str,
    s: Any,
    dy: Any,
    ds: Any,
    weight: Any,
    seeds: Any,
    eps: float,
    p: float,
    seed: int,
    bias: Any,
    residual: Any,
    for_x: bool,
    for_weight: bool,
) -> tuple[Result, ...]:
    kernels.check(eps, p)
    _check_seeds(name, seeds)
    check_rows(name, "s", s)
    for what, info, shape in (("dy", dy, s.shape), ("ds", ds, s.shape), ("weight", weight, s.shape[-1:])):
        if info is not None:
            check_rows(name, what, info)
            check_shape(name, what, info, shape)
    n, none = s.shape[-1], (0,)
    return (
        Result(dy.shape if for_x else none, dy.dtype),
        Result(none if residual is None else dy.shape, residual or dy.dtype),
        Result(none, "f32") if weight is None or not for_weight else Result((n,), weight.dtype),
        Result(none if bias is None else (n,), bias or "f32"),
    )


def _forward_backward(
    centred: bool,
    s: Any,
    dy: Any,
    ds: Any,
    weight: Any,
    seeds: Any,
    dx: Any,
    dresidual: Any,
    dweight: Any,
    dbias: Any,
    eps: float,
    p: float,
    seed: int,
    bias: Any,
    residual: Any,
    for_x: bool,
    for_weight: bool,
) -> KernelCall:
    drawn, numbers = kernels.in_memory(seeds if p > 0 else None), kernels.numbers(eps, p, seed)
    operands = (s, dy, ds, weight, dx, dresidual, dweight, dbias, drawn, *numbers)
    return KernelCall(norms_backward.STEPS, operands, {"centred": centred, "dropout": p > 0})  # type: ignore[arg-type]


def _gradients(function: Function, saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """Without dropout, what x and the residual get is the same; where they have one dtype it is made once."""
    names = torch_names()
    dtype = names[saved.x.dtype]
    residual = None if saved.residual is None else names[saved.residual.dtype]
    same = settings.p == 0 and residual == dtype
    dy = saved.x.new_zeros(saved.x.shape) if grads.y is None else grads.y.contiguous()
    stream = saved.s if residual is not None or settings.p > 0 else saved.x
    dx, dresidual, dweight, dbias = function(
        (stream, dy, None if grads.s is None else grads.s.contiguous(), saved.weight, saved.seeds),
        (
            settings.eps,
            settings.p,
            settings.seed,
            names[saved.bias.dtype] if needs.bias else None,
            residual if needs.residual and not same else None,
            needs.x or (same and needs.residual),
            needs.weight,
        ),
    )
    return {"x": dx, "residual": dx if same else dresidual, "weight": dweight, "bias": dbias}


def _declare(name: str, centred: bool) -> Function:
    back = Function(
        f"{name}_backward",
        "Tensor s, Tensor dy, Tensor? ds, Tensor? weight, Tensor? seeds",
        "float eps, float p=0., SymInt seed=0, ScalarType? bias=None, ScalarType? residual=None, bool for_x=True, "
        "bool for_weight=True",
        outputs=("dx", "dresidual", "dweight", "dbias"),
        results=partial(_results_backward, f"{name}_backward"),
        forward=partial(_forward_backward, centred),
    )
    return Function(
        name,
        "Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? seeds",
        "float eps, float p=0., SymInt seed=0",
        outputs=("y",),
        also="s",
        results=partial(_results, name),
        forward=partial(_forward, centred),
        key=lambda eps, p, seed: p > 0,
        numbers=_numbers,
        autocast="f32",
        backward=Backward(("x", "residual", "weight", "bias", "seeds", "s"), partial(_gradients, back), demands=False),
    )


LAYERNORM, RMSNORM = _declare("layernorm", True), _declare("rmsnorm", False)


def layernorm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    eps: float = 1e-5,
    p: float = 0.0,
    seed: Any = 0,
) -> Any:
    """LayerNorm over the last axis of an array of any framework; with `residual`, or dropout `p`: the pair (y, s).

    s = dropout(x) + residual, y = (s - mean(s)) / sqrt(mean((s - mean(s))^2) + eps) * weight + bias. x: (..., n) with n
    from 1 to 65,536, rows contiguous and evenly spaced; residual: its shape; weight and bias: (n,); each bf16, f16 or
    f32. y has the dtype of x, s that of the residual (of x without one). Dropout keeps an element, scaled by 1 / (1 -
    p), where its Philox bits under `seed` (64 bits) say so: 0 <= p < 1. A seed may be an array of one int64 on the
    device of x: it is read where the kernels run, so that CUDA graphs and compiled code drop other elements once it
    changed.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return _norm(LAYERNORM, x, weight, bias, residual, eps, p, seed)


def rmsnorm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    eps: float = 1e-6,
    p: float = 0.0,
    seed: Any = 0,
) -> Any:
    """RMSNorm over the last axis of an array of any framework; with `residual`, or dropout `p`: the pair (y, s).

    y = s / sqrt(mean(s^2) + eps) * weight + bias; `x`, `residual`, `p`, `seed` and all else as `layernorm` has it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return _norm(RMSNORM, x, weight, bias, residual, eps, p, seed)


def _norm(function: Function, x: Any, weight: Any, bias: Any, residual: Any, eps: float, p: float, seed: Any) -> Any:
    if isinstance(seed, np.integer):
        seed = int(seed)
    if seed is None or (isinstance(seed, int) and not -(2**63) <= seed < 2**64):
        fix = "pass 64 bits: an int, or an array of one int64, such as torch.randint(2**62, (1,), device=x.device)"
        raise ArgumentError(f"{function.name}: seed is {seed}", fix=fix)
    drawn, number = (None, _signed(seed)) if isinstance(seed, int) else (seed, 0)
    dropped = not isinstance(p, (int, float, np.number)) or p > 0  # what is no number is refused by the function
    return function((x, residual, weight, bias, drawn), (eps, p, number), residual is not None or bool(dropped))


def _signed(seed: int) -> int:
    """The same 64 bits as an integer of torch's."""
    return seed if -(2**63) <= seed < 2**63 else (seed + 2**63) % 2**64 - 2**63
