"""Which handle kernel code holds for a value of each type. Importing this gives the values of a program their
operators.
"""

from __future__ import annotations

from ..ops.sync import NamedBarrierType
from ..program import Value
from ..types import Global, RegisterTile, RegisterVector, ScalarType, Type
from . import recorder
from .handle import Handle
from .memory import Shared, Tensor
from .scalar import Scalar, Variable
from .tile import Tile


class NamedBarrier(Handle):
    """A named barrier of the hardware, or an array of them."""

    type: NamedBarrierType  # type: ignore[assignment]
    count = 1


def _make(type: Type) -> Value:
    if isinstance(type, ScalarType):
        return Variable(type) if type.mutable else Scalar(type)
    if isinstance(type, (RegisterTile, RegisterVector)):
        return Tile(type)
    if isinstance(type, Global):
        return Tensor(type)
    if isinstance(type, NamedBarrierType):
        return NamedBarrier(type)
    return Shared(type)


recorder.make_value = _make
