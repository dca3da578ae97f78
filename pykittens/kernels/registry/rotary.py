"""Rotary position embedding and its gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...call.arguments import spec
from ...types import DTYPES, f32
from ..catalog import Array, Instance, Shipped
from ..rotary import Config as RotaryConfig
from ..rotary import reference as rotary_reference
from ..rotary import rotate


def _rotary(dim: int, turning: int, dtype: str, interleaved: bool, back: bool = False) -> Instance | None:
    if turning > dim:
        return None
    width = 16 // DTYPES[dtype].size
    config = RotaryConfig(dim, turning, interleaved, width, width, heads=2)
    x, table = spec(DTYPES[dtype], (2, 4, 150, dim)), spec(f32, (160, turning // 2))

    def expected(x: Array, cos: Array, sin: Array, **_: Any) -> dict[str, Array]:
        return {"o": rotary_reference(x, cos, -sin if back else sin, interleaved)}

    statics = {"config": config, "back": back}
    return Instance(rotate, {"x": x, "cos": table, "sin": table, "o": x}, statics, ("o",), expected)


ROWS = (
    Shipped(
        name="rotary",
        about="rotary position embedding, half-split or interleaved, of all or some features",
        make=_rotary,
        options={"dim": (128, 64), "turning": (128, 64), "dtype": ("bf16", "f32"), "interleaved": (False, True)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="rotary_backward",
        about="gradient of rotary position embedding, half-split or interleaved, of all or some features",
        make=partial(_rotary, back=True),
        options={"dim": (128,), "turning": (128, 64), "dtype": ("bf16", "f32"), "interleaved": (False, True)},
        opcodes=("LDG", "STG"),
    ),
)
