"""The simulator against an independent judge: random programs that synchronise, each explored in all its
interleavings."""

from __future__ import annotations

import pytest

from pykittens.testing.interleavings import Action, Judge, Story
from pykittens.testing.sync_programs import KINDS, random_program


@pytest.mark.thin(4)
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_simulator_and_judge_agree(kind: int) -> None:
    """In every order. `python -m benchmarks.judge` does the same for 20,000 programs."""
    verdicts = set()
    for seed in range(kind, 20 * len(KINDS), len(KINDS)):
        program = random_program(seed)
        judged, simulated = program.judged(), program.simulated((None, 1))
        assert {bool(found) for found in simulated} == {bool(judged)}, (seed, judged, simulated, program)
        verdicts.add(bool(judged))
    assert verdicts == {True, False}


def test_the_judge_sees_each_mistake() -> None:
    write, read = Action("touch", writes=frozenset({0})), Action("touch", reads=frozenset({0}))
    arrive, wait = Action("arrive", 0), Action("wait", 0, 0)
    assert Judge(Story([(write, arrive), (wait, read)], [1])).wrong == ""
    assert Judge(Story([(write,), (write,)])).wrong == "race"
    assert Judge(Story([(read,)])).wrong == "unwritten"
    assert Judge(Story([(wait,)], [1])).wrong == "deadlock"
    assert Judge(Story([(Action("issue", 0, -1, writes=frozenset({0})),)])).wrong == "in flight at the end"
    assert Judge(Story([(arrive, arrive), (arrive,)], [2])).wrong == "an arrival in several phases"
    assert Judge(Story([(arrive,), (arrive,), (wait,)], [1])).wrong
    meet = Action("meet", 0)
    assert Judge(Story([(write, meet), (meet, read)], named=[2])).wrong == ""
    assert Judge(Story([(write, meet), (meet, read)], named=[3])).wrong == "deadlock"
