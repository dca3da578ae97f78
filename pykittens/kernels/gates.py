"""Gated activations: SwiGLU and GEGLU, and their gradients.

    swiglu: o = silu(gate) * up,   silu(x) = x / (1 + exp(-x))
    geglu:  o = gelu(gate) * up,   gelu(x) = x (1 + erf(x / sqrt(2))) / 2,
            or its tanh form x sigmoid(1.5957691 (x + 0.044715 x^3))

Shazeer, "GLU Variants Improve Transformer" (2020); Hendrycks, Gimpel, "Gaussian Error Linear Units" (2016). gate, up:
(..., n), each bf16, f16 or f32, rows contiguous and evenly spaced: the two halves of one projection, x[..., :n] and
x[..., n:], will do. o has the dtype of gate. n from 1 to 2^30; arithmetic is float32.

A warp takes a tile of one or several rows, all loads before the first use. It needs no shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp
from pykittens.errors import ArgumentError
from pykittens.types import DTYPES, Coalesced

from .arguments import KernelCall, alignment, like, matrix, operand
from .rows import FLOATS

KINDS = ("silu", "gelu", "gelu_tanh")
OPTIONS: dict[str, Any] = {
    "warps": lambda config, **_: config.warps,
    "grid": lambda gate, config, **_: -(-gate.rows // (config.rows * config.warps)) * -(-gate.cols // config.cols),
}


@dataclass(frozen=True)
class Config:
    """A warp takes `rows` x `cols` elements: `lanes` threads a row, in runs of `width`."""

    kind: str
    width: int
    lanes: int
    rows: int
    cols: int
    warps: int = 4
    load_hint: str = "stream"
    store_hint: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"there is no gate {self.kind!r}", fix=f"use one of {', '.join(KINDS)}")


@pk.kernel(**OPTIONS)
def gated(
    gate: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    up: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    o: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    *,
    config: Any,
) -> None:
    """o = activation(gate) * up."""
    across = -(-gate.cols // config.cols)
    down = pk.block_index.x // across * config.warps + warp.index
    at, layout = (0, 0, down, pk.block_index.x % across if across > 1 else 0), Coalesced(config.lanes, config.width)
    x, y = (
        warp.load(t, at, rows=config.rows, cols=config.cols, dtype=f32, layout=layout, hint=config.load_hint)
        for t in (gate, up)
    )
    if config.kind == "silu":
        x = x * pk.sigmoid(x)
    elif config.kind == "gelu":
        x = x * pk.fma(pk.erf(x * 0.7071067811865476), 0.5, 0.5)
    else:
        x = x * pk.sigmoid(x * pk.fma(x * x, 0.0713548162726, 1.5957691216057308))
    warp.store(o, x * y, at, hint=config.store_hint)


@pk.kernel(**OPTIONS)
def gated_backward(
    gate: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    up: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    do: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dgate: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    dup: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    *,
    config: Config,
) -> None:
    """dgate = do * up * activation'(gate), dup = do * activation(gate)."""
    across = -(-gate.cols // config.cols)
    down = pk.block_index.x // across * config.warps + warp.index
    at, layout = (0, 0, down, pk.block_index.x % across if across > 1 else 0), Coalesced(config.lanes, config.width)
    x, y, grad = (
        warp.load(t, at, rows=config.rows, cols=config.cols, dtype=f32, layout=layout, hint=config.load_hint)
        for t in (gate, up, do)
    )
    if config.kind == "silu":
        part = pk.sigmoid(x)
        slope = part * pk.fma(x, 1.0 - part, 1.0)
    elif config.kind == "gelu":
        part = pk.fma(pk.erf(x * 0.7071067811865476), 0.5, 0.5)
        slope = pk.fma(x * 0.3989422804014327, pk.exp(x * x * -0.5), part)
    else:
        part = pk.sigmoid(x * pk.fma(x * x, 0.0713548162726, 1.5957691216057308))
        slope = pk.fma(x * part * (1.0 - part), pk.fma(x * x, 0.2140644488178, 1.5957691216057308), part)
    warp.store(dgate, grad * y * slope, at, hint=config.store_hint)
    warp.store(dup, grad * x * part, at, hint=config.store_hint)


def call(kind: str, gate: Any, up: Any, o: Any, config: Config | None = None) -> KernelCall:
    """What writes activation(gate) * up into o; `config` overrides how the work is divided."""
    (x, info), (y, _) = matrix(gate, "gate"), matrix(up, "up")
    config = config or plan(kind, info.shape[-1], DTYPES[info.dtype].size, alignment(x, y))
    return KernelCall(gated, (operand(x), operand(y), operand(like(o, x))), {"config": config})


def call_backward(
    kind: str, gate: Any, up: Any, do: Any, dgate: Any, dup: Any, config: Config | None = None
) -> KernelCall:
    """What writes the gradients of gate and up, for the gradient `do` of the result."""
    (x, info), (y, _), (grad, _) = matrix(gate, "gate"), matrix(up, "up"), matrix(do, "do")
    config = config or plan(kind, info.shape[-1], DTYPES[info.dtype].size, alignment(x, y, grad))
    operands = (operand(x), operand(y), operand(grad), operand(like(dgate, x)), operand(like(dup, x)))
    return KernelCall(gated_backward, operands, {"config": config})


@lru_cache(maxsize=1024)
def plan(kind: str, n: int, size: int, align: int, *, held: int = 16, **settings: Any) -> Config:
    """Tiles for rows of `n` elements of `size` bytes at multiples of `align`; a thread holds `held` of each operand."""
    width = max(1, min(16, align) // size)
    runs, turns = -(-n // width), max(1, held // width)
    lanes = min(32, 1 << (runs - 1).bit_length())
    turns = min(turns, -(-runs // lanes))
    return Config(kind, width, lanes, 32 // lanes * max(1, held // (turns * width)), turns * lanes * width, **settings)


def reference(kind: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """activation(gate) * up in float64."""
    from math import erf

    x = gate.astype(np.float64)
    with np.errstate(all="ignore"):
        if kind == "silu":
            x = x / (1 + np.exp(-x))
        elif kind == "gelu":
            x = x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2
        else:
            x = x / (1 + np.exp(-np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)))
        return x * up.astype(np.float64)


def reference_backward(kind: str, gate: np.ndarray, up: np.ndarray, do: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dgate, dup) in float64."""
    from math import erf

    x, y, grad = (a.astype(np.float64) for a in (gate, up, do))
    with np.errstate(all="ignore"):
        if kind == "gelu":
            part = (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2
            slope = part + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        else:
            z, dz = (
                (x, 1)
                if kind == "silu"
                else (np.sqrt(8 / np.pi) * v for v in (x + 0.044715 * x**3, 1 + 0.134145 * x**2))
            )
            part = 1 / (1 + np.exp(-z))
            slope = part + x * dz * part * (1 - part)
        return grad * y * slope, grad * x * part
