"""Gated activations: SwiGLU and GEGLU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import ArgumentError
from ..kernels import gates as kernels
from ..kernels.arguments import check_rows, check_shape
from .declaration import Backward, Function, Result


def _results(name: str, gate: Any, up: Any, approximate: str = "none") -> tuple[Result, ...]:
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu with approximate={approximate!r}", fix='use "none" or "tanh"')
    check_rows(name, "gate", gate, widest=None)
    check_rows(name, "up", up, widest=None)
    check_shape(name, "up", up, gate.shape)
    return (Result(gate.shape, gate.dtype),)


def _swiglu(gate: Any, up: Any, o: Any, **config: Any) -> Any:
    return kernels.call("silu", gate, up, o, **config)


def _geglu(gate: Any, up: Any, o: Any, approximate: str, **config: Any) -> Any:
    return kernels.call("gelu_tanh" if approximate == "tanh" else "gelu", gate, up, o, **config)


def _results_backward(gate: Any, up: Any, do: Any, kind: str) -> tuple[Result, ...]:
    for name, x in (("gate", gate), ("up", up), ("do", do)):
        check_rows("gate_backward", name, x, widest=None)
        check_shape("gate_backward", name, x, gate.shape)
    return Result(gate.shape, gate.dtype), Result(up.shape, up.dtype)


def _forward_backward(gate: Any, up: Any, do: Any, dgate: Any, dup: Any, kind: str, **config: Any) -> Any:
    return kernels.call_backward(kind, gate, up, do, dgate, dup, **config)


GATE_BACKWARD = Function(
    "gate_backward",
    "Tensor gate, Tensor up, Tensor do",
    "str kind",
    outputs=("dgate", "dup"),
    results=_results_backward,
    forward=_forward_backward,
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    approximate = getattr(settings, "approximate", None)
    kind = "silu" if approximate is None else "gelu_tanh" if approximate == "tanh" else "gelu"
    dgate, dup = GATE_BACKWARD((saved.gate, saved.up, grads.out.contiguous()), (kind,))
    return {"gate": dgate, "up": dup}


SWIGLU = Function(
    "swiglu",
    "Tensor gate, Tensor up",
    results=partial(_results, "swiglu"),
    forward=_swiglu,
    backward=Backward(("gate", "up"), _gradients),
)
GEGLU = Function(
    "geglu",
    "Tensor gate, Tensor up",
    'str approximate="none"',
    results=partial(_results, "geglu"),
    forward=_geglu,
    backward=Backward(("gate", "up"), _gradients),
)


def swiglu(gate: Any, up: Any) -> Any:
    """silu(gate) * up, silu(x) = x / (1 + exp(-x)), for arrays of any framework.

    gate, up: (..., n), each bf16, f16 or f32, rows contiguous and evenly spaced: the two halves of one projection,
    x[..., :n] and x[..., n:], will do. The result is a new array with the dtype of gate; arithmetic is float32.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return SWIGLU((gate, up))


def geglu(gate: Any, up: Any, *, approximate: str = "none") -> Any:
    """gelu(gate) * up, gelu(x) = x (1 + erf(x / sqrt(2))) / 2, or its tanh form for approximate="tanh".

    All else as `swiglu` has it.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    return GEGLU((gate, up), (approximate,))
