"""The tests that need a GPU, counted: compiled operations against the simulator, the launch, torch operators, debug
builds.

python -m benchmarks.conformance [PYTEST ARGUMENT ...]       # by default -n 8; files one row in benchmarks/results
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from .record import record

TESTS = ("tests/gpu", "tests/interop", "tests/test_operators.py", "tests/test_conformance.py")


def counts(log: str) -> dict[str, Any]:
    """Passed and failed tests of a pytest log, and the names of those that failed."""
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed)", log.strip().splitlines()[-1])}
    return {
        "passed": found.get("passed", 0),
        "failed": found.get("failed", 0),
        "failures": re.findall(r"^FAILED (\S+)", log, re.M),
    }


def main() -> int:
    """How many tests failed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *(sys.argv[1:] or ("-n", "8")), *TESTS],
        text=True,
        capture_output=True,
    )
    print(done.stdout)
    row = {"what": "tests on a GPU", **counts(done.stdout)}
    print("->", record("conformance", [row], ("what",)))
    return int(row["failed"])


if __name__ == "__main__":
    sys.exit(main())
