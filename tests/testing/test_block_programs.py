"""The simulator judges random programs of blocks as one who plays every interleaving does."""

import pytest

from pykittens.testing.block_programs import Blocks, random_programs, simulated, verdict


@pytest.mark.parametrize("seed", range(2))
def test_random_programs(seed: int) -> None:
    for n, blocks in enumerate(random_programs(seed, 12)):
        right, found = verdict(blocks), simulated(blocks, (None, 1, 2, 3)[n % 4])
        assert found == right or (right == "hang" and found == "race"), (blocks, right, found)


@pytest.mark.parametrize(
    ("blocks", "right"),
    [
        (((("write", 0), ("signal", 0)), (("wait", 0), ("read", 0))), "fine"),
        (((("write", 0), ("add", 0)), (("wait", 0), ("read", 0))), "race"),
        (((("write", 0), ("fence", 0), ("add", 0)), (("relaxed wait", 0), ("fence", 0), ("read", 0))), "fine"),
        (((("write", 0), ("signal", 0)), (("wait", 1), ("read", 0))), "hang"),
        (((("write", 0), ("release", 0), ("relaxed store", 0)), (("wait", 0), ("read", 0))), "race"),
        (((("lock", 0), ("write", 0), ("unlock", 0)),) * 2, "fine"),
        (((("lock", 0), ("write", 0), ("unlock", 0)), (("lock", 0), ("unlock", 0), ("write", 0))), "race"),
        (((("write", 0), ("ticket", 0, 1, (("read", 0),))), (("ticket", 0, 1, (("read", 0),)),)), "fine"),
        (((("write", 0), ("relaxed ticket", 0)), (("ticket", 0, 1, (("read", 0),)),)), "race"),
        (((("swap", 0, 0, (("write", 0),)),), (("relaxed swap", 0, 0, (("write", 0),)),)), "fine"),
        (((("exchange", 0, 0, (("write", 0),)),), (("swap", 0, 1, (("write", 0),)),)), "race"),
        (((("max", 0),), (("or", 0),)), "race"),
    ],
)
def test_the_judge_knows_the_patterns(blocks: Blocks, right: str) -> None:
    assert verdict(blocks) == right == simulated(blocks)
