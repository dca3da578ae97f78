"""The gated delta rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...call.arguments import spec
from ...interop.base import numpy_dtype
from ...types import DTYPES, f32, i32
from .. import gated_delta_rule as delta
from ..catalog import Array, Instance, Shipped

HEADS, N, SCALE = 2, 240, 0.25
PARTS = {  # the rows of each chunk, by `packed`
    False: [slice(i, min(i + 64, N)) for i in range(0, N, 64)],
    True: [slice(0, 30), *(slice(i, min(i + 64, N)) for i in range(30, N, 64))],
}


def _specs(dim: int, dtype: str, packed: bool) -> dict[str, Any]:
    made, rows = DTYPES[dtype], 64 * len(PARTS[packed])
    keys, squares, decays = spec(made, (1, 1, N, dim)), spec(made, (1, HEADS, rows, 64)), spec(f32, (1, HEADS, N))
    return {
        "q": keys,
        "k": keys,
        "v": spec(made, (1, HEADS, N, dim)),
        "log_decay": decays,
        "beta": decays,
        "offsets": spec(i32, (3,)) if packed else None,
        "w": squares,
        "p": squares,
        "factors": spec(f32, (1, HEADS, len(delta.FACTORS), rows)),
        "decays": spec(f32, (1, HEADS, rows // 64)),
    }


def _values(dim: int, dtype: str) -> dict[str, Array]:
    chance = np.random.default_rng(11)
    q, k = ((chance.standard_normal((1, 1, N, dim)) * dim**-0.5).astype(numpy_dtype(dtype)) for _ in range(2))
    decay, beta = -chance.random((1, HEADS, N)), chance.random((1, HEADS, N)).round(1)
    decay[0, :, 70] = -30.0
    return {"q": q, "k": k, "log_decay": decay, "beta": beta, "offsets": np.array([0, 30, N])}


def _solved(x: dict[str, Array], norm: bool, packed: bool, scaled: bool) -> dict[str, Array]:
    """What `prepare` makes, in float64."""
    chunks = len(PARTS[packed])
    w, p = np.zeros((2, 1, HEADS, 64 * chunks, 64))
    factors, decays = np.zeros((1, HEADS, len(delta.FACTORS), 64 * chunks)), np.ones((1, HEADS, chunks))
    for head in range(HEADS):
        for chunk, rows in enumerate(PARTS[packed]):
            at = slice(64 * chunk, 64 * chunk + 64)
            q, k, g, b = (np.zeros((64, *y.shape[3:])) for y in (x["q"], x["k"], x["log_decay"], x["beta"]))
            m = rows.stop - rows.start
            q[:m], k[:m] = x["q"][0, 0, rows], x["k"][0, 0, rows]
            g[:m], b[:m] = x["log_decay"][0, head, rows], x["beta"][0, head, rows]
            of_q, of_k = (1 / np.sqrt((y * y).sum(1) + delta.EPSILON) if norm else np.ones(64) for y in (q, k))
            sums = g.cumsum()
            fade = np.exp(np.minimum(sums[:, None] - sums, 0)) * of_k
            a = np.tril(fade * of_k[:, None] * (k @ k.T), -1)
            w[0, head, at] = np.linalg.solve(np.eye(64) + a * b, a)
            p[0, head, at] = np.tril(fade * of_q[:, None] * (q @ k.T)) * SCALE
            units = np.array([_unit(y[0, head, at]) if scaled else np.zeros(64) for y in (p, w)])
            lift = np.exp(sums) * of_q * SCALE / (units[0] if scaled else 1.0)
            factors[0, head, :, at] = [np.exp(sums) * of_k, np.exp(sums[-1] - sums) * of_k, lift, b, *units]
            for y, unit in zip((p, w), units if scaled else (), strict=False):
                y[0, head, at] /= unit[:, None]
            decays[0, head, chunk] = np.exp(sums[-1])
    return {"w": w, "p": p, "factors": factors, "decays": decays}


def _unit(x: Array) -> Array:
    peak = abs(x).max(1)
    return np.where(peak > 0, peak / 256, 1.0)


def _prepare(dim: int, dtype: str, packed: bool) -> Instance | None:
    if packed and (dim, dtype) != (128, "bf16"):
        return None
    operands, norm = {**_specs(dim, dtype, packed), "scale": SCALE}, dim == 64

    def expected(q: Array, k: Array, log_decay: Array, beta: Array, **_: Any) -> dict[str, Array]:
        given = {"q": q, "k": k, "log_decay": log_decay, "beta": beta}
        return _solved({name: x.astype(float) for name, x in given.items()}, norm, packed, dtype == "f16")

    outputs = ("w", "p", "factors", "decays")
    return Instance(delta.prepare, operands, {"norm": norm}, outputs, expected, _values(dim, dtype))


def _walk(dim: int, dtype: str, packed: bool) -> Instance | None:
    if packed and (dim, dtype) != (128, "bf16"):
        return None
    specs, values = _specs(dim, dtype, packed), _values(dim, dtype)
    states = spec(f32, (2 if packed else 1, HEADS, dim, dim))
    taken = {x: specs[x] for x in ("q", "k", "v", "offsets", "w", "p", "factors", "decays")}
    operands = {**taken, "before": states, "o": specs["v"], "after": states}
    exact = {name: x.astype(float) for name, x in values.items()}

    def expected(q: Array, k: Array, v: Array, before: Array, **_: Any) -> dict[str, Array]:
        rows = [slice(0, 30), slice(30, N)] if packed else [slice(0, N)]
        made = [
            delta.reference(
                *(x[:, :, y] for x in (q, k, v, values["log_decay"], values["beta"])),
                scale=SCALE,
                state=before[i : i + 1],
                norm=True,
            )
            for i, y in enumerate(rows)
        ]
        return {"o": np.concatenate([o for o, _ in made], 2), "after": np.concatenate([state for _, state in made])}

    given = {**values, **_solved(exact, True, packed, dtype == "f16")}
    return Instance(delta.walk, operands, {}, ("o", "after"), expected, given)


def _step(dim: int, dtype: str) -> Instance:
    made, state, heads = DTYPES[dtype], spec(f32, (3, HEADS, dim, dim)), spec(f32, (3, HEADS))
    keys, values = spec(made, (3, 1, dim)), spec(made, (3, HEADS, dim))
    operands = {
        **dict.fromkeys(("q", "k"), keys),
        "v": values,
        **dict.fromkeys(("log_decay", "beta"), heads),
        "before": state,
        "o": values,
        "after": state,
        "scale": SCALE,
    }

    def expected(q: Array, k: Array, v: Array, log_decay: Array, beta: Array, before: Array, **_: Any) -> Any:
        rows = (x[:, :, None] for x in (q, k, v, log_decay, beta))
        o, after = delta.reference(*rows, scale=SCALE, state=before, norm=True)
        return {"o": o[:, :, 0], "after": after}

    drawn = {"log_decay": -np.random.default_rng(3).random((3, HEADS))}
    return Instance(delta.step, operands, {"norm": True}, ("o", "after"), expected, drawn)


OPTIONS: dict[str, Any] = {"dim": (64, 128), "dtype": ("bf16", "f16"), "packed": (False, True)}
ROWS = (
    Shipped(
        name="gated_delta_rule_prepare",
        about="before the gated delta rule: each chunk solved for what its keys overwrite",
        make=_prepare,
        needs=("wgmma",),
        options=OPTIONS,
        opcodes=("HMMA", "UTMALDG", "MOVM"),
    ),
    Shipped(
        name="gated_delta_rule",
        about="linear attention whose keys overwrite what they find, with a decay (Gated DeltaNet)",
        make=_walk,
        needs=("wgmma",),
        options=OPTIONS,
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
    Shipped(
        name="gated_delta_rule_step",
        about="one row of the gated delta rule",
        make=_step,
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG", "SHFL"),
    ),
)
