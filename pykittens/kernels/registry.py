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
from ..types import DTYPES, f32
from . import attention_ada, attention_ampere, attention_hopper, gates, gemm, norms, reference, rows
from .attention import configuration
from .based import FEATURES
from .based import Config as BasedConfig
from .based import D as FEATURE_DIM
from .based import attend as based_attend
from .based import reference as based_reference
from .catalog import Array, Instance, Shipped
from .linear_attention import Config as LinearConfig
from .linear_attention import attend as linear_attend
from .linear_attention import reference as linear_reference
from .rotary import Config as RotaryConfig
from .rotary import reference as rotary_reference
from .rotary import rotate
from .softmax import reference as softmax_reference
from .softmax import soften

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


def _rotary(dim: int, turning: int, dtype: str, interleaved: bool) -> Instance | None:
    if turning > dim:
        return None
    width = 16 // DTYPES[dtype].size
    config = RotaryConfig(dim, turning, interleaved, width, width, heads=2)
    x, table = spec(DTYPES[dtype], (2, 4, 150, dim)), spec(f32, (160, turning // 2))

    def expected(x: Array, cos: Array, sin: Array, **_: Any) -> dict[str, Array]:
        return {"o": rotary_reference(x, cos, sin, interleaved)}

    return Instance(rotate, {"x": x, "cos": table, "sin": table, "o": x}, {"config": config}, ("o",), expected)


def _gate(n: int, dtype: str, *, kind: str) -> Instance:
    x, config = spec(DTYPES[dtype], (9, n)), gates.plan(kind, n, DTYPES[dtype].size, 16)
    return Instance(
        gates.gated,
        {"gate": x, "up": x, "o": x},
        {"config": config},
        ("o",),
        lambda gate, up, **_: {"o": gates.reference(kind, gate, up)},
    )


_MMA_SYNC = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_90a")
_ROWS = (
    Shipped(
        name="attention_ada",
        about="flash attention forward with mma.sync: the RTX 4090 kernel of the ThunderKittens post",
        make=_attention_ada,
        architectures=_MMA_SYNC,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM"),
        most_lines=60,
    ),
    Shipped(
        name="attention_ampere",
        about="flash attention forward with mma.sync, ldmatrix and cp.async: FlashAttention-2",
        make=_attention_ampere,
        architectures=_MMA_SYNC,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_hopper",
        about="flash attention forward with TMA, asynchronous tensor cores and warp roles: the H100 kernel of the ThunderKittens post",
        make=_attention_hopper,
        architectures=("sm_90a",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True), "long": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=150,
    ),
    Shipped(
        name="gemm",
        about="matrix product with TMA, asynchronous tensor cores and persistent blocks; fp8 too",
        make=_gemm,
        architectures=("sm_90a",),
        options={"dtype": ("bf16", "f16", "e4m3"), "ta": (False, True), "tb": (False, True), "cluster": (1, 2)},
        opcodes=("HGMMA|QGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
    ),
    Shipped(
        name="linear_attention",
        about="causal linear attention in chunks, plain or with decay",
        make=_linear_attention,
        architectures=("sm_90a",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "decay": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
    ),
    Shipped(
        name="based",
        about="linear attention with the second-order Taylor feature map (Based)",
        make=_based,
        architectures=("sm_90a",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
    Shipped(
        name="softmax",
        about="softmax over the last axis",
        make=_softmax,
        architectures=("sm_80", "sm_90a"),
        options={"n": (1000, 256, 8192, 65536), "dtype": ("bf16", "f32")},
        opcodes=("LDG|UTMALDG", "STG", "MUFU"),
    ),
    *(
        Shipped(
            name=name,
            about=f"{words} over the last axis, with a residual stream and dropout",
            make=partial(_norm, centred=name == "layernorm"),
            architectures=("sm_80", "sm_90a"),
            options={"n": (1000, 256, 8192, 65536), "dtype": ("bf16", "f32"), "dropout": (False, True)},
            opcodes=("LDG|UTMALDG", "STG"),
        )
        for name, words in (("layernorm", "layer norm"), ("rmsnorm", "RMS norm"))
    ),
    Shipped(
        name="rotary",
        about="rotary position embedding, half-split or interleaved, of all or some features",
        make=_rotary,
        architectures=("sm_80", "sm_90a"),
        options={"dim": (128, 64), "turning": (128, 64), "dtype": ("bf16", "f32"), "interleaved": (False, True)},
        opcodes=("LDG", "STG"),
    ),
    *(
        Shipped(
            name=name,
            about=f"{words}(gate) * up",
            make=partial(_gate, kind=kind),
            architectures=("sm_80", "sm_90a"),
            options={"n": (1000, 256, 11008), "dtype": ("bf16", "f32")},
            opcodes=("LDG", "STG"),
        )
        for name, words, kind in (("swiglu", "silu", "silu"), ("geglu", "gelu", "gelu"))
    ),
)

KERNELS: dict[str, Shipped] = {row.name: row for row in _ROWS}
