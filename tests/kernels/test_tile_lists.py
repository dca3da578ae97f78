"""Lists of the tiles that a mask lets be seen, beside NumPy; and that kernels go through no others."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.kernels.attention import scores
from pykittens.kernels.tile_lists import Lists
from pykittens.trace.scoring import Scoring

BF16 = np.dtype(ml_dtypes.bfloat16)
N, M, ROWS, COLS = 150, 200, 64, 32


def stripes(batch: Any, head: Any, row: Any, col: Any) -> Any:
    return ((row // 64 + col // 64 + head) % 2 == 0) & ((row < 100) | (col < 40 + 3 * batch))


def seen_of(batch: int, n: int, m: int, window: tuple[int | None, int | None] = (None, None)) -> np.ndarray:
    """Which keys queries see, (heads, n, m)."""
    head, row, col = np.ogrid[:2, :n, :m]
    distance = col - row - (m - n)
    inside = (distance >= -(window[0] or n + m)) & (distance <= (window[1] or n + m))
    return np.asarray(stripes(batch, head, row, col) & inside)


def check(lists: Any, seen: np.ndarray, down: bool) -> None:
    """The lists of a sequence, (heads, lines, length), beside which keys queries see."""
    n, m = seen.shape[1:]
    padded = np.pad(seen, ((0, 0), (0, -n % ROWS), (0, -m % COLS)))
    real = np.pad(np.ones((1, n, m), bool), ((0, 0), (0, -n % ROWS), (0, 0)))
    real = np.pad(real, ((0, 0), (0, 0), (0, -m % COLS)), constant_values=True)  # without keys, a tile is no whole
    count, all_of = (x.reshape(len(x), -1, ROWS, x.shape[-1] // COLS, COLS).sum((2, 4)) for x in (padded, real))
    whole, part = count == all_of, (count > 0) & (count < all_of)
    if down:
        whole, part = whole.swapaxes(1, 2), part.swapaxes(1, 2)
    for where in np.ndindex(*whole.shape[:2]):
        (wholes, parts), found = lists[where][:2], lists[where][2:]
        expected = np.flatnonzero(part[where])
        if not down and not whole[where].any() and not part[where].any():
            expected = np.array([0])
        np.testing.assert_array_equal(found[:wholes], np.flatnonzero(whole[where]))
        np.testing.assert_array_equal(found[::-1][:parts], expected)


@pytest.mark.parametrize(("down", "window"), ((False, (None, None)), (True, (90, 20))))
def test_lists(down: bool, window: tuple[int | None, int | None]) -> None:
    q, k = np.zeros((2, 2, N, 64), BF16), np.zeros((2, 1, M, 64), BF16)
    told = scores(64, False, None, *window, None)
    lists = Lists(Scoring(None, stripes), told, (False, False), ())(q, k, ROWS, COLS, down=down)
    for batch in range(2):
        check(lists[batch], seen_of(batch, N, M, window), down)


@pytest.mark.parametrize("down", (False, True))
def test_packed(down: bool) -> None:
    """Of packed sequences each has lists of its own tiles only, and the mask is told which sequence it is."""
    lengths, window = ((70, 40), (0, 33), (65, 0), (100, 97)), (80, 10)
    cu_q, cu_k = (np.cumsum([0, *x], dtype=np.int32) for x in zip(*lengths, strict=True))
    q, k = np.zeros((1, 2, cu_q[-1], 64), BF16), np.zeros((1, 1, cu_k[-1], 64), BF16)
    told = scores(64, False, None, *window, None)
    lists = Lists(Scoring(None, stripes), told, (False, False), (), (cu_q, cu_k))(q, k, ROWS, COLS, down=down)
    for i, (n, m) in enumerate(lengths):
        rows, height = (cu_k, COLS) if down else (cu_q, ROWS)
        first, count = rows[i] // height + i, -(-(m if down else n) // height)
        if n and m:
            check(lists[0, :, first : first + count], seen_of(i, n, m, window), down)
        else:  # queries without keys have one tile, keys without queries none
            np.testing.assert_array_equal(lists[0, :, first : first + count, :2].sum(2), 0 if down else 1)


def test_alike() -> None:
    """Where the mask asks for neither batch nor head, there is one list for all."""
    q, k = np.zeros((2, 2, 100, 64), BF16), np.zeros((2, 2, 100, 64), BF16)
    told = scores(64, True, None, None, None, None)
    lists = Lists(Scoring(None, lambda batch, head, row, col: row != col), told, (True, True), ())(q, k, 128, 128)
    np.testing.assert_array_equal(lists, [[[[0, 1, 0]]]])


def test_hidden_tiles_are_not_visited() -> None:
    """Whatever their values are: 0 times NaN would be seen."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, n, 64)).astype(BF16) for n in (100, 400, 400))
    v[:, :, 128:256] = np.nan
    out = pk.attention(q, k, v, mask=lambda batch, head, row, col: (col < 128) | (col >= 256))
    kept = np.r_[0:128, 256:400]
    expected = pk.attention(q, k[:, :, kept], v[:, :, kept])
    np.testing.assert_allclose(np.asarray(out, float), np.asarray(expected, float), atol=2e-2)


def test_hidden_tiles_of_packed_sequences_are_not_visited() -> None:
    """Nor in the gradients: what the hidden keys hold is nothing to any sequence."""
    torch = pytest.importorskip("torch")
    rng, cu_q, cu_k = np.random.default_rng(0), (0, 20, 20, 40), (0, 20, 60, 330)
    rows = [rng.standard_normal((n, 1, 64)).astype(np.float32) for n in (40, 40, 330, 330)]
    do, q, k, v = (torch.tensor(x).bfloat16() for x in rows)
    offsets = [torch.tensor(x, dtype=torch.int32) for x in (cu_q, cu_k)]

    def gradients(fill: float) -> tuple[Any, ...]:
        given = [x.clone() for x in (q, k, v)]
        for x in given[1:]:
            x[60 + 128 : 60 + 256] = fill
        given = [x.requires_grad_() for x in given]
        out = pk.attention_varlen(*given, *offsets, mask=lambda b, h, row, col: (col < 128) | (col >= 256))
        return out.detach(), *torch.autograd.grad(out, given, do)

    for x, y in zip(gradients(0.5), gradients(float("nan")), strict=True):
        assert torch.equal(x, y)
