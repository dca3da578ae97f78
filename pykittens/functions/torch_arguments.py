"""An operator's name and arguments, as torch's schema has them, and as a declaration has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..interop.frameworks import torch_dtype, torch_names
from .declaration import Function

defaults: dict[Function, tuple[Any, ...]] = {}  # of the operators' arguments; who is here is registered


def operator_name(function: Function, also: bool) -> str:
    """The operator's name; also: that of the one with the further result."""
    return f"{function.name}_{function.also}" if also else function.name


def to_torch(function: Function, settings: Sequence[Any]) -> list[Any]:
    """Settings as torch's schema has them. Raises `ArgumentError` for one that requires its gradient."""
    return [_to_torch(function, i, x) for i, x in enumerate(settings)]


def _to_torch(function: Function, i: int, setting: Any) -> Any:
    if isinstance(setting, Tensor) and setting.requires_grad:  # else torch takes its value, and the gradient is lost
        name = function.setting_names[i]
        raise ArgumentError(
            f"{function.name} has no gradient of {name}", fix=f"pass {name}.item(), or a tensor detached"
        )
    return torch_dtype(setting) if i in function.dtypes and setting is not None else setting


def from_torch(setting: Any) -> Any:
    """A setting as the declaration has it."""
    return torch_names()[setting] if isinstance(setting, torch.dtype) else setting


def split(function: Function, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Operands and settings, as the declaration has them; the dispatcher leaves out the last that have their
    defaults.
    """
    n = len(function.names)
    arguments = (*arguments, *defaults[function][len(arguments) :])
    return arguments[:n], tuple(map(from_torch, arguments[n:]))
