"""Gated linear attention with a gate for each channel, and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32
from .. import gla, gla_backward
from ..catalog import Array, Instance, Shipped

SCALE, HEADS = 0.25, 1


def _unit(x: Array) -> Array:
    """What f16 rows are divided by."""
    peak = abs(x).max(-1)
    return np.where(peak > 0, peak / 256, 1.0)


def _prepare(dim: int, dtype: str, flip: bool) -> Instance:
    kind, n, m = DTYPES[dtype], 2 * 64 - 20, 2 * 64
    rows, padded = spec(kind, (1, HEADS, n, dim)), spec(kind, (HEADS, m, dim))
    operands = {
        **{"q": rows, "k": rows, "log_decay": spec(f32, rows.shape), "offsets": None},
        **{"asking": padded, "lasting": padded, "rest": None},
        **{"p": spec(kind, (HEADS, m, 64)), "units": spec(f32, (HEADS, m)) if dtype == "f16" else None},
        **{"decays": spec(f32, (HEADS, m // 64, dim)), "scale": SCALE},
    }

    def expected(q: Array, k: Array, log_decay: Array, **_: Any) -> dict[str, Array]:
        made = {name: np.zeros(operands[name].shape) for name in outputs}  # type: ignore[attr-defined]
        for h, t in np.ndindex(HEADS, m // 64):
            at, real = slice(64 * t, 64 * t + 64), min(64, n - 64 * t)
            x, y, g = np.zeros((3, 64, dim))
            x[:real], y[:real], g[:real] = (v[0, h, at].astype(float) for v in (q, k, log_decay))
            sums = np.maximum(g / np.log(2), -160).cumsum(0)
            fades = np.exp2(np.minimum(sums[:, None] - sums, 0))
            p = np.tril(np.einsum("id,jd,ijd->ij", x, y, fades)) * SCALE
            p = p.T if flip else p
            made["asking"][h, at], made["lasting"][h, at] = x * np.exp2(sums) * SCALE, y * np.exp2(sums[-1] - sums)
            made["decays"][h, t] = sums[-1]
            if dtype == "f16":
                made["units"][h, at] = _unit(p)
                p = p / _unit(p)[:, None]
            made["p"][h, at] = p
        return made

    rng = np.random.default_rng(5)
    values = {"q": rng.random(rows.shape) + 0.5, "k": rng.random(rows.shape) + 0.5}  # no product near zero
    values["log_decay"] = -0.1 * rng.random(rows.shape)
    values["log_decay"][0, 0, 70, :9] = -np.inf
    outputs = ("asking", "lasting", "p", *(("units",) if dtype == "f16" else ()), "decays")
    return Instance(gla.prepare, operands, {"flip": flip}, outputs, expected, values)


def _walk(dim: int, dtype: str, what: str) -> Instance:
    laps = gla.CONFIGS[dim]["stages"] + 1
    kind, m, n = DTYPES[dtype], 64 * laps, 64 * laps - 20
    x, keys, state = spec(kind, (1, HEADS, n, 64)), spec(kind, (HEADS, m, dim)), spec(f32, (1, HEADS, 64, dim))
    scaled, rows, kept = dtype == "f16", what != "states", what != "outputs"
    operands = {
        **{"x": x, "b": keys, "rest": None, "c": keys if rows else None},
        **{"p": spec(kind, (HEADS, m, 64)) if rows else None, "p_units": None},
        **{"decays": spec(f32, (HEADS, laps, dim)), "offsets": None, "before": state, "y": x if rows else None},
        **{"after": state, "totals": None, "every": spec(kind, (laps, HEADS, 64, dim)) if kept else None},
        **{"units": spec(f32, (laps, HEADS, 64)) if kept and scaled else None, "each": laps, "parts": 1},
    }
    if rows and scaled:
        operands["p_units"] = spec(f32, (HEADS, m))

    def expected(x: Array, b: Array, decays: Array, before: Array, **given: Any) -> dict[str, Array]:
        values, b, decays, s = np.zeros((HEADS, m, 64)), b.astype(float), decays.astype(float), before.astype(float)[0]
        values[:, :n] = x[0].astype(float)
        y, states = np.zeros_like(values), np.zeros((laps, HEADS, 64, dim))
        for t in reversed(range(laps)) if what == "reverse" else range(laps):
            at = slice(64 * t, 64 * t + 64)
            states[t] = s
            if rows:
                p, c = given["p"][:, at].astype(float), given["c"][:, at].astype(float)
                p = p * given["p_units"][:, at, None] if scaled else p
                y[:, at] = p @ values[:, at] + c @ s.swapaxes(1, 2)
            s = s * np.exp2(decays[:, t])[:, None] + values[:, at].swapaxes(1, 2) @ b[:, at]
        made = {"y": y[None, :, :n], "after": s[None], "every": states}
        if scaled and kept:
            made |= {"every": states / _unit(states)[..., None], "units": _unit(states)}
        return {name: made[name] for name in outputs}

    outputs = tuple(name for name in ("y", "after", "every", "units") if operands[name])
    statics = {**gla.CONFIGS[dim], "reverse": what == "reverse"}
    values = {"decays": -np.random.default_rng(5).random((HEADS, laps, dim)), "p_units": np.full((HEADS, m), 0.5)}
    return Instance(gla.walk, operands, statics, outputs, expected, values)


def _carry(dim: int, reverse: bool) -> Instance:
    states, parts = spec(f32, (2, 2, 64, dim)), spec(f32, (6, 2, 64, dim))
    operands = {
        **{"before": states, "local": parts, "totals": spec(f32, (2, 6, dim)), "offsets": None},
        **{"starts": parts, "after": states, "each": 4, "sequences": 2},
    }

    def expected(before: Array, local: Array, totals: Array, **_: Any) -> dict[str, Array]:
        starts, after = np.zeros((2, 3, 2, 64, dim)), before.astype(float)
        parts, fades = local.reshape(starts.shape), np.exp2(totals.astype(float)).reshape(2, 2, 3, dim)
        for i in reversed(range(3)) if reverse else range(3):
            starts[:, i] = after
            after = after * fades[:, :, i].swapaxes(0, 1)[:, :, None] + parts[:, i]
        return {"starts": starts.reshape(local.shape), "after": after}

    values = {"totals": -np.random.default_rng(5).random((2, 6, dim))}
    return Instance(gla.carry, operands, {"reverse": reverse}, ("starts", "after"), expected, values)


def _differentiate(dim: int, dtype: str, wide: int) -> Instance:
    kind, n, m = DTYPES[dtype], 2 * 64 - 20, 2 * 64
    keys, values, kept = spec(kind, (1, HEADS, n, dim)), spec(kind, (1, HEADS, n, wide)), (m // 64, HEADS, wide, dim)
    units = spec(f32, kept[:3]) if dtype == "f16" else None
    operands = {
        **{"q": keys, "k": keys, "v": values, "do": values, "log_decay": spec(f32, keys.shape), "offsets": None},
        **{"states": spec(kind, kept), "slopes": spec(kind, kept), "state_units": units, "slope_units": units},
        **{"dq": keys, "dk": keys, "dlog_decay": spec(f32, keys.shape), "scale": SCALE},
    }

    def expected(q: Array, k: Array, v: Array, do: Array, log_decay: Array, **given: Any) -> dict[str, Array]:
        made = {name: np.zeros(keys.shape) for name in ("dq", "dk", "dlog_decay")}
        states, slopes = (given[name].astype(float) for name in ("states", "slopes"))
        if units:
            states, slopes = states * given["state_units"][..., None], slopes * given["slope_units"][..., None]
        for t in range(m // 64):  # from the state before a chunk to the gradient of that behind it
            at = slice(64 * t, min(64 * t + 64, n))
            rows = (x[:, :, at].astype(float) for x in (do, q, k, v, log_decay))
            ends = {"state": states[t : t + 1], "dafter": slopes[t : t + 1]}
            made["dq"][:, :, at], made["dk"][:, :, at], _, made["dlog_decay"][:, :, at], _ = gla_backward.reference(
                *rows, scale=SCALE, **ends
            )
        return made

    rng = np.random.default_rng(5)
    drawn = {"log_decay": -0.1 * rng.random(keys.shape)}
    drawn |= {name: 0.25 * rng.standard_normal(values.shape) for name in ("v", "do")}  # sums, not what cancels in them
    drawn |= {name: np.exp2(rng.integers(-2, 3, kept[:3])) for name in ("state_units", "slope_units")}
    return Instance(gla_backward.differentiate, operands, {}, ("dq", "dk", "dlog_decay"), expected, drawn)


ROWS = (
    Shipped(
        name="gla_prepare",
        about="before gated linear attention with a gate for each channel: each chunk's products, decayed",
        make=_prepare,
        needs=("wgmma",),
        options={"dim": (128,), "dtype": ("bf16", "f16"), "flip": (False, True)},
        opcodes=("HMMA", "UTMALDG", "UTMASTG"),
        spilled=208,
    ),
    Shipped(
        name="gla",
        about="gated linear attention with a gate for each channel: its rows, its states, and the gradients of those",
        make=_walk,
        needs=("wgmma",),
        options={"dim": (128, 64), "dtype": ("bf16", "f16"), "what": ("outputs", "states", "reverse")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
    ),
    Shipped(
        name="gla_backward",
        about="gradients of gated linear attention's queries, keys and gates, all chunks at once",
        make=_differentiate,
        needs=("wgmma",),
        options={"dim": (128,), "dtype": ("bf16",), "wide": (64,)},  # one: it takes long to compile
        opcodes=("HMMA", "UTMALDG", "MOVM"),
        spilled=560,
    ),
    Shipped(
        name="gla_states",
        about="between passes of gated linear attention: the states at the beginning of parts of sequences",
        make=_carry,
        needs=("wgmma",),
        options={"dim": (128, 64), "reverse": (False, True)},
        opcodes=("LDG", "STG"),
    ),
)
