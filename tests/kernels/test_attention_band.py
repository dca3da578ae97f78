"""Attention with windows, a cap of scores and sinks, forward and backward, beside float64 where no tile is full."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.kernels import attention_ampere, attention_backward, attention_hopper
from pykittens.kernels.attention import configuration, scores
from pykittens.kernels.attention_backward_ampere import AMPLE
from pykittens.kernels.reference import attention_backward as reference
from pykittens.kernels.scale import HIGHEST, LOG2E, STEADY, steady

BF16 = np.dtype(ml_dtypes.bfloat16)
# n, m, causal, window, softcap, sinks: a block hidden on either side, none that is whole, nothing seen, everything.
CASES = (
    (150, 300, True, (70, None), None, False),
    (150, 300, False, (150, 20), 3.0, True),
    (300, 200, False, (40, None), None, False),
    (70, 200, False, (-5, 2), None, True),
    (200, 70, True, (10, 50), 5.0, True),
    (40, 170, False, (2**40, -120), None, False),
)
each = pytest.mark.parametrize(("n", "m", "causal", "window", "softcap", "sunk"), CASES)


def operands(n: int, m: int, d: int, sunk: bool) -> tuple[list[np.ndarray], np.ndarray | None, np.ndarray]:
    rng = np.random.default_rng(n * m)
    shapes = ((1, 2, n, d),) * 2 + ((1, 1, m, d),) * 2
    given = [rng.standard_normal(shape).astype(BF16) for shape in shapes]
    return given, rng.standard_normal(2).astype(np.float32) if sunk else None, rng.standard_normal((1, 2, n))


def error(found: Any, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(float) - expected) / max(np.linalg.norm(expected), 1e-2))


def check(found: tuple[Any, ...], expected: tuple[np.ndarray, ...]) -> None:
    for name, x, y in zip(("dq", "dk", "dv", "dsinks"), found, expected, strict=False):
        assert error(x, y) < 1.5e-2, name


@pytest.mark.thin(2)
@each
@pytest.mark.parametrize("d", (64, *(pytest.param(d, marks=pytest.mark.whole) for d in (128, 256))))
def test_hopper(n: int, m: int, causal: bool, window: Any, softcap: float | None, sunk: bool, d: int) -> None:
    (do, q, k, v), sinks, dlse = operands(n, m, d, sunk)
    settings = {"causal": causal, "softcap": softcap, "sinks": sinks}
    sides = dict(zip(("left", "right"), window, strict=True))
    o, lse, *gradients = reference(do, q, k, v, scale=d**-0.5, dlse=dlse, **settings, **sides)
    found, logs = pk.attention(q, k, v, window=window, return_lse=True, **settings)
    assert error(found, o) < 1e-2
    np.testing.assert_allclose(logs, lse, rtol=1e-5, atol=1e-4)
    assert (np.asarray(found)[np.isneginf(lse)] == 0).all()
    given = (do, q, k, v, o.astype(BF16), lse.astype(np.float32))
    check(pk.attention_backward(*given, dlse=dlse.astype(np.float32), window=window, **settings), gradients)


def test_a_cap_where_whole_tiles_are_seen() -> None:
    """Four keys of a row share a reciprocal: small scores, large ones, and a row of NaN, which stays alone."""
    (_, q, k, v), _, _ = operands(70, 300, 64, False)
    q[0, :, :5] *= 100.0
    nan = q.copy()
    nan[0, 0, 7] = np.nan
    for causal in (False, True):
        o, lse, *_ = reference(q, q, k, v, scale=0.125, softcap=3.0, causal=causal)
        found, logs = pk.attention(nan, k, v, softcap=3.0, causal=causal, return_lse=True)
        assert np.isnan(found[0, 0, 7].astype(float)).all()
        found[0, 0, 7], logs[0, 0, 7] = o[0, 0, 7], lse[0, 0, 7]
        assert error(found, o) < 1e-2
        np.testing.assert_allclose(logs, lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("cap", "dtype"), ((50.0, BF16), (60.0, BF16), (30.0, np.dtype(np.float16))))
def test_caps_that_all_scores_reach(cap: float, dtype: np.dtype) -> None:
    """One peak serves all rows under low caps: rows that see nothing but the least scores are exact, too."""
    (_, q, k, v), *_ = operands(150, 280, 64, False)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    q[:], q[:, :, :60, 0], k[..., 0], k[:, :, 100:, 0] = q * 100, -9000.0, 8.0, 3.0
    o, lse, *_ = reference(q, q, k, v, scale=0.125, softcap=cap, causal=True)
    found, logs = pk.attention(q, k, v, softcap=cap, causal=True, return_lse=True)
    assert lse.min() < 7 - cap
    for rows in (slice(None, 60), slice(60, None)):
        assert error(found[:, :, rows], o[:, :, rows]) < 1e-2
    np.testing.assert_allclose(logs, lse, rtol=1e-4, atol=1e-3)


def test_low_caps() -> None:
    """Weights of f16 would be 0, and those of higher caps infinite."""
    assert steady(HIGHEST, "bf16") and 2 * HIGHEST * LOG2E - STEADY < 64
    assert not steady(HIGHEST * 1.01, "bf16") and not steady(1.0, "f16") and not steady(None, "bf16")


@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("d", (64, 128, 256))
def test_low_caps_compile_without_spills(causal: bool, d: int) -> None:
    x, n = pk.spec(pk.bf16, (1, 2, 9000, d)), 9000
    settings = {"steady": True, "causal": causal, **configuration(d, causal, n, True, True)}
    cubin = attention_hopper.attend.compile(x, x, x, x, None, 0.1, None, None, 30.0, **settings, arch="sm_90a")
    assert not cubin.spills and not cubin.warnings


@pytest.mark.thin(2)
@each
@pytest.mark.parametrize("d", (64, pytest.param(128, marks=pytest.mark.whole)))
def test_mma_sync(n: int, m: int, causal: bool, window: Any, softcap: float | None, sunk: bool, d: int) -> None:
    (do, q, k, v), sinks, dlse = operands(n, m, d, sunk)
    settings = {"causal": causal, "softcap": softcap, "sinks": sinks}
    sides = dict(zip(("left", "right"), window, strict=True))
    o, lse, *gradients = reference(do, q, k, v, scale=d**-0.5, dlse=dlse, **settings, **sides)
    told = scores(d, causal, None, *window, softcap)
    found, logs = np.full_like(q, np.nan), np.full(lse.shape, np.nan, np.float32)
    attention_ampere.attend(q, k, v, found, told.scale, logs, *told.band, sinks, causal=told.causal)
    assert error(found, o) < 1e-2
    np.testing.assert_allclose(logs, lse, rtol=1e-5, atol=1e-4)
    results = [np.full_like(x, np.nan) for x in (q, k, v)] + [np.full(2, np.nan, np.float32)]
    row = (o.astype(BF16), lse.astype(np.float32), dlse.astype(np.float32))
    last = (sinks, None if sinks is None else results[3])
    attention_backward.STEPS(
        do, q, k, v, *row, *results[:3], told.scale, *told.band, *last, causal=told.causal, mma_sync=AMPLE
    )
    check(tuple(results), tuple(gradients))


@pytest.mark.parametrize("window", ((40, None), pytest.param((None, 50), marks=pytest.mark.whole)))
def test_additions_in_one_order(window: tuple[int | None, int | None]) -> None:
    (do, q, k, v), *_ = operands(140, 150, 64, False)
    do, q = do[:, :1], q[:, :1]
    o, lse, *gradients = reference(do, q, k, v, scale=0.125, left=window[0], right=window[1])
    given = (do, q, k, v, o.astype(BF16), lse.astype(np.float32))
    check(pk.attention_backward(*given, window=window, deterministic=True), tuple(gradients))


def test_rows_that_see_nothing_are_zero() -> None:
    """Whatever lies in the values of the block that is visited for them."""
    (_, q, k, v), sinks, _ = operands(100, 90, 64, True)
    v[:] = np.nan
    for given in (None, sinks):
        out = np.asarray(pk.attention(q, k, v, window=(-60, 60), sinks=given), float)
        seen = np.arange(100) - 10 + 60 < 90
        assert (out[:, :, ~seen] == 0).all()
        assert np.isnan(out[:, :, seen]).all()


def test_no_keys_at_all() -> None:
    (_, q, k, v), sinks, dlse = operands(20, 30, 64, True)
    assert sinks is not None
    k, v = k[:, :, :0], v[:, :, :0]
    out, lse = pk.attention(q, k, v, sinks=sinks, return_lse=True)
    assert (np.asarray(out, float) == 0).all()
    np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], lse.shape))
    dlse = dlse.astype(np.float32)
    *_, dsinks = pk.attention_backward(q, q, k, v, out, lse, dlse=dlse, sinks=sinks)
    np.testing.assert_allclose(dsinks, dlse.sum((0, 2)), rtol=1e-6)


def test_causal_is_a_side_of_0() -> None:
    (_, q, k, v), *_ = operands(100, 130, 64, False)
    first = pk.attention(q, k, v, causal=True)
    for settings in ({"window": (None, 0)}, {"window": (None, 5), "causal": True}, {"window": (400, 0)}):
        np.testing.assert_array_equal(pk.attention(q, k, v, **settings), first)


@pytest.mark.parametrize(
    ("settings", "said"),
    (
        ({"window": 5}, "window=5"),
        ({"window": (1.5, None)}, r"window=\(1.5, None\)"),
        ({"window": (1, 2, 3)}, r"window=\(1, 2, 3\)"),
        ({"softcap": 0.0}, "softcap=0.0"),
        ({"softcap": 1e9}, "softcap=1000000000.0"),
        ({"softcap": float("nan")}, "softcap=nan"),
        ({"sinks": np.zeros(3, np.float32)}, r"sinks are f32 \(3,\)"),
        ({"sinks": np.zeros(2)}, r"sinks are f64 \(2,\)"),
    ),
)
def test_refusals(settings: dict[str, Any], said: str) -> None:
    (_, q, k, v), *_ = operands(20, 30, 64, False)
    with pytest.raises(ArgumentError, match=said):
        pk.attention(q, k, v, **settings)
