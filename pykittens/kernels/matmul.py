"""Matrix products of arrays of any framework: what is checked, how the operands are stored, and which configuration runs.

    out = epilogue((a @ b) * scale_a * scale_b)

The choice follows three rates of an H200: what a tensor core multiplies, what L2 delivers to a multiprocessor, and what memory
delivers to all of them. They order the configurations below as measurements do: 128 x 256 tiles wherever they fill the chip; narrower ones for small and skinny products,
which are bound by memory; clusters that split k where even those leave most of the chip idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ..cuda import driver
from ..errors import ArgumentError
from ..interop import arrays
from ..interop.arrays import ArrayInfo, Unsupported
from ..trace.fingerprint import fingerprint
from ..types import DTYPES
from .gemm import Config, gemm

CONFIGS = (
    Config(128, 256, 4, 2, group=8),
    Config(256, 128, 4, 2, group=4),
    Config(128, 128, 6, 2, group=8),
    Config(192, 64, 6, 3, group=8),
    Config(64, 128, 8, 1),
    Config(64, 64, 12, 1),
    Config(64, 128, 6, 1, cluster=2, share="k"),
    Config(64, 128, 6, 1, cluster=4, share="k"),
    Config(64, 128, 6, 1, cluster=8, share="k"),
)
MULTIPLIES, DELIVERS, MEMORY = 2048 * 0.92, 45, 2400  # a cycle: 16-bit multiplications, bytes from L2 to each, bytes from memory to all
START, SPLIT = 5000, 3000  # cycles: the first slot's way here and the last tile's way out; the blocks of a cluster adding up
OPERANDS, RESULTS = ("bf16", "f16", "e4m3", "e5m2"), ("bf16", "f16", "f32")

_epilogues: dict[Any, Callable[..., Any]] = {}  # the first of its kind, so that a lambda made anew for each call is traced once


def run(a: Any, b: Any, out: Any = None, *, epilogue: Callable[..., Any] | None = None, operands: Sequence[Any] = (),
        scale_a: Any = None, scale_b: Any = None, dtype: str | None = None, config: Config | None = None) -> Any:  # fmt: skip
    """a (m, k) @ b (k, n) into `out` (m, n), or into a new array of `dtype` (by default a's, bf16 for 8-bit floats).

    a and b: both bf16, both f16, or 8-bit floats, stored by rows or by columns (a view such as b.T). `scale_a` and `scale_b`
    are arrays of one float32. `epilogue(x, row, col, *operands)` is traced into the kernel: x is a float32 tile of the product whose
    first element is (row, col) of the output, operands are tensors of one or two dimensions (a vector is one row).
    """
    infos = describe(a, b)
    first, second = check(infos)
    m, k, n = *first.shape, second.shape[1]
    name = dtype or ("bf16" if first.dtype[0] == "e" else first.dtype)
    if out is None:
        out = arrays.empty(first.kind, (m, n), name, first.device)
    elif tuple(out.shape) != (m, n):
        raise ArgumentError(f"matmul: out has shape {tuple(out.shape)}", fix=f"it is ({m}, {n})")
    a, ta = stored(a, first, first.dtype[0] == "e" and "rows")
    b, tb = stored(b, second, second.dtype[0] == "e" and "columns")
    extras = [x[None, :] if len(x.shape) == 1 else x for x in operands]
    if scale_a is not None or scale_b is not None:
        extras += [x.reshape(1, 1) for x in (scale_a, scale_b) if x is not None]
        epilogue = _scaled(epilogue, len(operands))
    if len(extras) > 4:
        raise ArgumentError(f"matmul: {len(extras)} operands of an epilogue, scales included", fix="at most 4")
    if epilogue is not None:
        epilogue = _epilogues.setdefault(fingerprint(epilogue), epilogue)
    sms = 2 if first.device is None else driver.multiprocessors(first.device)
    config = config or choose(m, n, k, DTYPES[first.dtype].size, 132 if first.device is None else sms)
    gemm(a, b, out, *extras, *[None] * (4 - len(extras)), sms, config=config, ta=ta, tb=tb, epilogue=epilogue)
    return out


def describe(a: Any, b: Any) -> dict[str, ArrayInfo]:
    """What is known of the operands, by name."""
    try:
        return {name: arrays.describe(x, name) for name, x in (("a", a), ("b", b))}
    except Unsupported as error:
        raise ArgumentError(f"matmul: {error}", fix="pass NumPy, torch, CuPy or JAX arrays") from None


def check(infos: dict[str, ArrayInfo]) -> tuple[ArrayInfo, ArrayInfo]:
    """Both operands. One `ArgumentError` for what the kernel does not take."""
    a, b = infos.values()
    said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in infos.items())
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ArgumentError(f"matmul of {said}", fix="a is (m, k) and b is (k, n), every dimension at least 1")
    if a.dtype not in OPERANDS or b.dtype not in OPERANDS or (a.dtype != b.dtype and not a.dtype[0] == b.dtype[0] == "e"):
        raise ArgumentError(f"matmul of {said}: these dtypes do not go together", fix="pass both as bf16, both as f16, or 8-bit floats (e4m3, e5m2)")
    if (a.kind, a.device) != (b.kind, b.device):
        raise ArgumentError(f"matmul of {said}: they lie in different places", fix="pass arrays of one framework on one device")
    return a, b


def stored(x: Any, info: ArrayInfo, must: Any = None) -> tuple[Any, bool]:
    """A matrix as the kernel reads it, and whether that is its transpose. Copied once where TMA cannot address its rows."""
    size = DTYPES[info.dtype].size
    for transposed in (False, True):
        (lines, _), (stride, step) = (info.shape[::-1], info.strides[::-1]) if transposed else (info.shape, info.strides)
        length = info.shape[0] if transposed else info.shape[1]
        if (step == 1 or length == 1) and must != ("rows" if transposed else "columns"):
            if info.pointer % 16 == 0 and (lines == 1 or (stride >= length and stride * size % 16 == 0)):
                return (x.T, True) if transposed else (x, False)
    transposed = must == "columns" or (must != "rows" and info.strides[1] != 1)
    source = x.T if transposed else x
    rows, cols = source.shape
    wide = -(-cols * size // 16) * 16 // size
    copy = arrays.empty(info.kind, (rows, wide), info.dtype, info.device)[:, :cols]
    try:
        copy[...] = source
    except TypeError:
        raise ArgumentError(f"matmul: the rows of {info.dtype} {tuple(info.shape)} do not begin at multiples of 16 bytes", fix="pad them") from None
    return copy, transposed


def _scaled(epilogue: Callable[..., Any] | None, count: int) -> Callable[..., Any]:
    """An epilogue that scales first: its operands after `count` are the scales."""

    def scaled(x: Any, row: Any, col: Any, *operands: Any) -> Any:
        for scale in operands[count:]:
            x = x * scale[0, 0]
        return x if epilogue is None else epilogue(x, row, col, *operands[:count])

    return scaled


@lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, size: int, sms: int) -> Config:
    """The configuration that the two rates make the fastest."""
    return min(CONFIGS, key=lambda config: cycles(config, m, n, k, size, sms))


def cycles(config: Config, m: int, n: int, k: int, size: int, sms: int) -> float:
    """About how long a product takes."""
    tiles = -(-m // config.rows) * -(-n // config.cols)
    splits = config.cluster if config.splits else 1
    at_once = sms // splits * 9 // 10 if splits > 2 else sms // splits  # large clusters do not find room everywhere
    step = max(config.rows * config.cols * config.depth / (MULTIPLIES * 2), (config.rows + config.cols) * config.depth / DELIVERS)
    each = -(-k * size // (config.depth * splits)) * step
    floor = (m * k + k * n + m * n) * size / MEMORY
    return max(floor, -(-tiles // max(1, at_once)) * each) + START + (SPLIT if splits > 1 else 0)
