"""LayerNorm and RMSNorm, forward, with dropout and a residual stream before them.

    s = dropout(x) + residual                                    (each only where given)
    layernorm: y = (s - mean(s)) / sqrt(mean((s - mean(s))^2) + eps) * weight + bias
    rmsnorm:   y = s / sqrt(mean(s^2) + eps) * weight + bias

over the last axis: Ba, Kiros, Hinton, "Layer Normalization" (2016); Zhang, Sennrich, "Root Mean Square Layer
Normalization" (2019). x: (..., n) with n from 1 to 65,536, bf16, f16 or f32, rows contiguous and evenly spaced;
residual: the same shape, and weight and bias: (n,), each bf16, f16 or f32. s is returned as the new residual, rounded
to the residual's dtype; y has that of x. Everything between is float32, and the variance is the second pass over
registers, not mean(s^2) - mean(s)^2. Dropout keeps an element, scaled by 1 / (1 - p), where its Philox bits (row,
column, under the seed) are at least p * 2^32.

Memory is the only limit, so each byte moves once: a team of warps holds its rows in registers (32 elements a thread),
and several teams on a multiprocessor keep enough bytes in flight. Terms of a row meet in shared memory: 4 bytes a warp,
twice. Rows wider than 32 KiB stream: see `rows.py`. Speed beside a device copy: docs/benchmarks.md, measured by
`pykittens bench memory`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32
from pykittens.errors import ArgumentError
from pykittens.interop.arrays import describe
from pykittens.interop.views import View
from pykittens.types import DTYPES

from .arguments import KernelCall, alignment, like, machine, matrix, operand
from .row_calls import row_call
from .rows import FLOATS, Rows, drawn, plan, walk

OPTIONS: dict[str, Any] = {
    "warps": lambda config, **_: config.warps,
    "grid": lambda x, config, **_: config.blocks(x.rows),
    "cluster": lambda config, **_: config.cluster,
    "blocks_per_sm": lambda config, **_: config.blocks_per_sm,
    "pdl": lambda counter=None, **_: counter is not None,
}


@pk.kernel(**OPTIONS)
def normalize(
    x: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    residual: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    weight: Annotated[Tensor, FLOATS, pk.static("N")],
    bias: Annotated[Tensor, FLOATS, pk.static("N")],
    y: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    s: Annotated[Tensor, FLOATS, "M", pk.static("N")],
    seed: Annotated[Tensor, pk.i64, 1],
    eps: Annotated[Scalar, f32],
    keep: Annotated[Scalar, f32],
    threshold: Annotated[Scalar, pk.u32],
    seed0: Annotated[Scalar, pk.u32],
    seed1: Annotated[Scalar, pk.u32],
    counter: Annotated[Tensor, i32, 1],
    *,
    centred: Any,
    dropout: Any,
    config: Any,
) -> None:
    """y = norm(s), s = dropout(x) + residual. `keep` is 1 / (1 - p), `threshold` p * 2^32; `centred` subtracts the
    mean. A `seed` in memory counts, where there is one.
    """
    if counter is not None:
        pk.wait_for_previous()  # which clears it
    key = seeds(seed, seed0, seed1)
    for mine in walk(config, (x, residual), (weight, bias), rows=drawn(config, counter, x.rows)):
        value = mine.load(x)
        stream = mine.load(residual) if residual is not None else None
        if dropout:
            bits = pk.random_bits(value, key, row=mine.first * config.rows, col=mine.part * config.cols)
            value = pk.where(bits >= threshold, value * keep, 0.0)
        if stream is not None:
            value = value + stream
        if s is not None:
            mine.store(s, value)
        if centred:
            value = mine.cut(pk.fma(mine.sum(value), -1 / config.n, value), 0.0)
        value = value * pk.rsqrt(pk.fma(mine.dot(value, value), 1 / config.n, eps))
        scale, shift = (mine.load_weight(w).to(f32) if w is not None else None for w in (weight, bias))
        if scale is not None:
            value = value * scale if shift is None else pk.fma(value, scale, shift)
        elif shift is not None:
            value = value + shift
        mine.store(y, value)


def call(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    y: Any,
    s: Any,
    seed: Any,
    numbers: tuple[Any, ...],
    *,
    centred: bool,
    dropout: bool,
    config: Rows | None = None,
) -> KernelCall:
    """What writes y and s (None where it is not wanted). `seed`: the one in memory (see `in_memory`), or None; `config`
    overrides how rows are spread over the machine.
    """
    rows, info = matrix(x, "x")
    stream = None if residual is None else matrix(residual, "residual")[0]
    weights = [matrix(w, name)[0] for name, w in (("weight", weight), ("bias", bias)) if w is not None]
    views = [rows] if stream is None else [rows, stream]
    if config is None:
        inputs, kept = (sum(DTYPES[describe(view).dtype].size for view in some) for some in (views, weights))
        config = plan(
            info.shape[-1],
            DTYPES[info.dtype].size,
            alignment(*views, *weights),
            inputs=inputs,
            weights=kept,
            heavy=dropout and len(weights) == 2,
            **machine(info),
        )
    results = (None if o is None else operand(like(o, rows)) for o in (y, s))
    operands = (operand(rows), stream and operand(stream), weight, bias, *results, seed, *numbers)
    return row_call(normalize, operands, rows.shape[0], config, info, centred=centred, dropout=dropout)


def check(eps: float, p: float) -> None:
    """Raises `ArgumentError` for an eps or a probability of dropout that mean nothing."""
    if not 0 <= p < 1:
        raise ArgumentError(f"dropout with p = {p}", fix="p is at least 0 and less than 1")
    if not eps >= 0:
        raise ArgumentError(f"a norm with eps = {eps}", fix="eps is a small number that is not negative")


def numbers(eps: float, p: float, seed: int) -> tuple[Any, ...]:
    """What the kernels are passed after their arrays."""
    return float(eps), 1 / (1 - p), int(p * 2**32), seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF


def in_memory(seed: Any) -> Any:
    """An array of one seed as the kernels take it."""
    return None if seed is None else View(seed, (1,), (1,))


def seeds(seed: Any, seed0: Any, seed1: Any) -> tuple[Any, Any]:
    """The halves of the seed, within a kernel: of the one in memory, or as they were passed."""
    return (seed0, seed1) if seed is None else (seed[0] & 0xFFFFFFFF, seed[0] >> 32)


def reference(
    x: np.ndarray,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    eps: float,
    p: float = 0.0,
    seed: int = 0,
    centred: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, s) in float64."""
    s = x.astype(np.float64)
    if p > 0:
        s = np.where(kept(s.shape, p, seed), s / (1 - p), 0)
    s = s if residual is None else s + residual.astype(np.float64)
    with np.errstate(all="ignore"):
        y = s - s.mean(-1, keepdims=True) if centred else s
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + eps)
        y = y if weight is None else y * weight.astype(np.float64)
        return y if bias is None else y + bias.astype(np.float64), s


def kept(shape: tuple[int, ...], p: float, seed: int) -> np.ndarray:
    """Which elements dropout keeps."""
    from pykittens.ops.random import random_bits

    n, key = shape[-1], (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    rows = np.arange(np.prod(shape[:-1], dtype=int))
    return (random_bits(rows[:, None], np.arange(n)[None], key) >= int(p * 2**32)).reshape(shape)
