"""The tests that need a GPU, counted: compiled operations against the simulator, the launch, torch operators, debug builds.

python -m benchmarks.conformance [PYTEST ARGUMENT ...]       # by default -n 8; files one row in benchmarks/results
python -m benchmarks.conformance --log FILE --like TABLE     # the row of an earlier run's log, on the machine of a table's rows
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from .record import RESULTS, read, record

TESTS = ("tests/cuda", "tests/interop", "tests/test_conformance.py")


def counts(log: str) -> dict[str, Any]:
    """Passed and failed tests of a pytest log, and the names of those that failed."""
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed)", log.strip().splitlines()[-1])}
    return {"passed": found.get("passed", 0), "failed": found.get("failed", 0), "failures": re.findall(r"^FAILED (\S+)", log, re.M)}


def main() -> int:
    """How many tests failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--like", default="bench_linear")
    o, more = parser.parse_known_args()
    if o.log:
        row = {"what": "tests on a GPU", **counts(o.log.read_text())}
        for file in RESULTS.glob("*.json"):
            rows = [r for r in read(file) if r["table"] != "conformance"]
            like = next(r for r in rows if r["table"] == o.like)
            where = {k: like[k] for k in ("device", "driver", "compiler", "python", "versions", "date")}
            rows.append({"table": "conformance", **row, **where, "command": f"pytest -m gpu {' '.join(TESTS)}"})
            file.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
        return int(row["failed"])
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *(more or ("-n", "8")), *TESTS], text=True, capture_output=True)
    print(done.stdout)
    row = {"what": "tests on a GPU", **counts(done.stdout)}
    print("->", record("conformance", [row], ("what",)))
    return int(row["failed"])


if __name__ == "__main__":
    sys.exit(main())
