"""The model of time that chooses how attention and products are divided."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens.kernels import attention, attention_divided, attention_hopper, reference, schedule
from pykittens.kernels.schedule import AttentionShape, DeviceModel, Multiply, Way

SHAPES = [
    AttentionShape(1, 1, 1, 1, 1, 64, False),
    AttentionShape(3, 5, 1, 4097, 4097, 64, True),
    AttentionShape(1, 2, 2, 461, 24211, 128, False),
    AttentionShape(2, 4, 1, 5000, 100, 200, True),
    AttentionShape(32, 64, 8, 32768, 32768, 96, False),
    AttentionShape(2, 4, 1, 5000, 100, 200, False, 30, 30),  # rows that see nothing
    AttentionShape(1, 2, 2, 300, 2000, 64, True, 0),
    AttentionShape(1, 2, 2, 300, 300, 128, False, right=7, sinks=True),
    AttentionShape(4, 16, 16, 4096, 4096, 192, True, values=128),
]


@pytest.mark.thin
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("machine", [DeviceModel(1), DeviceModel()])
def test_every_way_of_attention_has_a_time_and_the_least_is_taken(shape: AttentionShape, machine: DeviceModel) -> None:
    width = next(w for w in schedule.WIDTHS if w >= shape.dim)
    known = schedule.constants()["attention"][str(width)]
    known = known if width <= 128 else schedule.resized(known, width, shape.dims)
    times = [shape.microseconds(way, known[way.name], known["all"], machine) for way in shape.ways(machine.sms)]
    assert all(math.isfinite(t) and t > 0 for t in times)
    assert schedule.attention(shape, machine).microseconds == min(times)


def test_tiles_have_as_many_keys_as_there_is_room_for() -> None:
    found = [
        schedule.roomiest(*dims) for dims in ((160, 160), (192, 64), (192, 128), (192, 192), (224, 224), (256, 256))
    ]
    assert found == [128, 128, 128, 96, 96, 80]
    assert schedule.roomiest(256, 256, 160) < 80


@pytest.mark.parametrize("dims", [(136, 136), (192, 64), (192, 128), (192, 192), (224, 224), (256, 128)])
@pytest.mark.parametrize("window", [False, True])
def test_wide_heads_compile_without_spills(dims: tuple[int, int], window: bool) -> None:
    q, v = (pk.spec(pk.bf16, (1, 1, 70, d)) for d in dims)
    lse = pk.spec(pk.f32, (1, 1, 70))
    for way in schedule.ways(*dims):
        static = way.settings | {"causal": not window, "with_lse": True, "arch": "sm_90a"}
        band = (30, 20) if window else ()
        cubin = attention_hopper.attend.compile(q, q, v, v, lse, 0.1, *band, **static)
        assert not cubin.spills and not cubin.warnings


@pytest.mark.thin
@pytest.mark.parametrize("sizes", [(1, 1, 1), (64, 8192, 8192), (1000, 5000, 3000), (99999, 16, 16), (16384,) * 3])
@pytest.mark.parametrize("machine", [DeviceModel(1), DeviceModel(2), DeviceModel()])
def test_every_way_of_a_product_has_a_time_and_the_least_is_taken(
    sizes: tuple[int, int, int], machine: DeviceModel
) -> None:
    shape, known = schedule.contiguous(*sizes), schedule.constants()["product"]
    times = [shape.microseconds(way, known[way.name], known["all"], machine) for way in shape.ways(machine.sms)]
    assert all(math.isfinite(t) and t > 0 for t in times)
    choice = schedule.product(shape, machine)
    assert choice.microseconds == min(times)
    config = replace(choice.way.config, rotate=False, once="")
    assert config in schedule.CONFIGS or config == schedule.swapped(
        config.rows, config.cols, config.cluster, config.share
    )


@pytest.mark.parametrize("m", [1, 16, 17, 100, 808])
def test_swapped_tiles_are_the_narrowest_of_as_many(m: int) -> None:
    """And none where there is an epilogue: it is given tiles of the result, and not of its transpose."""
    shape = schedule.contiguous(m, 64, 2048)
    offered: dict[str, list[Any]] = {}
    for config in (way.config for way in shape.ways(132)):
        if config.swap:
            offered.setdefault(f"{config.rows} {config.cluster} {config.share}", []).append(config)
    assert len(offered) == len(schedule.SWAPPED)
    for configs in offered.values():
        counts = [-(-m // (config.cols * config.stack[1])) for config in configs]
        assert counts == sorted(set(counts), reverse=True)
    assert m > 256 or -(-m // 16) * 16 in [config.cols for config in offered["64 1 a"]]
    assert not any(way.config.swap for way in shape._replace(swap=False).ways(132))


def test_more_of_anything_takes_longer() -> None:
    times = [
        schedule.attention(AttentionShape(4, 16, 16, n, n, 128, True), DeviceModel()).microseconds
        for n in (1024, 4096, 16384)
    ]
    assert times == sorted(times)
    times = [schedule.product(Multiply(n, n, n), DeviceModel()).microseconds for n in (1024, 4096, 16384)]
    assert times == sorted(times)


def test_a_window_takes_less_the_narrower_it_is() -> None:
    sides = (0, 100, 1000, None)
    times = [
        schedule.attention(AttentionShape(4, 8, 8, 8192, 8192, 64, True, left), DeviceModel()).microseconds
        for left in sides
    ]
    assert times == sorted(times) and times[2] < 0.5 * times[3]


@pytest.mark.parametrize(("n", "left", "consumers"), [(90, 20, 1), (8192, 1024, 2)])
def test_windows_run_as_the_model_chooses(n: int, left: int, consumers: int) -> None:
    """Few, short tiles take one consumer, and many two that stay."""
    q = np.zeros((4, 16, n, 64), pk.bf16.numpy)
    scores = attention.scores(64, True, None, left, None, None)
    call = attention.call(q, q, q, None, np.empty_like(q), None, scores)
    way = schedule.attention(AttentionShape(4, 16, 16, n, n, 64, True, left), DeviceModel()).way
    assert call.statics.items() >= way.settings.items()
    assert (way.consumers, way.stay, way.splits) == (consumers, consumers == 2, 1)


def test_the_busiest_where_every_other_round_goes_backwards() -> None:
    assert schedule.to_and_fro(np.array([1.0, 2.0, 3.0]), 6, 3) == 4
    assert schedule.to_and_fro(np.array([1.0, 2.0, 3.0]), 7, 3) == 5  # the seventh tile, of 1, is the first block's


@pytest.mark.parametrize(("n", "m"), [(188, 19463), (276, 1187), (2304, 2304), (5000, 400)])
@pytest.mark.parametrize("heads", [1, 7, 130])
@pytest.mark.parametrize("stay", [True, False])
def test_causal_tiles_take_what_whoever_comes_has(n: int, m: int, heads: int, stay: bool) -> None:
    """Each block that is done takes the longest tile that is left."""
    known = schedule.constants()["attention"]["64"]
    way = schedule.ways(64, 64)[0]._replace(stay=stay)
    launch, tile, step, masked = known[way.name]
    one = AttentionShape(1, heads, 1, n, m, 64, True).microseconds(way, known[way.name], known["all"], DeviceModel())
    counts = [-(-max(min((i + 1) * 128 + m - n, m), 1) // 128) for i in range(-(-n // 128))]
    blocks = [0.0] * 132
    for count in sorted(counts * heads, reverse=True):
        heapq.heapreplace(blocks, blocks[0] + tile + masked + step * count)
    found, longest = launch + max(blocks), tile + masked + step * max(counts)
    assert found - 0.6 * longest <= one <= 1.1 * found + longest + 1


def test_memory_that_is_faster_takes_less() -> None:
    shape = Multiply(64, 8192, 8192)
    assert (
        schedule.product(shape, DeviceModel(132, 4.8)).microseconds
        < schedule.product(shape, DeviceModel()).microseconds
    )


def test_rows_that_tma_fills_with_zeros_take_time() -> None:
    """Half of the rows take longer in tiles that are half empty, as they did on an H200 (45 and 29 us)."""
    known, way = schedule.constants()["product"], schedule.ProductWay(schedule.Config(128, 64, 8, 2))
    whole, half = (Multiply(m, 5312, 7424) for m in (128, 64))
    made = [shape.microseconds(way, known[way.name], known["all"], DeviceModel()) for shape in (whole, half)]
    assert made[1] > made[0]


def test_few_queries_of_many_keys_divide_the_keys() -> None:
    assert schedule.attention(AttentionShape(1, 2, 2, 64, 32768, 128, False), DeviceModel()).way.splits > 1
    assert (
        schedule.attention(AttentionShape(1, 2, 2, 64, 32768, 128, False), DeviceModel(), divide=False).way.splits == 1
    )


@pytest.mark.thin
@pytest.mark.parametrize("n", [90, 300])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("way", [Way(stages=3, stay=False, splits=3), Way(queries=1, consumers=1, stay=False)], ids=str)
def test_ways_agree_with_float64(n: int, causal: bool, way: Way) -> None:
    """Among them rows that see nothing (n > m), and parts without keys."""
    rng = np.random.default_rng(n)
    bf16 = pk.bf16.numpy
    q, k, v = (rng.standard_normal((2, heads, rows, 64)).astype(bf16) for heads, rows in ((2, n), (1, 290), (1, 290)))
    o, lse = np.full_like(q, np.nan), np.full((2, 2, n), np.nan, np.float32)
    settings, splits = way.settings, way.splits
    settings |= {"causal": causal, "with_lse": True, "sms": 3, "positive": True}
    if splits > 1:
        attention_divided.DIVIDED(q, k, v, o, lse, 0.125, splits=splits, **settings)
    else:
        attention_divided.attention_hopper.attend(q, k, v, o, lse, 0.125, **settings)
    wide = [np.repeat(x.astype(float), 2, 1) for x in (k, v)]
    expected = reference.attention(q.astype(float), *wide, scale=0.125, causal=causal)
    assert np.abs(o.astype(float) - expected).max() < 1e-2
    score = 0.125 * q.astype(float) @ wide[0].swapaxes(2, 3)
    if causal:
        score = np.where(np.arange(290) <= np.arange(n)[:, None] + 290 - n, score, -np.inf)
    with np.errstate(divide="ignore"):
        logs = np.log(np.exp(score).sum(-1))
    assert np.allclose(lse, logs, atol=1e-2)


@pytest.mark.parametrize("contiguous", [True, False])
def test_rows_of_heads_that_share_keys_fill_tiles_together(contiguous: bool) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, h, n, 64)).astype(pk.bf16.numpy) for h, n in ((4, 60), (2, 90), (2, 90)))
    if not contiguous:
        q = np.ascontiguousarray(q.swapaxes(1, 2)).swapaxes(1, 2)
    assert (attention.grouped(q, k, np.empty(q.shape, q.dtype)) is not None) == contiguous
    o, lse = pk.attention(q, k, v, return_lse=True)
    wide = [np.repeat(x.astype(float), 2, 1) for x in (k, v)]
    expected = reference.attention(q.astype(float), *wide, scale=0.125, causal=False)
    assert np.abs(o.astype(float) - expected).max() < 1e-2
    logs = np.log(np.exp(0.125 * q.astype(float) @ wide[0].swapaxes(2, 3)).sum(-1))
    assert np.allclose(lse, logs, atol=1e-2)


@pytest.mark.parametrize(
    ("heads", "n", "m", "dim"),
    [(4, 33, 300, 64), (7, 150, 333, 128), (3, 5, 200, 256), (4, 200, 90, 64)],  # the last: rows that see no key
)
@pytest.mark.parametrize("stay", [True, False])
def test_causal_rows_of_heads_that_share_keys_are_counted_anew(
    heads: int, n: int, m: int, dim: int, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the model says of it, several heads in a tile or a head's end in it."""
    rng, plan, seen = np.random.default_rng(n), attention.plan, []

    def packs(*args: Any) -> schedule.ChosenWay:
        seen.append(args[6] if len(args) > 6 else None)
        way = next(x for x in schedule.ways(dim, dim) if x.stay == stay)
        return plan(*args)._replace(way=way, microseconds=1.0 if seen[-1] else 2.0)

    monkeypatch.setattr(attention, "plan", packs)
    q, k, v = (rng.standard_normal((2, h, r, dim)).astype(pk.bf16.numpy) for h, r in ((2 * heads, n), (2, m), (2, m)))
    o, lse = pk.attention(q, k, v, causal=True, return_lse=True)
    assert n in seen
    wide = [np.repeat(x.astype(float), heads, 1) for x in (k, v)]
    expected = reference.attention(q.astype(float), *wide, scale=dim**-0.5, causal=True)
    assert np.abs(o.astype(float) - expected).max() < 1e-2
    hidden = np.arange(m) > np.arange(n)[:, None] + m - n
    with np.errstate(divide="ignore"):
        scores = np.where(hidden, -np.inf, dim**-0.5 * q.astype(float) @ wide[0].swapaxes(2, 3))
        logs = np.log(np.exp(scores).sum(-1))
    np.testing.assert_allclose(lse, logs, atol=1e-4)


def test_few_rows_of_many_heads_are_packed() -> None:
    """Where the model says that it pays: not where most tiles would see two heads, and masks."""
    machine = DeviceModel(132, 4.8)
    for (batch, heads, shared, n, m, dim), pays in (
        ((10, 8, 4, 172, 890, 256), True),
        ((64, 8, 1, 24, 1500, 64), True),
        ((4, 28, 4, 900, 900, 128), False),
        ((16, 8, 1, 200, 200, 128), False),
    ):
        alone = schedule.attention(AttentionShape(batch, heads, shared, n, m, dim, True), machine)
        rows = n * heads // shared
        packed = schedule.attention(AttentionShape(batch, shared, shared, rows, m, dim, True, head_rows=n), machine)
        assert (packed.microseconds < attention.SURE * alone.microseconds) == pays
