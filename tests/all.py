"""What every change must pass: style, types, tests. `python tests/all.py` runs all of it, also after a failure."""

import subprocess
import sys
import time
from pathlib import Path

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest", "-q", "-n", "auto", "--timeout", "240"),
    # Tables in the texts that no longer say what benchmarks/results holds.
    ("benchmarks.tables", "--check"),
)


def main() -> int:
    """The number of checks that failed."""
    failed = []
    for check in CHECKS:
        print(f"\n$ {' '.join(check)}", flush=True)
        start = time.perf_counter()
        if subprocess.run([sys.executable, "-m", *check], cwd=Path(__file__).parents[1]).returncode:
            failed.append(" ".join(check))
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    print("\nfailed: " + ", ".join(failed) if failed else "\nall checks passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
