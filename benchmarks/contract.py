"""The contract of every function over sequences with a state, whole and on the GPU: cases passed and failed by
function.

    python -m benchmarks.contract [PYTEST ARGUMENT ...]    # by default -n 8

Files a row a function in benchmarks/results.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections import defaultdict
from pathlib import Path
from typing import Any

from .record import record

TEST = "tests/kernels/test_sequences.py"


def counts(report: str) -> list[dict[str, Any]]:
    """A row a function, of pytest's report as XML."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"passed": 0, "failed": 0, "failures": []})
    for case in xml.fromstring(report).iter("testcase"):
        name = case.get("name", "")
        function = function_of(name)
        bad = case.find("failure") is not None or case.find("error") is not None
        found[function]["failed" if bad else "passed"] += 1
        if bad:
            found[function]["failures"].append(name)
    return [{"what": f"contract of sequences: {function}", **row} for function, row in sorted(found.items())]


def function_of(case: str) -> str:
    """The function that a case is about, from its parameters: "test_steps_are_rows[mamba2]" is about mamba2."""
    from tests.kernels.test_sequences import ROWS

    parameters = re.search(r"\[(.*)\]", case)
    named = [name for name in ROWS if parameters and re.search(rf"(^|-){re.escape(name)}($|-)", parameters[1])]
    return max(named, key=len) if named else "all functions"


def main() -> int:
    """How many cases failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        arguments = sys.argv[1:] or ("-n", "8")
        subprocess.run([sys.executable, "-m", "pytest", "-q", "--whole", f"--junitxml={report}", *arguments, TEST])
        rows = counts(report.read_text())
    for row in rows:
        print(f"{row['what']}: {row['passed']} passed, {row['failed']} failed {' '.join(row['failures'])}")
    print("->", record("conformance", rows, ("what",)))
    return sum(row["failed"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
