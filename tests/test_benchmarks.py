"""Results are filed with what they depend on, and the tables in the texts say what the results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record, tables
from pykittens.bench import host

WHERE = {
    "device": "NVIDIA H200",
    "driver": "580.65 (CUDA 13.0)",
    "compiler": "NVRTC 13.5",
    "date": "2026-11-22",
    "command": "python -m benchmarks.host",
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "facts", lambda: WHERE)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path / "h200.json"


def row(what: str, value: float) -> dict[str, Any]:
    return {"arch": "sm_90", "what": what, "value": value, "unit": "us", "limit": 8}


def test_a_new_measurement_replaces_the_old_one(file: Path) -> None:
    assert record.record("host", [row("call", 9.0), row("bound", 1.0)], ("what",)) == file
    record.record("errors", [{"n": 17}], ("n",))
    record.record("host", [row("call", 7.0)], ("what",))
    rows = record.read(file)
    assert [(r["table"], r.get("what"), r.get("value")) for r in rows] == [
        ("errors", None, None),
        ("host", "bound", 1.0),
        ("host", "call", 7.0),
    ]
    assert all(WHERE.items() <= r.items() for r in rows)
    assert json.loads(file.read_text()) == rows
    assert len(file.read_text().splitlines()) == len(rows) + 2  # one row a line: changes can be read


def test_tables(file: Path) -> None:
    record.record("host", [row("call", 7.25)], ("what",))
    text = "before\n<!-- begin:host -->\nstale\n<!-- end:host -->\nafter\n<!-- begin:errors -->\n<!-- end:errors -->\n"
    filled = tables.fill(text, record.read(file))
    assert "| call | sm_90 | 7.25 us | 8 us |" in filled and "stale" not in filled
    assert "NVIDIA H200, driver 580.65 (CUDA 13.0), NVRTC 13.5, 2026-11-22: `python -m benchmarks.host`" in filled
    assert "Not measured yet" in filled
    assert tables.fill(filled, record.read(file)) == filled
    with pytest.raises(KeyError):
        tables.fill("<!-- begin:nothing -->\n<!-- end:nothing -->", [])


def test_host_costs_of_two_architectures_stay_apart(file: Path) -> None:
    record.record("host", [{**row("call", 5.75), "arch": "sm_90"}], host.KEY)
    record.record("host", [{**row("call", 7.3), "arch": "sm_90a"}], host.KEY)
    assert [(r["arch"], r["value"]) for r in record.read(file)] == [("sm_90", 5.75), ("sm_90a", 7.3)]
