"""How arrays of any framework and any leading shape become operands of the row kernels, and what a call remembers of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from pykittens.errors import ArgumentError
from pykittens.interop.arrays import ArrayInfo, Unsupported, describe, empty, probe
from pykittens.interop.views import View, merged
from pykittens.types import DTYPES

Shown = tuple[tuple[int, ...], tuple[int, ...]] | None  # shape and strides that an array is passed with; None: its own
_FLOATS = ("bf16", "f16", "f32")
_MOST = 1024  # calls that are remembered of each function


class Ready(NamedTuple):
    """What is worked out for a call before its kernel runs, by what its arguments look like."""

    config: Any
    operands: tuple[Shown, ...]
    results: tuple[tuple[tuple[str, tuple[int, ...], str, int | None], Shown], ...]  # how to make each, how to pass it

    def pass_on(self, *arrays: Any) -> list[Any]:
        """The operands as the kernel takes them."""
        return [x if shown is None else View(x, *shown) for x, shown in zip(arrays, self.operands, strict=True)]

    def make(self) -> list[tuple[Any, Any]]:
        """Each result, and the same as the kernel takes it."""
        made = [(empty(*how), shown) for how, shown in self.results]
        return [(x, x if shown is None else View(x, *shown)) for x, shown in made]


def remembered(function: Callable[..., Ready]) -> Callable[..., Ready]:
    """Lets `function(*arrays, **settings)` run once for all arrays (or Nones) that look alike: type, shape, strides, dtype, device,
    alignment. What it refuses it refuses each time."""
    known: dict[Any, Ready] = {}

    @wraps(function)
    def call(*arrays: Any, **settings: Any) -> Ready:
        try:
            key = (*map(_looks, arrays), *settings.values())
            found = known.get(key)
        except TypeError:  # what is no array: refused below
            return function(*arrays, **settings)
        if found is None:
            if len(known) >= _MOST:
                known.clear()
            found = known[key] = function(*arrays, **settings)
        return found

    return call


def _looks(array: Any) -> Any:
    if array is None:
        return None
    pointer, looks = probe(array)(array)
    return type(array), looks, pointer % 16


def floats(array: Any, name: str) -> ArrayInfo:
    """What an array of floats is; raises `ArgumentError` for anything else, and where it is empty."""
    try:
        info = describe(array, name)
    except Unsupported as error:
        raise ArgumentError(str(error), fix="pass a NumPy, torch, CuPy or JAX array") from None
    if info.dtype not in _FLOATS:
        raise ArgumentError(f"{name} is {info.dtype}", fix="pass bf16, f16 or f32")
    if not info.shape or 0 in info.shape:
        raise ArgumentError(f"{name} has shape {tuple(info.shape)}", fix="pass at least one row of at least one element")
    return info


def matrix(array: Any, name: str) -> tuple[View, ArrayInfo]:
    """An array as a matrix of its rows (the last axis), without a copy, and what the array is."""
    info = floats(array, name)
    rows = merged(info.shape[:-1], info.strides[:-1], 1)
    if rows is None or (info.shape[-1] > 1 and info.strides[-1] != 1):
        fact = f"{name} has strides {info.strides} for shape {tuple(info.shape)}: its rows are not one apart from the next by a constant"
        raise ArgumentError(fact, fix="rows must be contiguous and evenly spaced: pass a contiguous copy")
    return View(array, (*rows[0], info.shape[-1]), (*rows[1], 1)), info


def shown(view: View) -> Shown:
    """How a view's array is passed: as it is where the view changes nothing."""
    info = describe(view.array)
    return None if tuple(info.shape) == view.shape else (view.shape, view.strides)


def result(like: ArrayInfo, view: View, dtype: str | None = None) -> tuple[tuple[str, tuple[int, ...], str, int | None], Shown]:
    """A dense result with the shape of an operand, passed as `view` of that operand is."""
    strides = tuple(_product(view.shape[i + 1 :]) for i in range(len(view.shape)))
    how = (like.kind, tuple(like.shape), dtype or like.dtype, like.device)
    return how, None if tuple(like.shape) == view.shape else (view.shape, strides)


def _product(lengths: tuple[int, ...]) -> int:
    total = 1
    for n in lengths:
        total *= n
    return total


def agree(first: ArrayInfo, name: str, info: ArrayInfo, shape: tuple[int, ...]) -> None:
    """Raises `ArgumentError` where an operand does not go with the first."""
    if tuple(info.shape) != tuple(shape):
        raise ArgumentError(f"{name} has shape {tuple(info.shape)}, where {tuple(shape)} is needed", fix="shapes must agree")
    if (info.kind, info.device) != (first.kind, first.device):
        raise ArgumentError(f"{name} is a {info.kind} array on {_place(info)}, x a {first.kind} array on {_place(first)}", fix="use one of both")


def _place(info: ArrayInfo) -> str:
    return "the CPU" if info.device is None else f"GPU {info.device}"


def alignment(*views: View) -> int:
    """What pointers and strides of all rows are multiples of, in bytes, at most 16."""
    bits = 16
    for view in views:
        info = describe(view)
        size = DTYPES[info.dtype].size
        bits |= info.pointer
        for n, stride in zip(info.shape[:-1], info.strides[:-1], strict=True):
            bits |= stride * size if n > 1 else 0
    return bits & -bits


def machine(info: ArrayInfo) -> dict[str, Any]:
    """What `plan` asks about the device of an array: how many multiprocessors, and whether they have clusters (the simulator's have)."""
    if info.device is None:
        return {"clusters": True, "processors": 2}
    from pykittens.gpu.driver import architecture, multiprocessors

    return {"clusters": int(architecture(info.device)[3:5]) >= 90, "processors": multiprocessors(info.device)}
