"""What the kernels over sequences with a state (based, linear attention) share: 16-bit terms, and what is checked
first."""

from __future__ import annotations

from typing import Any

import numpy as np

import pykittens as pk
from pykittens import f32, i32, warpgroup

from ..errors import ArgumentError
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..interop.base import packed
from ..types import DTYPES as ALL
from ..types import bf16, f16
from .arguments import values_of

DTYPES = (bf16, f16)


def terms(x: Any, dtype: Any) -> tuple[Any, Any]:
    """A float32 tile as the sum of two 16-bit ones (NaN where it is infinite)."""
    high = x.to(dtype)
    return high, (x - high.to(f32)).to(dtype)


def store_terms(high: Any, low: Any, x: Any) -> None:
    """A float32 tile as the sum of two 16-bit ones in shared memory."""
    for target, term in zip((high, low), terms(x, high.dtype), strict=True):
        warpgroup.store(target, term)


def unit_of(*tiles: Any) -> Any:
    """For each row, what to divide it by so that f16 holds it: its largest element becomes 256."""
    peak = abs(tiles[0]).row_max()
    for tile in tiles[1:]:
        peak = pk.maximum(peak, abs(tile).row_max())
    return pk.where((peak > 0.0) & (peak < pk.inf), peak * 2.0**-8, 1.0)


def sequence_of(bounds: Any, row: Any) -> Any:
    """Which sequence of those that begin at `bounds` (a tensor of row numbers, increasing from 0) has a row."""
    low, high = pk.var(i32, 0), pk.var(i32, bounds.cols)
    for _ in pk.loop():
        pk.break_if(high - low <= 1)
        middle = (low + high) // 2
        with pk.when(bounds[middle] <= row):
            low.set(middle)
        with pk.otherwise():
            high.set(middle)
    return low + 0


Dims = tuple[int, ...]


def check(name: str, a: ArrayInfo, b: ArrayInfo, c: ArrayInfo, features: Dims, values: Dims) -> None:
    """One `ArgumentError` for q, k and v that the kernel does not take."""
    infos = {"q": a, "k": b, "v": c}
    said = f"{name} of " + ", ".join(f"{n} {x.dtype} {tuple(x.shape)}" for n, x in infos.items())
    if any(len(x.shape) != 4 for x in infos.values()):
        raise ArgumentError(said, fix="q, k and v have four dimensions: batch, heads, rows, columns")
    if a.dtype not in {d.name for d in DTYPES} or len({x.dtype for x in infos.values()}) > 1:
        raise ArgumentError(f"{said}: these dtypes are not supported", fix="pass all of them as bf16, or all as f16")
    if a.shape != b.shape or a.shape[:3] != c.shape[:3]:
        raise ArgumentError(
            f"{said}: the shapes do not go together", fix="q and k have one shape, and v their batch, heads and rows"
        )
    for what, given, supported in (("feature", a.shape[3], features), ("value", c.shape[3], values)):
        if given not in (0, *supported):  # without features or values there is nothing for a kernel to do
            fix = f"{what} dimensions {', '.join(map(str, supported))} are supported"
            raise ArgumentError(f"{said}: there is no kernel for {what} dimension {given}", fix=fix)


def check_gradient(name: str, do: ArrayInfo, o: ArrayInfo) -> None:
    """`ArgumentError` unless `do` has the shape and dtype of the result."""
    if tuple(do.shape) != tuple(o.shape) or do.dtype != o.dtype:
        fix = f"pass {o.dtype} {tuple(o.shape)}, as the result has them"
        raise ArgumentError(f"{name}: do is {do.dtype} {tuple(do.shape)}", fix=fix)


def check_state(name: str, what: str, info: ArrayInfo | None, shape: Dims) -> None:
    """`ArgumentError` unless an operand is None or float32 of this shape."""
    if info is not None and (tuple(info.shape) != tuple(shape) or info.dtype != "f32"):
        raise ArgumentError(f"{name}: {what} is {info.dtype} {tuple(info.shape)}", fix=f"pass float32 {tuple(shape)}")


def check_offsets(name: str, offsets: ArrayInfo | None, batch: int) -> int:
    """How many sequences there are. `ArgumentError` for offsets that are not int32 (sequences + 1,), of batch 1."""
    if offsets is None:
        return batch
    if offsets.dtype != "i32" or len(offsets.shape) != 1 or offsets.shape[0] < 2 or batch != 1:
        said = f"batch {batch} and cu_seqlens {offsets.dtype} {tuple(offsets.shape)}"
        fix = "packed sequences are one batch, and cu_seqlens int32 (sequences + 1,)"
        raise ArgumentError(f"{name}: {said}", fix=fix)
    return offsets.shape[0] - 1


def readable_offsets(name: str, offsets: Any, rows: int) -> Any:
    """Offsets as the kernels read them. Those that may be looked at are; on a GPU nothing lies outside of the tensors
    that is read or written.
    """
    if offsets is None or (values := values_of(offsets)) is None:
        return dense(offsets, "cu_seqlens")
    values = values.astype(np.int64)
    if values[0] != 0 or values[-1] != rows or (np.diff(values) < 0).any():
        said = f"{name}: cu_seqlens are {values.tolist() if len(values) < 10 else values} for {rows} rows"
        raise ArgumentError(said, fix="offsets begin with 0, do not decrease, and end with the number of rows")
    return dense(offsets, "cu_seqlens")


def check_decays(name: str, what: str, logs: Any) -> None:
    """`ArgumentError` where the logarithm of a decay, or a rate, is above zero, if it may be looked at: states would
    grow.
    """
    values = None if logs is None else values_of(logs)
    if values is not None and (wrong := values > 0).any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        said = f"{name}: {what} is {values[at]:g} at {list(at)}, so that states would grow"
        raise ArgumentError(said, fix="pass zero or less: -abs(x), -exp(x), or torch's logsigmoid(x)")


def operands(name: str, q: Any, k: Any, v: Any, state: Any) -> tuple[Any, Any, Any, Any]:
    """q, k, v and the state as the kernels can read them (copied where they could not). `ArgumentError` where no kernel
    runs."""
    check_place(name, q)
    if state is not None and arrays.describe(state).strides[-1] != 1:
        state = arrays.dense_copy(state, "state")
    q, k, v = (readable(x, n) for n, x in (("q", q), ("k", k), ("v", v)))
    return q, k, v, state


def readable(array: Any, name: str) -> Any:
    """An array that TMA can read: itself, or a dense copy."""
    return array if loadable(arrays.describe(array)) else arrays.dense_copy(array, name)


def contiguous_rows(array: Any, name: str) -> Any:
    """An array whose last dimension is contiguous, and which lies in memory in no reverse order: itself, or a copy."""
    info = arrays.describe(array)
    *outer, last = zip(info.shape, info.strides, strict=True)
    in_place = (last[1] == 1 or last[0] == 1) and all(stride >= 0 or length == 1 for length, stride in outer)
    return array if in_place else arrays.dense_copy(array, name)


def dense(array: Any, name: str) -> Any:
    """None for None; an array whose rows follow one another without gaps: itself, or a copy."""
    if array is None or (info := arrays.describe(array)).strides == packed(info.shape):
        return array
    return arrays.dense_copy(array, name)


def loadable(info: ArrayInfo) -> bool:
    """Whether TMA can read an array in place: contiguous rows that begin at multiples of 16 bytes."""
    *outer, (_, last) = zip(info.shape, info.strides, strict=True)
    size = ALL[info.dtype].size
    return last == 1 and info.pointer % 16 == 0 and all(n == 1 or (s >= 0 and s * size % 16 == 0) for n, s in outer)


def check_place(name: str, x: Any) -> None:
    """`ArgumentError` unless an array is on Hopper, or on the CPU for the simulated GPU."""
    from ..gpu.driver import architecture

    device = arrays.describe(x).device
    if device is not None and "wgmma" not in (arch := architecture(device)).features:
        fix = "run it on a Hopper GPU (sm_90a), or on NumPy arrays"
        raise ArgumentError(f"{name} on {arch}: its kernel is written for Hopper's tensor cores", fix=fix)
