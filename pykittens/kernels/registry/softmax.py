"""Softmax and its gradient."""

from __future__ import annotations

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, i32
from .. import rows
from ..catalog import Instance, Shipped
from ..softmax import plan_backward as plan_softmax_backward
from ..softmax import reference as softmax_reference
from ..softmax import reference_backward as softmax_reference_backward
from ..softmax import soften, soften_backward


def _softmax(n: int, dtype: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), rows.plan(n, DTYPES[dtype].size, 16, processors=2)
    operands, about = (
        {"x": x, "y": x, "counter": spec(i32, (1,)) if rows.drawing(config, 1000, 2) else None},
        ({"config": config}, ("y",)),
    )
    return Instance(soften, operands, *about, lambda x, **_: {"y": softmax_reference(x)}, {"counter": np.zeros(1)})


def _softmax_backward(n: int, dtype: str) -> Instance:
    x, size = spec(DTYPES[dtype], (9, n)), DTYPES[dtype].size
    config = plan_softmax_backward(n, size, size, 16, processors=2)
    return Instance(
        soften_backward,
        {"y": x, "dy": x, "dx": x, "counter": spec(i32, (1,)) if rows.drawing(config, 1000, 2) else None},
        {"config": config},
        ("dx",),
        lambda y, dy, **_: {"dx": softmax_reference_backward(dy, y)},
        {"counter": np.zeros(1)},
    )


ROWS = (
    Shipped(
        name="softmax",
        about="softmax over the last axis",
        make=_softmax,
        options={"n": (1000, 256, 8192, 65536), "dtype": ("bf16", "f32")},
        opcodes=("LDG|UTMALDG", "STG", "MUFU"),
    ),
    Shipped(
        name="softmax_backward",
        about="gradient of softmax over the last axis",
        make=_softmax_backward,
        options={"n": (1000, 256, 8192, 65536), "dtype": ("bf16", "f32")},
        opcodes=("LDG|UTMALDG", "STG"),
    ),
)
