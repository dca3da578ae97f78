"""Packed sequences: what is refused, and that each sequence is attention of its own, gradients too."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
from pykittens.errors import ArgumentError  # noqa: E402
from pykittens.functions import scorings  # noqa: E402
from pykittens.functions.attention_varlen import ATTENTION_VARLEN_BACKWARD  # noqa: E402
from pykittens.interop.arrays import describe  # noqa: E402
from pykittens.kernels import attention_ampere, attention_backward, attention_backward_divided  # noqa: E402
from pykittens.kernels.attention import scores, table  # noqa: E402
from pykittens.kernels.attention_backward_ampere import AMPLE  # noqa: E402
from pykittens.kernels.reference import attention_backward as reference  # noqa: E402
from pykittens.kernels.tile_lists import Lists  # noqa: E402

BF16 = np.dtype(ml_dtypes.bfloat16)
# Lengths of queries and of keys: empty ones of either, less and more than a tile.
LENGTHS = ([100, 0, 150, 3, 20], [130, 20, 0, 216, 20])
# causal, window, softcap, sinks, d
CASES = ((False, None, None, False, 64), (True, (70, None), 3.0, True, 64), (True, None, None, True, 128))
each = pytest.mark.parametrize(("causal", "window", "softcap", "sunk", "d"), CASES)


class Case:
    """Operands, and by float64 sequence for sequence what comes of them."""

    def __init__(self, causal: bool, window: Any, softcap: float | None, sunk: bool, d: int):
        rng, (queries, keys) = np.random.default_rng(d), LENGTHS
        self.cu = [np.cumsum([0, *x]).astype(np.int32) for x in LENGTHS]
        shapes = ((sum(queries), 2, d),) * 2 + ((sum(keys), 1, d),) * 2
        self.do, self.q, self.k, self.v = (rng.standard_normal(shape).astype(BF16) for shape in shapes)
        self.dlse = rng.standard_normal((2, sum(queries))).astype(np.float32)
        self.sinks = rng.standard_normal(2).astype(np.float32) if sunk else None
        self.settings = {"causal": causal, "softcap": softcap, "sinks": self.sinks}
        sides = dict(zip(("left", "right"), window or (None, None), strict=True))
        self.o, self.lse = np.zeros(self.q.shape), np.full(self.dlse.shape, -np.inf)
        self.gradients = [*(np.zeros(x.shape) for x in (self.q, self.k, self.v)), np.zeros(2)]
        for i in range(len(queries)):
            a, b = (slice(cu[i], cu[i + 1]) for cu in self.cu)
            if queries[i] and keys[i]:
                given = [x.swapaxes(0, 1)[None] for x in (self.do[a], self.q[a], self.k[b], self.v[b])]
                o, lse, *found = reference(*given, scale=d**-0.5, dlse=self.dlse[None, :, a], **self.settings, **sides)
                self.o[a], self.lse[:, a] = o[0].swapaxes(0, 1), lse[0]
                for whole, rows, part in zip(self.gradients, (a, b, b), found, strict=False):
                    whole[rows] = part[0].swapaxes(0, 1)
                self.gradients[3] += found[3] if sunk else 0
            elif sunk:
                self.lse[:, a] = self.sinks[:, None]
                self.gradients[3] += self.dlse[:, a].sum(1)

    def check(self, found: Any) -> None:
        for x, y in zip(found, self.gradients, strict=False):
            assert np.linalg.norm(x.astype(float) - y) < 1.5e-2 * np.linalg.norm(y)


@pytest.mark.parametrize("window", [(2**30, 2**30), (2**40, 0), (2**30, -3), (None, 2**31)])
def test_sides_that_reach_past_all_keys(window: tuple[int | None, int]) -> None:
    """Both sides together are more than 32 bits hold."""
    rng, cu = np.random.default_rng(3), torch.tensor([0, 70, 150], dtype=torch.int32)
    right = None if window[1] >= 2**30 else window[1]
    made = [rng.standard_normal((150, 2, 64)) for _ in range(4)]

    def run(window: tuple[int | None, int | None]) -> list[torch.Tensor]:
        q, k, v, up = (torch.tensor(x, dtype=torch.bfloat16) for x in made)
        operands = [x.requires_grad_() for x in (q, k, v)]
        out = pk.attention_varlen(*operands, cu, window=window)
        batch = [x[None].transpose(1, 2) for x in operands]
        dense = pk.attention(*batch, window=window)
        (out.float() * up + dense.transpose(1, 2)[0].float() * up).sum().backward()
        return [out, dense, *(x.grad for x in operands if x.grad is not None)]

    for x, y in zip(run(window), run((None, right)), strict=True):
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02)


@pytest.mark.thin(3)
@each
def test_hopper(causal: bool, window: Any, softcap: float | None, sunk: bool, d: int) -> None:
    c = Case(causal, window, softcap, sunk, d)
    out, lse = pk.attention_varlen(c.q, c.k, c.v, *c.cu, window=window, return_lse=True, **c.settings)
    assert np.linalg.norm(out.astype(float) - c.o) < 1e-2 * np.linalg.norm(c.o)
    np.testing.assert_allclose(lse, c.lse, rtol=1e-5, atol=1e-4)
    operands = (c.do, c.q, c.k, c.v, c.o.astype(BF16), c.lse.astype(np.float32), *c.cu, c.dlse, c.sinks)
    found = ATTENTION_VARLEN_BACKWARD(operands, (causal, None, d == 64, *(window or (None, None)), softcap))
    c.check(found[: 3 + sunk])


@pytest.mark.parametrize(("d", "causal", "cut"), [(64, False, (2, 2)), (128, True, (2, 1)), (256, True, (1, 2))])
def test_blocks_divide_the_work_on_a_tile_of_keys(
    d: int, causal: bool, cut: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads, and its tiles of queries; also of tiles that do not exist, and of sequences without rows."""
    c = Case(causal, None, None, False, d)
    monkeypatch.setattr(attention_backward_divided, "cut", lambda shape, processors: cut)
    operands = (c.do, c.q, c.k, c.v, c.o.astype(BF16), c.lse.astype(np.float32), *c.cu, c.dlse, None)
    c.check(ATTENTION_VARLEN_BACKWARD(operands, (causal, None, d == 128, None, None, None))[:3])


@pytest.mark.thin(2)
@each
def test_mma_sync(causal: bool, window: Any, softcap: float | None, sunk: bool, d: int) -> None:
    c = Case(causal, window, softcap, sunk, d)
    told = scores(d, causal, None, *(window or (None, None)), softcap)
    out, lse = np.full(c.q.shape, np.nan, BF16), np.full(c.lse.shape, np.nan, np.float32)

    def seen(x: np.ndarray) -> np.ndarray:
        return x.swapaxes(0, 1)[None] if x.ndim == 3 else x[None]

    rows = [seen(x) for x in (c.q, c.k, c.v, out)]
    attention_ampere.attend(*rows, told.scale, seen(lse), *told.band, c.sinks, *c.cu, causal=told.causal)
    assert np.linalg.norm(out.astype(float) - c.o) < 1e-2 * np.linalg.norm(c.o)
    np.testing.assert_allclose(lse, c.lse, rtol=1e-5, atol=1e-4)
    found = [*(np.full(x.shape, np.nan, BF16) for x in (c.q, c.k, c.v)), np.full(2, np.nan, np.float32)]
    given = map(seen, (c.do, c.q, c.k, c.v, c.o.astype(BF16), c.lse.astype(np.float32), c.dlse))
    last = (c.sinks, found[3] if sunk else None, *c.cu)
    attention_backward.STEPS(
        *given, *map(seen, found[:3]), told.scale, *told.band, *last, causal=told.causal, mma_sync=AMPLE
    )
    c.check(found[: 3 + sunk])


def test_a_sequence_is_alone() -> None:
    """What lies in the rows of its neighbours is nothing to it, NaN neither."""
    c = Case(True, None, None, False, 64)
    first = np.asarray(pk.attention_varlen(c.q, c.k, c.v, *c.cu, causal=True), float)
    for x, cu in ((c.q, c.cu[0]), (c.k, c.cu[1]), (c.v, c.cu[1])):
        x[cu[3] : cu[4]] = np.nan
    out = np.asarray(pk.attention_varlen(c.q, c.k, c.v, *c.cu, causal=True), float)
    rows = np.arange(len(out))
    mine = (rows >= c.cu[0][3]) & (rows < c.cu[0][4])
    np.testing.assert_array_equal(out[~mine], first[~mine])
    assert np.isnan(out[mine]).all()


def relative(s: Any, batch: Any, head: Any, row: Any, col: Any, table: Any) -> Any:
    """Of the distance within a sequence, and the sequence."""
    return s * 0.5 + table[batch, row - col + 90]


def unlike(batch: Any, head: Any, row: Any, col: Any, kinds: Any, begins: Any) -> Any:
    """Keys of all kinds but one, found by where the sequence begins."""
    return kinds[begins[batch] + col] != 1


class Scored:
    """Sequences with `relative` and `unlike`; by torch in float64 what comes of them."""

    def __init__(self, causal: bool, d: int = 64):
        rng, queries, keys = np.random.default_rng(1), [40, 0, 130, 3], [70, 20, 0, 150]
        self.cu = [np.cumsum([0, *x]).astype(np.int32) for x in (queries, keys)]
        shapes = ((sum(queries), 2, d),) * 2 + ((sum(keys), 1, d),) * 2
        self.rows = [rng.standard_normal(shape).astype(BF16) for shape in shapes]  # do, q, k, v
        self.table = rng.standard_normal((4, 200)).astype(np.float32)
        self.kinds = rng.integers(0, 3, sum(keys)).astype(np.int32)
        self.causal = causal
        do, *exact = (torch.tensor(x.astype(float), requires_grad=True) for x in (*self.rows, self.table))
        outs = [self.alone(i, *exact) for i in range(4)]
        self.o = torch.cat(outs)
        self.gradients = torch.autograd.grad(self.o, exact, do)

    def alone(self, i: int, q: Any, k: Any, v: Any, table: Any) -> Any:
        mine, theirs = (slice(cu[i], cu[i + 1]) for cu in self.cu)
        q, k, v = q[mine].transpose(0, 1), k[theirs].transpose(0, 1), v[theirs].transpose(0, 1)
        (n, d), m = q.shape[1:], k.shape[1]
        apart = torch.arange(n)[:, None] - torch.arange(m)
        s = q @ k.mT * d**-0.5 * 0.5 + table[i][(apart + 90) % 200] * ((apart >= -90) & (apart < 110))
        seen = torch.tensor(self.kinds[theirs] != 1) & ((apart >= n - m) if self.causal else True)
        s = torch.where(seen, s, -1e30)
        weights = torch.where(seen, torch.exp(s - s.amax(2, keepdim=True)), 0.0) if m else s
        return (weights / weights.sum(2, keepdim=True).clamp_min(1e-300) @ v).transpose(0, 1)


def apart(found: Any, expected: Any) -> float:
    return float((torch.as_tensor(np.asarray(found).astype(float)) - expected).norm() / expected.norm())


@pytest.mark.parametrize("d", (64, pytest.param(128, marks=pytest.mark.whole)))
def test_scores(d: int) -> None:
    """Rows and columns are positions within a sequence, whose number the batch is; and so in the gradients."""
    c = Scored(causal=d == 64, d=d)
    rows = [torch.tensor(x.astype(np.float32)).bfloat16() for x in c.rows]
    given = [x.requires_grad_() for x in (*rows[1:], torch.tensor(c.table))]
    cu, kinds = [*map(torch.tensor, c.cu)], torch.tensor(c.kinds)
    how: Any = {"score": relative, "score_operands": given[3:], "mask": unlike, "mask_operands": [kinds, cu[1]]}
    out = pk.attention_varlen(*given[:3], *cu, causal=c.causal, **how)
    found = torch.autograd.grad(out, given, rows[0])
    for x, y in zip((out, *found), (c.o, *c.gradients), strict=True):
        assert apart(x.detach().float(), y.detach()) < 1e-2


def test_scores_by_mma_sync() -> None:
    c = Scored(causal=True)
    do, q, k, v = (x.swapaxes(0, 1)[None] for x in c.rows)
    theirs = [c.table, c.kinds, c.cu[1]]
    known = scorings.known_of(scorings.number_of(relative, unlike), 1, [*map(describe, theirs)])
    out, lse = np.full(q.shape, np.nan, BF16), np.full(q.shape[:3], np.nan, np.float32)
    told, how = scores(64, True, None, None, None, None), {"causal": True, "scoring": known.scoring}
    lists = Lists(known.scoring, told, (False, True), [*map(table, theirs)], c.cu)
    packed = [None, *c.cu, *map(table, theirs), None, lists(q, k, 128, attention_ampere.keys_of(64))]
    attention_ampere.attend(q, k, v, out, told.scale, lse, *told.band, *packed, **how)
    found = [*(np.full(x.shape, np.nan, BF16) for x in (q, k, v)), np.zeros_like(c.table)]
    last = (None, None, *c.cu, [*map(table, theirs), None], [found[3], None, None, None])
    given = (do, q, k, v, out, lse, None, *found[:3], told.scale, *told.band, *last)
    attention_backward.STEPS(*given, lists=lists, mma_sync=AMPLE, **how)
    for x, y in zip((out, *found), (c.o, *c.gradients), strict=True):
        assert apart(x[0].swapaxes(0, 1) if x.ndim == 4 else x, y.detach()) < 1e-2


def test_no_rows() -> None:
    q, offsets = np.zeros((0, 2, 64), BF16), np.zeros(3, np.int32)
    assert pk.attention_varlen(q, q, q, offsets).shape == (0, 2, 64)
    k, sinks = np.ones((5, 2, 64), BF16), np.ones(2, np.float32)
    out, lse = pk.attention_varlen(k, q, q, np.array([0, 2, 5], np.int32), offsets, sinks=sinks, return_lse=True)
    assert (np.asarray(out, float) == 0).all() and (lse == 1).all()


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"q": np.zeros((1, 40, 2, 64), BF16)}, "attention_varlen of q bf16"),
        ({"cu_seqlens_q": np.array([0, 40])}, r"cu_seqlens_q is i64 \(2,\)"),
        ({"cu_seqlens_q": np.array([0, 20, 40], np.int32)}, "3 offsets of queries, 2 of keys"),
        ({"cu_seqlens_q": np.array([0, 30], np.int32)}, r"cu_seqlens_q are \[0, 30\] for 40 rows"),
        ({"cu_seqlens_k": np.array([1, 40], np.int32)}, r"cu_seqlens_k are \[1, 40\] for 40 rows"),
        ({"cu_seqlens_q": np.array([0], np.int32), "cu_seqlens_k": np.array([0], np.int32)}, "1 offsets of queries"),
        ({"sinks": np.zeros(3, np.float32)}, "sinks are"),
        ({"softcap": -1.0}, "softcap=-1.0"),
        ({"mask_operands": [np.zeros(2, np.int32)]}, "1 operands of no mask"),
        ({"score": lambda s, b, h, row, col, x: s * x[h], "score_operands": [np.ones(3)]}, "operand 0 of score and"),
        (
            {"mask": lambda b, h, row, col, x: row < x[b], "mask_operands": [np.zeros(3, np.int32)]},
            r"operand 0 of score and mask has shape \(3,\), indexed by batch",
        ),
    ),
)
def test_refusals(change: dict[str, Any], said: str) -> None:
    x, offsets = np.zeros((40, 2, 64), BF16), np.array([0, 40], np.int32)
    given = {"q": x, "k": x, "v": x, "cu_seqlens_q": offsets, "cu_seqlens_k": offsets} | change
    with pytest.raises(ArgumentError, match=said):
        pk.attention_varlen(**given)
    if "cu_seqlens_q" in change and len(change["cu_seqlens_q"]) == 3:
        given["cu_seqlens_k"] = np.array([0, 50, 40], np.int32)
        with pytest.raises(ArgumentError, match="do not decrease"):
            pk.attention_varlen(**given)
