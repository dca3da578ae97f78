"""Matrix products of arrays of any framework: what is checked, how the operands are stored, and which configuration
runs.

    out = epilogue((a @ b) * scale_a * scale_b)

The choice follows three rates of an H200: what a tensor core multiplies, what L2 delivers to a multiprocessor, and what
memory delivers to all of them, fitted to 16 shapes there; the wide tiles for few rows were added from six shapes on an
H100 (benchmarks/results/experiments/gemm-1.txt).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..errors import ArgumentError
from ..gpu import driver
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..types import DTYPES
from . import gemm_ampere
from .arguments import KernelCall
from .gemm import Config, gemm

CONFIGS = (
    Config(128, 256, 4, 2, group=8),
    Config(128, 256, 4, 2, group=4, cluster=2),
    Config(128, 192, 4, 2, group=8),
    Config(128, 192, 4, 2, group=4, cluster=2),
    Config(128, 128, 6, 2, group=8),
    Config(128, 128, 6, 2, group=4, cluster=2),
    Config(64, 128, 4, 1, depth=256),
    Config(64, 256, 5, 1),
    Config(64, 64, 6, 1, depth=256),
    Config(64, 64, 10, 1, cluster=2, share="k"),
    Config(64, 128, 6, 1, cluster=4, share="k"),
    Config(64, 128, 6, 1, cluster=8, share="k"),
)
# A cycle: 16-bit multiplications of a tensor core, bytes from L2 to a multiprocessor, bytes from memory to all.
MULTIPLIES, DELIVERS, MEMORY = 1950, 66, 2160
# Cycles: a launch, first slot in and last tile out; one more tile; a cluster that adds up; one twice as large.
LAUNCH, TILE, SPLIT, DOUBLE = 9450, 920, 5600, 540
ONCE = 128  # so few rows that b is read once, or by two blocks at about the same time
FEW = 32  # so few rows make all blocks ask for the same lines: a cycle for each time
OPERANDS = ("bf16", "f16", "e4m3", "e5m2")


def call(
    a: Any,
    b: Any,
    out: Any,
    epilogue: Callable[..., Any] | None = None,
    operands: Sequence[Any] = (),
    scale_a: Any = None,
    scale_b: Any = None,
    config: Any = None,
    b2: Any = None,
    more: Sequence[Any] = (),
) -> KernelCall:
    """What writes epilogue((a @ b) * scale_a * scale_b) into `out`, for operands that `check` takes.

    `b2`, like b: the epilogue is given the pair of a @ b and a @ b2. `more`: what its further results are written into.

    a and b: stored by rows or by columns (a view such as b.T). `epilogue(x, row, col, *operands)` is traced into the
    kernel: x is a float32 tile of the product whose first element is (row, col) of the output, operands are tensors of
    one or two dimensions (a vector is one row).
    """
    first, second = (info._replace(pointer=info.pointer % 16) for info in map(arrays.describe, (a, b)))
    plan = choose_kernel(first, second, b2 is not None)
    extras = [x[None, :] if len(x.shape) == 1 else x for x in map(readable, operands)]
    if scale_a is not None or scale_b is not None:
        extras += [x.reshape(1, 1) for x in (scale_a, scale_b) if x is not None]
        epilogue = _scaled(epilogue, len(operands))
    a, b = plan.a.stored(a, first), plan.b.stored(b, second)
    if b2 is not None:
        third = arrays.describe(b2)
        third = third._replace(pointer=third.pointer % 16)
        b2 = order(third, plan.b.transposed).stored(b2, third)
    static = {"config": config or plan.config, "ta": plan.a.transposed, "tb": plan.b.transposed, "epilogue": epilogue}
    given = (a, b, out, *extras, *[None] * (4 - len(extras)))
    rest = (b2, *more, *[None] * (2 - len(more)))
    if isinstance(static["config"], gemm_ampere.Config):
        return KernelCall(gemm_ampere.gemm_ampere, (*given, *rest), static)
    return KernelCall(gemm, (*given, plan.sms, *rest), static)


def readable(x: Any) -> Any:
    """An operand of an epilogue, or a copy where its rows are not contiguous."""
    info = arrays.describe(x)
    rows = len(info.shape) == 0 or info.shape[-1] == 1 or info.strides[-1] == 1
    return x if rows else arrays.dense_copy(x, "operand")


@dataclass(frozen=True)
class Order:
    """How the kernel reads an operand: its transpose or itself, in place or as a copy, because TMA cannot address its
    rows."""

    transposed: bool
    copied: bool
    straddles: bool  # rows of 128 bytes lie across two lines of L2

    def stored(self, x: Any, info: ArrayInfo) -> Any:
        """The matrix to pass to the kernel."""
        source = x.T if self.transposed else x
        if not self.copied:
            return source
        (rows, cols), size = source.shape, DTYPES[info.dtype].size
        wide = -(-cols * size // 16) * 16 // size
        copy = arrays.empty(info.kind, (rows, wide), info.dtype, info.device)[:, :cols]
        try:
            copy[...] = source
        except TypeError:
            what = f"matmul: the rows of {info.dtype} {tuple(info.shape)} do not begin at multiples of 16 bytes"
            raise ArgumentError(what, fix="pad them") from None
        return copy


@dataclass(frozen=True)
class Choice:
    """All that follows from the operands' shapes, strides, dtypes and devices."""

    a: Order
    b: Order
    dtype: str
    config: Config | gemm_ampere.Config
    sms: int


@lru_cache(maxsize=4096)
def choose_kernel(first: ArrayInfo, second: ArrayInfo, pair: bool = False) -> Choice:
    """What to do with operands; their pointers count modulo 16. `pair`: there is one more like the second."""
    eight, size = first.dtype[0] == "e", DTYPES[first.dtype].size
    a, b = order(first, False if eight else None), order(second, True if eight else None)  # 8 bits: k along the rows
    sms = 2 if first.device is None else driver.multiprocessors(first.device)
    (m, k), n = first.shape, second.shape[1]
    config: Config | gemm_ampere.Config
    if first.device is not None and "wgmma" not in (arch := driver.architecture(first.device)).features:
        if eight:
            fix = "convert to bf16, or run it on a Hopper GPU (sm_90a)"
            raise ArgumentError(f"matmul of 8-bit floats on {arch}: its kernel is written for Hopper", fix=fix)
        config = choose_ampere(m, n, sms, pair)
    else:
        straddles = a.straddles or b.straddles
        config = choose(m, k, n * (1 + pair), size, 132 if first.device is None else sms, straddles, pair)
        if pair:  # three results may leave
            config = replace(config, cols=config.cols // 2, stages=min(config.stages, 5))
    return Choice(a, b, "bf16" if eight else first.dtype, config, sms)


def order(info: ArrayInfo, transposed: bool | None) -> Order:
    """How to read an operand; `transposed` says so where there is no choice."""
    size = DTYPES[info.dtype].size
    choices = (False, True) if transposed is None else (transposed,)
    for choice in choices:
        (lines, length), (stride, step) = (
            (info.shape[::-1], info.strides[::-1]) if choice else (info.shape, info.strides)
        )
        if (
            (step == 1 or length == 1)
            and info.pointer == 0
            and (lines == 1 or (stride >= length and stride * size % 16 == 0))
        ):
            return Order(choice, False, stride * size % 128 != 0)
    choice = choices[0] if len(choices) == 1 else info.strides[1] != 1 and info.strides[0] == 1
    return Order(choice, True, (info.shape[0] if choice else info.shape[1]) * size % 128 != 0)


def check(infos: dict[str, ArrayInfo]) -> None:
    """Raises `ArgumentError` for operands that the kernel does not take."""
    a, b = infos.values()
    said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in infos.items())
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise ArgumentError(f"matmul of {said}", fix="a is (m, k) and b is (k, n)")
    if (
        a.dtype not in OPERANDS
        or b.dtype not in OPERANDS
        or (a.dtype != b.dtype and not a.dtype[0] == b.dtype[0] == "e")
    ):
        fix = "pass both as bf16, both as f16, or 8-bit floats (e4m3, e5m2)"
        raise ArgumentError(f"matmul of {said}: these dtypes do not go together", fix=fix)


def _scaled(epilogue: Callable[..., Any] | None, count: int) -> Callable[..., Any]:
    """An epilogue that scales first: its operands after `count` are the scales."""

    def scaled(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        for scale in operands[count:]:
            x = x * scale[0, 0]
        return x if epilogue is None else epilogue(x, row, col, *operands[:count])

    return scaled


def choose_ampere(m: int, n: int, sms: int, pair: bool) -> gemm_ampere.Config:
    """The largest tiles of which there are enough for two a multiprocessor; of a pair, half as wide."""
    for rows, cols in ((128, 128), (64, 128), (64, 64)):
        if -(-m // rows) * -(-n // cols) * (1 + pair) >= 2 * sms:
            break
    return gemm_ampere.Config(rows, cols // (1 + pair) if cols > 64 else 64)


def choose(m: int, k: int, n: int, size: int, sms: int, straddle: bool = False, pair: bool = False) -> Config:
    """The first configuration that is within 2 % of what the rates make the fastest; `pair`: in two halves."""
    found = [config for config in CONFIGS if not pair or (config.cols % 128 == 0 and not config.splits)]
    costs = [cycles(config, m, k, n, size, sms, straddle) for config in found]
    best = next(config for config, cost in zip(found, costs, strict=True) if cost <= 1.02 * min(costs))
    if m <= FEW and best.rows == 64 and not best.splits:
        best = replace(best, rotate=True)
    return replace(best, once="b") if m <= ONCE else best


def cycles(config: Config, m: int, k: int, n: int, size: int, sms: int, straddle: bool) -> float:
    """About how long a product takes."""
    tiles, splits = -(-m // config.rows) * -(-n // config.cols), config.cluster if config.splits else 1
    at_once = sms // splits if splits <= 2 else sms * 85 // (100 * splits)  # large clusters do not find room everywhere
    loaded = config.rows + config.cols // (1 if config.splits else config.cluster)
    step = config.depth * max(config.rows * config.cols / (2 * MULTIPLIES), loaded * (2 if straddle else 1) / DELIVERS)
    steps = -(-k * size // (config.depth * splits))
    each = steps * step + TILE + (SPLIT + DOUBLE * math.log2(splits) if splits > 1 else 0)
    floor = (m * k + k * n + m * n) * size / MEMORY
    crowd = tiles * steps * config.depth / 128 if m <= FEW else 0
    return LAUNCH + crowd + math.hypot(floor, -(-tiles // max(1, at_once)) * each)
