"""Results are filed with what they depend on, and the tables in the texts say what the results say."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fit, ncu, record, tables, warm
from pykittens.bench import host
from pykittens.kernels import schedule

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


def test_a_training_run_is_a_table_and_a_chart(file: Path) -> None:
    facts = {"parameters": 2e8, "batch": 8, "length": 4096, "steps": 3, "vocabulary": 32768, "peak_gib": 20.0}
    for name, speed in (("PyKittens", 300.0), ("torch", 200.0)):
        measured = {"tokens_per_second": speed, "step_ms": 1e6 / speed, "losses": [9.5, 4.25, 3.75 + speed / 1e3]}
        record.record("training", [{"contender": name, **facts, **measured}], ("contender",))
    rows = record.read(file)
    table = tables.fill("<!-- begin:training -->\n<!-- end:training -->\n", rows)
    assert "| torch | 200 | 1.50x | 5000.0 ms | 20.0 GiB | 5.900 |" in table
    assert "200 million parameters, 8 x 4096 tokens a step" in table
    drawn = tables.charts(rows)["training"]
    lines = re.findall(r'<polyline points="([^"]*)"', drawn)
    assert [len(line.split()) for line in lines] == [3, 3]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    assert all(y == sorted(y) for y in heights) and heights[0][:2] == heights[1][:2]  # lower losses stand lower


def test_host_costs_of_two_architectures_stay_apart(file: Path) -> None:
    record.record("host", [{**row("call", 5.75), "arch": "sm_90"}], host.KEY)
    record.record("host", [{**row("call", 7.3), "arch": "sm_90a"}], host.KEY)
    assert [(r["arch"], r["value"]) for r in record.read(file)] == [("sm_90", 5.75), ("sm_90a", 7.3)]


def test_the_contract_is_counted_by_function() -> None:
    from benchmarks import contract

    cases = [
        {"name": "test_steps_are_rows[mamba2]", "outcome": "passed"},
        {"name": "test_f16_with_large_keys[gated_linear_attention, channels]", "outcome": "failed"},
        {"name": "test_the_recurrence[1-dtype0-gated_linear_attention]", "outcome": "passed"},
        {"name": "test_every_function_with_a_state_has_a_row", "outcome": "passed"},
    ]
    rows = {row["what"].partition(": ")[2]: row for row in contract.counts(cases)}
    assert {name: (row["passed"], row["failed"]) for name, row in rows.items()} == {
        "mamba2": (1, 0),
        "gated_linear_attention": (1, 0),
        "gated_linear_attention, channels": (0, 1),
        "all functions": (1, 0),
    }
    assert rows["gated_linear_attention, channels"]["failures"] == [cases[1]["name"]]


def test_tests_of_fla_s_are_counted_by_who_ran_them(tmp_path: Path) -> None:
    """Of a file of tests that has every way to end."""
    from benchmarks import fla, reports

    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_ours(record_property): record_property('calls', 'chunk_kda')\n"
        "def test_other(): pass\n"
        "def test_wrong(): assert False\n"
        "def test_left(): pytest.skip('left to fla: f32')\n"
        "def test_theirs(): pytest.skip('no GPU')\n"
    )
    row = fla.test_row("chunk_kda", reports.run(["-c", "/dev/null", f"--rootdir={tmp_path}", "test_some.py"], tmp_path))
    assert [row[x] for x in ("passed", "failed", "left", "without")] == [1, 1, 1, 2]
    assert row["failures"] == ["test_wrong"] and row["reasons"] == ["f32"]


def test_counters_of_each_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By launch, in order, without what ncu and the program print before the table; or what ncu said, where none is."""
    table = '"ID","Metric Name","Metric Value"\n"0","a","1,024"\n"0","b","2"\n"1","a","3.5"\n"1","b","4"'
    stand_in = tmp_path / "ncu"
    stand_in.write_text(f"#!/bin/sh\necho ==PROF==\ncat <<END\n{table}\nEND\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert ncu.launches("some.module", "k", ["a", "b"]) == [{"a": 1024.0, "b": 2.0}, {"a": 3.5, "b": 4.0}]
    stand_in.write_text("#!/bin/sh\necho may not read counters >&2\n")
    with pytest.raises(SystemExit, match="may not read counters"):
        ncu.launches("some.module", "k", ["a"])


def test_jobs_are_warmed_by_several_processes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first process of a job says when it is done; its helpers end with it, and what takes too long is said."""
    start, begun = subprocess.Popen, list[tuple[str, int]]()

    def process(command: list[str], **options: Any) -> Any:
        job, seed = command[3], int(command[-1])
        begun.append((job, seed))
        ends = "raise SystemExit('no such cell')" if job == "wrong" else "pass"
        lasts = job == "slow" or (seed > 0 and job == "quick")
        text = "import time; time.sleep(60)" if lasts else ends
        return start([sys.executable, "-S", "-c", text], **options)

    monkeypatch.setattr(warm.subprocess, "Popen", process)
    assert warm.pool(["quick", "wrong", "slow"], 4, 1.0, 2) == ["quick"]
    said = capfd.readouterr().out
    assert re.search(r"^quick: \d+ s$", said, re.M) and "no such cell" in said and "slow: not done in 1 s" in said
    assert begun[:3] == [("quick", 0), ("wrong", 0), ("slow", 0)]


def test_what_a_later_run_reads_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "a"
    folder.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx", "k.autotune.json"):
        (folder / name).write_text(name)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    warm.keep(tmp_path / "kept.tar")
    with tarfile.open(tmp_path / "kept.tar") as packed:
        assert sorted(packed.getnames()) == ["a/k.autotune.json", "a/k.cubin", "a/k.json"]


def test_what_sessions_measured_again_is_one_row_with_the_mean_of_each_way() -> None:
    """One session was slower on the whole, which is no way's: not of the one either that it alone measured."""
    shape, machine = schedule.AttentionShape(1, 1, 1, 64, 64, 64, False), schedule.DeviceModel()
    first, second, third = schedule.Way(), schedule.Way(stay=False), schedule.Way(consumers=1)
    sessions = [{first: 8.0, second: 10.0}, {first: 20.0, second: 16.0, third: 18.0}]
    rows = [(shape, machine, times) for times in sessions]
    ((_, _, times),) = fit.merged(rows)
    assert times[first] == pytest.approx(times[second]) == pytest.approx(160**0.5)
    assert times[third] == pytest.approx(times[first] * 18 / 320**0.5)
    assert fit.merged(rows[:1]) == rows[:1]
    assert fit.measured_again(rows) == [20 / 16, 10 / 8]  # the fastest of the first in the second, and the other way
