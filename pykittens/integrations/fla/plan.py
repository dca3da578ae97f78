"""What a call of flash-linear-attention's becomes: a function of ours with its operands, or a reason why not.

A plan is made without work for the GPU, so that it can be asked for and thrown away: an operand is what is known of it,
and what makes it. Whether our function takes it is asked of the function's own rule of results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...functions.declaration import Function
from ...interop.arrays import ArrayInfo, describe
from ...kernels.sequences import check_place

# How fla cuts and launches its own kernels: nothing that a result depends on.
HINTS = frozenset(
    ("chunk_size", "chunk_indices", "cu_seqlens_cpu", "disable_recompute", "max_num_seqs", "layout_fallback")
)


class Operand(NamedTuple):
    """An operand of ours: what is known of it, and what makes it when it is wanted."""

    info: ArrayInfo
    make: Callable[[], Any]


def given(x: Tensor | None) -> Operand | None:
    """A tensor as it is."""
    return None if x is None else Operand(describe(x), lambda: x)


def converted(x: Tensor | None, dtype: torch.dtype) -> Operand | None:
    """A tensor in another dtype."""
    return None if x is None else computed(x, dtype, lambda: x.to(dtype))


def computed(like: Tensor, dtype: torch.dtype, make: Callable[[], Any]) -> Operand:
    """What `make` returns: a tensor of the shape of `like`."""
    return Operand(describe(like)._replace(dtype={torch.float32: "f32", torch.int32: "i32"}[dtype]), make)


def offsets(x: Tensor | None) -> Operand | None:
    """fla's offsets of packed sequences are int64 as a rule, ours int32."""
    return converted(x, torch.int32)


def heads_first(x: Tensor) -> Tensor:
    """(batch, time, heads, ...) as (batch, heads, time, ...), and the other way round."""
    return x.transpose(1, 2)


def state(x: Tensor | None, values_first: bool) -> Operand | None:
    """fla's state (N, heads, d, e), or (N, heads, e, d) with `values_first`, as ours: float32 (N, heads, e, d)."""
    return None if x is None else converted(x if values_first else x.transpose(-1, -2), torch.float32)


def sequence_results(made: Any, wanted: bool, values_first: bool) -> tuple[Any, Any]:
    """Our o, or (o, state), as fla's pair (o, state or None)."""
    if not wanted:
        return heads_first(made), None
    return heads_first(made[0]), made[1] if values_first else made[1].transpose(-1, -2)


def refuse(condition: Any, reason: str) -> None:
    """`ArgumentError` where the condition holds: fla's own function runs."""
    if condition:
        raise ArgumentError(f"left to fla: {reason}", fix="nothing: fla's own function is called")


class PlannedCall(NamedTuple):
    """A call of `function`; `finish` makes fla's result of ours. also: the function's further result is wanted."""

    function: Function
    operands: tuple[Operand | None, ...]
    settings: tuple[Any, ...]
    finish: Callable[[Any], Any]
    also: bool = False

    def check(self, wants_gradient: bool) -> None:
        """`ArgumentError` for operands that our function does not take."""
        infos = [x and x.info for x in self.operands]
        self.function.together(infos)
        self.function.results(*infos, *self.settings)
        refuse(wants_gradient and self.function.backward is None, f"pk.{self.function.name} has no gradient")

    def run(self) -> Any:
        made = self.function([x and x.make() for x in self.operands], self.settings, self.also)
        return self.finish(made)


@dataclass(frozen=True)
class Replacement:
    """A function of fla's that becomes ours where ours applies.

    plan: called with fla's arguments by name, those that it has parameters for; it raises `ArgumentError` for what ours
    does not do. Any other argument must have fla's default, or be one of `HINTS`.

    registry: what fla's registry knows the function by: "function", or the name of its family of operations. "" where
    fla does not ask a registry: then the name is replaced.
    """

    module: str
    name: str
    plan: Callable[..., PlannedCall]
    registry: str = ""
    ours: str = ""

    @cached_property
    def original(self) -> Any:
        return getattr(import_module(self.module), self.name)

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(inspect.unwrap(self.original))

    @cached_property
    def handled(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.plan).parameters)

    def planned(self, *args: Any, **kwargs: Any) -> PlannedCall:
        """The plan of a call. `ArgumentError` where it is left to fla."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{self.name}: {error}", fix="pass what fla's function takes") from None
        values: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            parameter = self.signature.parameters[name]
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values |= value
            elif name in self.handled or not _same(value, parameter.default):
                values[name] = value
        for name in [x for x in values if x not in self.handled]:
            refuse(name not in HINTS, f"{self.name} with {name}={_short(values.pop(name))}")
        plan = self.plan(**values)
        tensors = [x for x in values.values() if isinstance(x, Tensor)]
        check_place(self.name, tensors[0])
        plan.check(torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        return plan


REPLACEMENTS: list[Replacement] = []


def replaces(module: str, *names: str, registry: str = "", ours: str) -> Callable[[Any], Any]:
    """The decorated function plans calls of these functions of a module of fla's."""

    def decorate(plan: Any) -> Any:
        REPLACEMENTS.extend(Replacement(module, name, plan, registry, ours) for name in names)
        return plan

    return decorate


def _same(value: Any, default: Any) -> bool:
    """Whether an argument is the default; of numbers and words, whether it equals that."""
    return value is default or (type(value) is type(default) in (bool, int, float, str) and value == default)


def _short(x: Any) -> str:
    return f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
