"""Calls of row kernels whose last operand is a counter, for rows that are drawn."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..call.kernel import Kernel
from ..interop import arrays
from . import counters
from .arguments import KernelCall, Launches, machine
from .rows import Rows, drawing


def row_call(
    kernel: Kernel, operands: tuple[Any, ...], rows: int, config: Rows, info: arrays.ArrayInfo, **statics: Any
) -> KernelCall:
    """What launches the kernel for so many rows: behind one that clears the counter, where they are drawn."""
    drawn = drawing(config, rows, machine(info)["processors"])
    if drawn is None:
        return KernelCall(kernel, (*operands, None), {**statics, "config": config})
    return KernelCall(_behind_clear(kernel), operands, {**statics, "config": drawn})


@cache
def _behind_clear(kernel: Kernel) -> Launches:
    def run(*operands: Any, **statics: Any) -> None:
        kernel(*operands, counters.zeros(operands[0]), **statics)

    return Launches(run)
