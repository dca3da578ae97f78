"""Caches of 8-bit floats (e4m3) and their scales, float32: one for all numbers of a cache, or one for each key head."""

from __future__ import annotations

from typing import Any

from ..interop.arrays import ArrayInfo
from ..interop.views import View
from .attention import loadable, machine_of


def eight_bits(
    k_cache: ArrayInfo, v_cache: ArrayInfo, k_scale: ArrayInfo | None, v_scale: ArrayInfo | None
) -> tuple[str, str] | None:
    """What is wrong with caches of 8-bit floats, or with scales, and what to do instead; others have no scales."""
    eight, groups = k_cache.dtype == "e4m3", k_cache.shape[1]
    for name, x in (("k_scale", k_scale), ("v_scale", v_scale)):
        if x is not None and not eight:
            return f"{name} is given", "leave it out, or pass e4m3 caches, which have scales"
        if x is not None and (x.dtype != "f32" or tuple(x.shape) not in ((), (1,), (groups,))):
            fix = f"pass f32, one number or one for each key head, ({groups},)"
            return f"{name} is {x.dtype} {tuple(x.shape)}", fix
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)) if eight else ():
        if "fp8 conversions" not in (arch := machine_of(cache.device)).features:
            return f"{arch} has no conversions of 8-bit floats", "pass caches of 16-bit floats"
        if cache.shape[3] % 16 or not loadable(cache):
            fix = "pass rows of a multiple of 16 bytes, contiguous, that begin at multiples of 16"
            return f"{name} has rows of {cache.shape[3]} bytes, or elsewhere", fix
    return None


def vector(scale: Any) -> Any:
    """Scales as kernels take them: a number as a vector of one."""
    return scale if scale is None or len(scale.shape) else View(scale, (1,), (1,))
