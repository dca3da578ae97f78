"""What runs in CI has every value of every parameter, or is one case in so many; and is the same in every run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import thin

ROOT = Path(__file__).parents[1]


def test_few_sets_have_all_that_is_in_any() -> None:
    product = [{("a", i), ("b", j), ("c", k)} for i in range(4) for j in range(3) for k in range(2)]
    chosen = thin.covering(product)
    assert len(chosen) == 4 and set().union(*(product[i] for i in chosen)) == set().union(*product)
    assert thin.covering([]) == [] and thin.covering([set(), {1}, {1}]) == [1]


def test_configurations_have_every_row_and_every_value_of_every_option() -> None:
    for rows in thin.of_one_kernel():
        few = [(row.name, choice) for row, choice, _ in thin.configurations(rows)]
        every = [(row.name, choice) for row in rows for choice, _ in row.configurations()]
        for found in (few, every):
            assert {name for name, _ in found} == {row.name for row in rows}
        assert {x for _, c in few for x in c.items()} == {x for _, c in every for x in c.items()}


@pytest.mark.parametrize(("options", "count"), [((), 3 + 1 + 1), (("--whole",), 6 + 2 + 1)])
def test_cases_of_a_file(tmp_path: Path, options: tuple[str, ...], count: int) -> None:
    names = [f"n{i}" for i in range(10)]
    (tmp_path / "test_it.py").write_text(
        f"""
import pytest
@pytest.mark.thin
@pytest.mark.parametrize("a", [1, 2, 3])
@pytest.mark.parametrize(("b", "c"), [(1, 1), (2, 2)])
def test_all_pairs(a, b, c): pass
@pytest.mark.thin
@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.whole)])
def test_some_whole(a): pass
@pytest.mark.thin(2)
@pytest.mark.parametrize("name", {names})
def test_by_hash(name): pass
def test_plain(): pass
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
        + ["--rootdir", str(tmp_path), "--collect-only", "-p", "no:cacheprovider", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    hashed = [line for line in ids if "by_hash" in line]
    assert "test_by_hash[n0]" in hashed[0] and (len(hashed) == 10 if options else 2 <= len(hashed) <= 8), done.stdout
    assert len(ids) - len(hashed) == count, done.stdout
