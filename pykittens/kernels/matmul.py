"""Matrix products of arrays of any framework: what is checked, how the operands are stored, and which configuration
runs.

    out = epilogue((a @ b) * scale_a * scale_b)

`schedule.py` predicts which configuration takes least time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..errors import ArgumentError
from ..gpu import driver
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..types import DTYPES
from . import aligned, gemm_ampere, gemm_divided, schedule
from .arguments import KernelCall
from .gemm import Config, gemm

SIMULATED = 2  # multiprocessors of the simulated GPU: enough blocks of a persistent kernel
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
    divide: bool = True,
) -> KernelCall:
    """What writes epilogue((a @ b) * scale_a * scale_b) into `out`, for operands that `check` takes.

    `b2`, like b: the epilogue is given the pair of a @ b and a @ b2. `more`: what its further results are written into.
    `divide`: the last round's tiles may be divided, which takes memory beside the operands.

    a and b: stored by rows or by columns (a view such as b.T). `epilogue(x, row, col, *operands)` is traced into the
    kernel: x is a float32 tile of the product whose first element is (row, col) of the output, operands are tensors of
    one or two dimensions (a vector is one row).
    """
    first, second = described(a), described(b)
    swap = (
        epilogue is None and scale_a is None and scale_b is None and b2 is None and arrays.describe(out).dtype != "f32"
    )
    plan = choose_kernel(first, second, b2 is not None, swap, divide)
    extras = [x[None, :] if len(x.shape) == 1 else x for x in map(readable, operands)]
    if scale_a is not None or scale_b is not None:
        extras += [x.reshape(1, 1) for x in (scale_a, scale_b) if x is not None]
        epilogue = _scaled(epilogue, len(operands))
    orders, matrices = [plan.a, plan.b], [a, b]
    if b2 is not None:
        orders.append(order(described(b2), plan.b.transposed))
        matrices.append(b2)
    config, splits = (config, 1) if config else (plan.config, plan.splits)
    ampere = isinstance(config, gemm_ampere.Config)
    (a, b, *others), copied = stored(matrices, orders, not ampere, not ampere and out is not None)
    static = {"config": config, "ta": plan.a.transposed, "tb": plan.b.transposed, "epilogue": epilogue}
    given = (a, b, out, *extras, *[None] * (4 - len(extras)))
    rest = (others[0] if others else None, *more, *[None] * (2 - len(more)))
    if ampere:
        return KernelCall(gemm_ampere.gemm_ampere, (*given, *rest), static)
    if config.swap:
        turned = {"ta": not static["tb"], "tb": not static["ta"]}
        return KernelCall(gemm, (b, a, *given[2:], plan.sms, *rest), {**static, **turned, "dependent": copied})
    if splits > 1:
        divided = {**static, "splits": splits}
        return KernelCall(gemm_divided.DIVIDED, (*given, plan.sms, *rest), divided)  # type: ignore[arg-type]
    return KernelCall(gemm, (*given, plan.sms, *rest), {**static, "dependent": copied})


def described(x: Any) -> ArrayInfo:
    """What is known of an array, its pointer modulo 16."""
    return (info := arrays.describe(x))._replace(pointer=info.pointer % 16)


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
    straddles: float  # the share of rows of 128 bytes that lie across two lines of L2


def stored(
    matrices: Sequence[Any], orders: Sequence[Order], dependent: bool, whole: bool = False
) -> tuple[list[Any], bool]:
    """The matrices to pass to the kernel, and whether copies of some have just begun; `dependent`: the kernel may begin
    beside them; `whole`: it takes the result's sides from the result, and of copies whole lines."""
    found = [x.T if how.transposed else x for x, how in zip(matrices, orders, strict=True)]
    where = []
    for i, how in enumerate(orders):
        if how.copied:
            (lines, length), (stride, step) = (info := arrays.describe(found[i])).shape, info.strides
            if (step != 1 and length > 1) or (stride < length and lines > 1):
                found[i] = arrays.dense_copy(found[i], "operand")
            if order(described(found[i]), False).copied:
                where.append(i)
    copies = aligned.copies([found[i] for i in where], dependent) if where else []
    for i, copy in zip(where, copies, strict=True):
        outward = orders[i].transposed == (i == 0)  # rows in memory lie along m or n: what is behind them is nobody's
        found[i] = copy.array if whole and outward else copy
    return found, bool(where)


@dataclass(frozen=True)
class Choice:
    """All that follows from the operands' shapes, strides, dtypes and devices."""

    a: Order
    b: Order
    dtype: str
    config: Config | gemm_ampere.Config
    sms: int
    splits: int = 1


@lru_cache(maxsize=4096)
def choose_kernel(
    first: ArrayInfo, second: ArrayInfo, pair: bool = False, swap: bool = False, divide: bool = True
) -> Choice:
    """What to do with operands; their pointers count modulo 16. `pair`: there is one more like the second; `swap`: the
    kernel may make tiles of the result's transpose; `divide`: and divide the last round's tiles."""
    eight, size = first.dtype[0] == "e", DTYPES[first.dtype].size
    a, b = order(first, False if eight else None), order(second, True if eight else None)  # 8 bits: k along the rows
    sms = SIMULATED if first.device is None else driver.multiprocessors(first.device)
    (m, k), n = first.shape, second.shape[1]
    config: Config | gemm_ampere.Config
    splits = 1
    if first.device is not None and "wgmma" not in (arch := driver.architecture(first.device)).features:
        if eight:
            fix = "convert to bf16, or run it on a Hopper GPU (sm_90a)"
            raise ArgumentError(f"matmul of 8-bit floats on {arch}: its kernel is written for Hopper", fix=fix)
        config = choose_ampere(m, n, sms, pair)
    else:
        ragged = (
            a.transposed and not a.copied and m * size % 32 > 0,
            not (b.transposed or b.copied) and n * size % 32 > 0,
        )
        real = sms > 2  # the simulated GPU runs what an H100 would, in few tiles, which nobody divides or turns
        swap = real and swap and not (eight or a.transposed)
        shape = schedule.Multiply(m, n * (1 + pair), k, size, (a.straddles, b.straddles), ragged, swap)
        config, splits = schedule.product(shape, schedule.machine(first.device), real and divide, pair).way
        if pair:  # three results may leave
            config = replace(config, cols=config.cols // 2, stages=min(config.stages, 5))
    return Choice(a, b, "bf16" if eight else first.dtype, config, sms, splits)


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
            return Order(choice, False, schedule.straddling(stride * size))
    choice = choices[0] if len(choices) == 1 else info.strides[1] != 1 and info.strides[0] == 1
    return Order(choice, True, 0.0)


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
