"""Attention on caches: beside float64 at lengths around tiles and pages; what lies elsewhere is nothing to it."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.architectures import ARCHITECTURES
from pykittens.errors import ArgumentError, KernelAssertionError
from pykittens.kernels import attention_cached, decoding
from pykittens.kernels.attention import scores
from pykittens.kernels.attention_cached import reference
from pykittens.kernels.widths import widths
from pykittens.trace import shares

BF16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)


class Case:
    """Sequences of some lengths, and by float64 what comes of them. What no key of theirs fills is NaN, and pages that
    nobody needs have numbers that do not exist."""

    def __init__(
        self,
        lengths: tuple[int, ...],
        n: int = 1,
        page: int = 0,
        heads: tuple[int, int] = (4, 2),
        d: tuple[int, int] = (64, 64),
        dtype: Any = BF16,
        capacity: int = 300,
        scales: Any = None,
        **settings: Any,
    ):
        rng, batch = np.random.default_rng(sum(lengths) + n), len(lengths)
        self.lengths, self.settings = np.array(lengths, np.int32), settings
        self.q = rng.standard_normal((batch, heads[0], n, d[0])).astype(dtype)
        held, scales = dtype if scales is None else E4M3, scales or (1.0, 1.0)
        k, v = (np.full((batch, heads[1], capacity, width), np.nan, held) for width in d)
        for i, length in enumerate(lengths):
            for x, scale in zip((k, v), scales, strict=True):
                x[i, :, :length] = rng.standard_normal(x[i, :, :length].shape).astype(dtype) / np.mean(scale)
        if held is E4M3:
            self.settings |= {f"{x}_scale": np.array(y, np.float32) for x, y in zip("kv", scales, strict=True)}
        rows = self.q.reshape(batch, heads[1], -1, d[0])
        told = {"causal": True, "k_scale": scales[0], "v_scale": scales[1]} | settings
        told |= dict(zip(("left", "right"), told.pop("window", (None, None)), strict=True))
        self.expected = reference(rows, k, v, self.lengths, d[0] ** -0.5, n, **told).reshape(*self.q.shape[:3], d[1])
        self.table = None
        if page:
            each = -(-capacity // page)
            numbers = rng.permutation(batch * each + 2)[: batch * each].reshape(batch, each).astype(np.int32)
            pages = []
            for x in (k, v):
                made = np.full((batch * each + 2, heads[1], each * page // each, x.shape[3]), np.nan, held)
                filled = np.full((batch, heads[1], each * page, x.shape[3]), np.nan, held)
                filled[:, :, :capacity] = x
                made[numbers] = filled.reshape(batch, heads[1], each, page, -1).swapaxes(1, 2)
                pages.append(made)
            k, v = pages
            numbers[np.arange(each) * page >= self.lengths[:, None]] = -1
            self.table = numbers
        self.k, self.v = k, v

    @property
    def operands(self) -> tuple[Any, ...]:
        return self.q, self.k, self.v, self.lengths, self.table

    def check(self, found: Any, tolerance: float = 5e-3) -> None:
        assert found.shape == self.expected.shape and np.isfinite(found.astype(float)).all()
        assert np.linalg.norm(found.astype(float) - self.expected) < tolerance * np.linalg.norm(self.expected)


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    "case",
    (
        {"lengths": (0, 1, 300, 129)},
        {"lengths": (64, 65, 33), "page": 16, "heads": (3, 1), "d": (152, 40)},
        {"lengths": (2, 144), "page": 48, "n": 3, "dtype": np.float16, "capacity": 150},
        {"lengths": (5, 170), "n": 16, "heads": (5, 1), "capacity": 170},
        {"lengths": (40, 90), "n": 2, "window": (30, None), "softcap": 2.0, "sinks": np.arange(4, dtype=np.float32)},
        {"lengths": (40, 90), "n": 2, "causal": False},
        {"lengths": (0, 100), "d": (160, 160), "heads": (2, 1), "capacity": 100},
        {"lengths": (1, 130), "scales": ((0.25, 0.5), 0.1), "capacity": 130},
        {"lengths": (5, 66), "n": 16, "heads": (5, 1), "d": (96, 48), "page": 16, "scales": (2.0, 1.0), "capacity": 70},
        {
            "lengths": (40,),
            "heads": (1, 1),
            "d": (256, 32),
            "dtype": np.float16,
            "scales": ((-0.5,), 1.0),
            "softcap": 3.0,
        },
    ),
    ids=lambda case: "-".join(map(str, case)),
)
def test_beside_float64(case: dict[str, Any]) -> None:
    c = Case(**case)
    c.check(pk.attention_cached(*c.operands, **c.settings))


@pytest.mark.parametrize("arch", ("sm_86", "sm_90a"))
def test_every_head_dimension_has_a_cut(arch: str) -> None:
    """With two stages or more, whose tiles lie in one page for each group."""
    for rows, d, size, page in itertools.product((1, 16, 17, 48, 128), range(8, 264, 8), (1, 2), (0, 16, 48, 64)):
        for wide in {widths(d, dv)[1] for dv in range(8, d + 8, 8)}:
            cut = decoding.cut(rows, d, wide, size, ARCHITECTURES[arch], page)
            assert cut.stages >= 2 and page % cut.each == 0


def test_plans() -> None:
    """Many groups add up many parts; two blocks share a multiprocessor where tiles stay as large; with a split nothing
    depends on the batch."""

    def plan(items: int, arch: str = "sm_90a", split: int | None = None, size: int = 1, rows: int = 4) -> Any:
        where = ARCHITECTURES[arch], 132, items, 16384, 0, items, split
        return decoding.plan(rows, 128, 128, size, *where)

    assert plan(1)[0].groups == 8 and plan(32)[0].groups == 4
    assert [plan(512, **how)[1] for how in ({}, {"arch": "sm_89"}, {"size": 2}, {"rows": 32})] == [264, 132, 132, 132]
    assert plan(1, split=64) == plan(3000, split=64)


def test_many_sequences_have_smaller_tiles() -> None:
    arch = ARCHITECTURES["sm_90a"]
    assert decoding.cut(64, 128, 128, 2, arch, batch=4000).keys < decoding.cut(64, 128, 128, 2, arch).keys
    with pytest.raises(ArgumentError, match="attention_cached of 20000 sequences"):
        decoding.cut(64, 128, 128, 2, arch, batch=20000)


def test_a_fixed_split_has_the_same_bits_in_any_company() -> None:
    c = Case((200, 7, 140), heads=(1, 1), capacity=200)
    found, lse = pk.attention_cached(*c.operands, split=100, return_lse=True)
    c.check(found)
    for i in (0, 2):
        alone = [x[i : i + 1] for x in c.operands[:4]]
        out, log = pk.attention_cached(*alone, split=100, return_lse=True)
        np.testing.assert_array_equal(out, found[i : i + 1])
        np.testing.assert_array_equal(log, lse[i : i + 1])


def test_a_split_longer_than_any_cache() -> None:
    c = Case((20,), heads=(1, 1), capacity=20)
    c.check(pk.attention_cached(*c.operands, split=2**40))


def test_log_sum_exp_and_strides() -> None:
    """As attention has it, on caches that are (batch, m, key heads, d) in memory."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, m, h, 64)).astype(BF16).swapaxes(1, 2) for m, h in ((3, 4), (90, 2), (90, 2)))
    out, lse = pk.attention_cached(q, k, v, np.full(2, 90, np.int32), return_lse=True)
    expected, log = pk.attention(q, k, v, causal=True, return_lse=True)
    np.testing.assert_allclose(out.astype(float), expected.astype(float), atol=1e-2)
    np.testing.assert_allclose(lse, log, rtol=1e-5)


def test_nothing_to_see() -> None:
    q, cache, none = np.ones((2, 2, 1, 64), BF16), np.ones((2, 1, 0, 64), BF16), np.zeros(2, np.int32)
    out, lse = pk.attention_cached(q, cache, cache, none, return_lse=True)
    assert (out == 0).all() and np.isneginf(lse).all()
    cache = np.full((2, 1, 20, 64), np.nan, BF16)
    out, lse = pk.attention_cached(q, cache, cache, none, return_lse=True, sinks=np.ones(2, np.float32))
    assert (out == 0).all() and (lse == 1).all()
    assert pk.attention_cached(q[:0], cache[:0], cache[:0], none[:0]).shape == (0, 2, 1, 64)


def test_the_simulator_says_what_a_gpu_would_clamp() -> None:
    """Past the look at what lies on the CPU: as a debug build on a GPU says it."""
    c = Case((20, 30), page=16, heads=(2, 1), capacity=32)
    for lengths, table, said in (
        (np.array([20, 33], np.int32), c.table, "a length is negative, or more than the cache holds"),
        (np.array([-1, 30], np.int32), c.table, "a length is negative, or more than the cache holds"),
        (c.lengths, np.full((2, 2), 6, np.int32), "a page number is out of range"),
    ):
        out = np.zeros(c.q.shape, BF16)
        told = scores(64, True, *[None] * 4)
        call = decoding.call(c.q, c.k, c.v, c.lengths, c.table, None, (None, None), out, None, told, None)
        operands = list(call.operands)
        operands[4], operands[7] = lengths, table
        with pytest.raises(KernelAssertionError, match=said):
            call.kernel(*operands, **call.statics)


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"q": np.zeros((2, 2, 64), BF16)}, "attention_cached of q bf16"),
        ({"q": np.zeros((2, 2, 17, 64), BF16)}, "17 queries of a sequence"),
        ({"q": np.zeros((2, 2, 1, 64), np.float16)}, "these dtypes are not supported"),
        ({"q": np.zeros((2, 3, 1, 64), BF16), "k_cache": np.zeros((2, 2, 40, 64), BF16)}, "do not go together"),
        ({"q": np.zeros((3, 2, 1, 64), BF16)}, "do not go together"),
        ({"q": np.zeros((2, 2, 1, 60), BF16)}, "do not go together"),
        ({"lengths": np.zeros(2, np.int64)}, r"lengths are i64 \(2,\)"),
        ({"lengths": np.array([41, 0], np.int32)}, r"lengths are \[41, 0\] for a cache of 40 keys"),
        ({"lengths": np.array([-1, 0], np.int32)}, r"lengths are \[-1, 0\] for a cache of 40 keys"),
        ({"page_table": np.zeros((2, 3), np.int32)}, "pages of 40 keys"),
        ({"page_table": np.zeros(2, np.int32), "page": 16}, r"page_table is i32 \(2,\)"),
        ({"page_table": np.array([[0, 5], [1, 2]], np.int32), "page": 16}, "page 1 of sequence 0 is number 5 of 2"),
        ({"split": 0}, "split=0"),
        ({"softcap": -1.0}, "softcap=-1.0"),
        ({"window": 5}, "window=5"),
        ({"sinks": np.zeros(3, np.float32)}, "sinks are"),
        ({"k_cache": np.zeros((2, 1, 40, 64), E4M3)}, "these dtypes are not supported"),
        ({"v_scale": np.ones(1, np.float32)}, "v_scale is given"),
        ({"held": E4M3, "k_scale": np.ones(2, np.float32)}, r"k_scale is f32 \(2,\)"),
        ({"held": E4M3, "v_scale": np.ones(1, np.float64)}, r"v_scale is f64 \(1,\)"),
        ({"held": E4M3, "q": np.zeros((2, 2, 1, 72), BF16), "d": 72}, "k_cache has rows of 72 bytes"),
    ),
)
def test_refusals(change: dict[str, Any], said: str) -> None:
    cache = np.zeros((2, 1, change.pop("page", 40), change.pop("d", 64)), change.pop("held", BF16))
    given = {"q": np.zeros((2, 2, 1, 64), BF16), "k_cache": cache, "v_cache": cache}
    given |= {"lengths": np.full(2, 20, np.int32)} | change
    with pytest.raises(ArgumentError, match=said):
        pk.attention_cached(**given)


@pytest.mark.parametrize("patience", (shares.PATIENCE, 0))
def test_blocks_add_up_together(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item in three shares, of which two end in it; the last block alone, if nobody has waited."""
    monkeypatch.setattr(shares, "PATIENCE", patience)
    c = Case((130, 40), heads=(3, 1), capacity=130, sinks=np.arange(3, dtype=np.float32))
    out, told = np.full(c.q.shape, np.nan, BF16), scores(64, True, *[None] * 4)
    lse = np.full(c.q.shape[:3], np.nan, np.float32)
    operands = (c.q, c.k, c.v, c.lengths, c.table, c.settings["sinks"], (None, None), out, lse, told, None)
    call = decoding.call(*operands, groups=2, each=16, stages=2, processors=5)
    call.kernel(*call.operands, **call.statics)
    c.check(out)
    np.testing.assert_allclose(lse, pk.attention_cached(*c.operands, return_lse=True, **c.settings)[1], rtol=1e-5)


@pytest.mark.parametrize("late", (False, True))
def test_counters_begin_in_any_memory(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies there, and what launches before have left. late: no block has opened its own when others come."""
    if late:
        monkeypatch.setattr(attention_cached, "open_counter", lambda arrived, who: None)
    words = np.random.default_rng(0).integers(0, 2**62, 5)
    empty = decoding.arrays.empty

    def kept(kind: str, shape: tuple[int, ...], dtype: str, device: int | None = None) -> Any:
        return words.view(np.int32).reshape(shape) if dtype == "i32" else empty(kind, shape, dtype, device)

    monkeypatch.setattr(decoding.arrays, "empty", kept)
    told = scores(64, True, *[None] * 4)
    for lengths in ((130, 40), (90, 130), (20, 1)):
        c = Case(lengths, heads=(3, 1), capacity=130)
        out = np.full(c.q.shape, np.nan, BF16)
        operands = (c.q, c.k, c.v, c.lengths, c.table, None, (None, None), out, None, told, None)
        call = decoding.call(*operands, groups=2, each=16, stages=2 + late, processors=5)
        call.kernel(*call.operands, **call.statics)
        c.check(out)
        assert all(shares.OF_BLOCK.closed(x) or x == shares.OF_BLOCK.nothing for x in words.tolist()) or late


def test_tiles_of_small_gpus() -> None:
    """One group of warps, where shared memory has no room for two: on GPUs with 99 KiB a block at d 256."""
    c = Case((70, 5), d=(64, 64), heads=(3, 1), capacity=70)
    out, small = np.zeros(c.q.shape, BF16), decoding.cut(3, 256, 256, 2, ARCHITECTURES["sm_86"])
    told = scores(64, True, *[None] * 4)
    operands = (c.q, c.k, c.v, c.lengths, c.table, None, (None, None), out, None, told, None)
    assert small.groups == 1
    call = decoding.call(*operands, **small._asdict())
    call.kernel(*call.operands, **call.statics)
    c.check(out)
