"""The table of shipped kernels: what `list`, `inspect`, `compile` and the tests go through.

A row says how to make an instance of its kernel for each configuration. An instance is small enough to simulate (a few
laps of every loop), and compiles to the very code that larger operands use: lengths are known at launch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..call.arguments import spec
from ..call.kernel import Kernel
from ..ops.register_order import order
from ..types import DTYPES, RegisterTile, f32, i64
from . import (
    attention_ada,
    attention_ampere,
    attention_backward,
    attention_backward_ampere,
    attention_backward_hopper,
    attention_hopper,
    gates,
    gemm,
    norms,
    norms_backward,
    reference,
    rows,
)
from .attention import configuration
from .based import FEATURES
from .based import Config as BasedConfig
from .based import D as FEATURE_DIM
from .based import attend as based_attend
from .based import reference as based_reference
from .catalog import Array, Instance, Shipped
from .column_sums import column_sums
from .cross_entropy import entropy
from .cross_entropy import plan_rows as plan_cross_entropy
from .cross_entropy import reference as cross_entropy_reference
from .linear_attention import Config as LinearConfig
from .linear_attention import attend as linear_attend
from .linear_attention import reference as linear_reference
from .rotary import Config as RotaryConfig
from .rotary import reference as rotary_reference
from .rotary import rotate
from .softmax import plan_backward as plan_softmax_backward
from .softmax import reference as softmax_reference
from .softmax import reference_backward as softmax_reference_backward
from .softmax import soften, soften_backward

# The rows ---------------------------------------------------------------------------------------------------


def _attention(
    kernel: Kernel, n: int, m: int, dim: int, dtype: str, more: Mapping[str, Any] | None = None, **statics: Any
) -> Instance:
    """Two heads; operands besides q, k, v, o and scale are `more`."""
    q, k = spec(DTYPES[dtype], (1, 2, n, dim)), spec(DTYPES[dtype], (1, 2, m, dim))
    scale = dim**-0.5

    def expected(q: Array, k: Array, v: Array, **_: Any) -> dict[str, Array]:
        return {"o": reference.attention(q, k, v, scale=scale, causal=statics["causal"])}

    return Instance(
        kernel, {"q": q, "k": k, "v": k, "o": q, **(more or {}), "scale": scale}, statics, expected=expected
    )


def _attention_ada(dim: int, dtype: str, causal: bool) -> Instance:
    keys = 256 if dim == 64 else 128  # of a lap
    return _attention(attention_ada.attend, 40, 2 * keys + 40, dim, dtype, causal=causal)


def _attention_ampere(dim: int, dtype: str, causal: bool) -> Instance:
    keys = 4096 // dim  # of a lap
    return _attention(attention_ampere.attend, 128 + 40, 2 * keys + 40, dim, dtype, causal=causal)


def _attention_hopper(dim: int, dtype: str, causal: bool, long: bool) -> Instance:
    settings = {"keys": 128, "consumers": 2} | configuration(dim, causal, 16384 if long else 4096)
    rows = 3 * 64 * settings["consumers"] - 40  # three tiles of each of two heads, and two blocks to do them
    return _attention(
        attention_hopper.attend,
        rows,
        2 * settings["keys"] + 40,
        dim,
        dtype,
        {"lse": spec(f32, (1, 1, 1))},
        causal=causal,
        sms=2,
        **settings,
    )


def _attention_backward(dim: int, dtype: str, causal: bool) -> Instance:
    """Two heads that share keys; tiles of queries go round the rings, and the second tile of keys is short.

    The kernel is told a log-sum-exp and a delta for each row, which here are any numbers.
    """
    settings, scale, keys = attention_backward.configuration(dim), dim**-0.5, attention_backward_hopper.keys_of(dim)
    n, m = 3 * settings.get("rows", 64) + 40, 2 * keys - 24
    padded, parts = attention_backward.scratch(n, dim)
    q, k, row = spec(DTYPES[dtype], (1, 2, n, dim)), spec(DTYPES[dtype], (1, 1, m, dim)), spec(f32, (1, 2, padded))
    sums = spec(f32, (1, 2, *parts))

    def expected(q: Array, k: Array, v: Array, do: Array, lse: Array, delta: Array, **_: Any) -> dict[str, Array]:
        k, v = k.astype(float), v.astype(float)
        q, do = (np.pad(x.astype(float), ((0, 0), (0, 0), (0, padded - n), (0, 0))) for x in (q, do))
        weight = np.exp2(q @ k.swapaxes(2, 3) * scale * np.log2(np.e) - lse[..., None].astype(float))
        if causal:
            weight[..., np.arange(m) > np.arange(padded)[:, None] + (m - n)] = 0
        slope = weight * (do @ v.swapaxes(2, 3) - delta[..., None].astype(float))
        dk, dv = ((x.swapaxes(2, 3) @ y).sum(1, keepdims=True) for x, y in ((slope, q), (weight, do)))
        tiles = (slope @ k).reshape(1, 2, padded // 64, 64, dim // 64, 64).swapaxes(3, 4).reshape(1, 2, -1, 4096)
        return {"dq": tiles[..., order(RegisterTile(f32, 64, 64, "row", 4), 4)], "dk": dk * scale, "dv": dv}

    return Instance(
        attention_backward_hopper.differentiate,
        {"q": q, "k": k, "v": k, "do": q, "lse": row, "delta": row, "dq": sums, "dk": k, "dv": k, "scale": scale},
        {"causal": causal, **settings},
        ("dq", "dk", "dv"),
        expected,
    )


def _attention_backward_ampere(dim: int, dtype: str, causal: bool) -> Instance:
    """Two tiles of keys, of which the second is short; else as `_attention_backward`."""
    ours, rows = attention_backward_ampere, attention_backward_ampere.rows_of(dim)
    whole = _attention_backward(dim, dtype, causal)
    padded, width, height = whole.operands["lse"].shape[2], ours.PIECE[1], ours.PIECE[0]
    sums = spec(f32, (1, 2, *ours.parts(padded, dim)))
    inverse, pieces = (
        order(RegisterTile(f32, 64, 64, "row", 4), 4).argsort(),
        order(RegisterTile(f32, height, width), 4),
    )

    def expected(**arrays: Array) -> dict[str, Array]:
        assert whole.expected is not None
        found = whole.expected(**arrays)
        tiles = found["dq"][..., inverse].reshape(1, 2, padded // 64, dim // 64, 64, 64).swapaxes(3, 4)
        tiles = tiles.reshape(1, 2, padded // height, height, dim // width, width).swapaxes(3, 4)
        tiles = tiles.reshape(1, 2, -1, height * width)[..., pieces]
        last = -(-arrays["q"].shape[2] // rows) * ours.WARPS  # tiles that are all padding are not visited
        return {**found, "dq": np.where(np.arange(tiles.shape[2])[:, None] < last, tiles, 0)}

    return Instance(ours.differentiate, {**whole.operands, "dq": sums}, {"causal": causal}, whole.outputs, expected)


def _attention_backward_ampere_finish(dim: int, dtype: str) -> Instance:
    ours, (padded, _) = attention_backward_ampere, attention_backward.scratch(70, dim)
    sums, row = spec(f32, (1, 2, *ours.parts(padded, dim))), spec(f32, (1, 2, padded))
    out, (height, width) = spec(DTYPES[dtype], (1, 2, 70, dim)), ours.PIECE
    inverse = order(RegisterTile(f32, height, width), 4).argsort()

    def expected(dq: Array, **_: Any) -> dict[str, Array]:
        tiles = dq[..., inverse].reshape(1, 2, padded // height, dim // width, height, width).swapaxes(3, 4)
        return {"out": tiles.reshape(1, 2, padded, dim)[:, :, :70] * 0.5}

    return Instance(ours.finish, {"dq": sums, "scaled": row, "out": out, "scale": 0.5}, {}, ("out",), expected)


def _attention_backward_prepare(dim: int, dtype: str) -> Instance:
    x, lse = spec(DTYPES[dtype], (1, 2, 70, dim)), spec(f32, (1, 2, 70))
    padded, parts = attention_backward.scratch(70, dim)
    row = spec(f32, (1, 2, padded))
    operands = {"o": x, "do": x, "lse": lse, "dlse": lse, "scaled": row, "delta": row, "dq": spec(f32, (1, 2, *parts))}

    def expected(o: Array, do: Array, lse: Array, dlse: Array, dq: Array, **_: Any) -> dict[str, Array]:
        delta, scaled = np.zeros((1, 2, padded)), np.full((1, 2, padded), np.inf)
        delta[..., :70] = (o.astype(float) * do.astype(float)).sum(3) - dlse
        scaled[..., :70] = lse * np.log2(np.e)
        return {"scaled": scaled, "delta": delta, "dq": np.zeros(dq.shape)}

    return Instance(attention_backward.prepare, operands, {}, ("scaled", "delta", "dq"), expected)


def _attention_backward_finish(dim: int, dtype: str) -> Instance:
    padded, parts = attention_backward.scratch(70, dim)
    sums, row, out = spec(f32, (1, 2, *parts)), spec(f32, (1, 2, padded)), spec(DTYPES[dtype], (1, 2, 70, dim))

    def expected(dq: Array, **_: Any) -> dict[str, Array]:
        tiles = dq[..., np.argsort(order(RegisterTile(f32, 64, 64, "row", 4), 4))].reshape(1, 2, -1, dim // 64, 64, 64)
        return {"out": tiles.swapaxes(3, 4).reshape(1, 2, padded, dim)[:, :, :70] * 0.5}

    return Instance(
        attention_backward.finish, {"dq": sums, "scaled": row, "out": out, "scale": 0.5}, {}, ("out",), expected
    )


def _gemm(dtype: str, ta: bool, tb: bool, cluster: int) -> Instance | None:
    if dtype == "e4m3" and (ta or not tb):  # 8-bit operands have k along their rows
        return None
    m, n, k = 200, 520, 5 * 64 + 16  # ragged everywhere, more steps than slots, and four tiles for two blocks
    a, b = spec(DTYPES[dtype], (k, m) if ta else (m, k)), spec(DTYPES[dtype], (n, k) if tb else (k, n))
    c = spec(DTYPES["bf16" if dtype == "e4m3" else dtype], (m, n))
    operands = {"a": a, "b": b, "c": c, "x0": None, "x1": None, "x2": None, "x3": None, "sms": 2}

    def expected(a: Array, b: Array, **_: Any) -> dict[str, Array]:
        a, b = a.astype(float), b.astype(float)
        return {"c": (a.T if ta else a) @ (b.T if tb else b)}

    return Instance(gemm.gemm, operands, {"config": gemm.Config(cluster=cluster), "ta": ta, "tb": tb}, ("c",), expected)


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


def _softmax(n: int, dtype: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), rows.plan(n, DTYPES[dtype].size, 16, processors=2)
    return Instance(soften, {"x": x, "y": x}, {"config": config}, ("y",), lambda x, **_: {"y": softmax_reference(x)})


def _softmax_backward(n: int, dtype: str) -> Instance:
    x, size = spec(DTYPES[dtype], (9, n)), DTYPES[dtype].size
    config = plan_softmax_backward(n, size, size, 16, processors=2)
    return Instance(
        soften_backward,
        {"y": x, "dy": x, "dx": x},
        {"config": config},
        ("dx",),
        lambda y, dy, **_: {"dx": softmax_reference_backward(dy, y)},
    )


def _norm(n: int, dtype: str, dropout: bool, *, centred: bool) -> Instance:
    x, w, size = spec(DTYPES[dtype], (9, n)), spec(DTYPES[dtype], (n,)), DTYPES[dtype].size
    config = rows.plan(
        n, size, 16, inputs=2 * size, weights=2 * size if centred else size, heavy=dropout and centred, processors=2
    )
    bias = w if centred else None
    p = 0.25 if dropout else 0.0
    numbers = {"eps": 1e-5, "keep": 1 / (1 - p), "threshold": int(p * 2**32), "seed0": 7, "seed1": 9}
    operands = {"x": x, "residual": x, "weight": w, "bias": bias, "y": x, "s": x, **numbers}

    def expected(x: Array, residual: Array, weight: Array, bias: Array | None, **_: Any) -> dict[str, Array]:
        y, s = norms.reference(x, weight, bias, residual=residual, eps=1e-5, p=p, seed=(9 << 32) + 7, centred=centred)
        return {"y": y, "s": s}

    return Instance(
        norms.normalize, operands, {"centred": centred, "dropout": dropout, "config": config}, ("y", "s"), expected
    )


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
    operands |= {"eps": 1e-5, "keep": 1 / (1 - p), "threshold": int(p * 2**32), "seed0": 7, "seed1": 9}
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


def _cross_entropy(n: int, dtype: str, everything: bool) -> Instance:
    m = 9 if n <= 8192 else 3
    x, v, one = spec(DTYPES[dtype], (m, n)), spec(f32, (m,)), spec(f32, (1,))
    config = plan_cross_entropy(n, DTYPES[dtype].size, 16, heavy=everything, processors=2)
    targets = np.random.default_rng(1).integers(0, n, m)
    targets[1] = -100
    operands = {"x": x, "targets": spec(i64, (m,)), "share": one, "dx": x, "loss": v, "lse": v, "ignore": -100}
    numbers = {"smoothing": 0.1, "even": 0.1 / n, "z": 1e-3, "cap": 5.0, "narrow": 0.2}
    numbers = numbers if everything else dict.fromkeys(numbers, 0.0)

    def expected(x: Array, **_: Any) -> dict[str, Array]:
        settings = {"label_smoothing": numbers["smoothing"], "z_loss": numbers["z"], "softcap": numbers["cap"]}
        loss, lse, grad = cross_entropy_reference(x, targets, reduction="none", **settings)  # type: ignore[arg-type]
        return {"loss": loss[None], "lse": lse[None], "dx": grad / 8}

    statics = {**dict.fromkeys(("smooth", "squared", "capped"), everything), "config": config}
    values = {"targets": targets, "share": np.array([0.125])}
    return Instance(entropy, {**operands, **numbers}, statics, ("loss", "lse", "dx"), expected, values)


def _column_sums(n: int, dtype: str) -> Instance:
    parts, o = spec(f32, (600, n)), spec(DTYPES[dtype], (n,))

    def expected(parts: Array, more: Array, **_: Any) -> dict[str, Array]:
        return {"o": parts.astype(float).sum(0), "other": more.astype(float).sum(0)}

    operands = {"parts": parts, "more": parts, "o": o, "other": o}
    return Instance(column_sums, operands, outputs=("o", "other"), expected=expected)


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


def _gate(n: int, dtype: str, *, kind: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), gates.plan(kind, n, DTYPES[dtype].size, 16)
    return Instance(
        gates.gated,
        {"gate": x, "up": x, "o": x},
        {"config": config},
        ("o",),
        lambda gate, up, **_: {"o": gates.reference(kind, gate, up)},
    )


def _gate_backward(n: int, dtype: str, kind: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), gates.plan(kind, n, DTYPES[dtype].size, 16)

    def expected(gate: Array, up: Array, do: Array, **_: Any) -> dict[str, Array]:
        return dict(zip(("dgate", "dup"), gates.reference_backward(kind, gate, up, do), strict=True))

    operands = {"gate": x, "up": x, "do": x, "dgate": x, "dup": x}
    return Instance(gates.gated_backward, operands, {"config": config}, ("dgate", "dup"), expected)


_ROWS = (
    Shipped(
        name="attention_ada",
        about="flash attention forward with mma.sync: the RTX 4090 kernel of the ThunderKittens post",
        make=_attention_ada,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM"),
        most_lines=60,
    ),
    Shipped(
        name="attention_ampere",
        about="flash attention forward with mma.sync, ldmatrix and cp.async: FlashAttention-2",
        make=_attention_ampere,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_hopper",
        about="flash attention forward with TMA, asynchronous tensor cores and warp roles: the H100 kernel of the "
        "ThunderKittens post",
        make=_attention_hopper,
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True), "long": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=150,
    ),
    Shipped(
        name="attention_backward_hopper",
        about="flash attention backward with TMA, asynchronous tensor cores and warp roles: dq, dk and dv in one pass",
        make=_attention_backward,
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=200,
    ),
    Shipped(
        name="attention_backward_ampere",
        about="flash attention backward with mma.sync, ldmatrix and cp.async",
        make=_attention_backward_ampere,
        options={"dim": (64,), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_backward_ampere_finish",
        about="after attention backward with mma.sync: dq from float32 sums to rows",
        make=_attention_backward_ampere_finish,
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="attention_backward_prepare",
        about="before attention backward: row sums of do * o, the log-sum-exp in powers of two, zeros for dq's sums",
        make=_attention_backward_prepare,
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="attention_backward_finish",
        about="after attention backward: dq from float32 sums in the order of registers to rows",
        make=_attention_backward_finish,
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="gemm",
        about="matrix product with TMA, asynchronous tensor cores and persistent blocks; fp8 too",
        make=_gemm,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16", "e4m3"), "ta": (False, True), "tb": (False, True), "cluster": (1, 2)},
        opcodes=("HGMMA|QGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
    ),
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
        name="cross_entropy",
        about="cross-entropy of rows of logits and its gradient in one pass",
        make=_cross_entropy,
        options={"n": (1000, 8192, 50304, 131072), "dtype": ("bf16", "f32"), "everything": (False, True)},
        opcodes=("LDG|UTMALDG", "STG", "MUFU"),
    ),
    Shipped(
        name="gate_backward",
        about="gradients of SwiGLU and GEGLU",
        make=_gate_backward,
        options={"n": (1000, 256), "dtype": ("bf16", "f32"), "kind": ("silu", "gelu", "gelu_tanh")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="column_sums",
        about="sums over the rows of a workspace, in a fixed order",
        make=_column_sums,
        options={"n": (100, 64), "dtype": ("bf16", "f32")},
        opcodes=("LDG", "STG"),
    ),
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
    *(
        Shipped(
            name=name,
            about=f"{words}(gate) * up",
            make=partial(_gate, kind=kind),
            options={"n": (1000, 256, 11008), "dtype": ("bf16", "f32")},
            opcodes=("LDG", "STG"),
        )
        for name, words, kind in (("swiglu", "silu", "silu"), ("geglu", "gelu", "gelu"))
    ),
)

KERNELS: dict[str, Shipped] = {row.name: row for row in _ROWS}
