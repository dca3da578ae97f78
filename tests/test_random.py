"""The counter-based generator: Random123's published vectors, and the same bits in every layout."""

import numpy as np
import pytest

import pykittens as pk
from pykittens.ops.random import philox, random_bits

# Random123 1.09, kat_vectors: philox4x32 10
ONES = 0xFFFFFFFF
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert tuple(int(x) for x in philox(counter, key)) == words  # type: ignore[arg-type]


@pk.kernel(warps=2)
def fill(o: pk.gl(pk.i32, 64, 96), seed: pk.u32, *, layout, first):
    """Random bits of a tile, in the layout asked for, as int32."""
    me = pk.warp.index * 32
    like = pk.warp.zeros(pk.f32, 32, 96, layout=layout)
    pk.warp.store(o, pk.random_bits(like, (seed, 5), row=me + 1000, col=first).to(pk.i32), pk.at(0, 0, me, 0))


@pytest.mark.parametrize(
    "layout", ["row", "col", pk.coalesced(8, 4), pk.coalesced(16, 2), pk.coalesced(32, 1)], ids=str
)
@pytest.mark.parametrize("first", [0, 3, 64])
def test_a_bit_depends_on_its_place_only(layout: object, first: int) -> None:
    o = np.zeros((64, 96), np.int32)
    fill(o, 0xDEADBEEF, layout=layout, first=first)
    expected = random_bits(np.arange(1000, 1064)[:, None], np.arange(first, first + 96)[None], (0xDEADBEEF, 5))
    assert np.array_equal(o.view(np.uint32), expected)


def test_bits_are_even() -> None:
    bits = random_bits(np.arange(512)[:, None], np.arange(512)[None], (1, 2))
    assert abs(bits.mean() / 2**32 - 0.5) < 0.002
    assert all(abs(((bits >> k) & 1).mean() - 0.5) < 0.005 for k in range(32))
    assert abs(np.corrcoef(bits[:, :-1].ravel(), bits[:, 1:].ravel())[0, 1]) < 0.01


def test_four_words_at_a_time_where_runs_allow_it() -> None:
    o = pk.spec(pk.i32, (64, 96))
    assert "pk_philox(w" in fill.cuda(o, 1, layout=pk.coalesced(8, 4), first=64)
    assert "= pk_philox_word(" in fill.cuda(o, 1, layout=pk.coalesced(8, 4), first=3)
