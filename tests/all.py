"""What every change must pass: style, types, tests. `python tests/all.py` runs all of it, also after a failure.

`python tests/all.py --whole` also runs whole what is exhaustive and runs thin otherwise (`tests/thin.py`): every
configuration of every kernel, for every architecture. That takes long, has no budget, and is filed in
benchmarks/results: how many tests of each kind passed and failed.
"""

import subprocess
import sys
import time
from pathlib import Path

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest", "-q", "-n", "auto", "--dist", "worksteal", "--timeout", "240", "--budget"),
    # Tables in the texts that no longer say what benchmarks/results holds.
    ("benchmarks.tables", "--check"),
)
# Seconds of a processor that a kind of test may take. Five minutes of two cores are asked, 600 in all. Processors
# differ: these are a quarter to a half above what was taken where a loop of 30 million additions in Python takes 3.0 s
# (627 in all; it takes 4.6 on a slower one), so that what grows is seen.
BUDGET = {
    "compiled kernels": 165,
    "simulated kernels": 180,
    "removals": 85,
    "operations": 45,
    "torch and functions": 170,
    "everything else": 170,
}
KINDS = {
    "tests/test_kernels_compile": "compiled kernels",
    "tests/gpu": "compiled kernels",
    "tests/test_kernels_simulate": "simulated kernels",
    "tests/kernels": "simulated kernels",
    "tests/test_removal": "removals",
    "tests/ops": "operations",
    "tests/test_conformance": "operations",
    "tests/test_thread_map": "operations",
    "tests/functions": "torch and functions",
    "tests/integrations": "torch and functions",
    "tests/examples": "torch and functions",
    "tests/call": "torch and functions",
}


def kind_of(test: str) -> str:
    """The kind of a test, by its id."""
    return next((kind for path, kind in KINDS.items() if test.startswith(path)), "everything else")


def main() -> int:
    """The number of checks that failed."""
    failed = []
    whole = "--whole" in sys.argv[1:]
    for check in CHECKS:
        if whole and check[0] == "pytest":
            check = ("pytest", "-q", "-n", "auto", "--dist", "worksteal", "--whole", "--record")
        print(f"\n$ {' '.join(check)}", flush=True)
        start = time.perf_counter()
        if subprocess.run([sys.executable, "-m", *check], cwd=Path(__file__).parents[1]).returncode:
            failed.append(" ".join(check))
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    print("\nfailed: " + ", ".join(failed) if failed else "\nall checks passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
