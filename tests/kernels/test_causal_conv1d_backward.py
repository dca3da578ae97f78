"""How the tiles of the convolution's backward pass are dealt out; its results are in `test_causal_conv1d.py`."""

import pytest

from pykittens.kernels.causal_conv1d_backward import FEW, LAPS, divided


@pytest.mark.thin
@pytest.mark.parametrize("at_once", [1, 3, 12, 792])
def test_each_tile_has_one_block(at_once: int) -> None:
    for tiles in (*range(1, 200), 512, 4097):
        blocks, large, laps, few = divided(tiles, at_once)
        own = [range(i, i + large * laps, large) for i in range(large)]
        begin, stride = large * laps, blocks - large
        own += [range(begin + i, tiles, stride) for i in range(stride)]
        assert sorted(tile for share in own for tile in share) == list(range(tiles))
        assert laps == LAPS and few <= FEW and all(len(share) <= few for share in own[large:])


def test_the_last_blocks_are_small_and_few_tiles_are_for_as_many_blocks() -> None:
    assert divided(512, 12) == (58 + 24, 58, 8, 2)
    assert divided(12, 12) == (12, 0, 8, 1)
