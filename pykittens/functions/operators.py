"""torch's face of the public functions: `torch.ops.pykittens.<name>`, for eager code, `torch.compile`, export and CUDA
graphs.

Importing this module registers all that is declared (`declaration.ALL`); what is declared later registers itself. An
operator is registered with `torch.library.Library`, whose calls cost 6 us where those of `torch.library.custom_op` cost
17. Eager calls on ordinary tensors that look like earlier ones go past the operators; a profiler then sees their
kernels,
not the operators.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..call.memory import Plans
from ..errors import ArgumentError
from ..interop.base import ArrayInfo
from ..interop.frameworks import torch_dtype, torch_names
from ..interop.views import View
from ..kernels.arguments import KernelCall
from ..versions import check_version
from .declaration import ADDED, ALL, Function, Result

# Whether this torch can be asked what `_direct` and `_plain` ask. One that cannot always calls the operators.
_ASKABLE = all(
    hasattr(torch._C, name)
    for name in ("_is_torch_function_mode_enabled", "_len_torch_dispatch_stack", "_functorch", "_dispatch_keys")
)
check_version("torch", torch.__version__)
_library: Any = torch.library.Library("pykittens", "DEF")


class _Plan(NamedTuple):
    """How to do again what an operator did."""

    launch: Callable[[Sequence[int], tuple[Any, ...]], bool]
    pointers: Callable[[Sequence[int]], Sequence[int]]  # the kernel's, of those of the operands and the results
    makers: list[Callable[[], Tensor]]  # of the results
    settings: tuple[Any, ...]
    numbers: tuple[Any, ...]  # for the launch, where the settings are these
    graded: bool  # some operand requires its gradient


_plans: Plans[_Plan] = Plans()
_defaults: dict[Function, tuple[Any, ...]] = {}  # of the operators' arguments


def call(function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], also: bool) -> Any:
    """A public function on tensors, outside of torch.compile."""
    rest = (function, also, function.key(*settings) if function.key else settings)
    if (made := _again(function, arrays, settings, rest)) is not None:
        return made[0] if len(made) == 1 else tuple(made) if made else None
    result = operate(function, arrays, settings, also)
    if _plain(function, given := [x for x in arrays if x is not None]):
        made = [] if result is None else [result] if isinstance(result, Tensor) else [*result]
        if plan := _plan(function, arrays, made, tuple(settings), _graded(given)):
            _plans.keep(arrays, rest, plan)
    return result


def operate(function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], also: bool) -> Any:
    """Through the dispatcher. A result that only the backward pass needs is made where there will be one."""
    needed = also or _made_for_backward(function, arrays)
    settings = [_to_torch(function, i, x) for i, x in enumerate(settings)]
    result = getattr(torch.ops.pykittens, _name(function, needed))(*arrays, *settings)
    if needed and not also:
        return result[0] if len(result) == 2 else result[:-1]
    return result


def _made_for_backward(function: Function, arrays: Sequence[Tensor | None]) -> bool:
    if not _demanded(function):
        return False
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays)


def _demanded(function: Function) -> bool:
    """Whether the backward pass cannot do without the further result."""
    back = function.backward
    return back is not None and back.demands and function.also in back.saved


def _name(function: Function, also: bool) -> str:
    return f"{function.name}_{function.also}" if also else function.name


def _to_torch(function: Function, i: int, setting: Any) -> Any:
    if isinstance(setting, Tensor) and setting.requires_grad:  # else torch takes its value, and the gradient is lost
        name = function.setting_names[i]
        raise ArgumentError(
            f"{function.name} has no gradient of {name}", fix=f"pass {name}.item(), or a tensor detached"
        )
    return torch_dtype(setting) if i in function.dtypes and setting is not None else setting


def _from_torch(setting: Any) -> Any:
    return torch_names()[setting] if isinstance(setting, torch.dtype) else setting


# Again ----------------------------------------------------------------------------------------------------

_TENSORS = {Tensor, torch.nn.Parameter}


def _again(
    function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], rest: Any
) -> list[Tensor] | None:
    """The results, where there is a plan for such operands: the dispatcher and all that an operator asks cost five
    times as much.
    """
    if not _direct() or not (found := _plans.find(arrays, rest)):
        return None
    (launch, order, makers, known, numbers, graded), pointers = found
    if graded and torch.is_grad_enabled():
        return None
    if settings != known:
        if not _TENSORS.isdisjoint(map(type, settings)):  # `_to_torch` looks at it
            return None
        numbers = function.numbers(*arrays, *settings)  # type: ignore[misc]
    made = [make() for make in makers]
    pointers.extend(map(Tensor.data_ptr, made))
    if not launch(order(pointers), numbers):
        return None
    if function.written:
        torch.autograd.graph.increment_version([arrays[i] for i in function.written])
    return made


def _plan(
    function: Function, arrays: Sequence[Tensor | None], made: list[Tensor], settings: tuple[Any, ...], graded: bool
) -> _Plan | None:
    """The plan to do again what an operator did with such operands; None where it did more than a launch."""
    infos = function.describe(arrays)
    if any(x is not None and 0 in x.shape for x in infos):
        return None
    results = function.results(*infos, *settings)[: len(made)]
    todo = function.prepare(arrays, results, made, settings)
    order = todo and _order([*[x for x in arrays if x is not None], *made], todo)
    if not todo or not order or not (launch := todo.kernel.launcher(*todo.operands, **todo.statics)):
        return None
    numbers = tuple(x for x in todo.operands if isinstance(x, (int, float)))
    return _Plan(launch, _picking(order), [_maker(x) for x in made], settings, numbers, graded)


def _order(given: list[Tensor], call: KernelCall) -> list[tuple[int, int]] | None:
    """Which of the given tensors each of the kernel's operands is, or a view of, and at which byte of it that begins;
    None where one is a copy or could be several.
    """
    order = []
    for x in call.operands:
        if isinstance(x, View) and x.offset:
            return None
        x = x.array if isinstance(x, View) else x
        if not isinstance(x, Tensor):
            continue
        found = [(i, 0) for i, y in enumerate(given) if x is y][:1]
        found = found or [(i, 0) for i, y in enumerate(given) if x.data_ptr() == y.data_ptr()]
        found = found or [
            (i, x.data_ptr() - y.data_ptr())
            for i, y in enumerate(given)
            if 0 < x.data_ptr() - y.data_ptr() < _reach(y) and x.untyped_storage().data_ptr() == _storage(y)
        ]
        if len(found) != 1:
            return None
        order += found
    return order


def _reach(x: Tensor) -> int:
    """The bytes from a tensor's first element to the end of its last."""
    return (1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage().data_ptr())


def _picking(order: list[tuple[int, int]]) -> Callable[[Sequence[int]], Sequence[int]]:
    """What gives the kernel's pointers, of all."""
    if any(offset for _, offset in order):
        return lambda pointers: [pointers[i] + offset for i, offset in order]
    first = order[0][0]
    return itemgetter(*[i for i, _ in order]) if len(order) > 1 else lambda pointers: [pointers[first]]


def _maker(x: Tensor) -> Callable[[], Tensor]:
    """What makes tensors like this one."""
    return partial(torch.empty_strided, tuple(x.shape), x.stride(), dtype=x.dtype, device=x.device)


def _direct() -> bool:
    """Whether no mode wants to see calls of operators; those of the dispatcher change its keys, which plans are
    found by.
    """
    return _ASKABLE and not torch._C._is_torch_function_mode_enabled() and forward_ad._current_level < 0


def _graded(tensors: Sequence[Tensor]) -> bool:
    return any(x.requires_grad for x in tensors)


def _plain(function: Function, tensors: Sequence[Tensor]) -> bool:
    """Whether an operator does with such tensors no more than its function: they are ordinary, no mode is on, no
    gradient wanted.
    """
    if not _ordinary(tensors) or (torch.is_grad_enabled() and _graded(tensors)):
        return False
    return not (function.autocast and torch.is_autocast_enabled(tensors[0].device.type))


def _ordinary(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors have memory and no class, and no mode is on, that wants to see what is done to them."""
    if not _direct() or torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return False
    if not all(x.is_cuda or x.is_cpu for x in tensors):
        return False
    with torch.inference_mode(False):
        ordinary = torch._C._dispatch_keys(torch.empty(0, device=tensors[0].device))
    return all((torch._C._dispatch_keys(x) | ordinary).raw_repr() == ordinary.raw_repr() for x in tensors)


# The operators --------------------------------------------------------------------------------------------


def register(function: Function) -> None:
    """Its operators, for tensors on the CPU (the simulated GPU) and on CUDA devices."""
    if function in _defaults:  # declared while this module was imported for it
        return
    for also in (False, True) if function.also else (False,):
        _register(function, also)


def _register(function: Function, also: bool) -> None:
    name, count = _name(function, also), len(function.outputs) + also
    returns = "Tensor" if count == 1 else "(" + ", ".join(["Tensor"] * count) + ")"
    schema = ", ".join(x for x in (function.operands, function.settings) if x)
    _library.define(f"{name}({schema}) -> {returns}")
    for key in ("CPU", "CUDA"):
        _library.impl(name, partial(_run, function, count), key)
    operator = getattr(torch.ops.pykittens, name).default
    _defaults[function] = tuple(x.default_value for x in operator._schema.arguments)
    torch.library.register_fake(f"pykittens::{name}", partial(_fake, function, count), lib=_library)
    if function.written:
        for key in ("AutogradCPU", "AutogradCUDA"):
            _library.impl(name, partial(_below_autograd, function, operator), key, with_keyset=True)
        _library.impl(name, partial(_functionalised, function), "Functionalize")
    else:
        save, back = partial(_save, function, also), partial(_backward, function, name)
        torch.library.register_autograd(f"pykittens::{name}", back, setup_context=save, lib=_library)
    if function.autocast:
        for device in ("cpu", "cuda"):
            _library.impl(name, partial(_cast, function, operator, device), f"Autocast{device.upper()}")
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(f"pykittens::{name}", partial(_one_by_one, operator), lib=_library)


def _returned(made: list[Tensor]) -> Any:
    return made[0] if len(made) == 1 else tuple(made) if made else None


def _run(function: Function, count: int, *arguments: Any) -> Any:
    arrays, settings = _split(function, arguments)
    if forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(x).tangent is not None for x in arrays
    ):
        fix = "pass tensors without tangents, or use torch's own function there"
        raise ArgumentError(f"{function.name} has no derivative in forward mode, and an operand has a tangent", fix=fix)
    infos = function.describe(arrays)
    results = function.results(*infos, *settings)[:count]
    made = [_make(function, arrays, x) for x in results]
    function.compute(arrays, infos, results, made, settings)
    if function.written:
        torch.autograd.graph.increment_version([arrays[i] for i in function.written])
    return _returned(made)


def _fake(function: Function, count: int, *arguments: Any) -> Any:
    if _VERBOSE_INDUCTOR:
        _introduce(getattr(torch.ops.pykittens, _name(function, count > len(function.outputs))).default)
    arrays, settings = _split(function, arguments)
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


def _split(function: Function, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Operands and settings, as the declaration has them; the dispatcher leaves out the last that have their
    defaults.
    """
    n = len(function.names)
    arguments = (*arguments, *_defaults[function][len(arguments) :])
    return arguments[:n], tuple(map(_from_torch, arguments[n:]))


def _make(function: Function, arrays: Sequence[Any], result: Result) -> Tensor:
    dtype = torch_dtype(result.dtype)
    if result.order:
        like = arrays[function.names.index(result.order)]
        if like.stride(-1) == 1:
            return torch.empty_like(like, dtype=dtype)
    first = next(x for x in arrays if x is not None)
    return first.new_empty(result.shape, dtype=dtype)


def _about(x: Tensor) -> ArrayInfo:
    """What can be known of a tensor without memory."""
    dtype = torch_names().get(x.dtype, str(x.dtype))
    kind = "torch" if x.is_cuda or x.is_cpu else f"torch ({x.device.type})"
    return ArrayInfo(0, x.shape, x.stride(), dtype, x.get_device() if x.is_cuda else None, kind)


# Gradients ------------------------------------------------------------------------------------------------


def _save(function: Function, also: bool, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    arrays, settings = _split(function, inputs)
    ctx.settings = settings
    ctx.set_materialize_grads(False)  # no zeros as large as a result that nobody used
    if function.backward is not None:
        outputs = (output,) if isinstance(output, Tensor) else output
        names = (*function.outputs, function.also) if also else function.outputs
        known = {**dict(zip(function.names, arrays, strict=True)), **dict(zip(names, outputs, strict=True))}
        if function.also in function.backward.saved and not also:  # to make it then
            known |= {function.also: None}
        again = _demanded(function) and known[function.also] is None
        ctx.kept = [*dict.fromkeys((*function.backward.saved, *(function.names if again else ())))]
        ctx.save_for_backward(*[known[name] for name in ctx.kept])
        ctx.buffers = {name: known[name] for name in function.backward.buffers}


def _backward(function: Function, name: str, context: Any, *grads: Any) -> Any:
    if function.backward is None:
        raise NotImplementedError(_refusal(name))
    with torch.no_grad():
        by_argument = _gradients(function, name, context, grads)
    if torch.is_grad_enabled():  # create_graph=True: whoever differentiates these is told
        leads = [x for x in (*grads, *context.saved_tensors) if isinstance(x, Tensor) and x.is_floating_point()]
        made = [i for i, x in enumerate(by_argument) if x is not None]
        once = _Once.apply(f"{function.name}_backward", len(made), *[by_argument[i] for i in made], *leads)
        by_argument = [once[made.index(i)] if i in made else None for i in range(len(by_argument))]
    return tuple(by_argument)


def _gradients(function: Function, name: str, context: Any, grads: Sequence[Any]) -> list[Any]:
    """The gradients of an operator's arguments. One that is wanted and that nobody computes is an error."""
    assert function.backward is not None
    saved = dict(zip(context.kept, context.saved_tensors, strict=True)) | context.buffers
    settings = [_to_torch(function, i, x) for i, x in enumerate(context.settings)]
    if _demanded(function) and saved[function.also] is None:
        again = getattr(torch.ops.pykittens, _name(function, True))
        saved[function.also] = again(*[saved[x] for x in function.names], *settings)[-1]
    needs = dict.fromkeys(function.names, False) | dict(zip(function.names, context.needs_input_grad, strict=False))
    by_result = dict.fromkeys((*function.outputs, *([function.also] if function.also else [])))
    by_result.update(zip(by_result, grads, strict=False))
    by_setting = dict(zip(function.setting_names, context.settings, strict=True))
    found = function.backward.gradients(*(SimpleNamespace(**x) for x in (saved, by_result, by_setting, needs)))
    if lost := [x for x in function.names if needs[x] and found.get(x) is None]:
        said = f"pykittens.{name} has no gradient for {' and '.join(lost)}: pass what does not require one (x.detach())"
        raise NotImplementedError(said)
    given = {x: None if y is ADDED else y for x, y in found.items()}
    by_argument = [given[x] if needs[x] else None for x in function.names] + [None] * len(settings)
    return by_argument[: len(context.needs_input_grad)]


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """The gradients as they are, which refuse to be differentiated: `given` begins with `count` of them, and what they
    were made of follows.
    """

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(x.view_as(x) for x in given[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(_refusal(ctx.name))


def _refusal(name: str) -> str:
    """Why an operator has no gradient, and what to do."""
    if name.endswith("_backward"):
        return f"pykittens.{name} is a derivative, and cannot be differentiated again: use torch's own function there"
    return f"pykittens.{name} has no backward yet: call it under torch.no_grad()"


def asked_once(saved: Sequence[Tensor]) -> bool:
    """Whether the backward pass that runs keeps no graph, and its tensors are ordinary ones."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not torch.is_grad_enabled() and _ordinary(saved) and not keeps()


def _below_autograd(function: Function, operator: Any, keys: Any, *arguments: Any) -> Any:
    """An operator that writes into an operand, as torch's functions with `out=` are: without a gradient, and saying
    so.
    """
    arrays, _ = _split(function, arguments)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays):
        fix = "leave `out` or `in_place` out, detach the operands, or call it under torch.no_grad()"
        raise ArgumentError(f"{function.name} writes into its operand, and one requires its gradient", fix=fix)
    return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)


def _functionalised(function: Function, *arguments: Any) -> Any:
    """Where nothing may be written: the function without it, and a copy, which torch knows how to do without."""
    arrays, settings = _split(function, arguments)
    assert function.functional is not None
    if function.outputs:  # what is written is the further result of the other
        *made, written = operate(function.functional, arrays, settings, True)
        arrays[function.written[0]].copy_(written)
        return _returned(made)
    arrays[-1].copy_(operate(function.functional, arrays[: len(function.functional.names)], settings, False))
    return None


# Autocast, vmap -------------------------------------------------------------------------------------------


def _cast(function: Function, operator: Any, device: str, *arguments: Any) -> Any:
    """The operator on operands of the dtype that torch.autocast has for such functions; 8 and 64 bits stay as they
    are.
    """
    dtype = torch.get_autocast_dtype(device) if function.autocast == "low" else torch.float32
    arrays, settings = _split(function, arguments)
    settings = [_to_torch(function, i, x) for i, x in enumerate(settings)]
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


def _one_by_one(operator: Any, info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
    """Each member of the batch by itself."""
    parts = []
    for i in range(info.batch_size):
        parts.append(operator(*[x if d is None else x.select(d, i) for x, d in zip(arguments, dims, strict=False)]))
    if isinstance(parts[0], Tensor):
        return torch.stack(parts), 0
    return tuple(map(torch.stack, zip(*parts, strict=True))), (0,) * len(parts[0])


for _function in ALL:
    register(_function)
