"""SwiGLU, GEGLU and their gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...call.arguments import spec
from ...types import DTYPES
from .. import gates
from ..catalog import Array, Instance, Shipped


def _gate(n: int, dtype: str, *, kind: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), gates.plan(kind, n, DTYPES[dtype].size, 16)
    return Instance(
        gates.gated,
        {"gate": x, "up": x, "o": x},
        {"config": config},
        ("o",),
        lambda gate, up, **_: {"o": gates.reference(kind, gate, up)},
    )


def _gate_backward(n: int, dtype: str, kind: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), gates.plan(kind, n, DTYPES[dtype].size, 16)

    def expected(gate: Array, up: Array, do: Array, **_: Any) -> dict[str, Array]:
        return dict(zip(("dgate", "dup"), gates.reference_backward(kind, gate, up, do), strict=True))

    operands = {"gate": x, "up": x, "do": x, "dgate": x, "dup": x}
    return Instance(gates.gated_backward, operands, {"config": config}, ("dgate", "dup"), expected)


ROWS = (
    *(
        Shipped(
            name=name,
            about=f"{words}(gate) * up",
            make=partial(_gate, kind=kind),
            options={"n": (1000, 256, 11008), "dtype": ("bf16", "f32")},
            opcodes=("LDG", "STG"),
        )
        for name, words, kind in (("swiglu", "silu", "silu"), ("geglu", "gelu", "gelu"))
    ),
    Shipped(
        name="gate_backward",
        about="gradients of SwiGLU and GEGLU",
        make=_gate_backward,
        options={"n": (1000, 256), "dtype": ("bf16", "f32"), "kind": ("silu", "gelu", "gelu_tanh")},
        opcodes=("LDG", "STG"),
    ),
)
