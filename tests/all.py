"""What every change must pass: style, types, tests. `python tests/all.py` runs all of it, also after a failure.

    python tests/all.py --whole               # exhaustive tests are whole, not thin (`tests/thin.py`)
    python tests/all.py --whole removals      # those of some kinds alone, and no other check

That is every configuration of every kernel, for every architecture: it takes long, and has no budget. Each kind of test
runs by itself and is filed in benchmarks/results. What is filed there is said at the end of every run, whole or not:
which tests failed, which fails the run too, until that kind has passed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = ("pytest", "-q", "-n", "auto", "--dist", "worksteal")
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    (*PYTEST, "--timeout", "240", "--budget"),
    # Tables in the texts that no longer say what benchmarks/results holds.
    ("benchmarks.tables", "--check"),
)
REST = "everything else"
# Seconds of a processor that a kind of test may take. Five minutes of two cores are asked, 600 in all. Processors
# differ: these are a quarter to a half above what was taken where a loop of 30 million additions in Python takes 3.0 s
# (627 in all; it takes 4.6 on a slower one), so that what grows is seen.
BUDGET = {
    "compiled kernels": 165,
    "simulated kernels": 180,
    "removals": 85,
    "operations": 45,
    "torch and functions": 170,
    REST: 170,
}
KINDS = {
    "tests/test_kernels_compile.py": "compiled kernels",
    "tests/gpu": "compiled kernels",
    "tests/test_kernels_simulate.py": "simulated kernels",
    "tests/kernels": "simulated kernels",
    "tests/test_removal.py": "removals",
    "tests/ops": "operations",
    "tests/test_conformance.py": "operations",
    "tests/test_thread_map.py": "operations",
    "tests/functions": "torch and functions",
    "tests/integrations": "torch and functions",
    "tests/examples": "torch and functions",
    "tests/call": "torch and functions",
}


def kind_of(test: str) -> str:
    """The kind of a test, by its id."""
    return next((kind for path, kind in KINDS.items() if test.startswith(path)), REST)


def places(kind: str) -> list[str]:
    """What pytest is told so that it runs the tests of a kind."""
    if kind == REST:
        return ["tests", *(f"--ignore={path}" for path in KINDS)]
    return [path for path, its in KINDS.items() if its == kind]


def filed() -> tuple[list[str], bool]:
    """What is filed of the whole form, the newest of each kind, in lines; and whether some of it failed."""
    files = (ROOT / "benchmarks" / "results").glob("*.json")
    rows = [row for file in files for row in json.loads(file.read_text()) if row["table"] == "whole"]
    newest = {row["kind"]: row for row in sorted(rows, key=lambda row: (row["date"], row["time"]))}
    lines = []
    for kind in BUDGET:
        row = newest.get(kind)
        lines.append(f"whole, {kind}: " + (f"{row['date']}, {row['passed']} passed" if row else "not filed"))
        lines += [f"    failed: {test}" for test in row["failing"]] if row else []
    return lines, any(row["failing"] for row in newest.values())


def main() -> int:
    """The number of checks that failed."""
    failed, told = [], sys.argv[1:]
    whole, kinds = "--whole" in told, [x for x in told if x != "--whole"]
    if wrong := [kind for kind in kinds if kind not in BUDGET or not whole]:
        raise SystemExit(f"{', '.join(wrong)}? Kinds of tests, after --whole: {', '.join(BUDGET)}")
    exhaustive = [(*PYTEST, "--timeout", "3600", "--whole", "--record", *places(kind)) for kind in kinds or BUDGET]
    checks = [x for check in CHECKS for x in (exhaustive if whole and check[0] == "pytest" else [check])]
    for check in exhaustive if kinds else checks:
        print(f"\n$ {' '.join(check)}", flush=True)
        start = time.perf_counter()
        if subprocess.run([sys.executable, "-m", *check], cwd=ROOT).returncode:
            failed.append(" ".join(check))
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    lines, red = filed()
    print("", *lines, sep="\n")
    if red and not whole:
        failed.append("the whole form, as it is filed")
    print("\nfailed: " + ", ".join(failed) if failed else "\nall checks passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
