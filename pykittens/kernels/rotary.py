"""Rotary position embedding: each pair of features turns by the angle of its row.

    half-split:   o[i] = x[i] cos[i] - x[i + h] sin[i],            o[i + h] = x[i + h] cos[i] + x[i] sin[i]
    interleaved:  o[2 i] = x[2 i] cos[i] - x[2 i + 1] sin[i],      o[2 i + 1] = x[2 i + 1] cos[i] + x[2 i] sin[i]

for i < h = r / 2; features from r on pass unchanged. Su et al., "RoFormer: Enhanced Transformer with Rotary Position
Embedding" (2021; interleaved), and the half-split form of GPT-NeoX. x: (..., heads, n, d) with contiguous features and
otherwise any strides, so that a view of (batch, n, heads, d) will do; cos and sin: (m, h) with m >= n, a row for each
position. bf16, f16 or f32 each; d up to 4096, r even and at most d, n any. Arithmetic is float32.

A rotation's gradient is the rotation back: dx = rotary(do, cos, -sin), with `back`. Tables have no gradient.

A warp takes `rows` positions of `heads` heads: it brings their cosines and sines once, all loads before the first use.
It needs no shared memory: pairs lie in one thread, since both halves of a row have the same layout, or neighbours the
same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp
from pykittens.errors import ArgumentError
from pykittens.interop.arrays import ArrayInfo, describe
from pykittens.interop.views import View, merged
from pykittens.types import DTYPES, Coalesced

from .arguments import KernelCall, alignment, check_floats, check_shape, matrix, operand
from .rows import FLOATS


@dataclass(frozen=True)
class Config:
    """`r` of `d` features turn. A warp takes `rows` positions of `heads` heads; a thread's runs are `width` (`rest`:
    past r)."""

    d: int
    r: int
    interleaved: bool
    width: int
    rest: int
    rows: int = 0  # 0: as many as the narrowest layout holds at a time
    heads: int = 1
    warps: int = 4
    load_hint: str = ""
    store_hint: str = "stream"

    def __post_init__(self) -> None:
        if not 2 <= self.r <= self.d <= 4096 or self.r % 2:
            raise ArgumentError(
                f"{self.r} of {self.d} features turn", fix="an even number of features turns, of at most 4096"
            )
        if not self.rows:
            layouts = [self.turning] + ([self.passing] if self.r < self.d else [])
            object.__setattr__(self, "rows", max(32 // x.lanes for x in layouts))

    @property
    def turning(self) -> Coalesced:
        """The layout of one half, or of the pairs."""
        return layout_of(self.r if self.interleaved else self.r // 2, self.width)

    @property
    def passing(self) -> Coalesced:
        return layout_of(self.d - self.r, self.rest)


def layout_of(cols: int, width: int) -> Coalesced:
    """As many lanes a row as its runs divide over, with none left."""
    runs = cols // width
    return Coalesced(min(32, runs & -runs), width)


OPTIONS: dict[str, Any] = {
    "warps": lambda config, **_: config.warps,
    "grid": lambda x, config, **_: -(-x.rows // (config.rows * config.warps)) * (x.depth // config.heads) * x.batch,
}


@pk.kernel(**OPTIONS)
def rotate(
    x: Annotated[Tensor, FLOATS, "B", "H", "N", pk.static("D")],
    cos: Annotated[Tensor, FLOATS, "M", pk.static("HALF")],
    sin: Annotated[Tensor, FLOATS, "M", pk.static("HALF")],
    o: Annotated[Tensor, FLOATS, "B", "H", "N", pk.static("D")],
    *,
    config: Any,
    back: bool = False,
) -> None:
    """o = x with the first `config.r` features of each row turned; `back`: the other way."""
    half, tiles, groups = config.r // 2, pk.cdiv(x.rows, config.rows * config.warps), x.depth // config.heads
    block, layout = pk.block_index.x, config.turning
    group = block // tiles % groups
    batch, row = block // tiles // groups, (block % tiles * config.warps + warp.index) * config.rows
    at = [(batch, group * config.heads + i, row) for i in range(config.heads)]

    def load(tensor: Any, place: Any, first: Any, cols: Any, layout: Any) -> Any:
        return warp.load(
            tensor, pk.at(*place, first), rows=config.rows, cols=cols, layout=layout, dtype=f32, hint=config.load_hint
        )

    def turn(a: Any, b: Any) -> Any:
        if back:
            return pk.fma(a, c, b * s), pk.fma(b, c, -(a * s))
        return pk.fma(a, c, -(b * s)), pk.fma(b, c, a * s)

    angles = Coalesced(layout.lanes, layout.width // 2) if config.interleaved else layout
    c, s = (
        warp.load(t, pk.at(0, 0, row, 0), rows=config.rows, cols=half, layout=angles, dtype=f32) for t in (cos, sin)
    )
    if config.interleaved:
        loaded = [load(x, place, 0, config.r, layout) for place in at]
        results = [[(0, pk.join_pairs(*turn(*pairs.split_pairs())))] for pairs in loaded]
    else:
        halves = [[load(x, place, first, half, layout) for first in (0, half)] for place in at]
        results = [list(zip((0, half), turn(a, b), strict=True)) for a, b in halves]
    if config.r < config.d:
        for place, result in zip(at, results, strict=True):
            result.append((config.r, load(x, place, config.r, config.d - config.r, config.passing)))
    for place, result in zip(at, results, strict=True):
        for first, value in result:
            warp.store(o, value, pk.at(*place, first), hint=config.store_hint)


def call(
    x: Any, cos: Any, sin: Any, o: Any, interleaved: bool, back: bool = False, config: Config | None = None
) -> KernelCall:
    """What writes x, with its first 2 * cos.shape[-1] features turned, into o; `back` turns the other way. `config`
    overrides how the work is divided."""
    view, target, tables = (
        _heads(x, "x"),
        _heads(o, "out"),
        [matrix(t, name)[0] for name, t in (("cos", cos), ("sin", sin))],
    )
    config = config or plan(
        view.shape[3],
        DTYPES[describe(x).dtype].size,
        alignment(view, target),
        2 * tables[0].shape[1],
        bool(interleaved),
    )
    return KernelCall(rotate, (operand(view), cos, sin, operand(target)), {"config": config, "back": back})


def check(x: ArrayInfo, cos: ArrayInfo, sin: ArrayInfo) -> None:
    """Raises `ArgumentError` for shapes and dtypes that the kernel does not take."""
    for name, info in (("x", x), ("cos", cos), ("sin", sin)):
        check_floats("rotary", name, info)
    if len(x.shape) < 2:
        raise ArgumentError(f"x has shape {tuple(x.shape)}", fix="pass (..., heads, n, d)")
    for name, info in (("cos", cos), ("sin", sin)):
        if len(info.shape) != 2 or info.shape[0] < x.shape[-2] or 2 * info.shape[1] > x.shape[-1]:
            fix = f"pass (m, r / 2) with m at least {x.shape[-2]} and r at most {x.shape[-1]}"
            raise ArgumentError(f"{name} has shape {tuple(info.shape)} for x of shape {tuple(x.shape)}", fix=fix)
    check_shape("rotary", "sin", sin, cos.shape)


@lru_cache(maxsize=1024)
def plan(d: int, size: int, align: int, r: int, interleaved: bool, **settings: Any) -> Config:
    """How rows of `d` elements of `size` bytes, at multiples of `align`, are divided: runs as wide as that allows."""
    width = align // size
    runs = max(1, min(width, _power(r if interleaved else r // 2)))
    rest = max(1, min(width, _power(r), _power(d - r))) if r < d else 1
    hint = "stream" if r * size >= 256 else ""  # the halves of a shorter row lie in one line of L1
    return Config(d, r, interleaved, max(2, runs) if interleaved else runs, rest, **{"load_hint": hint, **settings})


def _power(x: int) -> int:
    """The largest power of two that divides x."""
    return x & -x


def _heads(array: Any, name: str) -> View:
    """An array as (batch, heads, n, d), without a copy."""
    info = describe(array, name)
    if info.shape[-1] > 1 and info.strides[-1] != 1:
        raise ArgumentError(
            f"{name} has shape {tuple(info.shape)} and strides {info.strides}",
            fix="pass (..., heads, n, d) with contiguous features",
        )
    shape, strides = (
        (1,) * (3 - len(info.shape)) + tuple(info.shape),
        (0,) * (3 - len(info.shape)) + tuple(info.strides),
    )
    lead = merged(shape[:-3], strides[:-3], 1)
    if lead is None:
        raise ArgumentError(
            f"{name} has shape {tuple(info.shape)} and strides {info.strides}",
            fix="pass (batch, heads, n, d), or a contiguous copy",
        )
    return View(array, (*lead[0], *shape[-3:]), (*lead[1], *strides[-3:-1], 1))


def reference(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
    """The rotation in float64."""
    h, n = cos.shape[1], x.shape[-2]
    o, c, s = x.astype(np.float64), cos[:n].astype(np.float64), sin[:n].astype(np.float64)
    first, second = (
        (np.s_[..., 0 : 2 * h : 2], np.s_[..., 1 : 2 * h : 2])
        if interleaved
        else (np.s_[..., :h], np.s_[..., h : 2 * h])
    )
    a, b = o[first].copy(), o[second].copy()
    o[first], o[second] = a * c - b * s, b * c + a * s
    return o
