"""Linear attention and Based."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32
from ..based import FEATURES
from ..based import Config as BasedConfig
from ..based import D as FEATURE_DIM
from ..based import attend as based_attend
from ..based import reference as based_reference
from ..catalog import Array, Instance, Shipped
from ..linear_attention import Config as LinearConfig
from ..linear_attention import attend as linear_attend
from ..linear_attention import reference as linear_reference


def _linear_attention(dim: int, dtype: str, decay: bool) -> Instance:
    x, state = spec(DTYPES[dtype], (1, 2, 3 * 64 - 20, dim)), spec(f32, (1, 2, dim, dim))
    config = LinearConfig() if dim == 64 else LinearConfig(stages=2, blocks_per_sm=1)
    operands = {
        "q": x,
        "k": x,
        "v": x,
        "o": x,
        "log_decay": spec(f32, (2,)) if decay else None,
        "before": state,
        "after": state,
        "scale": dim**-0.5,
    }

    def expected(q: Array, k: Array, v: Array, log_decay: Array | None, before: Array, **_: Any) -> dict[str, Array]:
        o, after = linear_reference(q, k, v, log_decay=log_decay, state=before)
        return {"o": o, "after": after}

    return Instance(
        linear_attend, operands, {"config": config}, ("o", "after"), expected, {"log_decay": np.array([-0.1, -0.01])}
    )


def _based(dim: int, dtype: str) -> Instance:
    x, v = (spec(DTYPES[dtype], (1, 2, 3 * 64 - 20, cols)) for cols in (FEATURE_DIM, dim))
    state = spec(f32, (1, 2, dim, FEATURES))

    def expected(q: Array, k: Array, v: Array, before: Array, **_: Any) -> dict[str, Array]:
        o, after = based_reference(q, k, v, state=before)
        return {"o": o, "after": after}

    operands = {"q": x, "k": x, "v": v, "o": v, "before": state, "after": state}
    return Instance(based_attend, operands, {"config": BasedConfig()}, ("o", "after"), expected)


ROWS = (
    Shipped(
        name="linear_attention",
        about="causal linear attention in chunks, plain or with decay",
        make=_linear_attention,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "decay": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
    ),
    Shipped(
        name="based",
        about="linear attention with the second-order Taylor feature map (Based)",
        make=_based,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
)
