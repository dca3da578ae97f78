"""Layer norm and RMS norm, their gradients, and the sums over rows that end those of the weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32, i32
from .. import norms, norms_backward, rows
from ..catalog import Array, Instance, Shipped
from ..column_sums import column_sums


def _norm(n: int, dtype: str, dropout: bool, *, centred: bool) -> Instance:
    x, w, size = spec(DTYPES[dtype], (9, n)), spec(DTYPES[dtype], (n,)), DTYPES[dtype].size
    config = rows.plan(
        n, size, 16, inputs=2 * size, weights=2 * size if centred else size, heavy=dropout and centred, processors=2
    )
    bias = w if centred else None
    p = 0.25 if dropout else 0.0
    numbers = {"eps": 1e-5, "keep": 1 / (1 - p), "threshold": int(p * 2**32), "seed0": 7, "seed1": 9}
    operands: dict[str, Any] = {"x": x, "residual": x, "weight": w, "bias": bias, "y": x, "s": x, "seed": None}
    operands |= {**numbers, "counter": spec(i32, (1,)) if rows.drawing(config, 1000, 2) else None}

    def expected(x: Array, residual: Array, weight: Array, bias: Array | None, **_: Any) -> dict[str, Array]:
        y, s = norms.reference(x, weight, bias, residual=residual, eps=1e-5, p=p, seed=(9 << 32) + 7, centred=centred)
        return {"y": y, "s": s}

    statics = {"centred": centred, "dropout": dropout, "config": config}
    return Instance(norms.normalize, operands, statics, ("y", "s"), expected, {"counter": np.zeros(1)})


def _norm_backward(n: int, dtype: str, dropout: bool, *, centred: bool) -> Instance:
    x, w, size = spec(DTYPES[dtype], (9, n)), spec(DTYPES[dtype], (n,)), DTYPES[dtype].size
    inputs = (3 if dropout else 2) * size  # with the gradient of the residual stream
    config = norms_backward.plan_backward(
        n, size, 16, inputs=inputs, weights=size, sums=2 if centred else 1, processors=2
    )
    parts = spec(f32, (config.parts(9), n))
    p = 0.25 if dropout else 0.0
    operands: dict[str, Any] = {
        "s": x,
        "dy": x,
        "ds": x if dropout else None,
        "weight": w,
        "dx": x,
        "dresidual": x if dropout else None,
    }
    operands |= {"dweight": parts, "dbias": parts if centred else None}
    operands |= {"seed": None, "eps": 1e-5, "keep": 1 / (1 - p), "threshold": int(p * 2**32), "seed0": 7, "seed1": 9}
    outputs = tuple(name for name in ("dx", "dresidual", "dweight", "dbias") if operands[name] is not None)

    def expected(s: Array, dy: Array, ds: Array | None, weight: Array, **_: Any) -> dict[str, Array]:
        keys: dict[str, Any] = {"eps": 1e-5, "p": p, "seed": (9 << 32) + 7, "centred": centred}
        dx, stream = norms_backward.reference(dy, s, weight, ds=ds, **keys)[:2]
        sums: dict[str, Array] = {name: np.zeros(parts.shape) for name in ("dweight", "dbias")}
        for team in range(parts.shape[0]):  # which rows a team adds up: see rows.teams
            teams, stride = config.teams, config.blocks(9) // config.cluster
            place, t = divmod(team, teams)
            first = place + t * stride if config.stages else team * config.rows
            step = parts.shape[0] * (1 if config.stages else config.rows)
            mine = [r for i in range(first, 9, step) for r in range(i, min(9, i + config.rows))]
            if mine:
                ds_mine = None if ds is None else ds[mine]
                found = norms_backward.reference(dy[mine], s[mine], weight, ds=ds_mine, eps=1e-5, centred=centred)
                sums["dweight"][team], sums["dbias"][team] = found[2:]
        results = {"dx": dx, "dresidual": stream, **sums}
        return {name: results[name] for name in outputs}

    statics = {"centred": centred, "dropout": dropout, "config": config}
    return Instance(norms_backward.normalize_backward, operands, statics, outputs, expected)


def _column_sums(n: int, dtype: str) -> Instance:
    parts, o = spec(f32, (600, n)), spec(DTYPES[dtype], (n,))

    def expected(parts: Array, more: Array, **_: Any) -> dict[str, Array]:
        return {"o": parts.astype(float).sum(0), "other": more.astype(float).sum(0)}

    operands = {"parts": parts, "more": parts, "o": o, "other": o}
    return Instance(column_sums, operands, outputs=("o", "other"), expected=expected)


ROWS = (
    *(
        Shipped(
            name=name,
            about=f"{words} over the last axis, with a residual stream and dropout",
            make=partial(_norm, centred=name == "layernorm"),
            options={"n": (1000, 256, 8192, 65536), "dtype": ("bf16", "f32"), "dropout": (False, True)},
            opcodes=("LDG|UTMALDG", "STG"),
        )
        for name, words in (("layernorm", "layer norm"), ("rmsnorm", "RMS norm"))
    ),
    *(
        Shipped(
            name=f"{name}_backward",
            about=f"gradient of {words}, with a residual stream and dropout",
            make=partial(_norm_backward, centred=name == "layernorm"),
            options={"n": (1000, 256, 8192, 32768), "dtype": ("bf16", "f32"), "dropout": (False, True)},
            opcodes=("LDG|UTMALDG", "STG"),
        )
        for name, words in (("layernorm", "layer norm"), ("rmsnorm", "RMS norm"))
    ),
    Shipped(
        name="column_sums",
        about="sums over the rows of a workspace, in a fixed order",
        make=_column_sums,
        options={"n": (100, 64), "dtype": ("bf16", "f32")},
        opcodes=("LDG", "STG"),
    ),
)
