"""Random programs give on the simulator what NumPy gives without it, bit for bit."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens.testing.number_reference import bits_of
from pykittens.testing.program_kernel import Player, arrays, program_kernel, tensors
from pykittens.testing.program_reference import evaluate
from pykittens.testing.programs import SCALARS, TILES, ProgramStep, draw
from pykittens.types import RegisterTile, RegisterVector, ScalarType, bool_

TOGETHER = 8


@pytest.mark.thin(2)
@pytest.mark.parametrize("first", range(0, 32, TOGETHER))
def test_simulator_and_numpy(first: int) -> None:
    seeds = tuple(range(first, first + TOGETHER))
    given = arrays(seeds)
    program_kernel(seeds).simulate(**given)
    wrong = []
    for i, seed in enumerate(seeds):
        inputs = {d: given[f"{d}_tiles"][i] for d in TILES}, {d: given[f"{d}_scalars"][i] for d in SCALARS}
        for dtype, want in evaluate(draw(seed), *inputs).items():
            if dtype is not bool_:
                got = given[f"{dtype}_out"][i, : want.shape[0], : want.shape[1]]
                if not np.array_equal(bits_of(got), bits_of(np.ascontiguousarray(want))):
                    wrong.append((seed, dtype, int((bits_of(got) != bits_of(np.ascontiguousarray(want))).sum())))
    assert not wrong, wrong


def test_every_kind_of_step_is_drawn() -> None:
    names = Counter(step.name for seed in range(400) for step in draw(seed))
    wanted = (
        "load shared global product when repeat fma where reduce to_scalar transpose swap_layout scalars cast "
        "with_number count best second triangle scan form rows"
    )
    assert all(names[name] > 20 for name in wanted.split()), names


def test_every_value_is_of_the_kind_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a later step may not take it: a column and a row meet in a tile."""
    forms = {RegisterTile: ("tile",), RegisterVector: ("col", "row"), ScalarType: ("scalar",)}
    plain = Player.step

    def step(self: Player, step: ProgramStep, args: list[Any]) -> Any:
        value = plain(self, step, args)
        assert step.makes.form in forms[type(value.type)] and value.type.dtype is step.makes.dtype, step
        return value

    def meet(seed: int) -> bool:
        steps = draw(seed)
        return any({steps[i].makes.form for i in s.args} == {"col", "row"} for s in steps if len(s.args) == 2)

    monkeypatch.setattr(Player, "step", step)
    seeds = [seed for seed in range(1500) if meet(seed)][:TOGETHER]
    given = {name: pk.spec(*parameter) for name, parameter in tensors(len(seeds)).items()}
    program_kernel(seeds).program(**given)
    assert len(seeds) == TOGETHER
