"""In which order packed sequences' tiles are taken, beside a sort."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pykittens.kernels.attention_packed import find_owners, order_tiles
from pykittens.kernels.registry.attention import ordered, owners

BF16 = np.dtype(ml_dtypes.bfloat16)


def lengths(seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of up to 90 sequences, some without rows, whose keys are as many as their rows or any number."""
    rng = np.random.default_rng(seed)
    count, most = int(rng.integers(1, 90)), int(rng.choice([3, 100, 700]))
    queries = rng.integers(0, most, count) * (rng.random(count) < 0.8)
    keys = queries if seed % 2 else rng.integers(0, most, count)
    return tuple(queries.tolist()), tuple(keys.tolist())


def offsets(rows: tuple[int, ...], first: int = 0) -> np.ndarray:
    return np.cumsum([first, *rows]).astype(np.int32)


@pytest.mark.parametrize("seed", range(12))
def test_the_longest_come_first(seed: int) -> None:
    rng, (queries, keys) = np.random.default_rng(seed), lengths(seed)
    drawn = ((64, 128, 192), (1, 2, 7, 33, 64), (0, 5, 200, -5, -70), (2**30, 2**30, 300, 90))
    rows, together, right, most = (int(rng.choice(x)) for x in drawn)
    expected = ordered(queries, keys, rows, seed % 3 > 0, together, right, most)
    order, counter = np.full(expected.shape, -7, np.int32), np.full(1, 5, np.int32)
    how = {"rows": rows, "growing": seed % 3 > 0}
    o, lse = np.full((1, 2, sum(queries) + 40, 64), 7, BF16), np.full((1, 2, sum(queries) + 40), 7, np.float32)
    order_tiles(offsets(queries), offsets(keys), order, counter, right, most, together, o, lse, **how)
    np.testing.assert_array_equal(order[:, : expected.shape[1]], expected)
    assert counter[0] == 0
    for x, nothing in ((o, 0), (lse, -np.inf)):
        assert (x[:, :, : sum(queries)] == 7).all() and (x[:, :, sum(queries) :] == nothing).all()


def test_rows_that_are_no_sequence_s() -> None:
    """Before the first sequence and behind the last: every number of a tile has a place all the same."""
    begins, order = offsets((150, 70), 300), np.full((2, 700 // 64 + 2), -7, np.int32)
    o = np.zeros((1, 1, 700, 64), BF16)
    order_tiles(begins, begins, order, np.zeros(1, np.int32), 0, 2**30, 64, o, rows=64, growing=True)
    assert sorted(order[0]) == list(range(order.shape[1]))
    first = begins[:-1] // 64 + np.arange(2)
    real = [t for i, n in enumerate((150, 70)) for t in range(first[i], first[i] + -(-n // 64))]
    np.testing.assert_array_equal(order[0][first[0] : first[0] + len(real)], [4, 5, 8, 6, 9])
    assert real == [4, 5, 6, 8, 9]


@pytest.mark.parametrize("seed", range(3))
def test_owners(seed: int) -> None:
    queries, _ = lengths(seed)
    expected = owners(queries, 128)
    found = np.full(expected.shape, -7, np.int32)
    find_owners(offsets(queries), found, rows=128)
    np.testing.assert_array_equal(found, expected)
