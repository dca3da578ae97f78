"""Cross-entropy with its gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32, i32, i64
from .. import scale_rows
from ..catalog import Array, Instance, Shipped
from ..cross_entropy import entropy
from ..cross_entropy import plan_rows as plan_cross_entropy
from ..cross_entropy import reference as cross_entropy_reference
from ..rows import drawing


def _cross_entropy(n: int, dtype: str, everything: bool) -> Instance:
    m, size = 9 if n <= 8192 else 3, DTYPES[dtype].size
    x, v, one = spec(DTYPES[dtype], (m, n)), spec(f32, (m,)), spec(f32, (1,))
    align = math.gcd(16, n * size)
    config = plan_cross_entropy(n, size, align, smooth=everything, heavy=everything, dense=True, processors=2)
    targets = np.random.default_rng(1).integers(0, n, m)
    targets[1] = -100
    operands: dict[str, Any] = {"x": x, "targets": spec(i64, (m,)), "share": one, "dx": x, "loss": v, "lse": v}
    counter = spec(i32, (1,)) if drawing(config, 1000, 2) else None
    operands |= {"long": None, "dlong": None, "counter": counter, "ignore": -100}
    numbers = {"smoothing": 0.1, "even": 0.1 / n, "z": 1e-3, "cap": 5.0, "narrow": 0.2}
    numbers = numbers if everything else dict.fromkeys(numbers, 0.0)
    outputs: tuple[str, ...] = ("loss", "lse", "dx")
    counts = config.stages > 0  # itself, how many of the targets are wanted
    share = 1 / (m - 1) if counts else 0.125
    if config.shifted:
        long = spec(DTYPES[dtype], (1, m * n))
        operands |= {"x": None, "dx": None, "long": long, "dlong": long}
        outputs = "loss", "lse", "dlong"

    def expected(x: Array | None, long: Array | None, **_: Any) -> dict[str, Array]:
        x = x if long is None else long.reshape(m, n)
        assert x is not None
        settings = {"label_smoothing": numbers["smoothing"], "z_loss": numbers["z"], "softcap": numbers["cap"]}
        loss, lse, grad = cross_entropy_reference(x, targets, reduction="none", **settings)  # type: ignore[arg-type]
        found = loss[None], lse[None], (grad if long is None else grad.reshape(1, -1)) * share
        return dict(zip(outputs, found, strict=False)) | ({"share": np.array([[share]])} if counts else {})

    statics = {**dict.fromkeys(("smooth", "squared", "capped"), everything), "config": config}
    statics |= {"counts": counts, "shared": True, "dependent": counter is not None}
    values = {"targets": targets, "counter": np.zeros(1)} | ({} if counts else {"share": np.array([share])})
    made = (*outputs, "share") if counts else outputs
    return Instance(entropy, {**operands, **numbers}, statics, made, expected, values)


def _scale(n: int, dtype: str, each: bool) -> Instance:
    x, width = spec(DTYPES[dtype], (5, n)), 16 // DTYPES[dtype].size if n % 8 == 0 else 1
    factors = np.array([1.0, 0.5, 0.0, -3.0, 1.0] if each else [0.5])

    def expected(x: Array, **_: Any) -> dict[str, Array]:
        return {"o": scale_rows.reference(x, np.broadcast_to(factors, 5))}

    operands = {"x": x, "factor": spec(f32, factors.shape), "o": x, "blocks": 3}
    statics = {"width": width, "each": each, "in_place": False}
    return Instance(scale_rows.scale_rows, operands, statics, ("o",), expected, {"factor": factors})


ROWS = (
    Shipped(
        name="scale_rows",
        about="rows times a number each, or times one number",
        make=_scale,
        options={"n": (5000, 4099), "dtype": ("bf16", "f32"), "each": (False, True)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="cross_entropy",
        about="cross-entropy of rows of logits and its gradient in one pass",
        make=_cross_entropy,
        options={
            "n": (1000, 8192, 32000, 50304, 131072, 5001, 50257),
            "dtype": ("bf16", "f32"),
            "everything": (False, True),
        },
        opcodes=("LDG|UTMALDG", "STG", "MUFU"),
        most_lines=298,  # 200 of them are how rows of all kernels stream, in `rows.py`
    ),
)
