"""Attention at head dimensions that fill no tile, and where values are narrower than keys, beside float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.kernels import attention_ampere, attention_backward, attention_backward_hopper
from pykittens.kernels.attention_backward_ampere import AMPLE
from pykittens.kernels.reference import attention_backward as reference
from pykittens.kernels.widths import backward_width, widths

BF16 = np.dtype(ml_dtypes.bfloat16)
DIMS = (
    (8, 8),
    (40, 40),
    (96, 96),
    (64, 40),
    (192, 128),
    *(pytest.param(d, d, marks=pytest.mark.whole) for d in (136, 200, 248)),
)
each = pytest.mark.parametrize(("d", "dv"), DIMS)


def operands(d: int, dv: int) -> list[np.ndarray]:
    """do, q, k, v; what lies beside the rows in memory is NaN, so that a tile that reads on shows it."""
    rng = np.random.default_rng(d + dv)
    found = []
    for heads, rows, width in ((2, 70, dv), (2, 70, d), (1, 150, d), (1, 150, dv)):
        around = np.full((1, heads, rows, width + 8), np.nan, BF16)
        around[..., :width] = rng.standard_normal((1, heads, rows, width))
        found.append(around[..., :width])
    return found


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(found.astype(float) - expected) < 1e-2 * np.linalg.norm(expected))


@pytest.mark.thin(2)
@each
def test_hopper(d: int, dv: int) -> None:
    do, q, k, v = operands(d, dv)
    o, lse, *gradients = reference(do, q, k, v, scale=d**-0.5, causal=True)
    found, logs = pk.attention(q, k, v, causal=True, return_lse=True)
    assert found.shape == o.shape and close(found, o) and close(logs, lse)
    results = pk.attention_backward(do, q, k, v, o.astype(BF16), lse.astype(np.float32), causal=True)
    assert [x.shape for x in results] == [q.shape, k.shape, v.shape]
    assert all(map(close, results, gradients))


@pytest.mark.parametrize(("d", "dv"), ((8, 8), (96, 96), (64, 40)))
def test_mma_sync(d: int, dv: int) -> None:
    do, q, k, v = operands(d, dv)
    o, lse, *gradients = reference(do, q, k, v, scale=d**-0.5, causal=True)
    found, logs = np.full(o.shape, np.nan, BF16), np.full(lse.shape, np.nan, np.float32)
    attention_ampere.attend(q, k, v, found, d**-0.5, logs, causal=True)
    assert close(found, o) and close(logs, lse)
    results = [np.full(x.shape, np.nan, BF16) for x in (q, k, v)]
    row = (o.astype(BF16), lse.astype(np.float32), None)
    attention_backward.STEPS(do, q, k, v, *row, *results, d**-0.5, causal=True, mma_sync=AMPLE)
    assert all(map(close, results, gradients))


def test_packed() -> None:
    """The rows of a sequence end where the columns do."""
    _, q, k, v = (x[0].swapaxes(0, 1) for x in operands(192, 128))
    offsets, keys = np.array([0, 30, 70], np.int32), np.array([0, 50, 150], np.int32)
    found = pk.attention_varlen(q, k, v, offsets, keys, causal=True)
    for i in (0, 1):
        a, b = slice(*offsets[i : i + 2]), slice(*keys[i : i + 2])
        alone = [np.ascontiguousarray(x).swapaxes(0, 1)[None] for x in (q[a], k[b], v[b])]
        np.testing.assert_array_equal(found[a].swapaxes(0, 1)[None], pk.attention(*alone, causal=True))


@pytest.mark.parametrize(("d", "dv"), ((96, 96), (192, 128)))
def test_backward_compiles_without_spills(d: int, dv: int) -> None:
    q, v = pk.spec(pk.bf16, (1, 1, 70, d)), pk.spec(pk.bf16, (1, 1, 70, dv))
    padded, parts = attention_backward.scratch(70, width := backward_width(d, dv))
    row = pk.spec(pk.f32, (1, 1, padded))
    sums = pk.spec(pk.f32, (1, 1, *parts))
    settings = {"causal": True, **attention_backward.configuration(width)}
    cubin = attention_backward_hopper.differentiate.compile(
        q, q, v, v, row, row, sums, q, v, 0.1, **settings, arch="sm_90a"
    )
    assert not cubin.spills and not cubin.warnings


def test_widths() -> None:
    """Tiles hold the rows, and their panels are those of each other."""
    for d in range(8, 257, 8):
        for dv in range(8, d + 1, 8):
            wide, narrow = widths(d, dv)
            q, v = pk.st(pk.bf16, 64, wide), pk.st(pk.bf16, 64, narrow)
            assert d <= wide <= 256 and dv <= narrow <= wide
            assert narrow % q.panel == 0 and q.panel == v.panel or d == dv
            assert max(d, dv) <= backward_width(d, dv)


@pytest.mark.parametrize(("d", "dv"), ((4, 4), (100, 100), (264, 264), (64, 72), (64, 12)))
def test_refusals(d: int, dv: int) -> None:
    q, v = np.zeros((1, 1, 8, d), BF16), np.zeros((1, 1, 8, dv), BF16)
    with pytest.raises(ArgumentError, match=f"no kernel for head dimension {d}") as caught:
        pk.attention(q, q, v)
    assert "multiples of 8 up to 256" in str(caught.value)
