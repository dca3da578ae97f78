"""Tensor maps: the 128-byte descriptors by which the Hopper copy engine (TMA) finds boxes in a global tensor.

Dimensions are given innermost first, as the hardware counts them. The rules are those of
`cuTensorMapEncodeTiled` in the CUDA driver API; they are checked here first, because the driver answers a
broken one with "invalid argument" and no more.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

from .libcuda import aligned, check, library

# name: (CUtensorMapDataType, bytes of an element). The engine moves 8-bit floats and booleans as bytes.
_TYPES = {
    "u8": (0, 1),
    "i8": (0, 1),
    "e4m3": (0, 1),
    "e5m2": (0, 1),
    "bool": (0, 1),
    "u16": (1, 2),
    "i16": (1, 2),
    "u32": (2, 4),
    "i32": (3, 4),
    "u64": (4, 8),
    "i64": (5, 8),
    "f16": (6, 2),
    "f32": (7, 4),
    "f64": (8, 8),
    "bf16": (9, 2),
    "tf32": (11, 4),
}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes: CUtensorMapSwizzle
_PROMOTIONS = {0: 0, 64: 1, 128: 2, 256: 3}  # bytes: CUtensorMapL2promotion


class TensorMapError(ValueError):
    """A tensor, or a box in it, that the copy engine cannot address."""


class TensorMap:
    """An encoded descriptor: 128 opaque bytes at an address that is a multiple of 64."""

    def __init__(self) -> None:
        self.buffer: Any = aligned(128, 64)
        self.address = ctypes.addressof(self.buffer)

    def __bytes__(self) -> bytes:
        return bytes(self.buffer)

    def replace_address(self, pointer: int) -> None:
        """Points the descriptor at another tensor of the same type, shape and strides."""
        replace_address(self.address, pointer)


def encode(
    pointer: int,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int,
    *,
    l2_promotion: int = 128,
) -> TensorMap:
    """Describes a tensor of rank 1 to 5 and the box that one copy moves; what lies outside reads as zero.

    `shape` and `box` count elements, innermost dimension first; `strides` are the bytes between neighbours in
    every dimension but the innermost, which is contiguous (that of a dimension of one element is ignored);
    `swizzle` is the span in bytes (0, 32, 64, 128) that shared memory is swizzled over; `l2_promotion` the
    bytes that a miss brings into the L2 cache. Raises `TensorMapError` for what the hardware cannot do,
    `CudaError` where there is no driver to encode it.
    """
    validate(pointer, dtype, shape, strides, box, swizzle, l2_promotion)
    strides = [stride if size > 1 else 16 for size, stride in zip(shape[1:], strides, strict=True)]
    rank, result = len(shape), TensorMap()
    status = library().cuTensorMapEncodeTiled(
        result.address,
        _TYPES[dtype][0],
        rank,
        pointer,
        (ctypes.c_uint64 * rank)(*shape),
        (ctypes.c_uint64 * rank)(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank),  # every element of the box, none skipped
        0,  # not interleaved
        _SWIZZLES[swizzle],
        _PROMOTIONS[l2_promotion],
        0,  # outside reads as zero, not as NaN
    )
    check(status, f"encoding a tensor map of {dtype} {tuple(shape)}, strides {tuple(strides)}, box {tuple(box)}")
    return result


def validate(
    pointer: int,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int,
    l2_promotion: int = 128,
) -> None:
    """Raises `TensorMapError` for the first rule that the arguments of `encode` break."""
    for problem in _problems(pointer, dtype, shape, strides, box, swizzle, l2_promotion):
        raise TensorMapError(problem)


def replace_address(descriptor: int, pointer: int) -> None:
    """Writes a tensor's address into the descriptor that lies at `descriptor` (a multiple of 64)."""
    if pointer % 16:
        raise TensorMapError(_misplaced(pointer))
    check(library().cuTensorMapReplaceAddress(descriptor, pointer), "re-addressing a tensor map")


def address_first(descriptor: TensorMap, pointer: int) -> bool:
    """Whether this driver keeps a tensor's address in the first eight bytes of its descriptor, and nothing that follows
    from it elsewhere.

    NVIDIA does not say. So the driver is asked to write other addresses into one that it encoded for `pointer`.
    """
    whole = bytes(descriptor)
    try:
        for bits in (0, 0x7FFF_FFFF_FFF0, 0x5A5A_5A5A_5A50):
            if bits:
                descriptor.replace_address(pointer ^ bits)
            if bytes(descriptor) != (pointer ^ bits).to_bytes(8, "little") + whole[8:]:
                return False
    finally:
        descriptor.replace_address(pointer)
    return True


def _problems(
    pointer: int,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int,
    l2_promotion: int,
) -> Iterator[str]:
    """Every rule that is broken. Sentences are only made when wanted: encoding is on the way to a launch."""
    rank = len(shape)
    if not 1 <= rank <= 5:
        yield f"a tensor of rank {rank}; the copy engine takes 1 to 5 dimensions"
    if len(box) != rank:
        yield f"a box of {len(box)} dimensions in a tensor of {rank}"
    if len(strides) != rank - 1:
        yield f"{len(strides)} strides for rank {rank}; all but the innermost: {rank - 1}"
    if dtype not in _TYPES:
        yield f"the copy engine does not move {dtype}, only {', '.join(_TYPES)}"
    if swizzle not in _SWIZZLES:
        yield f"a swizzle over {swizzle} bytes; the hardware has 0, 32, 64 and 128"
    if l2_promotion not in _PROMOTIONS:
        yield f"an L2 promotion of {l2_promotion} bytes; there are 0, 64, 128, 256"
    if pointer % 16:
        yield _misplaced(pointer)
    for i, size in enumerate(shape):
        if not 1 <= size <= 2**32:
            yield f"dimension {i} (innermost is 0) has {size} elements; 1 to 2^32 are possible"
    for i, stride in enumerate(strides, 1):
        if shape[i] > 1 and stride % 16:
            yield f"dimension {i} (innermost is 0) has a stride of {stride} bytes, not a multiple of 16"
        if shape[i] > 1 and not 0 <= stride < 2**40:
            yield f"dimension {i} (innermost is 0) has a stride of {stride} bytes; 0 to 2^40 are possible"
    for i, size in enumerate(box):
        if not 1 <= size <= 256:
            yield f"the box has {size} elements in dimension {i}; 1 to 256 are possible"
    inner = box[0] * _TYPES[dtype][1]
    if inner % 16:
        yield f"the box is {inner} bytes wide ({box[0]} of {dtype}); it must be a multiple of 16"
    if swizzle and inner > swizzle:
        yield f"the box is {inner} bytes wide, more than its swizzle of {swizzle}"


def _misplaced(pointer: int) -> str:
    return f"the tensor begins at {pointer:#x}, which is not a multiple of 16 bytes"
