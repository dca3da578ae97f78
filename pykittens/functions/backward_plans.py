"""Plans of backward passes: what a function's gradient came to is done again, past its torch code.

Such code (`Backward.gradients`) calls other public functions on what was saved, on gradients, on views of them, and on
what these functions make. While it runs for the first time, that is written down: the plan of each operator, with whose
memory each of its pointers is. Later passes on such tensors allocate and launch. Where torch computed anything else, or
the code asked what no tensor says (`asked_once`), there is no plan, and it runs each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _python_dispatch as modes

from ..call.made import MadeFunction
from ..call.memory import ALIGNED, Kept, Plans
from ..interop.arrays import guard
from . import plans

_RECENT = 8  # as many as of a function
_SCRATCH, _COPY = -1, -2  # in the place of a known tensor: scratch memory; the first copy, before the next ones


class _Remembered:
    """What does a pass again. `whole`: nothing can. Neither, where the pass that was recorded raised an error."""

    quick: Callable[..., Any] | None = None
    whole = False


_recording = threading.local()  # `now`: the recording of this thread
_known: Plans[_Remembered] = Plans(guard)


def gradients(ctx: Any, grads: Sequence[Tensor | None], whole: Callable[..., Any]) -> Any:
    """The gradients of a function's arguments, by a plan or by `whole(ctx, *grads)`.

    `ctx` has what the forward pass kept, and what it was told: `autograd.Told`.
    """
    function, also, settings, roles = ctx.told
    given, needs, recent = (*ctx.saved_tensors, *grads), ctx.needs_input_grad, roles.recent
    for quick in recent:
        if (found := quick(given, settings, needs)) is not NotImplemented:
            return found
    if torch.is_grad_enabled() or not plans.ordinary([x for x in given if x is not None]):
        return whole(ctx, *grads)
    shapes = [getattr(x, "shape", None) for x in given]
    looks = (function, also, needs, settings, tuple(map(type, settings)), *shapes)
    if remembered := _known.find(given, looks):
        quick = remembered[0].quick
        if remembered[0].whole:
            return whole(ctx, *grads)
        if quick and (found := quick(given, settings, needs)) is not NotImplemented:
            recent[:] = [quick, *(x for x in recent if x is not quick)][:_RECENT]
            return found
    kept = _known.keep(given, looks, now := _Remembered())
    if kept is None:
        return whole(ctx, *grads)
    with (recording := _Recording(given)):
        found = whole(ctx, *grads)
    plan, places = recording.plan(found)
    now.whole = plan is None
    if plan is not None:
        quick = now.quick = _written_out(plan, places, kept, given, settings, needs)
        recent[:] = [quick, *recent][:_RECENT]
    return found


def asking() -> AbstractContextManager[Any]:
    """For what asks more than tensors say: there is no plan of a backward pass that does, and no mode is seen that
    records it.
    """
    found: _Recording | None = getattr(_recording, "now", None)
    if found is None:
        return nullcontext()
    found.possible = False
    return cast("AbstractContextManager[Any]", modes._disable_current_modes())


class _Recording(modes.TorchDispatchMode):  # type: ignore[misc]
    """Notes the plans of operators of ours, and whether torch does anything but to view."""

    def __init__(self, given: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._known = [x for x in given if x is not None]
        self._given = [i for i, x in enumerate(given) if x is not None]
        self._makers: list[partial[Tensor]] = []
        self._scratch: list[partial[Tensor]] = []
        self._copies: list[int] = []  # of which of what is given
        self._steps: list[tuple[plans.KernelStep, list[tuple[int, int]]]] = []
        self.possible = True

    def __enter__(self) -> _Recording:
        _recording.now = self
        return cast("_Recording", super().__enter__())

    def __exit__(self, *error: Any) -> None:
        _recording.now = None
        super().__exit__(*error)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plans.done.plan = None
        result = operator(*args, **(kwargs or {}))
        if operator.namespace == "pykittens" and not operator._schema.is_mutable:
            self._note(plans.done.plan, args, [result] if isinstance(result, Tensor) else [*result])
        elif not all(x.alias_info and not x.alias_info.is_write for x in operator._schema.returns):
            self.possible = False
        return result

    def _note(self, plan: plans.Plan | None, operands: Sequence[Any], results: list[Tensor]) -> None:
        order = plan and plans.order_of(self._known, operands)
        if plan is None or order is None or any(first % ALIGNED for _, first in order):
            self.possible = False
            return
        tensors = [x for x in operands if isinstance(x, Tensor)]
        copied = [(order[i][0], tensors[i]) for i in plan.copies]
        if not all(place < len(self._given) and plans.alike(x, self._known[place]) for place, x in copied):
            self.possible = False
            return
        made, scratch = len(self._known), plan.makers[plan.results :]
        copies = range(len(self._copies), len(self._copies) + len(copied))
        whose = [*order, *((made + i, 0) for i in range(plan.results)), *((_COPY - i, 0) for i in copies)]
        whose += [(_SCRATCH, 0)] * len(scratch)
        self._copies += [place for place, _ in copied]
        for step in plan.steps:
            self._steps.append((step, [(whose[i][0], whose[i][1] + first) for i, first in step.order]))
        self._known += results
        self._makers += plan.makers[: plan.results]
        self._scratch += scratch

    def plan(self, found: Sequence[Tensor | None]) -> tuple[plans.Plan | None, list[str]]:
        """How to do that again, and the name of each gradient; None where it was more than kernels on known memory."""
        known, makers, count = self._known, [*self._makers], len(self._given)
        shapes: dict[int, Tensor] = {}
        names = []
        for x in found:
            if x is None:
                names.append("None")
                continue
            place = next((i for i, y in enumerate(known) if x is y or _same_memory(x, y)), None)
            if place is None or (place < count and x is not known[place]):
                return None, []
            if place >= count:
                other = shapes.setdefault(place, x)
                if (other.shape, other.stride()) != (x.shape, x.stride()):
                    return None, []
                makers[place - count] = plans.maker_of(x)
            names.append(f"x{self._given[place]}" if place < count else f"m{place - count}")
        if not self.possible or not self._steps:
            return None, []
        # Scratch memory of one operator is free for the next: all run on one stream.
        makers += sorted(self._scratch, key=lambda maker: maker.args[0])[-1:]
        behind = len(known) + len(self._copies)
        places = {_SCRATCH: behind, **{_COPY - i: len(known) + i for i in range(len(self._copies))}}
        steps = [step._replace(order=[(places.get(i, i), first) for i, first in order]) for step, order in self._steps]
        return plans.Plan(makers, len(self._makers), self._copies, steps, (), False), names


def _same_memory(x: Tensor, y: Tensor) -> bool:
    """Whether one is the other in another shape."""
    dense = x.is_contiguous() and y.is_contiguous()
    return dense and x.data_ptr() == y.data_ptr() and (x.numel(), x.dtype) == (y.numel(), y.dtype) and x.numel() > 0


def _written_out(
    plan: plans.Plan,
    names: Sequence[str],
    looks: Kept,
    given: Sequence[Tensor | None],
    settings: Sequence[Any],
    needs: tuple[bool, ...],
) -> Callable[..., Any]:
    """A plan as one Python function, as `plans.written_out` makes them:

    if needs != (True, False) or settings differ or a mode is on: return NotImplemented
    x0, x1 = arrays
    ...
    m0 = make(); p2 = address(m0)
    if not launch((p0, p1, p2), numbers): return NotImplemented
    return m0, None
    """
    made = MadeFunction("quick", "arrays, settings, needs")
    plans.test(made, [f"needs != {made.constant(needs)}"], looks, given, settings, False)
    plans.do(made, plan, looks, [f"x{i}" for i, x in enumerate(given) if x is not None])
    made.line(f"return {''.join(f'{name}, ' for name in names)}")
    return made.function()
