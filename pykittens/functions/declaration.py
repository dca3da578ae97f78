"""What a public function is, said once: operands, settings, results, forward, backward.

    SOFTMAX = Function(
        "softmax", "Tensor x",
        results=lambda x: (Result(x.shape, x.dtype),),      # raises `ArgumentError` for what the function does not take
        forward=lambda x, y: KernelCall(kernel, (x, y), {"config": ...}),
        autocast="f32",
    )

`results` is called with what is known of the operands (an `ArrayInfo` each, or None), then the settings; it is the only
rule of shapes, dtypes and refusals, for tensors without memory (fake, meta, traced; lengths may be symbols) as for all
others. `forward` is called with the operands, the results that were made (None for one that nobody wants) and the
settings; it says which kernel writes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, public, user_frames
from ..interop import arrays as interop
from ..interop.arrays import ArrayInfo, Unsupported
from ..kernels.arguments import KernelCall
from ..trace.operands import check_outputs
from ..versions import new_enough
from .settings import unsuitable

_operators: Any = (
    None  # the module of this name, which imports torch: loaded when there are tensors, so that nothing else does
)
recent: dict[Function, tuple[Callable[..., Any], ...]] = {}  # what does calls like the last ones: `plans.written_out`
ALL: list[Function] = []  # in the order in which they were declared


class Result(NamedTuple):
    """A result: dense, in the framework and on the device of the first operand.

    order: the operand whose order of dimensions in memory a torch result takes, as `torch.empty_like` would; "" for
    rows. nothing: each element of it where an operand is empty, so that no kernel runs; or the operand that it equals
    then; or what makes an array like it, called with the operands by name.
    """

    shape: tuple[int, ...]
    dtype: str
    order: str = ""
    nothing: float | str | Callable[[Mapping[str, Any]], Any] = 0.0


ADDED = object()  # what a backward pass says of an operand whose gradient it has added to a buffer


class Backward(NamedTuple):
    """How the gradients of a function's operands follow from those of its results.

    saved: names of operands and results that are kept for it. A further result (`Function.also`) that is named here is
    made in the forward pass wherever a gradient is wanted, whether or not the caller asked for it; unless the backward
    pass does not demand it: it is None where the caller did not.

    gradients: called as gradients(saved, grads, settings, needs) -> {operand: gradient}. `saved`, `settings` and
    `needs` (is the gradient of this operand wanted?) are named tuples; `grads` too, by result, None where nothing
    came. It is torch code that autograd's compiler traces: kernels go in as other `Function`s, called with tensors
    (`ATTENTION_BACKWARD((q, k, ...), (scale,))`), so that they have a rule for tensors without memory.

    buffers: operands that are kept too, and that anybody may write before: gradients are added to them.
    """

    saved: tuple[str, ...]
    gradients: Callable[..., Mapping[str, Any]]
    demands: bool = True
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Function:
    """A function on arrays of any framework. Calling it with operands and settings in the order of the schema runs it.

    operands: torch's schema of them, "Tensor x, Tensor? weight=None"; "Tensor(a!) out" is one that is written.
    settings: that of the rest, "float eps, bool causal"; a ScalarType is one of our names of dtypes in everything here.
    outputs: the names of the results. A result of no elements is one that is not wanted: the forward gets None.
    also: the name of one more result, last, made where it is asked for; the operator with it is called name_also.
    key: of the settings, what decides which kernel runs and how; the others are `numbers` that a kernel is given.
    numbers: called as `results` is, the scalar operands of the kernel in their order. Given with `key`.
    summed: the dimension of operands that is summed over, or counts columns of which each has its own result. Where it
    alone is empty, results are those of zeros: of as many as `zeros` says, which is called with what is known of the
    operands.
    functional: the function that returns what this one writes into its last operand; see `writing`.
    autocast: "low", to bf16 or f16 as torch.autocast says, or "f32": what the operands `cast` (all) become inside it.
    """

    name: str
    operands: str
    settings: str = ""
    outputs: tuple[str, ...] = ("out",)
    also: str = ""
    autocast: str = ""
    cast: tuple[str, ...] = ()
    summed: Mapping[str, int] = field(default_factory=dict)
    zeros: Callable[..., int] = lambda *_: 1
    functional: Function | None = None
    backward: Backward | None = None
    results: Callable[..., tuple[Result, ...]] = lambda *_: ()
    forward: Callable[..., KernelCall] = None  # type: ignore[assignment]
    key: Callable[..., Hashable] | None = None
    numbers: Callable[..., tuple[Any, ...]] | None = None
    names: tuple[str, ...] = field(init=False)  # the operands'
    setting_names: tuple[str, ...] = field(init=False)
    dtypes: tuple[int, ...] = field(init=False)  # where among the settings dtypes are
    written: tuple[int, ...] = field(init=False)  # where among the operands those are that the function writes

    def __post_init__(self) -> None:
        operands, settings = self.operands.split(", "), self.settings.split(", ")
        object.__setattr__(self, "names", _names(self.operands))
        object.__setattr__(self, "setting_names", _names(self.settings))
        object.__setattr__(self, "dtypes", tuple(i for i, x in enumerate(settings) if x.startswith("ScalarType")))
        object.__setattr__(self, "written", tuple(i for i, x in enumerate(operands) if "!" in x))
        ALL.append(self)
        torch = sys.modules.get("torch")
        if torch and new_enough("torch", torch.__version__):
            load_operators()
            _operators.register(self)

    def __call__(self, arrays: Sequence[Any], settings: Sequence[Any] = (), also: bool = False) -> Any:
        """The result, or the tuple of several: by torch's operator where the operands are tensors."""
        torch = sys.modules.get("torch")
        if torch is not None:
            if torch.compiler.is_dynamo_compiling():
                if _all_tensors(arrays, torch.Tensor):
                    load_operators()
                    return _operators.operate(self, arrays, settings, also)
            else:
                for quick in recent.get(self, ()):
                    if (result := quick(arrays, settings, also)) is not NotImplemented:
                        return result
        return self._eager(arrays, settings, also)

    @public
    def _eager(self, arrays: Sequence[Any], settings: Sequence[Any], also: bool) -> Any:
        if not isinstance(also, (bool, np.bool_)):
            fact = f"{self.name}: {also!r}, a {type(also).__name__}, says whether `{self.also}` is returned, too"
            raise ArgumentError(fact, fix="pass True or False")
        also = bool(also)
        torch = sys.modules.get("torch")
        if torch is not None and _all_tensors(arrays, torch.Tensor):
            if _operators is None:
                load_operators()
            return _operators.call(self, arrays, settings, also)
        made = self.run(arrays, settings, also)
        return made[0] if len(made) == 1 else tuple(made) if made else None

    def run(
        self, arrays: Sequence[Any], settings: Sequence[Any] = (), also: bool = False, **overrides: Any
    ) -> list[Any]:
        """The results, by the kernel, past torch's dispatcher. `overrides` are given to `forward`: configurations to
        be measured.
        """
        settings = self.checked_settings(settings)
        infos = self.describe(arrays)
        results = self.results(*infos, *settings)[: len(self.outputs) + also]
        first = next(x for x in infos if x is not None)
        made = [interop.empty(first.kind, tuple(x.shape), x.dtype, first.device) for x in results]
        self.compute(arrays, infos, results, made, settings, **overrides)
        return made

    def compute(
        self,
        arrays: Sequence[Any],
        infos: Sequence[ArrayInfo | None],
        results: Sequence[Result],
        made: Sequence[Any],
        settings: Sequence[Any],
        **overrides: Any,
    ) -> None:
        """Writes the results that were made for these operands."""
        arrays, infos = self.laid_out(arrays, infos)
        if any(x is not None and 0 in x.shape for x in infos):
            if self.functional is not None and not self.outputs:
                taken = len(self.functional.names)  # with or without what is written: a total, or room for a result
                results, made = self.functional.results(*infos[:taken], *settings), arrays[-1:]
                return self.functional.compute(arrays[:taken], infos[:taken], results, made, settings)
            zeros = self._of_zeros(arrays, infos, settings, len(made) > len(self.outputs))
            for i, (result, x) in enumerate(zip(results, made, strict=True)):
                if 0 not in result.shape:
                    source = result.nothing if zeros is None else zeros[i]
                    if callable(source):
                        source = source(dict(zip(self.names, arrays, strict=True)))
                    elif isinstance(source, str):
                        given = arrays[self.names.index(source)]
                        source = 0.0 if given is None else given
                    interop.fill(x, source)
            return
        if call := self.prepare(arrays, results, made, settings, **overrides):
            call.kernel(*call.operands, **call.statics)

    def laid_out(
        self, arrays: Sequence[Any], infos: Sequence[ArrayInfo | None]
    ) -> tuple[Sequence[Any], Sequence[ArrayInfo | None]]:
        """The operands as kernels take them: dense copies of those that run backwards, and of lines with gaps (offsets,
        lengths, a bias). What is written is checked, and left where it is."""
        found, known = list(arrays), list(infos)
        for i, x in enumerate(infos):
            if x is not None and i not in self.written and x.strides is not None:
                steps = [step for step, length in zip(x.strides, x.shape, strict=True) if length > 1]
                line = len(x.shape) == 1 or x.dtype[0] in "iu"
                if any(step < 0 for step in steps) or (line and x.shape and x.shape[-1] > 1 and steps[-1] != 1):
                    found[i] = interop.dense_copy(arrays[i], self.names[i])
                    known[i] = interop.describe(found[i], self.names[i])
        return (found, known) if any(a is not b for a, b in zip(found, arrays, strict=True)) else (arrays, infos)

    def _of_zeros(
        self, arrays: Sequence[Any], infos: Sequence[ArrayInfo | None], settings: Sequence[Any], also: bool
    ) -> list[Any] | None:
        """The results where nothing but the dimension that is summed over is empty: those of zeros in it."""
        given = list(arrays)
        for i, (name, info) in enumerate(zip(self.names, infos, strict=True)):
            if info is not None and 0 in info.shape:
                if self.backward is not None and name in self.backward.buffers:
                    given[i] = None
                    continue
                shape = list(info.shape)
                if name in self.summed:
                    shape[self.summed[name]] = self.zeros(*infos)
                if name not in self.summed or 0 in shape:
                    return None
                given[i] = interop.empty(info.kind, tuple(shape), info.dtype, info.device)
                interop.fill(given[i], 0.0)
        return self.run(given, settings, also)

    def prepare(
        self,
        arrays: Sequence[Any],
        results: Sequence[Result],
        made: Sequence[Any],
        settings: Sequence[Any],
        **overrides: Any,
    ) -> KernelCall | None:
        """The kernel's call; None where no result has an element, and no operand is written."""
        wanted = [None if 0 in result.shape else x for result, x in zip(results, made, strict=True)]
        if made and not self.written and not any(x is not None for x in wanted):
            return None
        missing = len(self.outputs) + bool(self.also) - len(wanted)
        return self.forward(*arrays, *wanted, *[None] * missing, *settings, **overrides)

    def describe(self, arrays: Sequence[Any]) -> list[ArrayInfo | None]:
        """What is known of the operands. One `ArgumentError` for what is no array, or where they lie in different
        places.
        """
        found: list[ArrayInfo | None] = []
        for name, schema, array in zip(self.names, self.operands.split(", "), arrays, strict=True):
            try:
                found.append(None if array is None and "?" in schema else interop.describe(array, name))
            except Unsupported as error:
                raise ArgumentError(f"{self.name}: {error}", fix=error.fix) from None
        self.together(found)
        self.apart(found)
        return found

    def checked_settings(self, settings: Sequence[Any]) -> tuple[Any, ...]:
        """The settings as Python's numbers; raises `ArgumentError` for one that is nothing of the kind that the schema
        says.
        """
        for name, schema, value in zip(self.setting_names, self.settings.split(", "), settings):  # noqa: B905
            if fix := unsuitable(schema, value):
                raise ArgumentError(f"{self.name}: {name} is {value!r:.60}, a {type(value).__name__}", fix=fix)
        return tuple(x.item() if isinstance(x, np.generic) else x for x in settings)

    def together(self, infos: Sequence[ArrayInfo | None]) -> None:
        """Raises `ArgumentError` for operands of several frameworks or devices."""
        given = {name: x for name, x in zip(self.names, infos, strict=True) if x is not None}
        if len({(x.kind, x.device) for x in given.values()}) > 1:
            places = {name: "meta" if "meta" in x.kind else interop.place(x.device) for name, x in given.items()}
            said = ", ".join(f"{name} is a {x.kind} array on {places[name]}" for name, x in given.items())
            raise ArgumentError(f"{self.name}: {said}", fix="pass arrays of one framework on one device")

    def apart(self, infos: Sequence[ArrayInfo | None]) -> None:
        """Raises `ArgumentError` where an operand that is written is read-only, overlaps itself, or shares memory with
        another: what of it is read first would be chance. The same array is none, where a function takes it twice and
        writes it once: each element is read, then written."""
        for i in self.written:
            out = infos[i]
            if out is not None and 0 not in out.shape:
                if any(step < 0 for step in out.strides or ()):
                    fact = f"{self.name} writes {self.names[i]!r}, which has negative strides {tuple(out.strides)}"
                    raise ArgumentError(fact, fix="pass an array whose elements follow one another")
                check_outputs(self.name, (self.names[i],), {self.names[i]: out}, user_frames())
            for j, x in enumerate(infos):
                one_array = x is not None and out is not None and x[:4] == out[:4] and j not in self.written
                if j == i or x is None or out is None or one_array or not (x.pointer and interop.meet(x, out)):
                    continue
                said = f"{self.name}: {self.names[i]}, which is written, shares memory with {self.names[j]}"
                one = "one with memory of its own" if j in self.written else "a copy"
                raise ArgumentError(said, fix=f"pass {one} as {self.names[j]}")


def writing(function: Function, name: str) -> Function:
    """The variant of a function that writes its one result into an operand called `name`: an operator of its own,
    without gradient.
    """

    def results(*given: Any) -> tuple[Result, ...]:
        infos, target, settings = (
            given[: len(function.names)],
            given[len(function.names)],
            given[len(function.names) + 1 :],
        )
        (result,) = function.results(*infos, *settings)
        if tuple(target.shape) != tuple(result.shape):
            fact = f"{function.name}: {name} has shape {tuple(target.shape)}, where {tuple(result.shape)} is needed"
            raise ArgumentError(fact, fix=f"pass one of shape {tuple(result.shape)}")
        return ()

    return Function(
        f"{function.name}_{name}",
        f"{function.operands}, Tensor(a!) {name}",
        function.settings,
        outputs=(),
        results=results,
        forward=function.forward,
        functional=function,
    )


def asked_once(*saved: Any) -> bool:
    """Whether the backward pass that runs is the last to ask for tensors that it saved: they may be overwritten."""
    return bool(_operators is not None and _operators.asked_once(saved))


def wants_gradient(*operands: Any) -> bool:
    """Whether torch's autograd will record a function of these."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return False
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in operands)


def compiling() -> bool:
    """Whether torch.compile or torch.export looks on: a program whose tensors nobody overwrites unseen."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def _all_tensors(arrays: Sequence[Any], kind: type) -> bool:
    """Whether the operands that are given are tensors, one at least."""
    found = False
    for x in arrays:  # a generator costs a call for each
        if x is not None:
            if not isinstance(x, kind):
                return False
            found = True
    return found


def _names(schema: str) -> tuple[str, ...]:
    return tuple(x.split()[1].partition("=")[0] for x in schema.split(", ")) if schema else ()


def load_operators() -> bool:
    """Registers torch's operators."""
    global _operators
    _operators = import_module(f"{__package__}.operators")
    return True


# What torch.compiler.assume_constant_result does: torch.compile runs it, and does not look inside.
load_operators._dynamo_marked_constant = True  # type: ignore[attr-defined]
