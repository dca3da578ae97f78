"""Kimi delta attention: a delta rule with a decay for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32
from .. import gated_delta_rule as delta
from .. import kimi_delta_attention as kimi
from .. import kimi_delta_attention_backward as backward
from ..catalog import Array, Instance, Shipped
from .delta_rule import HEADS, SCALE, chunks_of, drawn_values, specs_of, unit_of

N = 112  # two chunks: they are alone, and have much to do
CHUNKS = chunks_of(N)


def _channels(dim: int, dtype: str) -> Instance:
    specs, chunks = specs_of(dim, dtype, False, n=N), len(CHUNKS)
    met, values, gates = (
        spec(DTYPES[dtype], (1, HEADS, 64 * chunks, dim)),
        drawn_values(dim, dtype, N),
        (1, HEADS, N, dim),
    )
    operands = {
        **{**{x: specs[x] for x in "qkv"}, "log_decay": spec(f32, gates), "offsets": None},
        **{"a": spec(f32, specs["p"].shape), "p": specs["p"], "factors": specs["factors"]},
        "decays": spec(f32, (1, HEADS, chunks, dim)),
        **{**dict.fromkeys(("asking", "looking", "lasting"), met), "scale": SCALE},
    }
    outputs = ("a", "p", "factors", "decays", "asking", "looking", "lasting")

    def expected(q: Array, k: Array, log_decay: Array, **_: Any) -> dict[str, Array]:
        made = {name: np.zeros(operands[name].shape) for name in outputs}
        for head in range(HEADS):
            for chunk, rows in enumerate(CHUNKS):
                at, m = slice(64 * chunk, 64 * chunk + 64), rows.stop - rows.start
                x, y, g = np.zeros((3, 64, dim))
                x[:m], y[:m], g[:m] = q[0, 0, rows], k[0, 0, rows], log_decay[0, head, rows]
                owns = [1 / np.sqrt((z * z).sum(1) + delta.EPSILON) for z in (x, y)]
                x, y = (z * own[:, None] for z, own in zip((x, y), owns, strict=True))
                made["factors"][0, head, 7:9, at] = owns
                sums = g.cumsum(0)
                fade = np.exp(np.minimum(sums[:, None] - sums, 0))
                made["a"][0, head, at] = np.tril(np.einsum("id,jd,ijd->ij", y, y, fade))
                made["p"][0, head, at] = np.tril(np.einsum("id,jd,ijd->ij", x, y, fade)) * SCALE
                if dtype == "f16":
                    unit = made["factors"][0, head, 4, at] = unit_of(made["p"][0, head, at])
                    made["p"][0, head, at] /= unit[:, None]
                    made["factors"][0, head, 2, at] = 1 / unit
                made["decays"][0, head, chunk] = np.exp(sums[-1])
                made["asking"][0, head, at] = x * np.exp(sums) * SCALE
                made["looking"][0, head, at] = y * np.exp(sums)
                made["lasting"][0, head, at] = y * np.exp(sums[-1] - sums)
        return made

    lifted = {x: values[x].astype(float) + 0.7 * dim**-0.5 for x in ("q", "k")}  # no product near zero
    drawn = {**values, **lifted, "log_decay": -0.1 * np.random.default_rng(17).random(gates)}
    return Instance(kimi.prepare, operands, {"norm": True}, outputs, expected, drawn)


def _inverted(dtype: str) -> Instance:
    specs = specs_of(64, dtype, False, n=N)
    operands = {"a": spec(f32, specs["w"].shape), **{x: specs[x] for x in ("beta", "offsets", "w", "factors")}}

    def expected(a: Array, beta: Array, **_: Any) -> dict[str, Array]:
        b, lower = _chunked(beta), np.tril(a.astype(float).reshape(HEADS, -1, 64, 64), -1)
        w = np.linalg.solve(np.eye(64) + lower * b[:, :, None], lower)
        factors = np.zeros((HEADS, len(delta.FACTORS), *b.shape[1:]))
        factors[:, delta.FACTORS.index("beta")] = b
        if dtype == "f16":
            units = factors[:, delta.FACTORS.index("solved")] = np.array([[unit_of(y) for y in x] for x in w])
            w = w / units[..., None]
        return {"w": w.reshape(1, HEADS, -1, 64), "factors": factors.reshape(1, HEADS, len(delta.FACTORS), -1)}

    drawn = {**drawn_values(64, dtype, N), "a": np.random.default_rng(29).random(specs["w"].shape) / 8}
    return Instance(kimi.invert, operands, {}, ("w", "factors"), expected, drawn)


def _chunked(x: Array) -> Array:
    """Rows of chunks, (heads, chunks, 64, ..); zeros behind the last."""
    rows = 64 * len(CHUNKS)
    return np.pad(x[0].astype(float), ((0, 0), (0, rows - N), *[(0, 0)] * (x.ndim - 3))).reshape(
        HEADS, -1, 64, *x.shape[3:]
    )


def _unchunked(x: Array) -> Array:
    return x.reshape(1, HEADS, -1, *x.shape[3:])[:, :, :N]


def _mirrored(x: Array) -> Array:
    """What is on and below the diagonal, above it, too."""
    return np.tril(x) + np.swapaxes(np.tril(x, -1), -1, -2)


def _of_states(dim: int, dtype: str) -> Instance:
    made, chunks = DTYPES[dtype], len(CHUNKS)
    values = 256 if (dim, dtype) == (64, "bf16") else dim  # four parts go through two slots
    specs, wide = specs_of(dim, dtype, False, values, N), spec(f32, (1, HEADS, 64 * chunks, dim))
    states, units = spec(made, (1, HEADS, chunks * values, dim)), spec(f32, (1, HEADS, chunks * values))
    given = {**dict.fromkeys(("do", "g", "errors"), specs["v"]), "offsets": None, "factors": specs["factors"]}
    each, scaled = spec(f32, (1, HEADS, chunks, dim)), dtype == "f16"
    operands = {
        **{**given, "decays": each},
        **{"states": states, "units": units if scaled else None},
        **{"dstates": states, "dunits": units if scaled else None},
        "pairs": spec(made, (1, HEADS, 128 * chunks, 64)),
        **dict.fromkeys(("dasking", "dlooking", "dlasting"), wide),
        **{"energy": each, "dbeta": specs["beta"], "scale": SCALE},
    }
    outputs = ("pairs", "dasking", "dlooking", "dlasting", "energy", "dbeta")

    def expected(do: Array, g: Array, errors: Array, factors: Array, decays: Array, **x: Any) -> dict[str, Array]:
        do, g, errors = (_chunked(y) for y in (do, g, errors))
        beta = factors[0, :, delta.FACTORS.index("beta")].astype(float).reshape(HEADS, chunks, 64, 1)
        state, dstate = (
            (x[name].astype(float) * (x[unit][..., None] if scaled else 1.0)).reshape(HEADS, chunks, values, dim)
            for name, unit in (("states", "units"), ("dstates", "dunits"))
        )
        rest = np.swapaxes(beta * errors, 2, 3)
        pairs = np.concatenate([_mirrored(SCALE * do @ rest), _mirrored(np.tril(-beta * g @ rest, -1))], 2)
        made = {"dasking": SCALE * do @ state, "dlooking": -beta * g @ state, "dlasting": beta * errors @ dstate}
        return {
            "pairs": pairs.reshape(1, HEADS, -1, 64),
            **{name: y.reshape(1, HEADS, -1, dim) for name, y in made.items()},
            "energy": (state * dstate).sum(2)[None] * decays,
            "dbeta": _unchunked((g * errors).sum(3)),
        }

    chance = np.random.default_rng(19)
    drawn = {name: chance.random(units.shape) + 0.5 for name in ("units", "dunits")}
    return Instance(backward.differentiate, operands, {}, outputs, expected, drawn)


def _spread(dim: int, dtype: str) -> Instance:
    made, chunks = DTYPES[dtype], len(CHUNKS)
    specs, wide, gates = specs_of(dim, dtype, False, n=N), spec(f32, (1, HEADS, 64 * chunks, dim)), (1, HEADS, N, dim)
    given = {"q": specs["q"], "k": specs["k"], "log_decay": spec(f32, gates), "beta": specs["beta"], "offsets": None}
    operands = {
        **{**given, "factors": specs["factors"], "pairs": spec(made, (1, HEADS, 128 * chunks, 64))},
        **dict.fromkeys(("dasking", "dlooking", "dlasting"), wide),
        "energy": spec(f32, (1, HEADS, chunks, dim)),
        **{"dq": spec(made, gates), "dk": spec(made, gates), "dlog_decay": spec(f32, gates)},
    }
    norm, outputs = dim == 64, ("dq", "dk", "dlog_decay")

    def expected(q: Array, k: Array, log_decay: Array, pairs: Array, energy: Array, **x: Any) -> dict[str, Array]:
        q, k = (np.repeat(_chunked(np.repeat(y, HEADS, 1)), 1, 0) for y in (q, k))
        sums = _chunked(log_decay).cumsum(2)
        of_q, of_k = (1 / np.sqrt((y * y).sum(3, keepdims=True) + delta.EPSILON) if norm else 1.0 for y in (q, k))
        q, k = q * of_q, k * of_k
        fade = np.exp(np.minimum(sums[:, :, :, None] - sums[:, :, None], 0))
        t, r = np.tril(np.split(pairs.astype(float).reshape(HEADS, chunks, 128, 64), 2, 2))
        asked, looked, lasted = (x[n].astype(float).reshape(q.shape) for n in ("dasking", "dlooking", "dlasting"))
        last = sums[:, :, -1:]
        asked, looked, lasted = asked * np.exp(sums), looked * np.exp(sums), lasted * np.exp(last - sums)
        read_q = asked + np.einsum("hcij,hcijd,hcjd->hcid", t, fade, k)
        read_k = looked + np.einsum("hcij,hcijd,hcjd->hcid", r, fade, k)
        written = (
            lasted + np.einsum("hcij,hcijd,hcid->hcjd", r, fade, k) + np.einsum("hcij,hcijd,hcid->hcjd", t, fade, q)
        )
        change = q * read_q + k * (read_k - written)
        change[:, :, -1] += (k * lasted).sum(2) + energy[0]
        change = change[:, :, ::-1].cumsum(2)[:, :, ::-1]
        found = []
        for y, dy, own in ((q, read_q, of_q), (k, read_k + written, of_k)):
            found.append((dy - (y * (y * dy).sum(3, keepdims=True) if norm else 0.0)) * own)
        return dict(zip(outputs, map(_unchunked, (*found, change)), strict=True))

    chance = np.random.default_rng(23)
    values = drawn_values(dim, dtype, N)
    factors = np.ones((1, HEADS, len(delta.FACTORS), 64 * chunks))
    lengths = [(values[x].astype(float) ** 2).sum(3)[0, 0] + delta.EPSILON for x in ("q", "k")]
    for name, squares in zip(("own_q", "own_k"), lengths, strict=True):
        factors[:, :, delta.FACTORS.index(name), :N] = squares**-0.5 if norm else 1.0
    pairs = _mirrored(chance.standard_normal((HEADS, chunks, 2, 64, 64)))
    pairs[:, :, 1] *= 1 - np.eye(64)
    drawn = {**values, "factors": factors, "pairs": pairs.reshape(operands["pairs"].shape)}
    drawn["log_decay"] = -0.3 * chance.random(gates)
    return Instance(backward.spread, operands, {"norm": norm}, outputs, expected, drawn)


ROWS = (
    Shipped(
        name="kimi_delta_attention_prepare",
        about="before the gated delta rule with a decay for each channel (Kimi delta attention): products of rows",
        make=_channels,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HMMA", "LDSM", "UTMALDG", "UTMASTG"),
        spilled=24,
    ),
    Shipped(
        name="kimi_delta_attention_invert",
        about="each chunk of Kimi delta attention solved for what its keys overwrite",
        make=_inverted,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16")},
        opcodes=("HMMA", "MOVM"),
    ),
    Shipped(
        name="kimi_delta_attention_states",
        about="gradients of what Kimi delta attention's chunks have of states, all chunks at once",
        make=_of_states,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "STG"),
        spilled=64,  # f16
    ),
    Shipped(
        name="kimi_delta_attention_backward",
        about="gradients of Kimi delta attention's queries, keys and gates, all chunks at once",
        make=_spread,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HMMA", "UTMALDG", "STG"),
        spilled=80,
    ),
)
