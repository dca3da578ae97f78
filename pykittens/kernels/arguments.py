"""How arrays of any framework and any leading shape become operands of the row kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pykittens.architectures import SIMULATED
from pykittens.errors import ArgumentError
from pykittens.interop.arrays import ArrayInfo, Unsupported, as_numpy, describe
from pykittens.interop.base import packed
from pykittens.interop.views import View, merged
from pykittens.types import DTYPES

from ..call.kernel import Kernel
from .rows import WIDEST

_FLOATS = ("bf16", "f16", "f32")


class KernelCall(NamedTuple):
    """A kernel and what to call it with."""

    kernel: Kernel | Launches
    operands: tuple[Any, ...]
    statics: dict[str, Any]


class Launches:
    """Several launches as one, which make their scratch memory: called as a kernel is."""

    def __init__(self, run: Callable[..., None]):
        self.run = run

    def __call__(self, *operands: Any, **statics: Any) -> None:
        self.run(*operands, **statics)

    def launcher(self, *operands: Any, **statics: Any) -> None:
        """None: such a call is not one launch, to be done again by itself."""


def check_floats(function: str, name: str, info: ArrayInfo) -> None:
    """Raises `ArgumentError` where an operand is no array of floats, of one dimension at least."""
    if info.dtype not in _FLOATS:
        raise ArgumentError(f"{function}: {name} is {info.dtype}", fix="pass bf16, f16 or f32")
    if not info.shape:
        raise ArgumentError(f"{function}: {name} has shape ()", fix="pass at least one dimension")


def check_rows(function: str, name: str, info: ArrayInfo, widest: int | None = WIDEST) -> None:
    """Raises `ArgumentError` where an operand is no array of rows of floats that are at most `widest` long."""
    check_floats(function, name, info)
    if widest is not None and info.shape[-1] > widest:
        fix = f"widths up to {widest} are supported"
        raise ArgumentError(f"{function}: {name} has rows of {info.shape[-1]} elements", fix=fix)


def check_shape(function: str, name: str, info: ArrayInfo, shape: tuple[int, ...]) -> None:
    """Raises `ArgumentError` where an operand does not go with the first."""
    check_floats(function, name, info)
    if tuple(info.shape) != tuple(shape):
        said = f"{function}: {name} has shape {tuple(info.shape)}, where {tuple(shape)} is needed"
        raise ArgumentError(said, fix="shapes must agree")


def floats(array: Any, name: str) -> ArrayInfo:
    """What an array of floats is; raises `ArgumentError` for anything else, and where it is empty."""
    try:
        info = describe(array, name)
    except Unsupported as error:
        raise ArgumentError(str(error), fix=error.fix) from None
    if info.dtype not in _FLOATS:
        raise ArgumentError(f"{name} is {info.dtype}", fix="pass bf16, f16 or f32")
    if not info.shape or 0 in info.shape:
        raise ArgumentError(
            f"{name} has shape {tuple(info.shape)}", fix="pass at least one row of at least one element"
        )
    return info


def matrix(array: Any, name: str) -> tuple[View, ArrayInfo]:
    """An array as a matrix of its rows (the last axis), without a copy, and what the array is."""
    info = floats(array, name)
    rows = merged(info.shape[:-1], info.strides[:-1], 1)
    if rows is None or (info.shape[-1] > 1 and info.strides[-1] != 1):
        fact = (
            f"{name} has strides {info.strides} for shape {tuple(info.shape)}: its rows are not one apart from the "
            "next by a constant"
        )
        raise ArgumentError(fact, fix="rows must be contiguous and evenly spaced: pass a contiguous copy")
    return View(array, (*rows[0], info.shape[-1]), (*rows[1], 1)), info


def agree(first: ArrayInfo, name: str, info: ArrayInfo, shape: tuple[int, ...]) -> None:
    """Raises `ArgumentError` where an operand does not go with the first."""
    if tuple(info.shape) != tuple(shape):
        raise ArgumentError(
            f"{name} has shape {tuple(info.shape)}, where {tuple(shape)} is needed", fix="shapes must agree"
        )
    if (info.kind, info.device) != (first.kind, first.device):
        raise ArgumentError(
            f"{name} is a {info.kind} array on {_place(info)}, x a {first.kind} array on {_place(first)}",
            fix="use one of both",
        )


def _place(info: ArrayInfo) -> str:
    return "the CPU" if info.device is None else f"GPU {info.device}"


def operand(view: View) -> Any:
    """What to pass for a view: the array itself where the view changes nothing."""
    return view.array if tuple(describe(view.array).shape) == view.shape else view


def like(dense: Any, view: View) -> View:
    """A dense array, with the shape of what `view` shows, seen as that view is."""
    return View(dense, view.shape, packed(view.shape))


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
    """What `plan` asks about the device of an array: how many multiprocessors, and whether they have clusters that rows
    can stream through (the simulator's have)."""
    if info.device is None:
        return {"clusters": True, "processors": 2}
    from pykittens.gpu.driver import architecture, multiprocessors

    arch = architecture(info.device)
    # Rows stream through clusters by plans for Hopper's shared memory: consumer Blackwell has the one and not the
    # other.
    roomy = arch.shared_bytes >= SIMULATED.shared_bytes
    return {"clusters": "clusters" in arch.features and roomy, "processors": multiprocessors(info.device)}


def may_overlap(info: ArrayInfo) -> bool:
    """Whether a kernel on the device of an array may begin before the one ahead of it has ended (programmatic dependent
    launch); the simulator's may."""
    if info.device is None:
        return True
    from pykittens.gpu.driver import architecture

    return "dependent launch" in architecture(info.device).features


def values_of(array: Any) -> np.ndarray[Any, Any] | None:
    """The values of an array on the CPU; of one of torch's on a GPU in a debug build, but where a graph is captured."""
    from pykittens.gpu.debug_waits import debugging

    if describe(array).device is None:
        return np.asarray(as_numpy(array))
    torch = sys.modules.get("torch")
    if (
        torch is None
        or not (debugging() and isinstance(array, torch.Tensor))
        or torch.cuda.is_current_stream_capturing()
    ):
        return None
    return np.asarray(array.detach().cpu().numpy())
