"""Rows appended to caches on a GPU, turned with the queries: beside torch's own operations, by plan and by graph."""

from __future__ import annotations

import random
from typing import Any

import pytest

import pykittens as pk
from pykittens.gpu import driver

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not driver.available(), reason="no GPU")]
torch = pytest.importorskip("torch")


def turned(x: Any, positions: Any, cos: Any, sin: Any) -> Any:
    """The first features of (batch, heads, n, d) by the angles of (batch, n) positions, in float64."""
    half = cos.shape[1]
    c, s = (t.double()[positions][:, None] for t in (cos, sin))
    a, b, rest = x.double().split((half, half, x.shape[3] - 2 * half), 3)
    return torch.cat((a * c - b * s, b * c + a * s, rest), 3)


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(seed: int) -> None:
    """The last two into caches of 8-bit floats."""
    lot, made = random.Random(seed), torch.Generator("cuda").manual_seed(seed)
    batch, groups, d, n = lot.choice((1, 3, 33)), lot.choice((1, 5, 8)), lot.choice((64, 96, 128, 256)), seed + 1
    page, each, rotary = (0, 16, 64, 0)[seed], lot.randrange(2, 9), d // (2 + 2 * (seed % 2))
    capacity = each * page or lot.randrange(40, 300)

    def normal(*shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.randn(*shape, device="cuda", generator=made).to(dtype)

    k, v, q = normal(batch, groups, n, d), normal(batch, groups, n, d), normal(batch, 2 * groups, n, d)
    cos, sin = (normal(capacity, rotary, dtype=torch.float32) for _ in range(2))
    lengths = torch.randint(n, capacity + 1, (batch,), device="cuda", generator=made).int()
    table = None
    if page:
        shape, table = (batch * each, groups, page, d), torch.randperm(batch * each, device="cuda").view(batch, each)
    else:
        shape = (batch, groups, capacity, d)
    scales: dict[str, Any] = {}
    if seed > 1:
        scales = {name: torch.rand(groups, device="cuda", generator=made) + 0.1 for name in ("k_scale", "v_scale")}
    held = torch.float8_e4m3fn if scales else torch.bfloat16
    caches = [normal(*shape, dtype=held) for _ in range(2)]
    positions = lengths.long()[:, None] - n + torch.arange(n, device="cuda")
    rows = [turned(k, positions, cos, sin), v.double()]
    if scales:
        by = [x.view(-1, 1, 1) for x in scales.values()]
        rows = [(x / y).float().to(held).double() for x, y in zip(rows, by, strict=True)]
    numbers = torch.arange(batch, device="cuda")[:, None] if table is None else table.gather(1, positions // page)
    expected = []
    for cache, x in zip(caches, rows, strict=True):
        expected.append(cache.double())
        expected[-1][numbers, :, positions % page if page else positions] = x.transpose(1, 2)

    def append() -> Any:
        short = None if table is None else table.int()
        return pk.cache_append(k, v, *caches, lengths, short, cos=cos, sin=sin, q=q, **scales)

    def right(found: Any) -> bool:
        wanted = [turned(q, positions, cos, sin), *expected]
        pairs = zip((found, *caches), wanted, strict=True)
        step = 0.13 if scales else 8e-3  # of what is rounded to a neighbour
        return all(torch.allclose(x.double(), y, rtol=step, atol=1e-2) for x, y in pairs)

    first = [x.clone() for x in caches]
    with torch.no_grad():
        for _ in range(2):
            for x, y in zip(caches, first, strict=True):
                x.copy_(y)
            assert right(append())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = append()
        for x, y in zip((found, *caches), (torch.full_like(found, torch.nan), *first), strict=True):
            x.copy_(y)
        graph.replay()
        assert right(found)
        lengths += 2**20  # nothing outside of the caches is written
        append()
        torch.cuda.synchronize()
        assert right(found)
