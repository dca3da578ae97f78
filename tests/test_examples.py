"""The example kernels run as they stand, on the simulated GPU, and are as short as they are meant to be."""

import runpy
from pathlib import Path

import pytest

from pykittens.call.kernel import Kernel
from pykittens.kernels.source_length import count_lines

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "kernels").glob("*.py"))
MOST = 30  # lines of a kernel, helpers included


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(file: Path) -> None:
    names = runpy.run_path(str(file), run_name="__main__")
    (kernel,) = (x for x in names.values() if isinstance(x, Kernel))
    assert count_lines(kernel) <= MOST


def test_there_are_thirty_and_more() -> None:
    assert len(EXAMPLES) > 30
