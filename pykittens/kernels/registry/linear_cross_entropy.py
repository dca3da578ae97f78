"""Cross-entropy of a linear layer: its products, and the small kernels around them."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, bf16, f32, i32
from .. import gemm, linear_cross_entropy
from .. import linear_cross_entropy_gradients as ahead
from ..catalog import Array, Instance, Shipped


def _product(dtype: str, everything: bool, back: bool = False) -> Instance:
    """The product of the forward pass, which leaves terms of the loss; or that of the backward pass."""
    ours, (m, v, k) = linear_cross_entropy, (200, 520, 5 * 64 + 16)
    config, terms, cap = gemm.Config(), 4 if everything else 3, 5.0 if everything else 0.0
    bias = spec(f32, (1, v)) if everything else None
    made = spec(DTYPES[dtype], (m, v)) if back else spec(f32, (terms * 3, m))
    targets = np.random.default_rng(1).integers(-1, v, m)

    def expected(a: Array, b: Array, x1: Array, x2: Array | None, **_: Any) -> dict[str, Array]:
        z = a.astype(float) @ b.astype(float).T + (0 if x2 is None else x2)
        z = np.tanh(z / cap) * cap if cap else z
        hot = np.arange(v) == targets[:, None]
        if back:
            level, scale, target, even = x1[..., None].astype(float)
            slope = np.exp2(z * np.log2(np.e) + level) * scale - (even if everything else 0) - np.where(hot, target, 0)
            return {"c": np.where(targets[:, None] < 0, 0, slope * (1 - (z / cap) ** 2 if cap else 1))}
        return {"x1": np.concatenate([np.array(x[:terms]) for x in _terms(z, hot, config.cols)])}

    epilogue = ours.gradient(everything, cap, False) if back else ours.statistics(terms, cap, v)
    extras = {"x0": spec(i32, (1, m)), "x1": spec(f32, (4, m)) if back else made, "x2": bias, "x3": None, "sms": 2}
    operands = {"a": spec(DTYPES[dtype], (m, k)), "b": spec(DTYPES[dtype], (v, k)), "c": made if back else None}
    statics = {"config": config, "tb": True, "epilogue": epilogue}
    outputs, values = ("c",) if back else ("x1",), {"x0": targets[None]}
    if back:  # logits whose exponentials are numbers of 16 bits
        values["a"] = np.random.default_rng(2).standard_normal((m, k)) / np.sqrt(k)
    return Instance(gemm.gemm, {**operands, **extras}, statics, outputs, expected, values)


def _terms(z: Array, hot: Array, width: int) -> list[list[Array]]:
    """What each tile of so many columns leaves of its rows."""
    found = []
    for t in (slice(i, i + width) for i in range(0, z.shape[1], width)):
        peak = z[:, t].max(1)
        sums = np.exp(z[:, t] - peak[:, None]).sum(1), np.where(hot[:, t], z[:, t], 0).sum(1), z[:, t].sum(1)
        found.append([peak, *sums])
    return found


def _kept(dtype: str, everything: bool) -> Instance:
    """The product of the forward pass that keeps exponentials."""
    ours, (m, v, k) = linear_cross_entropy, (200, 520, 5 * 64 + 16)
    terms, piece, bias = 4 if everything else 3, linear_cross_entropy.PIECE, spec(f32, (1, v)) if everything else None
    targets = np.random.default_rng(1).integers(-1, v, m)

    def expected(a: Array, b: Array, x3: Array | None, **_: Any) -> dict[str, Array]:
        z = a.astype(float) @ b.astype(float).T + (0 if x3 is None else x3)
        found = _terms(z, np.arange(v) == targets[:, None], piece)
        peaks = np.array([x[0] for x in found])
        powers = np.exp(z - peaks[np.arange(v) // piece].T)
        return {"c": powers, "x1": np.concatenate([np.array(x[:terms]) for x in found]), "x2": peaks}

    tiles, half = -(-v // piece), DTYPES[dtype]
    operands: dict[str, Any] = {"a": spec(half, (m, k)), "b": spec(half, (v, k)), "c": spec(half, (m, v))}
    operands |= {
        "x0": spec(i32, (1, m)),
        "x1": spec(f32, (terms * tiles, m)),
        "x2": spec(f32, (tiles, m)),
        "x3": bias,
        "sms": 2,
    }
    statics = {"config": gemm.Config(), "tb": True, "epilogue": ours.statistics(terms, 0.0, v, True, True)}
    return Instance(gemm.gemm, operands, statics, ("c", "x1", "x2"), expected, {"x0": targets[None]})


def _rescale(dtype: str, smooth: bool) -> Instance:
    m, v, half = 300, 200, DTYPES[dtype]
    columns, tiles = np.random.default_rng(1).integers(-2, v, m), -(-v // linear_cross_entropy.PIECE)
    state = np.random.default_rng(2).random((4, m)) * np.array([[-8], [1], [1], [0.01]])

    def expected(powers: Array, peaks: Array, **_: Any) -> dict[str, Array]:
        level, scale, hot, even = state[..., None].astype(np.float32).astype(float)
        peak = peaks[np.arange(v) // linear_cross_entropy.PIECE].T
        slope = powers.astype(float) * np.exp2(peak * np.log2(np.e) + level) * scale - (even if smooth else 0)
        slope = slope - np.where(np.arange(v) == columns[:, None], hot, 0)
        return {"out": np.where(columns[:, None] == linear_cross_entropy.IGNORED, 0, slope)}

    operands = {"powers": spec(half, (m, v)), "peaks": spec(f32, (tiles, m)), "column": spec(i32, (m,))}
    operands |= {"state": spec(f32, (4, m)), "out": spec(half, (m, v))}
    statics, values = {"smooth": smooth, "everywhere": False}, {"column": columns, "state": state}
    return Instance(linear_cross_entropy.rescale, operands, statics, ("out",), expected, values)


def _beside() -> Instance:
    """The product that keeps exponentials beside a number of each row; many logits of every other are too far above."""
    ours, (m, v, k) = linear_cross_entropy, (200, 520, 5 * 64 + 16)
    tiles = -(-v // ours.PIECE)
    targets = np.random.default_rng(1).integers(-1, v, m)
    given = np.where(np.arange(m) % 2 == 0, -50.0, 3.0)

    def expected(a: Array, b: Array, **_: Any) -> dict[str, Array]:
        z = a.astype(float) @ b.astype(float).T
        cut = [slice(i * ours.PIECE, (i + 1) * ours.PIECE) for i in range(tiles)]
        peaks = np.array([z[:, t].max(1) for t in cut])
        beside = np.where(peaks > given + ours.NEAR, peaks, given)
        powers = np.exp(z - beside[np.arange(v) // ours.PIECE].T)
        hot = np.where(np.arange(v) == targets[:, None], z, 0)
        terms = [np.array([peak, powers[:, t].sum(1), hot[:, t].sum(1)]) for t, peak in zip(cut, beside, strict=True)]
        return {"c": powers, "x1": np.concatenate(terms)}

    operands: dict[str, Any] = {"a": spec(bf16, (m, k)), "b": spec(bf16, (v, k)), "c": spec(bf16, (m, v))}
    operands |= {
        "x0": spec(i32, (1, m)),
        "x1": spec(f32, (3 * tiles, m)),
        "x2": spec(f32, (1, m)),
        "x3": None,
        "sms": 2,
    }
    epilogue = ours.statistics(3, 0.0, v, keep=True, known=True)
    statics, values = (
        {"config": gemm.Config(), "tb": True, "epilogue": epilogue},
        {"x0": targets[None], "x2": given[None]},
    )
    return Instance(gemm.gemm, operands, statics, ("c", "x1"), expected, values)


def _target_logits(bias: bool) -> Instance:
    m, v, h = 37, 50, 264
    columns = np.random.default_rng(1).integers(-2, v, m)

    def expected(x: Array, weight: Array, bias: Array | None, **_: Any) -> dict[str, Array]:
        at = np.maximum(columns, 0)
        found = (x.astype(float) * weight.astype(float)[at]).sum(1)
        return {"logit": found + (0 if bias is None else bias[0, at])}

    operands: dict[str, Any] = {"x": spec(bf16, (m, h)), "weight": spec(bf16, (v, h)), "column": spec(i32, (m,))}
    operands |= {"bias": spec(f32, (1, v)) if bias else None, "logit": spec(f32, (m,))}
    return Instance(ahead.target_logits, operands, {}, ("logit",), expected, {"column": columns})


def _factors(z: float) -> Instance:
    """A z-loss of 1 makes factors of some rows negative, were they not made otherwise."""
    m, row = 300, spec(f32, (300,))
    draw = np.random.default_rng(2)
    columns, lse = draw.integers(-2, 9, m), draw.random(m) * 4 - 1
    most = lse - draw.random(m)
    found = np.array([most, lse - draw.random(m), np.exp(lse - most)])

    def expected(share: Array, **_: Any) -> dict[str, Array]:
        (_, logit, _), up = found, np.where(columns == -1, 0, np.where(columns == -2, np.nan, share[0]))
        bend = 1 + 2 * z * lse
        shape, times = np.where(bend >= 0.5, bend, 1), np.where(bend >= 0.5, 1, bend)
        exact = np.exp(logit - most) * times - np.exp(lse - most) / shape
        hot = exact.astype(np.float32).astype(ml_dtypes.bfloat16).astype(float)
        factor = up * shape * np.exp(most - lse) * exact / hot
        beside = np.where((bend >= 0.5) | (columns == -1), most, np.nan)
        state, marks = (-lse * np.log2(np.e), up * bend, up, factor), (beside, most, times, hot)
        return {"state": np.array(state), "marks": np.array(marks)}

    operands: dict[str, Any] = {
        "column": spec(i32, (m,)),
        "lse": row,
        "found": spec(f32, (3, m)),
        "share": spec(f32, (1,)),
    }
    operands |= {"state": spec(f32, (4, m)), "marks": spec(f32, (4, m)), "z": z}
    values = {"column": columns, "lse": lse, "found": found}
    return Instance(ahead.factors, operands, {}, ("state", "marks"), expected, values)


def _settle() -> Instance:
    """Some pieces of some rows are beside other numbers; what is not written stays 0 here."""
    m, v, piece = 150, 200, linear_cross_entropy.PIECE
    draw, tiles = np.random.default_rng(2), -(-v // piece)
    columns, most = draw.integers(-2, v, m), draw.random(m)
    times, hot = np.where(np.arange(m) % 50 == 0, -0.25, 1.0), -draw.random(m) * 9
    marks = np.array([np.where(times == 1, most, np.nan), most, times, hot])
    away = draw.random((tiles, m)) < 0.02
    numbers = most - np.where(away, draw.random((tiles, m)) * 3, 0)
    written = np.repeat(np.add.reduceat(away.any(0) | (times != 1), range(0, m, ahead.TALL)) > 0, ahead.TALL)[:m]

    def expected(powers: Array, **_: Any) -> dict[str, Array]:
        by = np.exp(numbers.astype(np.float32) - most.astype(np.float32)) * times
        found = powers.astype(float) * by[np.arange(v) // piece].T
        found = np.where((written & (columns != linear_cross_entropy.IGNORED))[:, None], found, 0)
        return {"out": np.where(np.arange(v) == columns[:, None], hot[:, None], found)}

    operands = {"powers": spec(bf16, (m, v)), "numbers": spec(f32, (tiles, m)), "column": spec(i32, (m,))}
    operands |= {"marks": spec(f32, (4, m)), "out": spec(bf16, (m, v))}
    values = {"numbers": numbers, "column": columns, "marks": marks}
    return Instance(ahead.settle, operands, {}, ("out",), expected, values)


def _finish(tiles: int, smooth: bool) -> Instance:
    m, terms, row = 70, 4 if smooth else 3, spec(f32, (70,))
    columns = np.random.default_rng(1).integers(-2, 9, m)
    numbers = {"smoothing": 0.1 if smooth else 0.0, "even": 0.1 / 64, "z": 1e-3}

    def expected(parts: Array, **_: Any) -> dict[str, Array]:
        peak, total, picked, *level = parts.astype(float)
        lse = np.log((np.exp(peak) * total).sum(0))
        loss = lse - picked.sum(0) * (1 - numbers["smoothing"]) + lse**2 * numbers["z"]
        loss = loss - level[0].sum(0) * numbers["even"] if smooth else loss
        loss = np.where(columns == -1, 0, np.where(columns == -2, np.nan, loss))
        return {"loss": loss, "lse": lse}

    operands = {"parts": spec(f32, (terms, tiles, m)), "column": spec(i32, (m,)), "loss": row, "lse": row}
    parts = np.random.default_rng(2).random((terms, tiles, m)) + 0.5
    parts[2] *= -1  # a target's logit is below the log-sum-exp
    values = {"column": columns, "parts": parts}
    return Instance(linear_cross_entropy.finish, operands | numbers, {}, ("loss", "lse"), expected, values)


def _slopes(each: bool) -> Instance:
    m, row = 600, spec(f32, (600,))
    columns, numbers = np.random.default_rng(1).integers(-2, 9, m), {"smoothing": 0.1, "even": 0.01, "z": 1e-3}

    def expected(lse: Array, share: Array, dloss: Array, dlse: Array, **_: Any) -> dict[str, Array]:
        lse, up = lse.astype(float), dloss.astype(float) * share
        up = np.where(columns == -1, 0, np.where(columns == -2, np.nan, up))
        rows = -lse * np.log2(np.e), up * (1 + 2e-3 * lse) + dlse, up * 0.9, up * 0.01
        return {"state": np.array(rows)}

    operands = {"column": spec(i32, (m,)), "lse": row, "share": spec(f32, (1,))}
    operands |= {"dloss": row if each else spec(f32, (1,)), "dlse": row, "state": spec(f32, (4, m))}
    statics, values = {"each": each}, {"column": columns}
    return Instance(linear_cross_entropy.slopes, operands | numbers, statics, ("state",), expected, values)


def _columns(dtype: str) -> Instance:
    targets = np.array([0, 9, 10, 39, 40, 99, -100])
    operands = {"targets": spec(DTYPES[dtype], (7, 1)), "column": spec(i32, (7,)), "ignore": -100, "v": 100}
    operands |= {"first": 10, "width": 30}

    def expected(**_: Any) -> dict[str, Array]:
        return {"column": np.array([-2, -2, 0, 29, -2, -2, -1])}

    return Instance(
        linear_cross_entropy.find_columns, operands, {}, ("column",), expected, {"targets": targets[:, None]}
    )


ROWS = (
    *(
        Shipped(
            name=f"linear_cross_entropy{'_gradient' if back else ''}",
            about=f"matrix product that leaves {words}",
            make=partial(_product, back=back),
            needs=("wgmma",),
            options={"dtype": ("bf16", "f16"), "everything": (False, True)},
            opcodes=("HGMMA", "UTMALDG", "MUFU", *(("UTMASTG",) if back else ("STG",))),
        )
        for back, words in (
            (False, "terms of a cross-entropy"),
            (True, "the gradient of the cross-entropy of its result"),
        )
    ),
    Shipped(
        name="linear_cross_entropy_kept",
        about="matrix product that leaves terms of a cross-entropy and keeps exponentials",
        make=_kept,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16"), "everything": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "MUFU", "STG", "UTMASTG"),
    ),
    Shipped(
        name="linear_cross_entropy_rescale",
        about="the gradient of logits from exponentials that were kept",
        make=_rescale,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16"), "smooth": (False, True)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="linear_cross_entropy_beside",
        about="matrix product that leaves terms of a cross-entropy and keeps exponentials beside a number of each row",
        make=_beside,
        needs=("wgmma",),
        options={},
        opcodes=("HGMMA", "UTMALDG", "MUFU", "STG", "UTMASTG"),
    ),
    Shipped(
        name="linear_cross_entropy_target_logits",
        about="each row's logit of its target",
        make=_target_logits,
        needs=("wgmma",),
        options={"bias": (False, True)},
        opcodes=("LDG", "STG", "FFMA"),
    ),
    Shipped(
        name="linear_cross_entropy_factors",
        about="what exponentials of a row of logits are multiplied by, and its target's gradient",
        make=_factors,
        needs=("wgmma",),
        options={"z": (0.0, 1.0)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="linear_cross_entropy_settle",
        about="the gradient of logits over a factor of each row, from exponentials that mostly stay",
        make=_settle,
        needs=("wgmma",),
        options={},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="linear_cross_entropy_finish",
        about="losses and log-sum-exps from the terms of all tiles of logits",
        make=_finish,
        needs=("wgmma",),
        options={"tiles": (3, 600), "smooth": (False, True)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="linear_cross_entropy_slopes",
        about="what the gradient of a row of logits is made with",
        make=_slopes,
        needs=("wgmma",),
        options={"each": (False, True)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="linear_cross_entropy_columns",
        about="where targets are in a slice of the vocabulary",
        make=_columns,
        needs=("wgmma",),
        options={"dtype": ("i32", "i64")},
        opcodes=("LDG", "STG"),
    ),
)
