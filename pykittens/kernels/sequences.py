"""What the kernels over sequences with a state (based, linear attention) share: 16-bit terms, and what is checked first."""

from __future__ import annotations

from typing import Any

import pykittens as pk
from pykittens import f32, warpgroup

from ..errors import ArgumentError
from ..interop import arrays
from ..interop.arrays import ArrayInfo, Unsupported
from ..types import DTYPES as ALL
from ..types import bf16, f16

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


Dims = tuple[int, ...]


def operands(name: str, q: Any, k: Any, v: Any, features: Dims, values: Dims) -> tuple[tuple[Any, Any, Any], ArrayInfo]:
    """q, k and v as the kernels can read them (copied where TMA could not), and what q is. One `ArgumentError` for all else."""
    infos = {n: _describe(name, n, x) for n, x in (("q", q), ("k", k), ("v", v))}
    said = f"{name} of " + ", ".join(f"{n} {x.dtype} {tuple(x.shape)}" for n, x in infos.items())
    a, b, c = infos.values()
    if any(len(x.shape) != 4 for x in infos.values()):
        raise ArgumentError(said, fix="q, k and v have four dimensions: batch, heads, rows, columns")
    if a.dtype not in {d.name for d in DTYPES} or len({x.dtype for x in infos.values()}) > 1:
        raise ArgumentError(f"{said}: these dtypes are not supported", fix="pass all of them as bf16, or all as f16")
    if len({(x.kind, x.device) for x in infos.values()}) > 1:
        places = ", ".join(f"{n} is a {x.kind} array on {_place(x)}" for n, x in infos.items())
        raise ArgumentError(f"{name}: {places}", fix="pass arrays of one framework on one device")
    if any(n == 0 for x in infos.values() for n in x.shape):
        raise ArgumentError(f"{said}: an array is empty", fix="every dimension is at least 1")
    if a.shape != b.shape or a.shape[:3] != c.shape[:3]:
        raise ArgumentError(
            f"{said}: the shapes do not go together", fix="q and k have one shape, and v their batch, heads and rows"
        )
    for what, given, supported in (("feature", a.shape[3], features), ("value", c.shape[3], values)):
        if given not in supported:
            fix = f"{what} dimensions {', '.join(map(str, supported))} are supported"
            raise ArgumentError(f"{said}: there is no kernel for {what} dimension {given}", fix=fix)
    if a.device is not None:
        _check_device(name, a.device)
    q, k, v = (x if _loadable(infos[n]) else arrays.dense_copy(x, n) for n, x in (("q", q), ("k", k), ("v", v)))
    return (q, k, v), a


def check_state(name: str, what: str, array: Any, first: ArrayInfo, shape: tuple[int, ...]) -> None:
    """`ArgumentError` unless `array` is None or float32 of this shape, where q is."""
    if array is None:
        return
    info = _describe(name, what, array)
    if tuple(info.shape) != shape or info.dtype != "f32":
        raise ArgumentError(f"{name}: {what} is {info.dtype} {tuple(info.shape)}", fix=f"pass float32 {shape}")
    if (info.kind, info.device) != (first.kind, first.device):
        places = f"{what} is a {info.kind} array on {_place(info)}, q a {first.kind} array on {_place(first)}"
        raise ArgumentError(f"{name}: {places}", fix="use one of both")
    if len(shape) > 1 and info.strides[-1] != 1:
        raise ArgumentError(f"{name}: {what} has strides {tuple(info.strides)}", fix="its rows must be contiguous")


def _describe(name: str, what: str, array: Any) -> ArrayInfo:
    try:
        return arrays.describe(array, what)
    except Unsupported as error:
        raise ArgumentError(f"{name}: {error}", fix="pass NumPy, torch, CuPy or JAX arrays") from None


def _loadable(info: ArrayInfo) -> bool:
    """Whether TMA can read an array in place: contiguous rows that begin at multiples of 16 bytes."""
    *outer, (_, last) = zip(info.shape, info.strides, strict=True)
    size = ALL[info.dtype].size
    return last == 1 and info.pointer % 16 == 0 and all(n == 1 or (s >= 0 and s * size % 16 == 0) for n, s in outer)


def _check_device(name: str, device: int) -> None:
    from ..gpu.driver import architecture

    if (arch := architecture(device)) != "sm_90a":
        fix = "run it on a Hopper GPU (sm_90a), or on NumPy arrays"
        raise ArgumentError(f"{name} on {arch}: its kernel is written for Hopper's tensor cores", fix=fix)


def _place(info: ArrayInfo) -> str:
    return "the CPU" if info.device is None else f"GPU {info.device}"
