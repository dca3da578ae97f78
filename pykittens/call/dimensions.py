"""How many warps, blocks and clusters a kernel's options ask for: whole numbers, that a GPU can launch.

The limits are those of compute capability 8.0 and later (CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability"): a grid of 2^31 - 1 blocks along x and 65,535 along y and z, 32 warps in a block.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ..errors import ArgumentError

Dim3 = tuple[int, int, int]

MOST = (2**31 - 1, 65_535, 65_535)  # blocks along x, y, z
WARPS = 32
CLUSTER = 16  # blocks; more than 8 only where the driver is asked for it, which a launch does
RESIDENT = {"blocks_per_sm": (1, 32), "registers": (0, 255)}  # "Technical Specifications", too
SWITCHES = ("debug", "pdl", "cooperative")


def dimensions(kernel: str, option: str, value: Any) -> Dim3:
    """A grid or a cluster along x, y, z; what is left out is 1. Raises `ArgumentError` for what cannot be launched."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(given) > 3:
        raise ArgumentError(
            f"{kernel}: {option} is {given}, of {len(given)} dimensions", fix="a grid has up to three: x, y, z"
        )
    dims = tuple(whole(kernel, option, x, of=value) for x in given) + (1,) * (3 - len(given))
    for size, most, axis in zip(dims, MOST, "xyz", strict=True):
        if size < 1:
            fix = "every grid dimension is at least 1: are the arguments empty?"
            raise ArgumentError(f"{kernel}: {option} is {dims}", fix=fix)
        if size > most:
            fix = (
                f"at most {most:,} along {axis}; put the longest dimension along x and divide it in the kernel, or "
                "make several calls"
            )
            raise ArgumentError(f"{kernel}: {option} is {dims}, {size:,} blocks along {axis}", fix=fix)
    if option == "cluster" and math.prod(dims) > CLUSTER:
        raise ArgumentError(f"{kernel}: cluster is {dims}", fix=f"a cluster has at most {CLUSTER} blocks")
    return dims  # type: ignore[return-value]


def whole(kernel: str, option: str, value: Any, of: Any = None) -> int:
    """A whole number; a float is none, whatever its value: what it would be rounded to is not for us to choose."""
    try:
        return int(operator.index(value))
    except TypeError:
        said = repr(value) if of is None or of is value else f"{value!r} in {of!r}"
        fix = "pass ints: pk.cdiv(a, b) or a // b where / gives a float"
        raise ArgumentError(f"{kernel}: {option} is {said}, a {type(value).__name__}", fix=fix) from None


def warps(kernel: str, value: Any) -> int:
    """How many warps a block has."""
    count = whole(kernel, "warps", value)
    if not 1 <= count <= WARPS:
        raise ArgumentError(f"{kernel}: warps is {count}", fix=f"a block has 1 to {WARPS} warps")
    return count


def resident(kernel: str, option: str, value: Any) -> int:
    """How many blocks share a multiprocessor at least, or registers a thread has at most (0: as the compiler likes)."""
    count, least, most = whole(kernel, option, value), *RESIDENT[option]
    if not least <= count <= most:
        raise ArgumentError(f"{kernel}: {option} is {count}", fix=f"{option} is {least} to {most}")
    return count


def switch(kernel: str, option: str, value: Any) -> bool:
    """An option that is on or off."""
    if not isinstance(value, (bool, np.bool_)):
        said = f"{kernel}: {option} is {value!r}, a {type(value).__name__}"
        raise ArgumentError(said, fix="pass True or False")
    return bool(value)
