"""What is said of a kernel's operands before it is launched: why one is misaligned, which outputs overlap
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ArgumentError, Frame
from ..program import Access, Place, Program


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array without gaps, in elements."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def misaligned(shape: Sequence[int], strides: Sequence[int] | None, size: int, pointer: int | None) -> str:
    """What of a tensor is no multiple of 16 bytes: a stride, which one, or where it begins. Nothing when all is."""
    for axis, (length, stride) in enumerate(zip(shape[:-1], strides or contiguous(shape), strict=False)):
        if length > 1 and stride * size % 16:
            return f"dimension {axis} of shape {tuple(shape)} has a stride of {stride * size} bytes"
    if pointer is not None and pointer % 16:
        return f"it begins at {pointer:#x}, {pointer % 16} bytes past a multiple of 16"
    return ""


def overlaps(shape: Sequence[int], strides: Sequence[int] | None) -> int | None:
    """The dimension whose stride is shorter than what lies within it, so that elements may share memory."""
    reach = 1
    for stride, axis in sorted(
        (stride, axis) for axis, (length, stride) in enumerate(zip(shape, strides or (), strict=False)) if length > 1
    ):
        if stride < reach:
            return axis
        reach += (shape[axis] - 1) * stride
    return None


def written(program: Program) -> frozenset[str]:
    """The tensors that a program writes, by name."""
    if "written" not in program.facts:
        effects = [
            e
            for op in program.walk()
            if not any(True for _ in op.blocks())
            for e in op.effects()
            if isinstance(e, Access)
        ]
        program.facts["written"] = frozenset(
            e.target.tensor.name for e in effects if e.mode != "read" and isinstance(e.target, Place)
        )
    return program.facts["written"]


def check_outputs(kernel: str, outputs: Iterable[str], known: dict[str, Any], location: tuple[Frame, ...]) -> None:
    """Refuses an output that is read-only, and one in which elements share memory: which of their values stays would
    be chance.
    """
    for name in outputs:
        x = known[name]
        if not getattr(x, "writable", True):
            what = "a JAX array, which never changes" if x.kind == "jax" else "which is read-only"
            raise ArgumentError(
                f"{kernel} writes {name!r}, {what}",
                fix="pass a NumPy array for the result" if x.kind == "jax" and x.device is None else "pass a copy",
                location=location,
            )
        axis = overlaps(x.shape, x.strides)
        if axis is not None:
            raise ArgumentError(
                f"{kernel} writes {name!r}, whose elements overlap: shape {tuple(x.shape)}, strides "
                f"{tuple(x.strides)}; dimension {axis} "
                f"moves on by {x.strides[axis]} elements, less than what lies within it",
                fix="pass an array of its own: a copy, not a broadcast or sliding view",
                location=location,
            )
