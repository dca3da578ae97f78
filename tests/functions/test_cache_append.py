"""Rows at the end of caches: in their places and nowhere else, turned as pk.rotary turns them; a step of decoding."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError, KernelAssertionError
from pykittens.kernels import cache_append
from pykittens.kernels.cache_append import reference

BF16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)


def rows(*shape: int, dtype: Any = BF16) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(
    ("n", "page", "d", "dv", "r", "interleaved"),
    (
        (1, 0, 64, 64, 0, False),
        (3, 16, 72, 40, 64, False),
        (2, 0, 128, 128, 128, True),
        (20, 16, 64, 64, 32, False),
        (1, 0, 16, 8, 2, True),
        (1, 0, 24, 8, 10, False),
    ),
)
def test_in_their_places(n: int, page: int, d: int, dv: int, r: int, interleaved: bool) -> None:
    lengths = np.array([n, 33, 40], np.int32)
    k, v, q = rows(3, 2, n, d), rows(3, 2, n, dv), rows(3, 4, n, d)
    tables = [rows(34, r // 2, dtype=np.float32) for _ in range(2)] if r else [None, None]  # past them, nothing turns
    caches = [np.full((9, 2, page, x) if page else (3, 2, 48, x), 7, BF16) for x in (d, dv)]
    numbers = np.random.default_rng(0).permutation(9).reshape(3, 3).astype(np.int32) if page else None
    turned = pk.cache_append(
        k, v, *caches, lengths, numbers, cos=tables[0], sin=tables[1], q=q if r else None, interleaved=interleaved
    )
    for cache, x, angles in zip(caches, (k, v), (tables, [None, None]), strict=True):
        expected = np.full((3, 2, 48, x.shape[3]), 7, float)
        made = reference(x, lengths, *angles, **({"interleaved": interleaved} if angles[0] is not None else {}))
        for i, length in enumerate(lengths):
            expected[i, :, length - n : length] = made[i]
        found = cache if numbers is None else cache[numbers].swapaxes(1, 2).reshape(expected.shape)
        np.testing.assert_allclose(found.astype(float), expected, rtol=1e-2, atol=1e-2)
    if r:
        expected = reference(q, lengths, *tables, interleaved=interleaved)
        np.testing.assert_allclose(turned.astype(float), expected, rtol=1e-2, atol=1e-2)
    else:
        assert turned is None


def test_eight_bits() -> None:
    """Turned keys and values over the scales of their heads, rounded to what is nearest; too large, the largest."""
    n, d, lengths = 2, 64, np.array([2, 30], np.int32)
    k, v, tables = rows(2, 3, n, d), rows(2, 3, n, 32), [rows(32, 16, dtype=np.float32) for _ in range(2)]
    v[0, 0, 0, :3] = 1e4, -1e4, np.nan
    caches = [np.zeros((2, 3, 32, x), E4M3) for x in (d, 32)]
    scales = {"k_scale": np.array([0.01, 0.5, -2], np.float32), "v_scale": np.array(0.25, np.float32)}
    pk.cache_append(k, v, *caches, lengths, cos=tables[0], sin=tables[1], **scales)
    for cache, x, angles, scale in zip(caches, (k, v), (tables, [None, None]), scales.values(), strict=True):
        expected = np.zeros(cache.shape)
        made = np.clip(reference(x, lengths, *angles, scale=scale), -448, 448)
        for i, length in enumerate(lengths):
            expected[i, :, length - n : length] = made[i]
        np.testing.assert_allclose(cache.astype(float), expected, rtol=2.0**-4, atol=2.0**-10)
    assert np.isnan(caches[1][0, 0, 0, 2].astype(float)) and (caches[1][0, 0, 0, :2].astype(float) == (448, -448)).all()


def test_what_has_no_place() -> None:
    """On the CPU before anything is launched; past that look, as a debug build on a GPU says it."""
    k, cache = rows(2, 1, 1, 64), np.zeros((2, 1, 8, 64), BF16)
    pages, wrong = np.zeros((2, 1, 16, 64), BF16), np.full((2, 1), 2, np.int32)
    right = np.ones(2, np.int32)
    for x, lengths, table, said in (
        (cache, np.array([0, 1], np.int32), None, r"lengths are \[0, 1\] for 1 new rows and a cache of 8"),
        (cache, np.array([9, 1], np.int32), None, r"lengths are \[9, 1\] for 1 new rows and a cache of 8"),
        (pages, right, wrong, "page 0 of sequence 0 is number 2 of 2 pages"),
    ):
        with pytest.raises(ArgumentError, match=said):
            pk.cache_append(k, k, x, x.copy(), lengths, table)
        good = (right, None if table is None else np.arange(2, dtype=np.int32)[:, None])
        call = cache_append.call(k, k, (x, x.copy()), *good, (None, None), None, (None, None), None, False)
        operands = list(call.operands)
        operands[4:6] = lengths, table
        with pytest.raises(KernelAssertionError, match="no place in the cache"):
            call.kernel(*operands, **call.statics)


def test_rows_with_one_place() -> None:
    """Keys and values in one cache, two sequences with one page."""
    k, pages, ones = rows(2, 1, 1, 64), np.zeros((2, 1, 16, 64), BF16), np.ones(2, np.int32)
    with pytest.raises(ArgumentError, match="k_cache, which is written, shares memory with v_cache"):
        pk.cache_append(k, k, pages, pages, ones)
    with pytest.raises(ArgumentError, match="row 0 of page 1 is where several new rows go"):
        pk.cache_append(k, k, pages, pages.copy(), ones, np.ones((2, 1), np.int32))


def test_a_step_of_decoding_by_torch() -> None:
    """The version that autograd watches goes on, a compiler sees the writing, and attention sees the rows."""
    torch = pytest.importorskip("torch")
    made = torch.Generator().manual_seed(0)
    k, v, q = (torch.randn(2, h, 1, 64, generator=made).bfloat16() for h in (1, 1, 2))
    caches = [torch.randn(2, 1, 24, 64, generator=made).bfloat16() for _ in range(2)]
    lengths = torch.tensor([5, 24], dtype=torch.int32)

    def step(q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any) -> Any:
        pk.cache_append(k, v, k_cache, v_cache, lengths)
        return pk.attention_cached(q, k_cache, v_cache, lengths)

    mine, theirs = [x.clone() for x in caches], [x.clone() for x in caches]
    versions = [x._version for x in mine]
    out = step(q, k, v, *mine)
    assert all(x._version > y for x, y in zip(mine, versions, strict=True))
    assert torch.equal(mine[0][0, 0, 4], k[0, 0, 0]) and torch.equal(mine[1][1, 0, 23], v[1, 0, 0])
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v, *theirs), out)
    assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"k": np.zeros((2, 1, 64), BF16)}, "cache_append of k bf16"),
        ({"k": np.zeros((2, 1, 1, 64), np.float16)}, "dtypes are not supported"),
        ({"k_cache": np.zeros((2, 1, 8, 64), E4M3)}, "dtypes are not supported"),
        ({"k_scale": np.ones(1, np.float32)}, "k_scale is given"),
        ({"v": np.zeros((2, 1, 2, 64), BF16)}, "do not go together"),
        ({"k_cache": np.zeros((2, 2, 8, 64), BF16)}, "do not go together"),
        ({"lengths": np.ones(2, np.int64)}, r"lengths are i64 \(2,\)"),
        ({"page_table": np.ones(2, np.int32)}, r"page_table is i32 \(2,\)"),
        ({"cos": np.ones((8, 32), np.float32)}, "angles are missing"),
        ({"q": np.zeros((2, 2, 1, 64), BF16)}, "angles are missing"),
        ({"cos": np.ones((8, 40), np.float32), "sin": np.ones((8, 40), np.float32)}, r"cos is f32 \(8, 40\)"),
    ),
)
def test_refusals(change: dict[str, Any], said: str) -> None:
    x, cache = np.zeros((2, 1, 1, 64), BF16), np.zeros((2, 1, 8, 64), BF16)
    given = {"k": x, "v": x, "k_cache": cache, "v_cache": cache.copy(), "lengths": np.ones(2, np.int32)} | change
    with pytest.raises(ArgumentError, match=said):
        pk.cache_append(**given)
