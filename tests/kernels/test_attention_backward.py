"""Attention's gradients on the simulated GPU beside float64, at sizes that fill no tile."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.kernels import (
    attention_backward,
    attention_backward_ampere,
    attention_backward_divided,
    attention_backward_hopper,
    reference,
)
from pykittens.kernels.attention_backward_ampere import AMPLE
from pykittens.kernels.schedule import DeviceModel

BF16 = np.dtype(ml_dtypes.bfloat16)
TOLERANCE = {BF16: 1e-2, np.dtype(np.float16): 2e-3}
full_or_causal = pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))


def operands(n: int, m: int, d: int, heads: int = 1, key_heads: int = 1, dtype: Any = BF16) -> list[np.ndarray]:
    """do, q, k, v."""
    rng = np.random.default_rng(n * m)
    shapes = ((1, heads, n, d),) * 2 + ((1, key_heads, m, d),) * 2
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, of the whole: a row whose gradient is nearly zero has only rounding errors."""
    return float(np.linalg.norm(found.astype(float) - expected) / max(np.linalg.norm(expected), 1e-2))


def check(given: list[np.ndarray], causal: bool, scale: float | None = None, dlse: np.ndarray | None = None) -> None:
    do, q, k, v = given
    exact = q.shape[3] ** -0.5 if scale is None else scale
    o, lse, *expected = reference.attention_backward(do, q, k, v, scale=exact, causal=causal, dlse=dlse)
    o, lse = o.astype(q.dtype), lse.astype(np.float32)
    found = pk.attention_backward(do, q, k, v, o, lse, dlse=dlse, causal=causal, scale=scale)
    for name, x, y, like in zip(("dq", "dk", "dv"), found, expected, (q, k, v), strict=True):
        assert (x.dtype, x.shape) == (like.dtype, like.shape)
        assert error(x, y) < TOLERANCE[q.dtype], name
    if causal:
        assert (found[0][:, :, : max(q.shape[2] - k.shape[2], 0)] == 0).all()  # rows that see no key


@pytest.mark.thin
@full_or_causal
@pytest.mark.parametrize("d", (64, 128, 256))
@pytest.mark.parametrize(("n", "m"), ((1, 1), (1, 130), (63, 65), (65, 63), (130, 1), (130, 300)))
def test_awkward_lengths(n: int, m: int, d: int, causal: bool) -> None:
    check(operands(n, m, d), causal)


@pytest.mark.thin
@full_or_causal
@pytest.mark.parametrize("d", (64, 128, 256))
def test_shared_keys_scales_and_the_gradient_of_the_log_sum_exp(d: int, causal: bool) -> None:
    given = operands(70, 90, d, 4, 2, np.float16)
    dlse = np.random.default_rng(0).standard_normal((1, 4, 70)).astype(np.float32)
    for scale in (None, 0.0, -0.2):
        check(given, causal, scale, dlse)


@pytest.mark.thin
@full_or_causal
@pytest.mark.parametrize(("d", "shared"), ((64, AMPLE), (64, 99 * 1024), (128, AMPLE), (128, 99 * 1024)))
def test_with_mma_sync(d: int, shared: int, causal: bool) -> None:
    for n, m, heads, dtype in (
        (1, 130, 1, BF16),
        (65, 63, 2, np.dtype(np.float16)),
        (130, 1, 1, BF16),
        (70, 140, 4, BF16),
    ):
        do, q, k, v = operands(n, m, d, heads, max(heads // 2, 1), dtype)
        dlse = np.random.default_rng(0).standard_normal((1, heads, n)).astype(np.float32)
        o, lse, *expected = reference.attention_backward(do, q, k, v, scale=-0.2, causal=causal, dlse=dlse)
        found = [np.full_like(x, np.nan) for x in (q, k, v)]
        logs = lse.astype(np.float32)
        told = {"causal": causal, "mma_sync": shared, "deterministic": causal and d == 64}
        told["processors"] = 0 if m == 1 else 8  # among which the work on a tile of keys is divided
        attention_backward.STEPS(do, q, k, v, o.astype(dtype), logs, dlse, *found, -0.2, **told)
        for x, y in zip(found, expected, strict=True):
            assert error(x, y) < TOLERANCE[dtype]


@pytest.mark.thin(4)
@full_or_causal
@pytest.mark.parametrize("d", (64, *(pytest.param(d, marks=pytest.mark.whole) for d in (128, 256))))
def test_deterministic(d: int, causal: bool) -> None:
    """In any order in which blocks come, the parts of dq are added in one order: the same bits."""
    do, q, k, v = operands(70, 300, d)
    o, lse, dq, dk, dv = reference.attention_backward(do, q, k, v, scale=d**-0.5, causal=causal)
    o, lse = o.astype(BF16), lse.astype(np.float32)
    found = pk.attention_backward(do, q, k, v, o, lse, causal=causal, deterministic=True)
    for x, y in zip(found, (dq, dk, dv), strict=True):
        assert error(x, y) < 1e-2
    settings = {"causal": causal, **attention_backward.configuration(d)}
    padded, parts = attention_backward.scratch(70, d)
    sums = []
    for seed in (None, 1, 2):
        scaled, delta = (np.empty((1, 1, padded), np.float32) for _ in range(2))
        total, turns = np.empty((1, 1, *parts), np.float32), np.empty((1, 1, parts[0]), np.int32)
        attention_backward.prepare(o, do, lse, None, scaled, delta, total, turns)
        given = (q, k, v, do, scaled, delta, total, np.empty_like(k), np.empty_like(v), d**-0.5, turns)
        attention_backward_hopper.differentiate.simulate(*given, seed=seed, **settings)
        sums.append(total)
    for other in sums[1:]:
        np.testing.assert_array_equal(sums[0], other)


@pytest.mark.thin(2)
@pytest.mark.parametrize("fixed", (False, True), ids=("any order", "turns"))
@full_or_causal
@pytest.mark.parametrize("d", (64, 128))
def test_the_first_stores(d: int, causal: bool, fixed: bool) -> None:
    """In any order in which blocks come, dq may hold anything before."""
    do, q, k, v = operands(70, 300, d)
    o, lse, dq, _, _ = reference.attention_backward(do, q, k, v, scale=d**-0.5, causal=causal)
    o, lse = o.astype(BF16), lse.astype(np.float32)
    settings = {"causal": causal, **attention_backward.configuration(d)}
    padded, parts = attention_backward.scratch(70, d)
    for seed in (None, 1, 2, 3):
        scaled, delta = (np.empty((1, 1, padded), np.float32) for _ in range(2))
        total, flags = np.full((1, 1, *parts), np.nan, np.float32), np.empty((1, 1, parts[0]), np.int32)
        attention_backward.prepare(o, do, lse, None, scaled, delta, total, flags, clear=False)
        given = (q, k, v, do, scaled, delta, total, np.empty_like(k), np.empty_like(v), d**-0.5)
        told = {"turns": flags if fixed else None, "claims": flags, **settings}
        attention_backward_hopper.differentiate.simulate(*given, seed=seed, **told)
        found = np.empty_like(q)
        attention_backward.finish(total, scaled, found, d**-0.5, None, None, flags, width=d)
        assert error(found, dq) < 1e-2


@full_or_causal
@pytest.mark.parametrize("mma_sync", (0, AMPLE), ids=("wgmma", "mma.sync"))
def test_rows_behind_the_last_sequence_are_zero(mma_sync: int, causal: bool) -> None:
    """Of 70, 0 and 61 rows."""
    do, q, k, v = operands(300, 300, 64)
    offsets = np.array([0, 70, 70, 131], np.int32)
    o, lse, found = np.zeros_like(q), np.zeros((1, 1, 300), np.float32), [np.full_like(x, np.nan) for x in (q, k, v)]
    expected = [np.zeros(x.shape) for x in found]
    for rows in (slice(0, 70), slice(70, 131)):
        part = [x[:, :, rows] for x in (do, q, k, v)]
        o[:, :, rows], lse[:, :, rows], *gradients = reference.attention_backward(*part, scale=0.125, causal=causal)
        for x, y in zip(expected, gradients, strict=True):
            x[:, :, rows] = y
    told = {"mma_sync": AMPLE} if mma_sync else attention_backward.configuration(64)
    given = (do, q, k, v, o, lse, None, *found, 0.125, None, None, None, None, None, offsets, offsets)
    attention_backward.STEPS(*given, causal=causal, **told)
    for x, y in zip(found, expected, strict=True):
        assert error(x, y) < 1e-2
        assert (x[:, :, 131:] == 0).all()


def test_what_nobody_adds_to_is_zero() -> None:
    """A sink is all that rows of queries before the keys see."""
    do, q, k, v = operands(200, 40, 64)
    sinks = np.ones(1, np.float32)
    o, lse = pk.attention(q, k, v, causal=True, sinks=sinks, return_lse=True)
    dq, *_ = pk.attention_backward(do, q, k, v, o, lse, causal=True, sinks=sinks)
    assert (dq[:, :, :160] == 0).all()
    assert (dq[:, :, 160:] != 0).any()


def test_when_the_first_stores() -> None:
    window, causal = (100, 100), (None, 0)
    assert attention_backward.first_stores(128, 4096, causal, False)
    assert not attention_backward.first_stores(128, 4097, causal, False)  # too many tiles of keys add
    assert attention_backward.first_stores(64, 100_000, window, False)
    assert attention_backward.first_stores(128, 1024, causal, True)
    assert not attention_backward.first_stores(128, 1025, causal, True)
    assert attention_backward.first_stores(128, 1024, (None, None), True)
    assert not attention_backward.first_stores(128, 1024, (None, None), False)  # all blocks begin with one tile
    assert not attention_backward.first_stores(256, 1024, causal, False)


@pytest.mark.thin(4)
@full_or_causal
def test_deterministic_with_mma_sync(causal: bool) -> None:
    do, q, k, v = operands(40, 200, 64)
    o, lse, *expected = reference.attention_backward(do, q, k, v, scale=0.125, causal=causal)
    o, lse, found = o.astype(BF16), lse.astype(np.float32), [np.full_like(x, np.nan) for x in (q, k, v)]
    told = {"causal": causal, "deterministic": True, "mma_sync": AMPLE}
    attention_backward.STEPS(do, q, k, v, o, lse, None, *found, 0.125, **told)
    for x, y in zip(found, expected, strict=True):
        assert error(x, y) < 1e-2
    cut = attention_backward_ampere.configuration(64, AMPLE)
    padded, _ = attention_backward.scratch(40, 64)
    parts, sums = attention_backward_ampere.parts(padded, 64, cut["rows"], cut["warps"]), []
    for seed in (1, 2):
        scaled, delta = (np.empty((1, 1, padded), np.float32) for _ in range(2))
        total, turns = np.empty((1, 1, *parts), np.float32), np.empty((1, 1, parts[0]), np.int32)
        attention_backward.prepare(o, do, lse, None, scaled, delta, total, turns)
        given = (q, k, v, do, scaled, delta, total, np.empty_like(k), np.empty_like(v), 0.125, turns)
        attention_backward_ampere.differentiate.simulate(*given, seed=seed, causal=causal, **cut)
        sums.append(total)
    for other in sums[1:]:
        np.testing.assert_array_equal(sums[0], other)


@pytest.mark.thin(3)
@full_or_causal
@pytest.mark.parametrize(
    ("n", "m", "d", "heads", "cuts", "fixed"),
    (
        (200, 150, 64, 3, (2, 2), False),
        (130, 20, 64, 2, (1, 3), False),
        (70, 140, 128, 3, (2, 1), False),
        (150, 140, 256, 2, (2, 2), False),
        (70, 140, 64, 3, (2, 1), True),
        (70, 140, 256, 2, (2, 1), True),
    ),
)
def test_blocks_divide_the_work_on_a_tile_of_keys(
    n: int, m: int, d: int, heads: int, cuts: tuple[int, int], fixed: bool, causal: bool, monkeypatch: Any
) -> None:
    """Parts of the heads and of the queries, some of which see none of the keys."""
    monkeypatch.setattr(attention_backward_divided, "cut", lambda shape, processors: cuts)
    do, q, k, v = operands(n, m, d, heads)
    o, lse, *expected = reference.attention_backward(do, q, k, v, scale=d**-0.5, causal=causal)
    o, lse = o.astype(BF16), lse.astype(np.float32)
    found = pk.attention_backward(do, q, k, v, o, lse, causal=causal, deterministic=fixed)
    for x, y in zip(found, expected, strict=True):
        assert error(x, y) < 1e-2


def test_how_many_blocks_divide_the_work() -> None:
    """As the model of time says: enough for all multiprocessors, none where they are busy, in bounded memory."""
    shape, cut = attention_backward_divided.Shape, attention_backward_divided.cut
    assert cut(shape(16, 16, 16, 1024, 1024, 128, False, False), 132) == (1, 1)
    assert cut(shape(1, 10, 1, 516, 516, 64, True, False), 132)[0] == 10
    assert cut(shape(1, 1, 1, 8192, 1024, 128, False, False), 132)[1] > 4
    assert cut(shape(1, 1, 1, 8192, 1024, 128, True, True), 132) == (1, 1)  # parts of one head would wait
    rng = np.random.default_rng(0)
    for _ in range(200):
        shared, group, width = (int(x) for x in (rng.integers(1, 9), rng.integers(1, 41), rng.choice((64, 128, 256))))
        n, m = (int(x) for x in 2 ** rng.uniform(0, 14, 2))
        found = shape(2, shared * group, shared, n, m, width, bool(rng.integers(2)), False, width == 256)
        parts = cut(found, 132)
        times = attention_backward_divided.choices(found, DeviceModel())
        assert times[0].way == (width, *parts) and (width, 1, 1) in [choice.way for choice in times]
        assert all(0 < choice.microseconds < 1e9 for choice in times)
        sums = attention_backward_divided.parts_of(2, shared, m, width, *parts)
        assert parts == (1, 1) or 4 * np.prod(sums) < 2**28 * 1.5  # rows are padded to whole tiles
        assert group % parts[0] == 0 or parts[0] < group


def test_a_query_that_is_no_number() -> None:
    """Its own gradient is none either, and no row of zeros, as that of a row which sees no key."""
    do, q, k, v = operands(70, 70, 64)
    q[0, 0, 3, 5] = np.nan
    o, lse, *_ = reference.attention_backward(do, q, k, v, scale=0.125)
    dq, dk, dv = pk.attention_backward(do, q, k, v, o.astype(BF16), lse.astype(np.float32))
    rows = np.isnan(dq.astype(float)).all(-1)
    assert rows[0, 0, 3] and rows.sum() == 1 and np.isfinite(dq[~rows].astype(float)).all()
    assert np.isnan(dk.astype(float)).all(-1)[0, 0].all() and np.isnan(dv.astype(float)).all(-1)[0, 0].all()


def test_scores_far_below_zero() -> None:
    """Keys past the end have scores of 0, whose weights beside such rows would be infinite."""
    do, q, k, v = operands(70, 70, 64)
    q[..., 0], k[..., 0] = 60, -60
    o, lse, *expected = reference.attention_backward(do, q, k, v, scale=0.125)
    assert (lse < -300).all()
    found = pk.attention_backward(do, q, k, v, o.astype(BF16), lse.astype(np.float32))
    for x, y in zip(found, expected, strict=True):
        assert np.isfinite(x.astype(float)).all()
        assert (
            error(x[..., 1:], y[..., 1:]) < 2e-2
        )  # the first column sums numbers of both signs that are 60 times as large


def test_strides() -> None:
    """Operands in any order of dimensions, a gradient that is one number, a log-sum-exp with strides."""
    do, q, k, v = operands(70, 90, 64, 2, 2)
    do[:] = do[0, 0, 0, 0]
    o, lse, *_ = reference.attention_backward(do, q, k, v, scale=0.125)
    o, lse = o.astype(BF16), lse.astype(np.float32)
    first = pk.attention_backward(do, q, k, v, o, lse)
    one = np.broadcast_to(do[:1, :1, :1, :1], do.shape)
    moved = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v, o)]
    for result in (
        pk.attention_backward(one, *moved, np.asfortranarray(lse)),
        pk.attention_backward(one, q, k, v, o, lse),
    ):
        for x, y in zip(result, first, strict=True):
            np.testing.assert_array_equal(x, y)


def test_refusals() -> None:
    do, q, k, v = operands(20, 30, 64)
    lse = np.zeros((1, 1, 20), np.float32)
    for change, said in (
        ({"do": do[:, :, :10]}, r"do is bf16 \(1, 1, 10, 64\), where bf16 \(1, 1, 20, 64\) is needed"),
        ({"o": q.astype(np.float16)}, "o is f16"),
        ({"lse": lse.astype(np.float64)}, "lse is f64"),
        ({"v": v[:, :, :3]}, "shapes do not go together"),
    ):
        with pytest.raises(ArgumentError, match=said):
            pk.attention_backward(**{"do": do, "q": q, "k": k, "v": v, "o": q, "lse": lse} | change)
