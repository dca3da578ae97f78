"""Every step of the tutorial runs as it stands, on the simulated GPU."""

import runpy
from pathlib import Path

import pytest

STEPS = sorted((Path(__file__).parents[1] / "docs" / "tutorial").glob("*.py"))


@pytest.mark.whole  # in CI the site's test runs them, to show what they print
@pytest.mark.parametrize("step", STEPS, ids=lambda path: path.stem)
def test_a_step_runs(step: Path) -> None:
    runpy.run_path(str(step), run_name="__main__")


def test_steps_are_numbered() -> None:
    assert [int(path.stem[:2]) for path in STEPS] == list(range(1, len(STEPS) + 1))
    for path in STEPS:
        assert path.read_text(encoding="utf-8").startswith(f'"""# {int(path.stem[:2])}. ')
