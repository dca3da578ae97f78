"""The other forms in which functions over sequences take rows: packed without a batch, and one row of each sequence."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError


class PackedRows:
    """Operands of packed sequences, (total, heads, d) as `attention_varlen` has them, as a batch of one, and the result
    without it. `axis`: that of rows in a batch, 1 or 2. Rows that have their batch, or no offsets, stay as they are.
    """

    def __init__(self, axis: int, first: Any, dimensions: int, cu_seqlens: Any) -> None:
        """`dimensions`: how many the first operand has with its batch."""
        self.axis, self.packed = axis, cu_seqlens is not None and getattr(first, "ndim", 0) == dimensions - 1

    def batched(self, *operands: Any) -> list[Any]:
        """Each with a batch of one; None, and what is no array, as it is."""
        return [self._of_batch(x) if self.packed and getattr(x, "ndim", 0) >= self.axis else x for x in operands]

    def _of_batch(self, x: Any) -> Any:
        return (x if self.axis == 1 else x.swapaxes(0, 1))[None]

    def result(self, made: Any) -> Any:
        """What the function returned, rows or rows and a state, as the operands were."""
        if not self.packed:
            return made
        rows = (made[0] if isinstance(made, tuple) else made)[0]
        rows = rows if self.axis == 1 else rows.swapaxes(0, 1)
        return (rows, *made[1:]) if isinstance(made, tuple) else rows


def check_dimensions(name: str, **operands: tuple[Any, str]) -> None:
    """One `ArgumentError` for an operand of other dimensions than the named ones, "batch, heads, d" or several such
    with "or" between them, and where equal names have other lengths. None is left to the function.
    """
    lengths: dict[str, tuple[int, str]] = {}
    for what, (x, named) in operands.items():
        if x is None:
            continue
        forms = {form.count(",") + 1: form.split(", ") for form in named.split(" or ")}
        if (found := getattr(x, "ndim", None)) not in forms:
            said = f"is {x!r:.60}, a {type(x).__name__}" if found is None else f"has shape {tuple(x.shape)}"
            fix = "pass " + " or ".join(f"({form})" for form in named.split(" or "))
            raise ArgumentError(f"{name}: {what} {said}", fix=fix)
        dims = forms[found]
        for dim, length in zip(dims, x.shape, strict=True):
            first, where = lengths.setdefault(dim, (length, what))
            if first != length:
                said = f"{name}: {what} has {dim} = {length}, {where} has {dim} = {first}"
                raise ArgumentError(said, fix=f"pass {what} as ({', '.join(dims)}), of the same {dim}")


def one_row(name: str, axis: int, **operands: tuple[Any, str]) -> list[Any]:
    """The operands of a step as those of rows: with an axis of length 1. `ArgumentError` as `check_dimensions` has
    it.
    """
    check_dimensions(name, **operands)
    return [None if x is None else x[(slice(None),) * axis + (None,)] for x, _ in operands.values()]
