"""Mamba-2's recurrence, its gradients, and what prepares decays and carries states."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32, i32
from .. import chunks, ssd, ssd_backward, ssd_step
from ..catalog import Array, Instance, Shipped

N_ROWS = 3 * 64 - 20
BOUNDS = np.array([0, 70, 70, N_ROWS], np.int32)


def _sums(rng: Any, shape: tuple[int, ...], n: int) -> Array:
    """Sums of decays in chunks; behind the last row they stay."""
    steps = -rng.random(shape).astype(np.float32)
    steps[..., 1, 70] = -160.0
    steps[..., n:] = 0
    return steps.reshape(*shape[:-1], -1, 64).cumsum(-1).reshape(shape)


def _steps(sums: Array) -> Array:
    """What was summed up, base e."""
    parts = sums.reshape(*sums.shape[:-1], -1, 64).astype(float)
    return np.diff(parts, axis=-1, prepend=0).reshape(sums.shape) * np.log(2)


def _scan(state: int, dtype: str, what: str) -> Instance:
    laps = ssd.CONFIGS[state]["stages"] + 1
    kind, m, n = DTYPES[dtype], 64 * laps, 64 * laps - 20
    x, bc = spec(kind, (1, 2, n, 64)), spec(kind, (1, 1, n, state))
    line, kept = spec(f32, (2, m)), spec(f32, (1, 2, 64, state))
    outputs = what == "outputs"
    every = None if outputs else spec(kind, (laps, 2, 64, state))
    operands = {
        "x": x,
        "b": bc,
        "c": bc if outputs else None,
        "sums": line,
        "weights": None if what == "reverse" else line,
        "left": None,
        "d": spec(f32, (2,)) if outputs else None,
        "z": x if outputs else None,
        "offsets": None,
        "before": kept,
        "y": x if outputs else None,
        "after": kept,
        "decays": None,
        "every": every,
        "units": spec(f32, (laps, 2, 64)) if every and dtype == "f16" else None,
        "scale": 1.0,
        "each": laps,
        "parts": 1,
    }

    def expected(x: Array, b: Array, sums: Array, before: Array, **given: Any) -> dict[str, Array]:
        x, b, g, s = x.astype(float)[0], b.astype(float)[0, 0], _steps(sums), before.astype(float)[0]
        w = np.ones_like(g) if given["weights"] is None else given["weights"].astype(float)
        y, states = np.zeros_like(x), {}
        for i in reversed(range(m)) if what == "reverse" else range(m):
            if i % 64 == (63 if what == "reverse" else 0):
                states[i // 64] = s
            add = 0.0 if i >= n else w[:, i, None, None] * x[:, i, :, None] * b[i]
            s = (s + add) * np.exp(g[:, i, None, None]) if what == "reverse" else s * np.exp(g[:, i, None, None]) + add
            if outputs and i < n:
                gate = given["z"][0, :, i].astype(float)
                out = s @ given["c"].astype(float)[0, 0, i] + given["d"][:, None] * x[:, i]
                y[:, i] = out * gate / (1 + np.exp(-gate))
        if outputs:
            return {"y": y[None], "after": s[None]}
        kept = np.stack([states[t] for t in range(laps)])
        if given["units"] is None:
            return {"after": s[None], "every": kept}
        peaks = np.abs(kept).max(-1)
        unit = np.where(peaks > 0, peaks / 256, 1)
        return {"after": s[None], "every": kept / unit[..., None], "units": unit}

    rng = np.random.default_rng(5)
    values = {"sums": _sums(rng, (2, m), n), "weights": rng.random((2, m)).astype(np.float32)}
    values["weights"][:, n:] = 0
    statics = {**ssd.CONFIGS[state], "reverse": what == "reverse"}
    made = ("y", "after") if outputs else ("after", "every", *(["units"] if operands["units"] else []))
    return Instance(ssd.scan, operands, statics, made, expected, values)


def _step(state: int, dtype: str, soft: bool) -> Instance:
    kind, heads = DTYPES[dtype], spec(f32, (4,))
    x, bc, kept = spec(kind, (2, 4, 1, 64)), spec(kind, (2, 2, 1, state)), spec(f32, (2, 4, 64, state))
    operands = {
        **{
            "x": x,
            "dt": spec(f32, (2, 4)),
            "a": heads,
            "b": bc,
            "c": bc,
            "d": heads,
            "z": x,
            "bias": heads,
            "gates": None,
        },
        **{"before": kept, "y": x, "after": kept, "scale": 0.5},
    }

    def expected(x: Array, dt: Array, a: Array, b: Array, c: Array, **given: Any) -> dict[str, Array]:
        w = dt.astype(float) + given["bias"]
        w = np.logaddexp(w, 0) if soft else w
        k, q = (v.astype(float)[:, :, 0].repeat(2, 1) for v in (b, c))
        v = x.astype(float)[:, :, 0]
        after = given["before"] * np.exp(w * a)[..., None, None] + (w[..., None] * v)[..., None] * k[:, :, None]
        z = given["z"].astype(float)[:, :, 0]
        y = ((after @ q[..., None])[..., 0] * 0.5 + given["d"][:, None] * v) * z / (1 + np.exp(-z))
        return {"y": y[:, :, None], "after": after}

    values = {"a": -np.arange(4.0), "dt": np.random.default_rng(5).random((2, 4)), "bias": np.arange(4.0)}
    return Instance(ssd_step.advance, operands, {"soft": soft}, ("y", "after"), expected, values)


def _sums_of_decays(packed: bool) -> Instance:
    count = chunks.slots(N_ROWS, 3, True) if packed else 2 * 3
    line = spec(f32, (3, count * 64))
    operands = {
        "dt": spec(f32, (1 if packed else 2, 1, N_ROWS, 3)),
        "a": spec(f32, (3,)),
        "bias": spec(f32, (3,)),
        "offsets": spec(i32, BOUNDS.shape) if packed else None,
        "sums": line,
        "weights": line,
        "left": line,
    }

    def expected(dt: Array, a: Array, bias: Array, **_: Any) -> dict[str, Array]:
        w = np.zeros((3, count, 64))
        soft = np.logaddexp(dt[:, 0].astype(float) + bias, 0)
        pieces = [(0, 0, N_ROWS, 0), (1, 0, N_ROWS, 3)]
        if packed:
            pieces = [(0, s, e, int(s) // 64 + i) for i, (s, e) in enumerate(pairwise(BOUNDS.tolist()))]
        for which, start, end, slot in pieces:
            rows = soft[which, start:end].T
            for j in range(0, rows.shape[1], 64):
                part = rows[:, j : j + 64]
                w[:, slot + j // 64, : part.shape[1]] = part
        logs = np.maximum(w * a.astype(float)[:, None, None] / np.log(2), -160)
        left = np.pad(logs[..., :0:-1].cumsum(2)[..., ::-1], ((0, 0), (0, 0), (0, 1)))
        made = {"sums": logs.cumsum(2), "weights": w, "left": left}
        return {name: x.reshape(3, -1) for name, x in made.items()}

    values = {"a": -np.arange(1.0, 4), "offsets": BOUNDS}
    return Instance(chunks.accumulate, operands, {"soft": True}, ("sums", "weights", "left"), expected, values)


def _carry(reverse: bool) -> Instance:
    states, parts = spec(f32, (2, 3, 4096)), spec(f32, (6, 3, 4096))
    operands = {
        "before": states,
        "local": parts,
        "decays": spec(f32, (3, 6)),
        "offsets": None,
        "starts": parts,
        "after": states,
        "each": 4,
        "sequences": 2,
    }

    def expected(before: Array, local: Array, decays: Array, **_: Any) -> dict[str, Array]:
        starts, after = np.zeros((2, 3, 3, 4096)), before.astype(float)
        parts, fades = local.reshape(starts.shape), np.exp2(decays.astype(float)).T.reshape(2, 3, 3)
        for i in reversed(range(3)) if reverse else range(3):
            starts[:, i] = after
            after = after * fades[:, i, :, None] + parts[:, i]
        return {"starts": starts.reshape(local.shape), "after": after}

    values = {"decays": -np.random.default_rng(5).random((3, 6))}
    return Instance(chunks.carry, operands, {"reverse": reverse}, ("starts", "after"), expected, values)


def _differentiate(state: int, dtype: str, gate: bool) -> Instance:
    kind, m, n, scale = DTYPES[dtype], -(-N_ROWS // 64) * 64, N_ROWS, 0.5
    heads = ssd_backward.STAGES[state] + 1
    x, bc = spec(kind, (1, heads, n, 64)), spec(kind, (1, 1, n, state))
    line, kept, unit = spec(f32, (heads, m)), spec(kind, (3, heads, 64, state)), spec(f32, (3, heads, 64))
    units = unit if dtype == "f16" else None
    operands = {
        **{"x": x, "dy": x, "b": bc, "c": bc, "sums": line, "weights": line, "d": spec(f32, (heads,))},
        **{"z": x if gate else None, "ungated": x if gate else None, "offsets": None},
        **{"states": kept, "slopes": kept, "state_units": units, "slope_units": units},
        **{"dx": x, "dz": x if gate else None, "db": bc, "dc": bc},
        **dict.fromkeys(("by_y", "by_x", "between", "by_d", "by_own"), line),
        **{"scale": scale, "shares": 1},
    }

    def expected(**given: Any) -> dict[str, Array]:
        x, dy, b, c, w, sums, states, slopes = (
            given[name].astype(float) for name in ("x", "dy", "b", "c", "weights", "sums", "states", "slopes")
        )
        if units is not None:
            states, slopes = (v * given[u][..., None] for v, u in ((states, "state_units"), (slopes, "slope_units")))
        made = {name: np.zeros(given[name].shape) for name in outputs}
        for h, t in np.ndindex(heads, 3):
            at = slice(64 * t, min(64 * t + 64, n))
            s, ws, last = sums[h, at], w[h, at], sums[h, 64 * t + 63]
            fade = np.tril(np.exp2(np.minimum(s[:, None] - s, 0)))
            score = c[0, 0, at] @ b[0, 0, at].T * fade * scale
            xs, up, bs, cs = x[0, h, at], dy[0, h, at], b[0, 0, at], c[0, 0, at]
            lift, left = np.exp2(s)[:, None] * scale, np.exp2(last - s)[:, None]
            y = (score * ws) @ xs + lift * (cs @ states[t, h].T)
            through = left * (bs @ slopes[t, h].T)
            change = score.T @ up + through
            inner = (up @ xs.T) * fade * ws * scale
            made["dc"][0, 0, at] += inner @ bs + (up * lift) @ states[t, h]
            made["db"][0, 0, at] += inner.T @ cs + (xs * left * ws[:, None]) @ slopes[t, h]
            made["dx"][0, h, at] = change * ws[:, None] + given["d"][h] * up
            itself = (cs * bs).sum(1) * scale * (xs * up).sum(1)
            made["by_y"][h, at] = (up * y).sum(1) - itself * ws
            made["by_x"][h, at] = (xs * change).sum(1) - itself
            made["by_own"][h, at] = itself
            made["between"][h, 64 * t : 64 * t + 64] = (states[t, h] * slopes[t, h]).sum(1) * np.exp2(last)
            made["between"][h, at] += ws * (xs * through).sum(1)
            made["by_d"][h, at] = (xs * up).sum(1)
            if gate:
                z = given["z"][0, h, at].astype(float)
                share = 1 / (1 + np.exp(-z))
                slope = share * (1 + z * (1 - share))
                made["dz"][0, h, at] = (y + given["d"][h] * xs) * slope * given["ungated"][0, h, at]
        return made

    rng = np.random.default_rng(5)
    values: dict[str, Array] = {"sums": _sums(rng, (heads, m), n) / 32, "weights": rng.random((heads, m))}
    values |= {name: np.exp2(rng.integers(-2, 3, (3, heads, 64))) for name in ("state_units", "slope_units")}
    outputs = ("dx", "db", "dc", "by_y", "by_x", "between", "by_d", "by_own", *(["dz"] if gate else []))
    statics = {"stages": ssd_backward.STAGES[state]}
    return Instance(ssd_backward.differentiate, operands, statics, outputs, expected, values)


def _gate(dtype: str) -> Instance:
    x = spec(DTYPES[dtype], (2, 3, 100, 64))

    def expected(dy: Array, z: Array, **_: Any) -> dict[str, Array]:
        return {"o": dy.astype(float) * z / (1 + np.exp(-z.astype(float)))}

    return Instance(ssd_backward.gate, {"dy": x, "z": x, "o": x}, expected=expected)


def _finish(soft: bool) -> Instance:
    m = -(-N_ROWS // 64) * 64
    line, parts = spec(f32, (3, m)), spec(f32, (2, 3, m))
    dt, each = spec(f32, (1, 1, N_ROWS, 3)), spec(f32, (3, 3))
    operands = {
        **{"dt": dt, "a": spec(f32, (3,)), "bias": spec(f32, (3,)), "offsets": None, "weights": line},
        **dict.fromkeys(("by_y", "by_x", "between", "by_d", "by_own"), parts),
        **{"ddt": dt, "da": each, "dbias": each, "dd": each},
    }

    def expected(**given: Any) -> dict[str, Array]:
        y, x, between, d, own, w = (
            given[name].astype(float).reshape(-1, 3, 3, 64).sum(0) if name != "weights" else v
            for name, v in (
                (n, given["weights"].reshape(3, 3, 64))
                for n in ("by_y", "by_x", "between", "by_d", "by_own", "weights")
            )
        )
        real = np.arange(m).reshape(3, 64) < N_ROWS
        change = np.where(real, y - x * w, 0)
        slope = np.where(real, change[..., ::-1].cumsum(-1)[..., ::-1] + between.sum(-1, keepdims=True), 0)
        ddt = np.where(real, slope * given["a"][:, None, None] + x + own, 0)
        if soft:
            raw = given["dt"].astype(float)[0, 0].T + given["bias"][:, None]
            ddt = ddt * np.pad(1 / (1 + np.exp(-raw)), ((0, 0), (0, m - N_ROWS))).reshape(ddt.shape)
        sums = {"da": slope * w, "dbias": ddt, "dd": np.where(real, d, 0)}
        return {"ddt": ddt.reshape(3, -1)[:, :N_ROWS].T[None, None]} | {k: v.sum(-1).T for k, v in sums.items()}

    values = {"a": -np.arange(1.0, 4), "weights": np.random.default_rng(5).random((3, m))}
    return Instance(ssd_backward.finish, operands, {"soft": soft}, ("ddt", "da", "dbias", "dd"), expected, values)


def _add_shares(dtype: str) -> Instance:
    operands = {"parts": spec(f32, (3, 1500)), "o": spec(DTYPES[dtype], (1500,))}
    return Instance(ssd_backward.add_shares, operands, expected=lambda parts, **_: {"o": parts.astype(float).sum(0)})


ROWS = (
    Shipped(
        name="ssd",
        about="Mamba-2's recurrence in chunks: its rows, its states, and the gradients of those",
        make=_scan,
        needs=("wgmma",),
        options={"state": (128, 64, 256), "dtype": ("bf16", "f16"), "what": ("outputs", "states", "reverse")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
        spilled=24,
    ),
    Shipped(
        name="ssd_step",
        about="one row of Mamba-2's recurrence, or of gated linear attention, for decoding",
        make=_step,
        options={"state": (128, 64, 256), "dtype": ("bf16", "f16"), "soft": (False, True)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="ssd_backward",
        about="gradients of Mamba-2's recurrence, all chunks at once",
        make=_differentiate,
        needs=("wgmma",),
        options={"state": (128, 64), "dtype": ("bf16", "f16"), "gate": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
        spilled=168,
    ),
    Shipped(
        name="ssd_backward_gate",
        about="before Mamba-2's gradients: those before the gate",
        make=_gate,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="ssd_backward_decays",
        about="after Mamba-2's gradients: those of dt, A, D and the bias",
        make=_finish,
        needs=("wgmma",),
        options={"soft": (False, True)},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="ssd_backward_sum",
        about="after Mamba-2's gradients: the sums of what several blocks have of B and C",
        make=_add_shares,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="chunk_decays",
        about="before recurrences in chunks: the sums of each chunk's decays",
        make=_sums_of_decays,
        needs=("wgmma",),
        options={"packed": (False, True)},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="chunk_states",
        about="between passes of recurrences in chunks: the states at the beginning of parts of sequences",
        make=_carry,
        needs=("wgmma",),
        options={"reverse": (False, True)},
        opcodes=("LDG", "STG"),
    ),
)
