"""Attention with score functions and masks of a user, beside float64 where no tile is full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError, TraceError
from pykittens.functions import scorings
from pykittens.interop.arrays import describe
from pykittens.kernels import attention_ampere
from pykittens.kernels.attention import scores, table

BF16 = np.dtype(ml_dtypes.bfloat16)
HEADS = 2


class Case(NamedTuple):
    """A score function and a mask, and the same in NumPy: of (s, batch, head, row, col) that broadcast."""

    score: Callable[..., Any] | None = None
    mask: Callable[..., Any] | None = None
    plain: Callable[..., Any] = lambda s, *_: s
    seen: Callable[..., Any] = lambda *_: True
    score_operands: tuple[str, ...] = ()
    mask_operands: tuple[str, ...] = ()
    settings: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "alibi": Case(
        lambda s, batch, head, row, col, slopes: s - slopes[head] * (row - col).to(pk.f32),
        plain=lambda s, batch, head, row, col, slopes: s - slopes[head] * (row - col),
        score_operands=("slopes",),
        settings={"causal": True},
    ),
    "bias": Case(
        lambda s, batch, head, row, col, bias: s + bias[head, row, col],
        plain=lambda s, batch, head, row, col, bias: s + bias[head, row, col],
        score_operands=("bias",),
    ),
    "relative": Case(
        lambda s, batch, head, row, col, table, by: s * by[0] + table[head, row - col + 150],
        plain=lambda s, batch, head, row, col, table, by: s * by[0] + table[head, row - col + 150],
        score_operands=("table", "by"),
        settings={"softcap": 3.0, "window": (60, 40)},
    ),
    "documents": Case(
        mask=lambda batch, head, row, col, ids: ids[batch, row] == ids[batch, col],
        seen=lambda batch, head, row, col, ids: ids[batch, row] == ids[batch, col],
        mask_operands=("ids",),
        settings={"causal": True},
    ),
    "prefix": Case(
        lambda s, batch, head, row, col: pk.where(row == col, 2.0 * s, s),
        lambda batch, head, row, col, prefix: (col < prefix[batch]) | (row >= col),
        lambda s, batch, head, row, col: np.where(row == col, 2 * s, s),
        lambda batch, head, row, col, prefix: (col < prefix[batch]) | (row >= col),
        mask_operands=("prefix",),
    ),
    "nothing": Case(
        mask=lambda batch, head, row, col: (row > 70) & (col > 100),
        seen=lambda batch, head, row, col: (row > 70) & (col > 100),
    ),
    "infinite": Case(
        lambda s, batch, head, row, col: pk.where(col > 30, -pk.inf, s),
        plain=lambda s, batch, head, row, col: np.where(col > 30, -np.inf, s),
    ),
}
each = pytest.mark.parametrize("name", CASES)


def operands(n: int, m: int, d: int = 64, batch: int = 2) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(n + m)
    shapes = ((batch, HEADS, n, d),) * 2 + ((batch, 1, m, d),) * 2
    tables = {
        "slopes": np.array([0.5, 0.03], np.float32),
        "bias": rng.standard_normal((HEADS, n, m)).astype(BF16),
        "table": rng.standard_normal((HEADS, 300)).astype(np.float32),
        "by": np.array([0.5], np.float32),
        "ids": np.sort(rng.integers(0, 4, (batch, max(n, m)))).astype(np.int32),
        "prefix": np.array([70, 3], np.int32)[:batch],
    }
    return [rng.standard_normal(shape).astype(BF16) for shape in shapes], tables


def exact(case: Case, q: Any, k: Any, v: Any, tables: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The output and the log-sum-exp, in float64."""
    (batch, heads, n, d), m = q.shape, k.shape[2]
    at = [
        x.reshape([-1 if i == j else 1 for j in range(4)]) for i, x in enumerate(map(np.arange, (batch, heads, n, m)))
    ]
    q, k, v = (x.astype(float) for x in (q, k, v))
    s = q @ k.swapaxes(2, 3) / np.sqrt(d)
    if cap := case.settings.get("softcap"):
        s = cap * np.tanh(s / cap)
    s = case.plain(s, *at, *(np.asarray(tables[x]).astype(float) for x in case.score_operands))
    seen = np.asarray(case.seen(*at, *(tables[x] for x in case.mask_operands)))
    left, right = case.settings.get("window", (None, None))
    distance = at[3] - at[2] - (m - n)
    right = 0 if case.settings.get("causal") else right
    seen = seen & (distance >= -(m + n if left is None else left)) & (distance <= (m + n if right is None else right))
    s = np.where(seen, s, -np.inf)
    peak = np.maximum(s.max(3, keepdims=True), -1e30)
    weight = np.exp(s - peak)
    total = weight.sum(3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, -np.inf, peak + np.log(total))[..., 0]
    return (weight / np.where(total == 0, 1, total)) @ v, lse


def close(found: Any, logs: Any, expected: np.ndarray, lse: np.ndarray) -> None:
    assert np.linalg.norm(np.asarray(found).astype(float) - expected) < 1e-2 * max(np.linalg.norm(expected), 1e-2)
    np.testing.assert_allclose(logs, lse, rtol=1e-4, atol=2e-4)
    assert (np.asarray(found)[np.isneginf(lse)] == 0).all()


@each
def test_hopper(name: str) -> None:
    case, ((q, _, k, v), tables) = CASES[name], operands(100, 150)
    given = {f"{x}_operands": [tables[y] for y in getattr(case, f"{x}_operands")] for x in ("score", "mask")}
    found = pk.attention(q, k, v, return_lse=True, score=case.score, mask=case.mask, **given, **case.settings)
    close(*found, *exact(case, q, np.repeat(k, HEADS, 1), np.repeat(v, HEADS, 1), tables))


@each
def test_mma_sync(name: str) -> None:
    case, ((q, _, k, v), tables) = CASES[name], operands(100, 150)
    given = [tables[x] for x in (*case.score_operands, *case.mask_operands)]
    known = scorings.known_of(
        scorings.number_of(case.score, case.mask), len(case.score_operands), list(map(describe, given))
    )
    told = scores(
        64,
        case.settings.get("causal", False),
        None,
        *case.settings.get("window", (None, None)),
        case.settings.get("softcap"),
    )
    found, logs = np.full_like(q, np.nan), np.full(q.shape[:3], np.nan, np.float32)
    more = (*told.band, None, None, None, *map(table, given))
    attention_ampere.attend(q, k, v, found, told.scale, logs, *more, scoring=known.scoring, causal=told.causal)
    close(found, logs, *exact(case, q, np.repeat(k, HEADS, 1), np.repeat(v, HEADS, 1), tables))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    (
        ({"score": 5}, ArgumentError, "score is 5"),
        ({"mask": 5}, ArgumentError, "mask is 5"),
        ({"score": lambda s, b, h, row, col: row}, TraceError, "the score function returns"),
        ({"score": lambda s, b, h, row, col: s.to(pk.bf16)}, TraceError, "the score function returns"),
        ({"score": lambda s, b, h, row, col: s - s.row_max()}, TraceError, "in a score function"),
        ({"score": lambda s, b, h, row, col: s + s.row_sum()}, TraceError, "in a score function"),
        ({"score": lambda s, b, h, row, col: s + pk.row_index(s).to(pk.f32)}, TraceError, "in a score function"),
        ({"mask": lambda b, h, row, col: row - col}, TraceError, "the mask returns"),
        ({"mask": lambda b, h, row, col: None}, TraceError, "the mask returns None"),
        ({"mask_operands": [np.zeros(2, np.float32)]}, ArgumentError, "1 operands of no mask"),
        ({"score_operands": [np.zeros(2, np.float32)]}, ArgumentError, "1 operands of no score"),
        (
            {"score": lambda s, b, h, row, col, x: s * x[h], "score_operands": [np.zeros(3, np.float32)]},
            ArgumentError,
            r"shape \(3,\), indexed by head",
        ),
        (
            {"score": lambda s, b, h, row, col, x: s * x[h, row], "score_operands": [np.zeros(2, np.float32)]},
            TraceError,
            "2 indices of an operand of 1",
        ),
        (
            {"score": lambda s, b, h, row, col, x: s * x[h], "score_operands": [np.zeros(2)]},
            ArgumentError,
            "operand 0 of score and mask is f64",
        ),
        (
            {"score": lambda s, *_: s, "score_operands": [np.zeros(2, np.float32)] * 5},
            ArgumentError,
            "5 operands of score and mask",
        ),
    ),
)
def test_refusals(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    (q, _, k, v), _ = operands(20, 30)
    with pytest.raises(error, match=said):
        pk.attention(q, k, v, **settings)
