"""Matrix products, and the gradient through their epilogues."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, bf16, f32, i32
from .. import activation_backward, aligned, counters, epilogue_backward, gemm, gemm_ampere, linear
from ..catalog import Array, Instance, Shipped


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


def _gemm_swapped(dtype: str, tb: bool) -> Instance:
    """Tiles of the transpose, whose last piece has 16 rows of the result."""
    m, n, k = 90, 136, 5 * 64 + 16
    a, b = spec(DTYPES[dtype], (m, k)), spec(DTYPES[dtype], (n, k) if tb else (k, n))
    operands = {"a": b, "b": a, "c": spec(DTYPES[dtype], (m, n)), "x0": None, "x1": None, "x2": None, "x3": None}

    def expected(a: Array, b: Array, **_: Any) -> dict[str, Array]:
        a, b = a.astype(float), b.astype(float)
        return {"c": b @ (a.T if tb else a)}

    statics = {"config": gemm.Config(64, 80, 3, 1, swap=True), "ta": not tb, "tb": True}
    return Instance(gemm.gemm, {**operands, "sms": 2}, statics, ("c",), expected)


def _both(x: Any, row: Any, col: Any) -> Any:
    """The epilogue of a pair: its product, and both."""
    return x[0] * x[1], x[0], x[1]


def _pair(a: Array, b: Array, b2: Array, **_: Any) -> dict[str, Array]:
    first, second = (a.astype(float) @ x.astype(float).T for x in (b, b2))
    return {"c": first * second, "c2": first, "c3": second}


def _pair_of(dtype: str) -> dict[str, Any]:
    """Operands of a pair whose results all leave, as a gate's do where a gradient is wanted."""
    m, n, k = 136, 136, 5 * 64 + 16
    a, b, c = (spec(DTYPES[dtype], shape) for shape in ((m, k), (n, k), (m, n)))
    return {"a": a, "b": b, "c": c, "x0": None, "x1": None, "x2": None, "x3": None, "b2": b, "c2": c, "c3": c}


def _gemm_pair(dtype: str) -> Instance:
    found = _pair_of(dtype)
    operands = {x: y for x, y in found.items() if x[1:] not in ("2", "3") or x[0] == "x"} | {"sms": 2}
    operands |= {x: found[x] for x in ("b2", "c2", "c3")}
    statics = {"config": gemm.Config(128, 128), "tb": True, "epilogue": _both}
    return Instance(gemm.gemm, operands, statics, ("c", "c2", "c3"), _pair)


def _align(dtype: str, dependent: bool) -> Instance:
    """Three matrices of as many alignments."""
    size, operands = DTYPES[dtype].size, {}
    for i, (m, n) in enumerate(((9, 131 if size == 2 else 260), (70, 34 * 4 // size), (3, 300 // size))):
        operands[f"x{i or ''}"] = operands[f"y{i or ''}"] = spec(DTYPES[dtype], (m, n))
    statics = {"widths": (1, 2, 2) if size == 2 else (4, 8, 4), "dependent": dependent}

    def expected(x: Array, x1: Array, x2: Array, **_: Any) -> dict[str, Array]:
        return {"y": x.astype(float), "y1": x1.astype(float), "y2": x2.astype(float)}

    return Instance(aligned.align, operands, statics, ("y", "y1", "y2"), expected)


def _clear() -> Instance:
    """Two blocks of flags, the second not full."""

    def expected(flags: Array) -> dict[str, Array]:
        return {"flags": np.zeros(flags.shape)}

    return Instance(counters.clear, {"flags": spec(i32, (counters.RUN + 40,))}, {}, ("flags",), expected)


def _gemm_ampere(dtype: str, ta: bool, tb: bool) -> Instance:
    m, n, k = 136, 136, 4 * 32 + 8  # ragged, more steps than slots, four tiles
    a, b = spec(DTYPES[dtype], (k, m) if ta else (m, k)), spec(DTYPES[dtype], (n, k) if tb else (k, n))
    operands = {"a": a, "b": b, "c": spec(DTYPES[dtype], (m, n))}

    def expected(a: Array, b: Array, **_: Any) -> dict[str, Array]:
        a, b = a.astype(float), b.astype(float)
        return {"c": (a.T if ta else a) @ (b.T if tb else b)}

    statics = {"config": gemm_ampere.Config(), "ta": ta, "tb": tb}
    return Instance(gemm_ampere.gemm_ampere, operands, statics, ("c",), expected)


def _gemm_ampere_pair(dtype: str) -> Instance:
    statics = {"config": gemm_ampere.Config(128, 64), "tb": True, "epilogue": _both}
    return Instance(gemm_ampere.gemm_ampere, _pair_of(dtype), statics, ("c", "c2", "c3"), _pair)


def _in_turn(rows: Array, every: int, strips: int) -> Array:
    """Sums of rows that come to strips in turn, `every` at a time."""
    owner = np.arange(len(rows)) // every % strips
    return np.stack([rows[owner == i].sum(0) for i in range(strips)])


def _epilogue_backward(stages: int) -> Instance:
    """Of a bias and an activation."""
    m, n, strips = 200, 72, 2  # two laps of each strip, ragged in both directions
    whole, bias, part = spec(bf16, (m, n)), spec(f32, (1, n)), spec(f32, (strips, n))
    operands = {"x": whole, "dy": whole, "o0": bias, "o1": None, "o2": None, "o3": None}
    operands |= {"dx": whole, "d0": part, "d1": None, "d2": None, "d3": None}

    def expected(x: Array, dy: Array, o0: Array, **_: Any) -> dict[str, Array]:
        dx = dy.astype(float) * _silu(x.astype(float) + o0)[1]
        return {"dx": dx, "d0": _in_turn(dx, 64, strips)}

    statics = {"epilogue": SILU, "kinds": ("row",), "strips": strips, "stages": stages}
    return Instance(epilogue_backward.epilogue_backward, operands, statics, ("dx", "d0"), expected)


def _activation_backward(kind: str, pair: bool) -> Instance:
    m, n, strips = 37, 264, 2  # two laps of some warps, ragged in both directions
    whole, part, rows = spec(bf16, (m, n)), spec(f32, (strips, n)), 2 if pair else 1
    more = (whole, part) if pair else (None, None)
    operands = {"z": whole, "u": more[0], "dy": whole, "dz": whole, "du": more[0], "parts": part, "more": more[1]}

    def expected(z: Array, dy: Array, u: Any = None, **_: Any) -> dict[str, Array]:
        (y, slope), g = KINDS_IN_FLOAT64[kind](z.astype(float)), dy.astype(float)
        found = {"dz": g * slope * u.astype(float), "du": g * y} if pair else {"dz": g * slope}
        for name, made in zip(("parts", "more"), list(found.values()), strict=False):
            found[name] = _in_turn(made, rows * activation_backward.WARPS, strips)
        return found

    statics = {"activation": linear.ACTIVATIONS[kind], "strips": strips, "rows": rows, "width": 8}
    outputs = ("dz", "du", "parts", "more") if pair else ("dz", "parts")
    return Instance(activation_backward.activation_backward, operands, statics, outputs, expected)


def _silu(z: Array) -> tuple[Array, Array]:
    s = 1 / (1 + np.exp(-z))
    return z * s, s * (1 + z * (1 - s))


def _gelu(z: Array) -> tuple[Array, Array]:
    half = (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2
    return z * half, half + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


KINDS_IN_FLOAT64 = {"silu": _silu, "gelu": _gelu}
SILU = linear.finish(linear.ACTIVATIONS["silu"], False, True, False)
ROWS = (
    Shipped(
        name="gemm",
        about="matrix product with TMA, asynchronous tensor cores and persistent blocks; fp8 too",
        make=_gemm,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16", "e4m3"), "ta": (False, True), "tb": (False, True), "cluster": (1, 2)},
        opcodes=("HGMMA|QGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        spilled=8,  # once a tile: the walk's state waits for the products of clusters
    ),
    Shipped(
        name="gemm_swapped",
        about="matrix product as its transpose, with tiles of any multiple of 16 rows of the result",
        make=_gemm_swapped,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16"), "tb": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
    Shipped(
        name="gemm_pair",
        about="two products of one operand in one kernel, with what their backward pass needs",
        make=_gemm_pair,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
    ),
    Shipped(
        name="aligned",
        about="matrices whose rows begin anywhere, copied to where TMA can address them",
        make=_align,
        options={"dtype": ("bf16", "e4m3"), "dependent": (False, True)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="counters_clear",
        about="zeros for counters and flags",
        make=_clear,
        needs=("dependent launch",),
        options={},
        opcodes=("STG",),
    ),
    Shipped(
        name="gemm_ampere",
        about="matrix product with mma.sync and cp.async",
        make=_gemm_ampere,
        options={"dtype": ("bf16", "f16"), "ta": (False, True), "tb": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="gemm_ampere_pair",
        about="two products of one operand with mma.sync",
        make=_gemm_ampere_pair,
        options={"dtype": ("bf16", "f16")},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="epilogue_backward",
        about="the gradient through any epilogue of a product, and of its operands",
        make=_epilogue_backward,
        options={"stages": (0, epilogue_backward.STAGES)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="activation_backward",
        about="the backward pass of an activation or gate behind a product, with the sums of a bias",
        make=_activation_backward,
        options={"kind": ("silu", "gelu"), "pair": (False, True)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
)
