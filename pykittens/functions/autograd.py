"""What torch's autograd is told of a public function, and the gradients that it gets.

Operators are registered with `save` and `backward`. Results that a plan has made past the dispatcher are told of by
`tell`; their backward pass may be a plan, too (`backward_plans.py`).
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call.memory import picker
from ..errors import ArgumentError
from . import backward_plans
from .declaration import ADDED, Function
from .plans import ordinary
from .torch_arguments import operator_name, split, to_torch

FORWARD_MODE = "pass tensors without tangents, or use torch's own function there"


class Roles(NamedTuple):
    """Who is who in a backward pass. What is kept, and buffers, picked from operands, results and the further one; what
    makes tuples that have a function's names; whether the further one is demanded.
    """

    kept: Callable[[Sequence[Any]], Sequence[Any]]
    buffers: Callable[[Sequence[Any]], Sequence[Any]]
    saved: Callable[[Sequence[Any]], Any]
    grads: Callable[[Sequence[Any]], Any]
    settings: Callable[[Sequence[Any]], Any]
    needs: Callable[[Sequence[Any]], Any]
    nothing: tuple[None, ...]
    demanded: bool
    recent: list[Callable[..., Any]]  # what gives the gradients of calls like the last ones: `backward_plans`


class Told(NamedTuple):
    """What the backward pass of a call must know besides tensors. also: the further result was made."""

    function: Function
    also: bool
    settings: Sequence[Any]
    roles: Roles | None  # None: the function has no backward pass

    @property
    def name(self) -> str:
        """The operator's."""
        return operator_name(self.function, self.also)


def told_of(function: Function, also: bool, settings: Sequence[Any]) -> Told:
    return Told(function, also, settings, None if function.backward is None else _roles(function, also))


@cache
def _roles(function: Function, also: bool) -> Roles:
    back = function.backward
    assert back is not None
    known = {name: i for i, name in enumerate((*function.names, *function.outputs, function.also))}
    made = back.demands and function.also in back.saved and not also  # in the backward pass, of the operands
    operands = [x for x in function.names if x not in back.buffers]
    kept = [*dict.fromkeys((*back.saved, *operands))] if made else [*back.saved]
    results = (*function.outputs, *[function.also] * bool(function.also))
    classes: list[Any] = [
        namedtuple("saved", (*kept, *back.buffers)),
        namedtuple("grads", results),
        namedtuple("settings", function.setting_names),
        namedtuple("needs", function.names),
    ]
    saved, grads, settings, needs = (each._make for each in classes)
    pickers = picker([known[x] for x in kept]), picker([known[x] for x in back.buffers])
    return Roles(*pickers, saved, grads, settings, needs, (None,) * len(results), demanded(function), [])


def demanded(function: Function) -> bool:
    """Whether the backward pass cannot do without the further result."""
    back = function.backward
    return back is not None and back.demands and function.also in back.saved


def save(function: Function, also: bool, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    """An operator's `setup_context`."""
    arrays, settings = split(function, inputs)
    keep(ctx, told_of(function, also, settings), arrays, (output,) if isinstance(output, Tensor) else output)


def keep(ctx: Any, told: Told, arrays: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
    """What the backward pass will need."""
    ctx.told = told
    ctx.set_materialize_grads(False)  # no zeros as large as a result that nobody used
    if roles := told.roles:
        known = (*arrays, *outputs, None)  # the last may have been made or not
        ctx.save_for_backward(*roles.kept(known))
        ctx.buffers = roles.buffers(known)


def backward(ctx: Any, *grads: Any) -> Any:
    """The gradients of an operator's arguments. `NotImplementedError` where there are none."""
    if ctx.told.roles is None:
        raise NotImplementedError(_refusal(ctx.told.name))
    if not torch.is_grad_enabled():
        return tuple(_gradients(ctx, grads))
    with torch.no_grad():
        by_argument = _gradients(ctx, grads)
    # create_graph=True: whoever differentiates these is told.
    leads = [x for x in (*grads, *ctx.saved_tensors) if isinstance(x, Tensor) and x.is_floating_point()]
    made = [i for i, x in enumerate(by_argument) if x is not None]
    once = _Once.apply(f"{ctx.told.function.name}_backward", len(made), *[by_argument[i] for i in made], *leads)
    return tuple(once[made.index(i)] if i in made else None for i in range(len(by_argument)))


def _gradients(ctx: Any, grads: Sequence[Any]) -> list[Any]:
    """One that is wanted and that nobody computes is an error."""
    function, also, settings, roles = ctx.told
    saved = roles.saved((*ctx.saved_tensors, *ctx.buffers))
    if roles.demanded and getattr(saved, function.also) is None:
        again = getattr(torch.ops.pykittens, operator_name(function, True))
        made = again(*[getattr(saved, x) for x in function.names], *to_torch(function, settings))[-1]
        saved = saved._replace(**{function.also: made})
    # The dispatcher leaves out the last arguments that have their defaults, and a result that nobody asked for.
    wanted, count = ctx.needs_input_grad, len(function.names)
    needs = roles.needs((wanted if len(wanted) >= count else (*wanted, *[False] * count))[:count])
    by_result = roles.grads((*grads, *roles.nothing)[: len(roles.nothing)])
    found = function.backward.gradients(saved, by_result, roles.settings(settings), needs)
    given: list[Any] = [None] * len(wanted)
    for i, needed in enumerate(needs):
        if needed:
            gradient = found.get(function.names[i])
            if gradient is None:
                names = zip(function.names, needs, strict=True)
                lost = " and ".join(x for x, need in names if need and found.get(x) is None)
                name = operator_name(function, also)
                said = f"pykittens.{name} has no gradient for {lost}: pass what does not require one (x.detach())"
                raise NotImplementedError(said)
            given[i] = None if gradient is ADDED else gradient
    return given


class _Again(torch.autograd.Function):  # type: ignore[misc]
    """Tells autograd of the results that a plan has made, as an operator would have done."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *arrays, told, made = given
        keep(ctx, told, arrays, made)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.told.roles is None or any(x is not None for x in ctx.buffers):
            return backward(ctx, *grads)
        return backward_plans.gradients(ctx, grads, backward)


# `tell(*operands, told, results)`: `_Again.apply` without what torch.autograd.Function's own does before: plans are for
# tensors without torch.func's transforms, which it looks for.
tell: Any = super(torch.autograd.Function, _Again).apply


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

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ArgumentError(f"{ctx.of} has no derivative in forward mode", fix=FORWARD_MODE)


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
