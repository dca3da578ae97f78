"""Attention on caches on a GPU: random shapes beside float64, by plan and by graph; wrong lengths and pages."""

from __future__ import annotations

import random
from typing import Any

import pytest

import pykittens as pk
from pykittens.gpu import driver

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not driver.available(), reason="no GPU")]
torch = pytest.importorskip("torch")

HEADS = ((8, 1), (32, 8), (5, 5), (64, 8))


def exact(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    """By torch's own operations, in float64, one sequence after another."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64, device=q.device)
    (heads, n), groups = q.shape[1:3], k.shape[1]
    for i, length in enumerate(lengths.tolist()):
        if length:
            keys, values = (x[i, :, :length].double().repeat_interleave(heads // groups, 0) for x in (k, v))
            score = q[i].double() @ keys.mT * q.shape[3] ** -0.5
            last = torch.arange(length - n, length, device=q.device)[:, None]
            score.masked_fill_(torch.arange(length, device=q.device) > last, -torch.inf)
            out[i] = torch.softmax(score, -1).nan_to_num(0) @ values
    return out


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(seed: int) -> None:
    """Every third of 8-bit floats, with scales of their key heads."""
    lot, made = random.Random(seed), torch.Generator("cuda").manual_seed(seed)
    batch, (heads, groups), d = lot.choice((1, 3, 17)), lot.choice(HEADS), lot.choice((64, 96, 128, 256))
    n, page, split = lot.choice((1, 2, 5, 16)), lot.choice((0, 16, 64)), lot.choice((None, 300))
    each = lot.randrange(1, 60)
    capacity = each * page or lot.randrange(1, 3000)
    q, k, v = (
        torch.randn(batch, h, rows, d, device="cuda", generator=made).bfloat16()
        for h, rows in ((heads, n), (groups, capacity), (groups, capacity))
    )
    lengths = torch.randint(0, capacity + 1, (batch,), device="cuda", generator=made).int()
    scales: dict[str, Any] = {}
    if seed % 3 == 2:
        scales = {name: torch.rand(groups, device="cuda", generator=made) + 0.5 for name in ("k_scale", "v_scale")}
        k, v = (x.to(torch.float8_e4m3fn) for x in (k, v))
    whole = [x.double() * y.view(-1, 1, 1) for x, y in zip((k, v), scales.values(), strict=True)] if scales else [k, v]
    expected, table = exact(q, *whole, lengths), None
    for x in (k, v):
        bits = x.view(torch.uint8 if scales else torch.int16)
        for i, length in enumerate(lengths.tolist()):
            bits[i, :, length:] = 0x7F if scales else 0x7FFF  # NaN
    if page:
        numbers = torch.randperm(batch * each, device="cuda", generator=made)
        pages = [torch.empty(batch * each, groups, page, d, device="cuda", dtype=k.dtype) for _ in range(2)]
        for x, to in zip((k, v), pages, strict=True):
            cut = x.view(torch.uint8 if scales else x.dtype).view(batch, groups, each, page, d)
            to.view(cut.dtype)[numbers] = cut.transpose(1, 2).flatten(0, 1)
        table = numbers.view(batch, each).int()
        table[torch.arange(each, device="cuda") * page >= lengths[:, None]] = 2**30
        k, v = pages

    def close(out: Any) -> bool:
        return bool((out.double() - expected).norm() <= 5e-3 * expected.norm())

    with torch.no_grad():
        assert all(close(pk.attention_cached(q, k, v, lengths, table, split=split, **scales)) for _ in range(3))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = pk.attention_cached(q, k, v, lengths, table, split=split, **scales)
        for _ in range(2):
            out.fill_(torch.nan)
            graph.replay()
            assert close(out)
        lengths += 2**20  # nothing outside of the cache is read
        pk.attention_cached(q, k, v, lengths, table, split=split, **scales)
        torch.cuda.synchronize()
