"""Mamba-2's recurrence, its gradients, and what prepares decays and carries states."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32, i32
from .. import chunks, ssd
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
    kind, m = DTYPES[dtype], -(-N_ROWS // 64) * 64
    x, bc = spec(kind, (1, 2, N_ROWS, 64)), spec(kind, (1, 1, N_ROWS, state))
    line, kept = spec(f32, (2, m)), spec(f32, (1, 2, 64, state))
    outputs = what == "outputs"
    every = None if outputs else spec(kind, (3, 2, 64, state))
    operands = {
        "x": x,
        "b": bc,
        "c": bc if outputs else None,
        "sums": line,
        "weights": None if what == "reverse" else line,
        "d": spec(f32, (2,)) if outputs else None,
        "z": x if outputs else None,
        "offsets": None,
        "before": kept,
        "y": x if outputs else None,
        "after": kept,
        "decays": None,
        "every": every,
        "units": spec(f32, (3, 2, 64)) if every and dtype == "f16" else None,
        "scale": 1.0,
        "each": 3,
        "parts": 1,
    }

    def expected(x: Array, b: Array, sums: Array, before: Array, **given: Any) -> dict[str, Array]:
        x, b, g, s = x.astype(float)[0], b.astype(float)[0, 0], _steps(sums), before.astype(float)[0]
        w = np.ones_like(g) if given["weights"] is None else given["weights"].astype(float)
        y, states = np.zeros_like(x), {}
        for i in reversed(range(m)) if what == "reverse" else range(m):
            if i % 64 == (63 if what == "reverse" else 0):
                states[i // 64] = s
            add = 0.0 if i >= N_ROWS else w[:, i, None, None] * x[:, i, :, None] * b[i]
            s = (s + add) * np.exp(g[:, i, None, None]) if what == "reverse" else s * np.exp(g[:, i, None, None]) + add
            if outputs and i < N_ROWS:
                gate = given["z"][0, :, i].astype(float)
                out = s @ given["c"].astype(float)[0, 0, i] + given["d"][:, None] * x[:, i]
                y[:, i] = out * gate / (1 + np.exp(-gate))
        if outputs:
            return {"y": y[None], "after": s[None]}
        kept = np.stack([states[t] for t in range(3)])
        units = given["units"]
        return {"after": s[None]} | ({"every": kept} if units is None else {})

    rng = np.random.default_rng(5)
    values = {"sums": _sums(rng, (2, m), N_ROWS), "weights": rng.random((2, m)).astype(np.float32)}
    values["weights"][:, N_ROWS:] = 0
    statics = {**ssd.CONFIGS[state], "reverse": what == "reverse"}
    made = ("y", "after") if outputs else ("after", "every", *(["units"] if operands["units"] else []))
    return Instance(ssd.scan, operands, statics, made, expected, values)


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
    }

    def expected(dt: Array, a: Array, bias: Array, **_: Any) -> dict[str, Array]:
        w = np.zeros((3, count, 64))
        soft = np.logaddexp(dt[:, 0].astype(float) + bias, 0)
        pieces = [(0, 0, N_ROWS, 0), (1, 0, N_ROWS, 3)]
        if packed:
            pieces = [(0, s, e, int(s) // 64 + i) for i, (s, e) in enumerate(zip(BOUNDS, BOUNDS[1:], strict=False))]
        for which, start, end, slot in pieces:
            rows = soft[which, start:end].T
            for j in range(0, rows.shape[1], 64):
                part = rows[:, j : j + 64]
                w[:, slot + j // 64, : part.shape[1]] = part
        sums = np.maximum(w * a.astype(float)[:, None, None] / np.log(2), -160).cumsum(2)
        return {"sums": sums.reshape(3, -1), "weights": w.reshape(3, -1)}

    values = {"a": -np.arange(1.0, 4), "offsets": BOUNDS}
    return Instance(chunks.accumulate, operands, {"soft": True}, ("sums", "weights"), expected, values)


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


ROWS = (
    Shipped(
        name="ssd",
        about="Mamba-2's recurrence in chunks: its rows, its states, and the gradients of those",
        make=_scan,
        needs=("wgmma",),
        options={"state": (128, 64, 256), "dtype": ("bf16", "f16"), "what": ("outputs", "states", "reverse")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
    ),
    Shipped(
        name="chunk_decays",
        about="before recurrences in chunks: the sums of each chunk's decays",
        make=_sums_of_decays,
        options={"packed": (False, True)},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="chunk_states",
        about="between passes of recurrences in chunks: the states at the beginning of parts of sequences",
        make=_carry,
        options={"reverse": (False, True)},
        opcodes=("LDG", "STG"),
    ),
)
