"""torch's face of the public functions: `torch.ops.pykittens.<name>`, for eager code, `torch.compile`, export and CUDA
graphs.

Importing this module registers all that is declared (`declaration.ALL`); what is declared later registers itself. An
operator is registered with `torch.library.Library`, whose calls cost 6 us where those of `torch.library.custom_op` cost
17. Eager calls on ordinary tensors that look like earlier ones go past the operators, with gradients too (`plans.py`):
a profiler then sees their kernels, not the operators.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..interop.base import ArrayInfo
from ..interop.frameworks import torch_dtype, torch_names
from ..versions import check_version
from . import autograd, plans
from .autograd import asked_once as asked_once  # for `declaration`, which loads nothing else of torch's
from .autograd import demanded
from .declaration import ALL, Function, Result
from .plans import direct, ordinary
from .torch_arguments import defaults, operator_name, split, to_torch
from .transforms import one_by_one, recorded, refuse_tangents

check_version("torch", torch.__version__)
_library: Any = torch.library.Library("pykittens", "DEF")


def call(function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], also: bool) -> Any:
    """A public function on tensors, outside of torch.compile."""
    try:
        rest = function.key(*settings) if function.key else settings
        kinds = tuple(map(type, settings))  # 1 and True are equal, and one of them may be refused
        looks = (function, also, torch.is_grad_enabled(), rest, kinds, getattr(arrays[0], "shape", None))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # some nested tensors have no shape
        _refuse_what_has_no_rows(function, arrays)
        function.checked_settings(settings)
        raise
    if direct() and (found := plans.known.find(arrays, looks)):
        kept, pointers = found
        plan, graded = kept.plan, kept.graded
        made = (_with_gradient if graded else plans.again)(plan, function, arrays, settings, pointers)
        if made is not None:
            plans.known.use(function, kept)
            if graded and len(made) > len(function.outputs) + also:
                made = made[:-1]
            return made[0] if len(made) == 1 else tuple(made) if made else None
    settings = function.checked_settings(settings)
    if tuple(map(type, settings)) != kinds:  # NumPy's numbers are remembered as Python's
        return call(function, arrays, settings, also)
    for i in function.written:  # of which torch would hand on a copy
        if (x := arrays[i]) is not None and x.is_neg():
            said = f"{function.name}: {function.names[i]} is a view of numbers of the other sign"
            raise ArgumentError(said, fix="pass x.resolve_neg()")
    plans.done.plan = None
    result = operate(function, arrays, settings, also)
    if (plan := plans.done.plan) and _plain(function, given := [x for x in arrays if x is not None], settings):
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in given)
        kept = plans.KeptPlan(plan._replace(settings=tuple(settings)), graded)
        if alike := plans.known.keep(arrays, looks, kept):
            told = autograd.told_of(function, plan.results > len(function.outputs), settings)
            kept.quick = plans.written_out(kept, alike, autograd.tell, told, function, arrays, settings, also)
            plans.known.use(function, kept)
    return result


def _with_gradient(
    plan: plans.Plan, function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], pointers: list[int]
) -> Sequence[Tensor] | None:
    """`plans.again`, and autograd is told."""
    torch._C._set_grad_enabled(False)  # what torch.no_grad() does: kernels refuse operands whose gradients are recorded
    try:
        made = plans.again(plan, function, arrays, settings, pointers)
    finally:
        torch._C._set_grad_enabled(True)
    told = autograd.told_of(function, plan.results > len(function.outputs), settings)
    return made and autograd.tell(*arrays, told, made)


def operate(function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], also: bool) -> Any:
    """Through the dispatcher. A result that only the backward pass needs is made where there will be one."""
    if not torch.compiler.is_compiling():
        _refuse_what_has_no_rows(function, arrays)
        refuse_tangents(function, arrays)
    needed = also or _made_for_backward(function, arrays)
    settings = to_torch(function, settings)
    result = recorded(function, needed, getattr(torch.ops.pykittens, operator_name(function, needed)), arrays, settings)
    if needed and not also:
        return result[0] if len(result) == 2 else result[:-1]
    return result


def _refuse_what_has_no_rows(function: Function, arrays: Sequence[Tensor | None]) -> None:
    """Refuses sparse, nested, quantized and masked tensors, of which the dispatcher says much."""
    for name, x in zip(function.names, arrays, strict=True):
        masked = type(x).__name__ == "MaskedTensor"
        if x is not None and (x.layout is not torch.strided or x.is_nested or x.is_quantized or masked):
            kind = "masked" if masked else "nested" if x.is_nested else "quantized" if x.is_quantized else "sparse"
            fixes = {
                "nested": "packed sequences, x.values(), or a padded tensor",
                "quantized": "x.dequantize()",
                "masked": "x.to_tensor(value)",
            }
            raise ArgumentError(
                f"{function.name}: {name} is a {kind} tensor", fix=f"pass {fixes.get(kind, 'x.to_dense()')}"
            )


def _made_for_backward(function: Function, arrays: Sequence[Tensor | None]) -> bool:
    if not demanded(function):
        return False
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays)


def _plain(function: Function, tensors: Sequence[Tensor], settings: Sequence[Any]) -> bool:
    """Whether an operator does with such arguments no more than its function, and to tell autograd: tensors are
    ordinary, no mode is on, and no setting is memory.
    """
    if not ordinary(tensors) or any(isinstance(x, Tensor) for x in settings):
        return False
    return not (function.autocast and torch.is_autocast_enabled(tensors[0].device.type))


# The operators --------------------------------------------------------------------------------------------


def register(function: Function) -> None:
    """Its operators, for tensors on the CPU (the simulated GPU) and on CUDA devices."""
    if function in defaults:  # declared while this module was imported for it
        return
    for also in (False, True) if function.also else (False,):
        _register(function, also)


def _register(function: Function, also: bool) -> None:
    name, count = operator_name(function, also), len(function.outputs) + also
    returns = "Tensor" if count == 1 else "(" + ", ".join(["Tensor"] * count) + ")"
    schema = ", ".join(x for x in (function.operands, function.settings) if x)
    _library.define(f"{name}({schema}) -> {returns}")
    for key in ("CPU", "CUDA"):
        _library.impl(name, partial(_run, function, count), key)
    operator = getattr(torch.ops.pykittens, name).default
    defaults[function] = tuple(x.default_value for x in operator._schema.arguments)
    torch.library.register_fake(f"pykittens::{name}", partial(_fake, function, count), lib=_library)
    if function.written:
        for key in ("AutogradCPU", "AutogradCUDA"):
            _library.impl(name, partial(_below_autograd, function, operator), key, with_keyset=True)
        if function.functional is not None:  # else torch does without writing by itself
            _library.impl(name, partial(_functionalised, function), "Functionalize")
    else:
        save, back = partial(autograd.save, function, also), autograd.backward
        torch.library.register_autograd(f"pykittens::{name}", back, setup_context=save, lib=_library)
    if function.autocast:
        for device in ("cpu", "cuda"):
            _library.impl(name, partial(_cast, function, operator, device), f"Autocast{device.upper()}")
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(f"pykittens::{name}", partial(one_by_one, function, also, operator), lib=_library)


def _returned(made: list[Tensor]) -> Any:
    return made[0] if len(made) == 1 else tuple(made) if made else None


def _run(function: Function, count: int, *arguments: Any) -> Any:
    """An operator on tensors with memory, by a plan where there is one."""
    arrays, settings = split(function, arguments)
    refuse_tangents(function, arrays)
    looks = (function, count, function.key(*settings) if function.key else settings, getattr(arrays[0], "shape", None))
    if found := plans.known.find(arrays, looks):
        kept, pointers = found
        if (again := plans.again(plan := kept.plan, function, arrays, settings, pointers)) is not None:
            plans.done.plan = plans.at(plan, function, arrays, settings)
            return _returned(again)
    infos = function.describe(arrays)
    results = function.results(*infos, *settings)[:count]
    made = [_make(function, arrays, x) for x in results]
    if plans.hopeless.find(arrays, looks):
        function.compute(arrays, infos, results, made, settings)
    else:
        recording = plans.Recording(function, arrays, made, settings)
        with plans.recorded(recording, next(x.device for x in infos if x is not None)):
            function.compute(arrays, infos, results, made, settings)
        if (done := recording.plan()) is not None:
            plans.known.keep(arrays, looks, plans.KeptPlan(done, False))
            plans.done.plan = done
        elif not recording.possible:
            plans.hopeless.keep(arrays, looks, True)
    if function.written:
        torch.autograd.graph.increment_version([arrays[i] for i in function.written])
    return _returned(made)


def _fake(function: Function, count: int, *arguments: Any) -> Any:
    if _VERBOSE_INDUCTOR:
        _introduce(getattr(torch.ops.pykittens, operator_name(function, count > len(function.outputs))).default)
    arrays, settings = split(function, arguments)
    infos = [None if x is None else _about(x) for x in arrays]
    function.together(infos)
    return _returned([_make(function, arrays, x) for x in function.results(*infos, *settings)[:count]])


# Before 2.13, torch's compiler writes down all that leads to an operator when it meets one that it does not know,
# whether or not anybody reads that: it takes twice as long for each layer of a model, and seems to hang after ten.
_VERBOSE_INDUCTOR = tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 13)


def _introduce(operator: Any) -> None:
    """Makes an operator known to that compiler, once it has been loaded, as the compiler would do it by itself."""
    modules: list[Any] = [sys.modules.get(f"torch.{name}") for name in ("_inductor.lowering", "_library.utils")]
    lowering, utils = modules
    if hasattr(lowering, "tag_to_layout_constraint") and hasattr(utils, "get_layout_constraint_tag"):
        if operator not in lowering.lowerings:
            constraint = lowering.tag_to_layout_constraint(utils.get_layout_constraint_tag(operator, with_default=True))
            lowering.make_fallback(operator, layout_constraint=constraint, warn=False)


def _make(function: Function, arrays: Sequence[Any], result: Result) -> Tensor:
    dtype = torch_dtype(result.dtype)
    if result.order:
        like = arrays[function.names.index(result.order)]
        if like.stride(-1) == 1 and like.shape == result.shape:
            return torch.empty_like(like, dtype=dtype)
        if like.stride(-1) == 1:  # as many dimensions, not as long
            strides, step = [1] * like.dim(), 1
            for i in sorted(range(like.dim()), key=like.stride):
                strides[i], step = step, step * result.shape[i]
            return torch.empty_strided(result.shape, strides, dtype=dtype, device=like.device)
    first = next(x for x in arrays if x is not None)
    return first.new_empty(result.shape, dtype=dtype)


def _about(x: Tensor) -> ArrayInfo:
    """What can be known of a tensor without memory."""
    dtype = torch_names().get(x.dtype, str(x.dtype))
    kind = "torch" if x.is_cuda or x.is_cpu else f"torch ({x.device.type})"
    return ArrayInfo(0, x.shape, x.stride(), dtype, x.get_device() if x.is_cuda else None, kind)


# What writes into an operand ------------------------------------------------------------------------------


def _below_autograd(function: Function, operator: Any, keys: Any, *arguments: Any) -> Any:
    """An operator that writes into an operand, as torch's functions with `out=` are: without a gradient, and saying
    so.
    """
    arrays, _ = split(function, arguments)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays):
        fix = "leave `out` or `in_place` out, detach the operands, or call it under torch.no_grad()"
        raise ArgumentError(f"{function.name} writes into its operand, and one requires its gradient", fix=fix)
    return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)


def _functionalised(function: Function, *arguments: Any) -> Any:
    """Where nothing may be written: the function without it, and a copy, which torch knows how to do without."""
    arrays, settings = split(function, arguments)
    assert function.functional is not None
    if function.outputs:  # what is written is the further result of the other
        *made, written = operate(function.functional, arrays, settings, True)
        arrays[function.written[0]].copy_(written)
        return _returned(made)
    arrays[-1].copy_(operate(function.functional, arrays[: len(function.functional.names)], settings, False))
    return None


# Autocast -------------------------------------------------------------------------------------------


def _cast(function: Function, operator: Any, device: str, *arguments: Any) -> Any:
    """The operator on operands of the dtype that torch.autocast has for such functions; 8 and 64 bits stay as they
    are.
    """
    dtype = torch.get_autocast_dtype(device) if function.autocast == "low" else torch.float32
    arrays, settings = split(function, arguments)
    settings = to_torch(function, settings)
    cast = [
        x.to(dtype)
        if isinstance(x, Tensor)
        and (not function.cast or name in function.cast)
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        else x
        for name, x in zip(function.names, arrays, strict=True)
    ]
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return operator(*cast, *settings)


for _function in ALL:
    register(_function)
