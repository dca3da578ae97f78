"""A kernel that plays random programs: block i that of `seeds[i]`. See `programs.py`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

import pykittens as pk

from ..types import DType, bool_, f32, i32
from .hard_numbers import hard
from .programs import COLS, GLOBAL, ROWS, SCALARS, TILES, Kind, ProgramStep, draw, outputs

OUTPUTS = TILES
Arrays = dict[str, np.ndarray]
_OPERATORS: dict[str, Any] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "lt", "le", "gt", "ge", "eq", "ne", "xor")},
    **{"and": operator.and_, "or": operator.or_, "shl": operator.lshift, "shr": operator.rshift},
    **{"floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow},
    **{"neg": operator.neg, "abs": operator.abs, "not": operator.invert, "invert": operator.invert},
}


class Player:
    """Plays the steps of a program inside a kernel, on its own part of the tensors."""

    def __init__(self, place: int, tensors: dict[str, Any], shared: dict[DType, Any]):
        self.place, self.tensors, self.shared = place, tensors, shared

    def play(self, steps: list[ProgramStep]) -> None:
        values: list[Any] = []
        for step in steps:
            values.append(self.step(step, [values[i] for i in step.args]))
        for dtype, i in outputs(steps).items():
            value = values[i].to(i32) if dtype is bool_ else values[i]
            if dtype is not bool_ or i32 not in outputs(steps):
                pk.warp.store(self.tensors[f"{value.dtype}_out"], value, pk.at(0, self.place, 0, 0))

    def step(self, step: ProgramStep, args: list[Any]) -> Any:
        name, kind, more = step.name, step.makes, step.more
        if hasattr(self, f"play_{name}"):
            return getattr(self, f"play_{name}")(kind, *args, **more)
        return apply(name, *args)

    def play_load(self, kind: Kind, which: int) -> Any:
        return self.read(f"{kind.dtype}_tiles", kind, pk.at(self.place, which, 0, 0))

    def read(self, name: str, kind: Kind, at: Any) -> Any:
        return pk.warp.load(
            self.tensors[name], at, rows=kind.rows, cols=kind.cols, dtype=kind.dtype, layout=kind.layout
        )

    def play_argument(self, kind: Kind, which: int) -> Any:
        return self.tensors[f"{kind.dtype}_scalars"][self.place, which]

    def play_with_number(self, kind: Kind, a: Any, what: str, number: Any) -> Any:
        return apply(what, a, number)

    def play_scalars(self, kind: Kind, a: Any, b: Any, what: str, dtype: DType) -> Any:
        return apply(what, a, b)

    def play_to(self, kind: Kind, a: Any) -> Any:
        return a.to(kind.dtype)

    def play_cast(self, kind: Kind, a: Any) -> Any:
        return pk.cast(a, kind.dtype)

    def play_reduce(self, kind: Kind, a: Any, what: str, to: str) -> Any:
        return getattr(a, f"{'row' if to == 'col' else 'col'}_{what}")()

    def play_count(self, kind: Kind, a: Any, what: str) -> Any:
        return getattr(a, what)()

    def play_best(self, kind: Kind, a: Any, what: str, to: str) -> Any:
        return getattr(a, f"{'row' if to == 'col' else 'col'}_{what}")()

    def play_second(self, kind: Kind, a: Any) -> Any:
        return a.row_topk(2)[1][0]

    def play_scan(self, kind: Kind, a: Any, what: str, along: str, reverse: bool) -> Any:
        return getattr(a, f"{along}_cum{what}")(reverse=reverse)

    def play_form(self, kind: Kind, a: Any, through: int) -> Any:
        a = a.as_vec(width=through) if through else a
        return getattr(a, f"as_{kind.form}")(layout=kind.layout)

    def play_rows(self, kind: Kind, a: Any, rows: list[int]) -> Any:
        return a.take_rows(rows)

    def play_triangle(self, kind: Kind, a: Any, what: str, diagonal: int) -> Any:
        return getattr(pk, what)(a, diagonal, 1)

    def play_to_scalar(self, kind: Kind, a: Any, what: str) -> Any:
        return getattr(a, what)()

    def play_transpose(self, kind: Kind, a: Any) -> Any:
        return a.transpose()

    def play_swap_layout(self, kind: Kind, a: Any) -> Any:
        return a.swap_layout(kind.layout)

    def play_shared(self, kind: Kind, a: Any, memory: DType) -> Any:
        tile = self.shared[memory]
        pk.warp.sync()
        pk.warp.store(tile, a)
        pk.warp.sync()
        return pk.warp.load(tile, dtype=kind.dtype, layout=kind.layout)

    def play_global(self, kind: Kind, a: Any, memory: DType) -> Any:
        at = pk.at(0, self.place, 0, 0)
        pk.warp.sync()
        pk.warp.store(self.tensors[f"{memory}_scratch"], a, at)
        pk.warp.sync()
        return self.read(f"{memory}_scratch", kind, at)

    def play_product(self, kind: Kind, a: Any, b: Any, dtype: DType) -> Any:
        out = pk.warp.zeros(f32, kind.rows, kind.cols)
        pk.warp.mma_ABt(out, (a & 7).to(dtype), (b & 7).to(dtype))
        return out

    def play_when(self, kind: Kind, condition: Any, a: Any, b: Any, what: str, other: str) -> Any:
        x = copied(a, kind)
        with pk.when(condition):
            x[:] = apply(what, x, b)
        with pk.otherwise():
            x[:] = apply(other, x, b)
        return x

    def play_repeat(self, kind: Kind, count: Any, a: Any, b: Any, what: str) -> Any:
        x = copied(a, kind)
        for _ in pk.range(count & 3):
            x[:] = apply(what, x, b)
        return x


def apply(name: str, *args: Any) -> Any:
    """An operation of the vocabulary by its name."""
    words: dict[str, Any] = {
        "max": pk.maximum,
        "min": pk.minimum,
        "relu": pk.relu,
        "sqrt": pk.sqrt,
        **{name: getattr(pk, name) for name in ("round", "floor", "ceil", "trunc")},
        "fma": pk.fma,
        "where": pk.where,
    }
    return (words.get(name) or _OPERATORS[name])(*args)


def copied(a: Any, kind: Kind) -> Any:
    """A new tile with the same elements."""
    x = pk.warp.zeros(kind.dtype, kind.rows, kind.cols, layout=kind.layout)
    x[:] = a
    return x


def tensors(count: int) -> dict[str, tuple[DType, tuple[int, ...]]]:
    """The kernel's parameters: dtype and shape for `count` programs."""
    return {
        **{f"{d}_tiles": (d, (count, 2, ROWS, COLS)) for d in TILES},
        **{f"{d}_scalars": (d, (count, 4)) for d in SCALARS},
        **{f"{d}_scratch": (d, (count, ROWS, COLS)) for d in GLOBAL},
        **{f"{d}_out": (d, (count, COLS, COLS)) for d in OUTPUTS},
    }


def program_kernel(seeds: Sequence[int], eight_bit_floats: bool = True) -> Any:
    """The kernel; its parameters are those of `tensors(len(seeds))`."""
    drawn = [draw(seed, eight_bit_floats) for seed in seeds]
    memories = sorted({s.more["memory"] for steps in drawn for s in steps if s.name == "shared"}, key=lambda d: d.name)

    def programs(**given: Any) -> None:
        rooms = {memory: pk.shared(pk.st(memory, ROWS, COLS)) for memory in memories}
        for place, steps in enumerate(drawn):
            with pk.when(pk.block_index.x == place):
                Player(place, given, rooms).play(steps)

    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    programs.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, keyword, annotation=pk.gl(d, *shape)) for n, (d, shape) in tensors(len(seeds)).items()]
    )
    return pk.kernel(warps=1, grid=(len(seeds), 1, 1))(programs)


def arrays(seeds: Sequence[int]) -> Arrays:
    """Inputs for the programs, many of them hard numbers, and room for what they store: 77 everywhere."""
    found: Arrays = {}
    for name, (dtype, shape) in tensors(len(seeds)).items():
        found[name] = np.full(shape, 77).astype(dtype.numpy)
        if name.endswith(("_tiles", "_scalars")):
            for i, seed in enumerate(seeds):
                found[name][i] = _inputs(dtype, shape[1:], seed)
    return found


def _inputs(dtype: DType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small integers, hard numbers and random bits, in shares that the seed says."""
    rng = np.random.default_rng([seed, dtype.bits, ord(dtype.kind)])
    n = int(np.prod(shape))
    small = rng.integers(-8 if dtype.kind != "u" else 0, 9, n).astype(dtype.numpy)
    bits = rng.integers(0, 256, n * dtype.size, np.uint8).view(dtype.numpy)
    choice = rng.choice(3, n, p=[(0.9, 0.05, 0.05), (0.3, 0.4, 0.3)][seed % 2])
    return (
        np.choose(choice, [x.view(f"u{dtype.size}") for x in (small, rng.choice(hard(dtype), n), bits)])
        .view(dtype.numpy)
        .reshape(shape)
    )
