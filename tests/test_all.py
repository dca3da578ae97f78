"""What `tests/all.py` runs whole, kind by kind, and what it says of that afterwards."""

import json
from pathlib import Path

import pytest

from tests import all as checks

ROOT = Path(__file__).parents[1]


def test_every_test_is_run_with_its_kind() -> None:
    assert {*checks.KINDS.values(), checks.REST} == {*checks.BUDGET}
    assert all((ROOT / path).exists() for path in checks.KINDS)
    told = {kind: checks.places(kind) for kind in checks.BUDGET}
    left_out = [x.removeprefix("--ignore=") for x in told.pop(checks.REST)[1:]]
    for file in (ROOT / "tests").rglob("test_*.py"):
        parents = {str(x) for x in (file.relative_to(ROOT), *file.relative_to(ROOT).parents)}
        kinds = [kind for kind, paths in told.items() if parents.intersection(paths)]
        kinds += [checks.REST] * (not parents.intersection(left_out))
        assert kinds == [checks.kind_of(str(file.relative_to(ROOT)))], file


def test_what_failed_is_said_until_its_kind_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    old = {"table": "whole", "kind": "removals", "passed": 3, "failing": ["tests/test_removal.py::test_it"]}
    old |= {"date": "2026-11-27", "time": "09:00"}
    other = {"table": "host", "date": "2026-11-28"}
    (results / "cpu.json").write_text(json.dumps([other, old]))
    lines, red = checks.filed()
    at = lines.index("whole, removals: 2026-11-27, 3 passed")
    assert red and lines[at + 1] == "    failed: tests/test_removal.py::test_it"
    assert lines.count("whole, operations: not filed") == 1
    (results / "h200.json").write_text(json.dumps([{**old, "time": "10:00", "passed": 4, "failing": []}]))
    lines, red = checks.filed()
    assert not red and "whole, removals: 2026-11-27, 4 passed" in lines
