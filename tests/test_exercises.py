"""Small kernels for what a sample cannot show: each is right on the simulated GPU, and nothing is left out."""

import numpy as np
import pytest

from benchmarks.exercises import EXERCISES, Exercise
from pykittens.architectures import ARCHITECTURES, SIMULATED
from tests.test_conformance import WITHOUT_SAMPLES


def test_what_has_no_samples_has_an_exercise() -> None:
    found = set[str]().union(*map(Exercise.operations, EXERCISES))
    assert not WITHOUT_SAMPLES - found


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda x: x.kernel.name)
def test_exercises(exercise: Exercise) -> None:
    """What is computed is what NumPy computes; a wrong result is seen; no feature but those that it names is needed."""
    given = exercise.make(np.random.default_rng(7))
    arrays = [x.copy() for x in given]
    for _ in range(exercise.times):
        exercise.kernel.simulate(*arrays)
    assert not exercise.differs(given[:-1], arrays[-1])
    assert "the first at" in exercise.differs(given[:-1], np.roll(arrays[-1] + 1, 1))
    assert exercise.runs_on(SIMULATED.features)
    fitting = [name for name, row in ARCHITECTURES.items() if exercise.runs_on(row.features)]
    assert exercise.kernel.text(exercise.program(), fitting[0])
