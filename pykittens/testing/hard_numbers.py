"""Numbers that arithmetic goes wrong on: the ends of every format, what lies next to them, and random bits."""

from __future__ import annotations

import zlib

import numpy as np

from ..types import DType, bool_

# Where something changes: the largest and smallest of each float, of each integer, halves, and what exp and log meet.
_PLACES = (
    [
        0.0,
        1.0,
        0.5,
        1.5,
        2.0,
        3.0,
        1 / 3,
        0.1,
        2.5,
        7.0,
        10.0,
        87.0,
        88.7,
        89.0,
        103.0,
        127.0,
        128.0,
        150.0,
        1e5,
        3.14159,
    ]
    + [
        2.0**n
        for n in (-149, -133, -127, -126, -24, -25, -17, -16, -15, -14, -12, -10, -9, -8, -7, -6, 7, 8, 9, 15, 16, 23)
    ]
    + [2.0**n for n in (24, 25, 31, 32, 53, 62, 63, 64, 126, 127)]
    + [448.0, 464.0, 57344.0, 61440.0, 65504.0, 65520.0, 3.3895313892515355e38, 3.4028234663852886e38, float("inf")]
)


def hard(dtype: DType) -> np.ndarray:
    """The hard numbers of a dtype, without those that are there twice."""
    if dtype is bool_:
        return np.array([False, True])
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype.numpy).min), int(np.iinfo(dtype.numpy).max)
        near = [
            n + d for n in [0, low, high, *(s << k for k in range(dtype.bits) for s in (1, -1))] for d in (-1, 0, 1)
        ]
        return np.unique(np.array([n for n in near if low <= n <= high], object)).astype(dtype.numpy)
    bits = f"u{dtype.size}"
    with np.errstate(all="ignore"):
        at = np.array(_PLACES, np.float64).astype(np.float32).astype(dtype.numpy).view(bits)
    at = np.concatenate([at, at + np.array(1, bits), at - np.array(1, bits)])
    sign = np.array(1 << (dtype.bits - 1), bits)
    found = np.unique(np.concatenate([at, at ^ sign]))
    return found.view(dtype.numpy)


def numbers(dtype: DType, count: int) -> np.ndarray:
    """All numbers of an 8-bit dtype; of others the hard ones first, then random bits, `count` in all (16 bits have
    65,536).
    """
    if dtype.bits == 8:
        return np.array([False, True]) if dtype is bool_ else np.arange(256, dtype=np.uint8).view(dtype.numpy)
    if dtype.bits == 16 and count >= 65536:
        return np.arange(65536, dtype=np.uint16).view(dtype.numpy)
    rng = np.random.default_rng(zlib.crc32(dtype.name.encode()))
    first = rng.permutation(hard(dtype))[:count]
    bits = rng.integers(0, 256, (count - len(first)) * dtype.size, np.uint8).view(dtype.numpy)
    return np.concatenate([first, bits])
