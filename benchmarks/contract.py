"""The contract of every function over sequences with a state, whole and on the GPU: cases passed and failed by
function.

    python -m benchmarks.contract [--seconds S] [PYTEST ARGUMENT ...]    # by default -n 8

Files a row a function in benchmarks/results; after so many seconds, of the cases that have ended.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import reports
from .record import record

TEST = "tests/kernels/test_sequences.py"


def counts(cases: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a function, of the cases that ended."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"passed": 0, "failed": 0, "failures": []})
    for case in cases:
        row = found[function_of(case["name"])]
        row[case["outcome"]] = row.get(case["outcome"], 0) + 1
        if case["outcome"] == "failed":
            row["failures"].append(case["name"])
    return [{"what": f"contract of sequences: {function}", **row} for function, row in sorted(found.items())]


def function_of(case: str) -> str:
    """The function that a case is about, from its parameters: "test_steps_are_rows[mamba2]" is about mamba2."""
    from tests.kernels.test_sequences import ROWS

    parameters = re.search(r"\[(.*)\]", case)
    named = [name for name in ROWS if parameters and re.search(rf"(^|-){re.escape(name)}($|-)", parameters[1])]
    return max(named, key=len) if named else "all functions"


def main() -> int:
    """How many cases failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float)
    o, arguments = parser.parse_known_args()
    rows = counts(reports.run(["--whole", *(arguments or ("-n", "8")), TEST], Path.cwd(), o.seconds))
    for row in rows:
        print(f"{row['what']}: {row['passed']} passed, {row['failed']} failed {' '.join(row['failures'])}")
    print("->", record("conformance", rows, ("what",)))
    return sum(row["failed"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
