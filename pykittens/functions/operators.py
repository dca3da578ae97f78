"""torch's face of the public functions: `torch.ops.pykittens.<name>`, for eager code, `torch.compile`, export and CUDA
graphs.

Importing this module registers all that is declared (`declaration.ALL`); what is declared later registers itself. An
operator is registered with `torch.library.Library`, whose calls cost 6 us where those of `torch.library.custom_op` cost
17. Eager calls on ordinary tensors that look like earlier ones go past the operators, with gradients too (`plans.py`):
a profiler then sees their kernels, not the operators.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import ArgumentError
from ..interop.base import ArrayInfo
from ..interop.frameworks import torch_dtype, torch_names
from ..versions import check_version
from . import backward_plans, plans
from .declaration import ADDED, ALL, Function, Result
from .plans import direct, ordinary

check_version("torch", torch.__version__)
_library: Any = torch.library.Library("pykittens", "DEF")
_FORWARD_MODE = "pass tensors without tangents, or use torch's own function there"
_defaults: dict[Function, tuple[Any, ...]] = {}  # of the operators' arguments


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
            kept.quick = plans.written_out(kept, alike, _tell, function, arrays, settings, also)
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
    return made and _tell(*arrays, function, settings, made)


def operate(function: Function, arrays: Sequence[Tensor | None], settings: Sequence[Any], also: bool) -> Any:
    """Through the dispatcher. A result that only the backward pass needs is made where there will be one."""
    if not torch.compiler.is_compiling():
        _refuse_what_has_no_rows(function, arrays)
        _refuse_tangents(function, arrays)
    needed = also or _made_for_backward(function, arrays)
    settings = [_to_torch(function, i, x) for i, x in enumerate(settings)]
    result = _recorded(function, needed, getattr(torch.ops.pykittens, _name(function, needed)), arrays, settings)
    if needed and not also:
        return result[0] if len(result) == 2 else result[:-1]
    return result


def _recorded(
    function: Function, also: bool, operator: Any, arrays: Sequence[Tensor | None], settings: Sequence[Any]
) -> Any:
    """What an operator returns, so that torch.func's transforms know of its gradient, too."""
    if not _transformed(function, arrays):
        return operator(*arrays, *settings)
    result = _Transformed.apply(function, also, operator, settings, *arrays)
    return result[0] if len(result) == 1 else result


def _refuse_tangents(function: Function, arrays: Sequence[Tensor | None]) -> None:
    """Below the dispatcher torch.func.jvp's are not to be seen any more, and would be lost."""
    if forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(x).tangent is not None for x in map(_innermost, arrays)
    ):
        fact = f"{function.name} has no derivative in forward mode, and an operand has a tangent"
        raise ArgumentError(fact, fix=_FORWARD_MODE)


def _innermost(x: Tensor | None) -> Tensor | None:
    """What torch.vmap has wrapped."""
    while x is not None and torch._C._functorch.is_batchedtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


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
        if function.functional is not None:  # else torch does without writing by itself
            _library.impl(name, partial(_functionalised, function), "Functionalize")
    else:
        save, back = partial(_save, function, also), partial(_backward, function, name)
        torch.library.register_autograd(f"pykittens::{name}", back, setup_context=save, lib=_library)
    if function.autocast:
        for device in ("cpu", "cuda"):
            _library.impl(name, partial(_cast, function, operator, device), f"Autocast{device.upper()}")
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(f"pykittens::{name}", partial(_one_by_one, function, also, operator), lib=_library)


def _returned(made: list[Tensor]) -> Any:
    return made[0] if len(made) == 1 else tuple(made) if made else None


def _run(function: Function, count: int, *arguments: Any) -> Any:
    """An operator on tensors with memory, by a plan where there is one."""
    arrays, settings = _split(function, arguments)
    _refuse_tangents(function, arrays)
    looks = (function, count, function.key(*settings) if function.key else settings, getattr(arrays[0], "shape", None))
    if found := plans.known.find(arrays, looks):
        kept, pointers = found
        if (again := plans.again(plan := kept.plan, function, arrays, settings, pointers)) is not None:
            plans.done.plan = plans.at(plan, function, arrays, settings)
            return _returned(again)
    infos = function.describe(arrays)
    results = function.results(*infos, *settings)[:count]
    made = [_make(function, arrays, x) for x in results]
    recording = plans.Recording(function, arrays, made, settings)
    with plans.recorded(recording, next(x.device for x in infos if x is not None)):
        function.compute(arrays, infos, results, made, settings)
    if (done := recording.plan()) is not None:
        plans.known.keep(arrays, looks, plans.KeptPlan(done, False))
        plans.done.plan = done
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


# Gradients ------------------------------------------------------------------------------------------------


def _save(function: Function, also: bool, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    arrays, settings = _split(function, inputs)
    _keep(function, also, ctx, arrays, settings, (output,) if isinstance(output, Tensor) else output)


def _keep(
    function: Function,
    also: bool,
    ctx: Any,
    arrays: Sequence[Tensor | None],
    settings: Sequence[Any],
    outputs: Sequence[Tensor],
) -> None:
    """What the backward pass will need."""
    ctx.also, ctx.settings, ctx.roles = also, settings, None
    ctx.set_materialize_grads(False)  # no zeros as large as a result that nobody used
    if function.backward is not None:
        ctx.roles = roles = _roles(function, also)
        known = (*arrays, *outputs, None)  # the last may have been made or not
        ctx.save_for_backward(*[known[i] for i in roles.kept])
        ctx.buffers = [known[i] for i in roles.buffers]


class _Roles(NamedTuple):
    """Who is who in a backward pass. Places of what is kept, and of buffers, among operands, results and the further
    one; what makes tuples that have a function's names; whether the further one is demanded.
    """

    kept: list[int]
    buffers: list[int]
    saved: Callable[[Sequence[Any]], Any]
    grads: Callable[[Sequence[Any]], Any]
    settings: Callable[[Sequence[Any]], Any]
    needs: Callable[[Sequence[Any]], Any]
    nothing: tuple[None, ...]
    demanded: bool
    recent: list[Callable[..., Any]]  # what gives the gradients of calls like the last ones: `backward_plans`


@cache
def _roles(function: Function, also: bool) -> _Roles:
    back = function.backward
    assert back is not None
    known = {name: i for i, name in enumerate((*function.names, *function.outputs, function.also))}
    made = back.demands and function.also in back.saved and not also  # in the backward pass, of the operands
    kept = [*dict.fromkeys((*back.saved, *function.names))] if made else [*back.saved]
    results = (*function.outputs, *[function.also] * bool(function.also))
    classes: list[Any] = [
        namedtuple("saved", (*kept, *back.buffers)),
        namedtuple("grads", results),
        namedtuple("settings", function.setting_names),
        namedtuple("needs", function.names),
    ]
    saved, grads, settings, needs = (each._make for each in classes)
    places = [known[x] for x in kept], [known[x] for x in back.buffers]
    return _Roles(*places, saved, grads, settings, needs, (None,) * len(results), _demanded(function), [])


def _backward(function: Function, name: str, context: Any, *grads: Any) -> Any:
    if function.backward is None:
        raise NotImplementedError(_refusal(name))
    if not torch.is_grad_enabled():
        return tuple(_gradients(function, name, context, grads))
    with torch.no_grad():
        by_argument = _gradients(function, name, context, grads)
    # create_graph=True: whoever differentiates these is told.
    leads = [x for x in (*grads, *context.saved_tensors) if isinstance(x, Tensor) and x.is_floating_point()]
    made = [i for i, x in enumerate(by_argument) if x is not None]
    once = _Once.apply(f"{function.name}_backward", len(made), *[by_argument[i] for i in made], *leads)
    return tuple(once[made.index(i)] if i in made else None for i in range(len(by_argument)))


def _gradients(function: Function, name: str, context: Any, grads: Sequence[Any]) -> list[Any]:
    """The gradients of an operator's arguments. One that is wanted and that nobody computes is an error."""
    assert function.backward is not None
    roles = context.roles
    saved = roles.saved((*context.saved_tensors, *context.buffers))
    if roles.demanded and getattr(saved, function.also) is None:
        again = getattr(torch.ops.pykittens, _name(function, True))
        operands = [getattr(saved, x) for x in function.names]
        made = again(*operands, *[_to_torch(function, i, x) for i, x in enumerate(context.settings)])[-1]
        saved = saved._replace(**{function.also: made})
    # The dispatcher leaves out the last arguments that have their defaults, and a result that nobody asked for.
    wanted, count = context.needs_input_grad, len(function.names)
    needs = roles.needs((wanted if len(wanted) >= count else (*wanted, *[False] * count))[:count])
    by_result = roles.grads((*grads, *roles.nothing)[: len(roles.nothing)])
    found = function.backward.gradients(saved, by_result, roles.settings(context.settings), needs)
    given: list[Any] = [None] * len(wanted)
    for i, needed in enumerate(needs):
        if needed:
            gradient = found.get(function.names[i])
            if gradient is None:
                lost = " and ".join(
                    x for x, need in zip(function.names, needs, strict=True) if need and found.get(x) is None
                )
                said = f"pykittens.{name} has no gradient for {lost}: pass what does not require one (x.detach())"
                raise NotImplementedError(said)
            given[i] = None if gradient is ADDED else gradient
    return given


class _Again(torch.autograd.Function):  # type: ignore[misc]
    """Tells autograd of the results that a plan has made, as an operator would have done."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *arrays, function, settings, made = given
        ctx.function = function
        _keep(function, len(made) > len(function.outputs), ctx, arrays, settings, made)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.roles is None or any(x is not None for x in ctx.buffers):
            return _again_backward(ctx, grads)
        return backward_plans.gradients(ctx, grads, _again_backward)


def _again_backward(ctx: Any, grads: Sequence[Any]) -> Any:
    return _backward(ctx.function, _name(ctx.function, ctx.also), ctx, *grads)


# `_Again.apply` without what torch.autograd.Function's own does before: plans are for tensors without torch.func's
# transforms, which it looks for.
_tell: Any = super(torch.autograd.Function, _Again).apply


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
        ctx.function, ctx.of = function, function.name
        _keep(function, also, ctx, arrays, [*map(_from_torch, settings)], output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ArgumentError(f"{ctx.of} has no derivative in forward mode", fix=_FORWARD_MODE)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        seen = SimpleNamespace(
            also=ctx.also,
            roles=ctx.roles,
            saved_tensors=ctx.saved_tensors,
            buffers=ctx.buffers,
            settings=ctx.settings,
            needs_input_grad=ctx.needs_input_grad[4:],
        )
        return None, None, None, None, *_backward(ctx.function, _name(ctx.function, ctx.also), seen, *grads)


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """The gradients as they are, which refuse to be differentiated: `given` begins with `count` of them, and what they
    were made of follows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in given[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.of = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(_refusal(ctx.of))

    jvp = _Transformed.jvp


def _refusal(name: str) -> str:
    """Why an operator has no gradient, and what to do."""
    if name.endswith("_backward"):
        return f"pykittens.{name} is a derivative, and cannot be differentiated again: use torch's own function there"
    return f"pykittens.{name} has no backward yet: call it under torch.no_grad()"


def asked_once(saved: Sequence[Tensor]) -> bool:
    """Whether the backward pass that runs keeps no graph, and its tensors are ordinary ones."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    with backward_plans.asking():
        return keeps is not None and not torch.is_grad_enabled() and ordinary(saved) and not keeps()


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


def _one_by_one(
    function: Function, also: bool, operator: Any, info: Any, dims: tuple[int | None, ...], *arguments: Any
) -> Any:
    """Each member of the batch by itself."""
    if any(dims[i] is None for i in function.written) and any(d is not None for d in dims):
        names = " and ".join(function.names[i] for i in function.written if dims[i] is None)
        fact = f"{function.name} under torch.vmap writes {names}, of which all members of the batch have the same"
        raise ArgumentError(fact, fix="pass one for each member: in_dims=0 for it, too")

    def made(given: Sequence[Any]) -> Any:
        arrays, settings = _split(function, given)
        return _recorded(function, also, operator, arrays, [_to_torch(function, i, x) for i, x in enumerate(settings)])

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


for _function in ALL:
    register(_function)
