"""Tests in a process of their own, each as it ends: what ran is known even where the time was up before all had.

As a plugin (`-p benchmarks.reports`) it writes a line a test into the file that `REPORTS` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPORTS = "PYKITTENS_TEST_REPORTS"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}  # of each of many processes


def run(arguments: Sequence[str], folder: Path, seconds: float | None = None) -> list[dict[str, Any]]:
    """Runs pytest in a folder, for so long at most. Of each test that ended: its name, "passed", "failed" or "skipped",
    why, and its properties.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "reports")
        paths = os.pathsep.join((os.getcwd(), os.environ.get("PYTHONPATH", "")))
        environment = os.environ | ONE_THREAD | {REPORTS: str(file), "PYTHONPATH": paths}
        environment.pop("PYTEST_XDIST_WORKER", None)  # it runs tests of its own
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.reports", *arguments]
        try:
            subprocess.run(command, cwd=folder, env=environment, timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"stopped after {seconds:.0f} s", flush=True)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def pytest_runtest_logreport(report: Any) -> None:
    """A test has ended where its call was made, or where what comes before or after it went wrong."""
    controls = "PYTEST_XDIST_WORKER" not in os.environ
    if controls and REPORTS in os.environ and (report.when == "call" or report.outcome != "passed"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")[-300:]
        row = {"name": report.nodeid.partition("::")[2], "outcome": report.outcome, "why": why}
        with open(os.environ[REPORTS], "a") as file:
            file.write(json.dumps(row | {"properties": {k: str(v) for k, v in report.user_properties}}) + "\n")
