"""Plans: what public functions do again for tensors like those of an earlier call, past torch's dispatcher.

A function allocates results and scratch memory, and launches kernels. While it does so for the first time, that is
written down: every allocation, and every kernel with its operands, each of which must be an operand of the function, a
result, scratch memory, or a view of one, or a dense copy of an operand that kernels cannot read in place. Where torch
did anything else (a fill), there is no plan, and the function goes its whole way each time. A plan takes 5 to 10 us
beside what torch takes for copies, the whole way 100 to 1000.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import copysign
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch as modes

from ..call.made import MadeFunction
from ..call.memory import ALIGNED, Plans
from ..call.memory import Kept as Looks
from ..call.recording import watching
from ..interop.arrays import guard
from ..interop.views import View
from ..types import DTYPES
from .declaration import recent

# Whether this torch can be asked what `direct` and `ordinary` ask. One that cannot always calls the operators.
_ASKABLE = all(
    hasattr(torch._C, name)
    for name in ("_is_torch_function_mode_enabled", "_len_torch_dispatch_stack", "_functorch", "_dispatch_keys")
) and hasattr(modes, "_disable_current_modes")

done = threading.local()  # `plan`: by which, or of which, this thread's last operator was done
ROUNDED = 512  # bytes, to a multiple of which torch, too, rounds what it takes
_RECENT = 8  # plans of a function that are tried one after another: eight take as long as to look one up
_TENSORS = {Tensor, torch.nn.Parameter}
Launch = Callable[[Sequence[int], tuple[Any, ...]], bool]


class KernelStep(NamedTuple):
    """One kernel."""

    launch: Launch
    pointers: Callable[[Sequence[int]], Sequence[int]]  # the kernel's, of those of operands, results and scratch memory
    numbers: tuple[Any, ...]
    order: list[tuple[int, int]]  # of the pointers: which of those each is, and at which byte it begins


class Plan(NamedTuple):
    """How to do again what a function did. Pointers are those of the operands that are given, of the results, of the
    copies, and that of the scratch memory.
    """

    makers: list[partial[Tensor]]  # of the results, then of all scratch memory
    results: int
    copies: list[int]  # which of the operands that are given are copied first, densely
    steps: list[KernelStep]
    settings: tuple[Any, ...]  # for which the steps' numbers are
    renumbered: bool  # whether there are plans for other settings in the one step: `Function.numbers`


def at(plan: Plan, function: Any, arrays: Sequence[Tensor | None], settings: Sequence[Any]) -> Plan:
    """The plan with the numbers of other settings, for which it is too."""
    if settings == plan.settings:
        return plan
    step = plan.steps[0]._replace(numbers=function.numbers(*arrays, *settings))
    return plan._replace(steps=[step], settings=tuple(settings))


@dataclass
class KeptPlan:
    plan: Plan
    graded: bool  # whether autograd is to know of the call
    quick: Callable[..., Any] = lambda *_: NotImplemented  # the plan, `written_out`


class KnownPlans(Plans[KeptPlan]):
    """All plans. Of each function, `recent` has some that were looked up last, as Python functions."""

    def clear(self) -> None:
        super().clear()
        hopeless.clear()
        recent.clear()

    def use(self, function: Any, kept: KeptPlan) -> None:
        """Tries this plan first from now on: a model's layers call a function with a few shapes in turn."""
        others = [quick for quick in recent.get(function, ()) if quick is not kept.quick]
        recent[function] = (kept.quick, *others[: _RECENT - 1])


known = KnownPlans(guard)  # which sees classes and the dispatcher's modes, too
hopeless: Plans[bool] = Plans(guard)  # calls that are not written down again: they did more than plans can


def again(
    plan: Plan, function: Any, arrays: Sequence[Tensor | None], settings: Sequence[Any], pointers: list[int]
) -> list[Tensor] | None:
    """The results, made by a plan. None, and nothing is done, where the plan is not for such settings, or a kernel is
    no longer what it was.
    """
    makers, results, copies, steps, those, renumbered = plan
    numbers = None
    for out, other, before, after, same in beside(function, arrays):
        if -before < pointers[other] - pointers[out] < after and not (same and pointers[other] == pointers[out]):
            return None  # the whole way says whether they share memory
    if settings != those:
        if not renumbered or not _TENSORS.isdisjoint(map(type, settings)):  # at these, `operators` look
            return None
        numbers = function.numbers(*arrays, *settings)
    if function.written and len(steps) > 1 and not all(step.launch.unchanged() for step in steps):  # type: ignore[attr-defined]
        return None  # before anything is written: done again from the beginning, it would read what it wrote
    made = [make() for make in makers]
    if copies:
        given = [x for x in arrays if x is not None]
        made[results:results] = [dense(given[i]) for i in copies]
    pointers.extend(map(Tensor.data_ptr, made))
    for launch, of, own, _ in steps:
        if not launch(of(pointers), own if numbers is None else numbers):
            return None  # in the midst of several, too: all of them are then done, and write what these have written
    if function.written:
        torch.autograd.graph.increment_version([arrays[i] for i in function.written])
    return made[:results]


def beside(function: Any, arrays: Sequence[Tensor | None]) -> list[tuple[int, int, int, int, bool]]:
    """Of what a function writes, and each other operand: which of the pointers they have, how many bytes before and
    behind the first the second may begin so that they could meet, and whether they may be one array."""
    if not function.written:
        return []
    place, found = [sum(x is not None for x in arrays[:i]) for i in range(len(arrays))], []
    for i in function.written:
        for j, x in enumerate(arrays):
            if j != i and x is not None and (out := arrays[i]) is not None:
                same = (x.dtype, x.shape, x.stride()) == (out.dtype, out.shape, out.stride())
                same = same and j not in function.written
                found.append((place[i], place[j], _reach(x), _reach(out), same))
    return found


def written_out(
    kept: KeptPlan,
    looks: Looks,
    tell: Any,
    told: Any,
    function: Any,
    arrays: Sequence[Tensor | None],
    settings: Sequence[Any],
    also: bool,
) -> Callable[..., Any]:
    """A plan as one Python function, for calls like this one; it returns NotImplemented, and has done nothing, for any
    other. `tell(*arrays, told, results)` tells autograd, and returns the results. Such a function reads

        if also is not False or settings differ or a mode is on: return NotImplemented
        x0, x1 = arrays
        if x1 is not None or not same(x0): return NotImplemented
        p0 = address(x0)
        if p0 % 16: return NotImplemented
        m0 = make(); p1 = address(m0)
        if not launch((p0, p1), numbers): return NotImplemented
        return m0
    """
    plan, graded = kept.plan, kept.graded
    made = MadeFunction("quick", "arrays, settings, also")
    constant, other = made.constant, "return NotImplemented"
    test(made, [f"also is not {also}"], looks, arrays, settings, torch.is_grad_enabled())
    for out, near, before, after, same in beside(function, arrays):
        equal = f" and p{near} != p{out}" if same else ""
        made.line(f"if -{before} < p{near} - p{out} < {after}{equal}: {other}")
    if function.written and len(plan.steps) > 1:  # before anything is written, as in `again`
        asked = " and ".join(f"{constant(step.launch.unchanged)}()" for step in plan.steps)  # type: ignore[attr-defined]
        made.line(f"if not ({asked}): {other}")
    if graded:  # what torch.no_grad() does: kernels refuse operands whose gradients are recorded
        set_enabled = constant(torch._C._set_grad_enabled)
        made.line(f"{set_enabled}(False)")
        made.line("try:")
    do(made, plan, looks, [f"x{i}" for i, x in enumerate(arrays) if x is not None], graded)
    if graded:
        made.line(f"finally: {set_enabled}(True)")
    if function.written:
        written = "".join(f"x{i}, " for i in function.written)
        made.line(f"{constant(torch.autograd.graph.increment_version)}(({written}))")
    results, count = [f"m{i}" for i in range(plan.results)], len(function.outputs) + also
    if graded:
        made.line(f"made = {constant(tell)}(*arrays, {constant(told)}, [{', '.join(results)}])")
        results = [f"made[{i}]" for i in range(plan.results)]
    made.line(f"return {', '.join(results[:count]) or None}")
    return made.function()


def test(
    made: MadeFunction,
    terms: Sequence[str],
    looks: Looks,
    arrays: Sequence[Tensor | None],
    settings: Sequence[Any],
    recording: bool,
) -> None:
    """Lines that return NotImplemented unless `arrays` and `settings` are like these, no mode is on, gradients are
    recorded or not, and none of `terms` holds. They name the arrays x0, x1, ..., and the addresses of those that are
    given p0, p1, ..."""
    constant, other = made.constant, "return NotImplemented"
    terms = [*terms, f"{constant(torch.is_grad_enabled)}() is not {recording}"]
    terms += [f"{constant(torch._C._is_torch_function_mode_enabled)}()", f"{constant(forward_ad)}._current_level >= 0"]
    made.line(f"if {' or '.join(terms)}: {other}")
    if settings:
        made.line(f"{''.join(f's{i}, ' for i in range(len(settings)))} = settings")
        made.line(f"if {' or '.join(_unlike(f's{i}', x, constant) for i, x in enumerate(settings))}: {other}")
    made.line(f"{''.join(f'x{i}, ' for i in range(len(arrays)))} = arrays")
    given = [f"x{i}" for i, x in enumerate(arrays) if x is not None]
    terms = [f"x{i} is not None" for i, x in enumerate(arrays) if x is None]
    made.line(f"if {' or '.join([*terms, f'not {constant(looks.same)}({chr(44).join(given)})'])}: {other}")
    made.line("; ".join(f"p{i} = {constant(looks.address)}({x})" for i, x in enumerate(given)))
    made.line(f"if ({' | '.join(f'p{i}' for i in range(len(given)))}) % {ALIGNED}: {other}")


def do(made: MadeFunction, plan: Plan, looks: Looks, given: Sequence[str], graded: bool = False) -> None:
    """Lines that make a plan's results, copies and scratch memory, m0, m1, ..., at the addresses behind those of the
    arrays that are given, and launch its kernels. They return NotImplemented where a kernel is no longer what it was.
    """
    constant, indent, other = made.constant, " " * graded, "return NotImplemented"
    count, address = len(given), constant(looks.address)
    texts: list[str | None] = []  # of what each is made by; None for what is empty
    for maker in plan.makers:
        unwanted = 0 in maker.args[0] and not graded  # nobody wants it, and autograd has nothing to write on it
        texts.append(None if unwanted else f"{constant(maker)}()")
    texts[plan.results : plan.results] = [f"{constant(dense)}({given[i]})" for i in plan.copies]
    for i, text in enumerate(texts):
        if text is None:
            made.line(f"{indent}m{i} = {constant(plan.makers[i]())}; p{count + i} = 0")
        else:
            made.line(f"{indent}m{i} = {text}; p{count + i} = {address}(m{i})")
    for step in plan.steps:
        places = "".join(f"p{i}{f' + {first}' if first else ''}, " for i, first in step.order)
        made.line(f"{indent}if not {constant(step.launch)}(({places}), {constant(step.numbers)}): {other}")


def _unlike(name: str, value: Any, constant: Callable[[Any], str]) -> str:
    """Text that is true where a setting may be another. Numbers are often made anew; all else is the same object."""
    same = constant(value)
    if type(value) not in (int, float) or value != value:
        return f"{name} is not {same}"
    sign = f" or {constant(copysign)}(1.0, {name}) != {copysign(1.0, value)}" if value == 0 else ""  # -0.0 is equal
    return f"{name} is not {same} and (type({name}) is not {constant(type(value))} or {name} != {same}{sign})"


class Recording:
    """What a function does, as it does it: `with recording: function.compute(...)`, then `recording.plan()`."""

    def __init__(self, function: Any, arrays: Sequence[Tensor | None], made: list[Tensor], settings: Sequence[Any]):
        self.function, self.settings, self.made = function, tuple(settings), made
        self.given = [x for x in arrays if x is not None]
        self.copied = [x for i, x in enumerate(arrays) if x is not None and i not in function.written]
        self.copies: list[tuple[Tensor, Tensor]] = []  # of which operand, and the copy
        self.scratch: list[Tensor] = []
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.possible = not any(x.numel() == 0 for x in self.given)

    def __enter__(self) -> None:
        self._mode, self._watching = _Allocations(self), watching(self._call)
        self._mode.__enter__()
        self._watching.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._watching.__exit__(*error)
        self._mode.__exit__(*error)
        # Both know the recording, which has the arrays: in a circle they would live until Python looks for circles,
        # long after their last user, and memory pools of captured graphs would find them where nothing should be.
        del self._watching, self._mode

    def _call(self, kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        with modes._disable_current_modes():  # by which its own memory would know the arrays
            kernel(*args, **named)
        self.calls.append((kernel, args, named))

    def plan(self) -> Plan | None:
        """How to do that again; None where it was more than kernels on memory that is known."""
        if not self.possible or not self.calls:
            return None
        copies = [next(i for i, x in enumerate(self.given) if x is source) for source, _ in self.copies]
        known = len(self.given) + len(self.made) + len(copies)
        begins, size, devices = [], 0, {x.device for x in self.scratch}
        if len(devices) > 1:
            return None
        for x in self.scratch:
            begins.append(size)
            size += -(-max(0, _reach(x)) // ROUNDED) * ROUNDED
        tensors, steps = [*self.given, *self.made, *(copy for _, copy in self.copies), *self.scratch], []
        for kernel, args, named in self.calls:
            by_name = {name for name, _ in kernel.signature.runtime} & set(named)
            operands = (*args, *[x for name, x in named.items() if name in by_name])
            order = order_of(tensors, operands)
            order = order and [(i, at) if i < known else (known, begins[i - known] + at) for i, at in order]
            if not order or any(isinstance(x, (Tensor, View)) for n, x in named.items() if n not in by_name):
                return None
            launch = kernel.launcher(*args, **named)
            if launch is None:
                return None
            numbers = tuple(x for x in operands if isinstance(x, (int, float)))
            steps.append(KernelStep(launch, _picking(order), numbers, order))
        makers = [*map(maker_of, self.made)]
        if self.scratch:
            makers.append(partial(torch.empty_strided, (size,), (1,), dtype=torch.uint8, device=devices.pop()))
        renumbered = len(steps) == 1 and self.function.numbers is not None
        return Plan(makers, len(self.made), copies, steps, self.settings, renumbered)

    def copied_from(self, x: Tensor, copy: Tensor) -> bool:
        """Notes a copy; whether it is one that a plan may begin with: dense, of an operand that nothing writes."""
        source = next((y for y in self.copied if alike(x, y)), None)
        if source is None or not copy.is_contiguous() or copy.dtype != x.dtype:
            return False
        self.copies.append((source, copy))
        return True


class _Allocations(modes.TorchDispatchMode):  # type: ignore[misc]
    """Notes the tensors that are made, the copies of operands, and whether anything is done but these and views."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator.overloadpacket in _EMPTY:
            self._recording.scratch.append(result)
        elif operator.overloadpacket is torch.ops.aten.clone and self._recording.copied_from(args[0], result):
            pass
        elif not all(x.alias_info and not x.alias_info.is_write for x in operator._schema.returns):
            self._recording.possible = False
        return result


_EMPTY = {getattr(torch.ops.aten, name) for name in ("empty", "empty_strided", "empty_like", "new_empty")}


dense = partial(torch.clone, memory_format=torch.contiguous_format)


def alike(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory."""
    if x is y:
        return True
    return (x.data_ptr(), x.dtype, x.shape, x.stride()) == (y.data_ptr(), y.dtype, y.shape, y.stride())


def recorded(recording: Recording, device: int | None) -> Any:
    """A recording on a GPU; on the simulated one there is nothing to launch again."""
    return recording if _ASKABLE and device is not None else nullcontext()


def order_of(known: list[Tensor], operands: Sequence[Any]) -> list[tuple[int, int]] | None:
    """Which of the known tensors each of a kernel's operands is, or a view of, and at which byte of it that begins;
    None where one is a copy or could be several.
    """
    order = []
    for x in operands:
        first = 0  # byte of x
        while isinstance(x, View):
            size = DTYPES[x.dtype].size if x.dtype else x.array.element_size() if x.offset else 0
            first, x = first + x.offset * size, x.array
        if not isinstance(x, Tensor):
            continue
        found = [(i, 0) for i, y in enumerate(known) if x is y][:1]
        found = found or [(i, 0) for i, y in enumerate(known) if x.data_ptr() == y.data_ptr()]
        found = found or [
            (i, x.data_ptr() - y.data_ptr())
            for i, y in enumerate(known)
            if 0 < x.data_ptr() - y.data_ptr() < _reach(y) and x.untyped_storage().data_ptr() == _storage(y)
        ]
        if len(found) != 1:
            return None
        order.append((found[0][0], found[0][1] + first))
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


def maker_of(x: Tensor) -> partial[Tensor]:
    """What makes tensors like this one."""
    return partial(torch.empty_strided, tuple(x.shape), x.stride(), dtype=x.dtype, device=x.device)


def direct() -> bool:
    """Whether no mode wants to see calls of operators; those of the dispatcher change its keys, which plans are
    found by.
    """
    return _ASKABLE and not torch._C._is_torch_function_mode_enabled() and forward_ad._current_level < 0


def ordinary(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors have memory and no class, and no mode is on, that wants to see what is done to them."""
    if not direct() or torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return False
    if not all(x.is_cuda or x.is_cpu for x in tensors):
        return False
    with torch.inference_mode(False):
        plain = torch._C._dispatch_keys(torch.empty(0, device=tensors[0].device))
    return all((torch._C._dispatch_keys(x) | plain).raw_repr() == plain.raw_repr() for x in tensors)
