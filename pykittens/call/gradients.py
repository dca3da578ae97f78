"""What a kernel owes torch's autograd: to say that it gives no gradient, and what it has overwritten.

A kernel reads and writes memory behind autograd's back. An input that requires its gradient would look like a constant,
so it is refused while gradients are recorded. An output's version goes up, as with torch's own functions in place, so
that a backward pass which had kept the old contents raises an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ArgumentError
from .entry_points import EntryPoint


def check_gradients(entry: EntryPoint, given: dict[str, Any]) -> None:
    """Refuses an input that requires its gradient where gradients are recorded. Outputs may require theirs."""
    if not recording():
        return
    for name, x in given.items():
        if requires_gradient(x) and name not in entry.outputs:
            fix = (
                f"call it under torch.no_grad() or pass {name}.detach(); where the gradient is needed, wrap the kernel "
                "and that of its "
                "backward pass in a torch.autograd.Function"
            )
            fact = f"{entry.name}: operand {name!r} requires its gradient, and a kernel gives none"
            raise ArgumentError(fact, fix=fix)


def recording() -> bool:
    """Whether operations on tensors are recorded for a backward pass."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.is_grad_enabled()


def requires_gradient(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor) and array.requires_grad


def overwritten(arrays: Iterable[Any]) -> Callable[[Iterable[Any]], None] | None:
    """A function to be called with such arrays when they have been written; None where nobody keeps count of that."""
    torch = sys.modules.get("torch")
    arrays = [*arrays]
    if torch is None or not arrays or not all(isinstance(x, torch.Tensor) for x in arrays):
        return None
    return torch._C._increment_version  # what torch.autograd.graph.increment_version calls
