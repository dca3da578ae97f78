"""Two versions of PyKittens in turn on one GPU: the cells of `pykittens bench`, new beside old.

    git worktree add ../old v0.1.0
    python -m benchmarks.versions ../old . --families attention gemm linear memory --seconds 200

Each version runs in a process of its own, which makes the cell's operands and waits; then the two take turns, so that
both see the same card, warm to the same degree. A cell under `--again` is measured once more. Files the rows under
`versions`: milliseconds of both, and old / new (above 1: the new version is faster).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS, RUNS = 7, 5  # turns of each version, and launches in a turn


class Version:
    """A process that has one version of the package, and measures cells of it when it is told to."""

    def __init__(self, folder: Path):
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: Any) -> Any:
        """The answer to one request. RuntimeError with the other side's words if it failed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("answer "):
                answer = json.loads(line.removeprefix("answer "))
                if isinstance(answer, dict) and "failed" in answer:
                    raise RuntimeError(answer["failed"])
                return answer
        raise RuntimeError("the process has ended")


def serve() -> None:
    """Answers requests, a line each: ["cells", family], ["prepare", family, number], ["time"]."""
    import torch

    from pykittens.bench.families import FAMILIES
    from pykittens.bench.measure import OURS
    from pykittens.bench.timing import FLUSH, _event_pair, _milliseconds

    scratch = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    run: Any = None
    for line in sys.stdin:
        what, *rest = json.loads(line)
        try:
            answer: Any = None
            if what == "cells":
                answer = [cell.label for cell in FAMILIES[rest[0]].cells()]
            elif what == "prepare":
                run = None
                torch.cuda.empty_cache()
                torch.manual_seed(rest[1])
                trial = FAMILIES[rest[0]].trial(FAMILIES[rest[0]].cells()[rest[1]], False)
                run = trial.runs[OURS]
                answer = trial.error(run())
            elif what == "time":
                with torch.no_grad():
                    pairs = [_event_pair(run, scratch) for _ in range(RUNS)]
                torch.cuda.synchronize()
                answer = [_milliseconds(pair) for pair in pairs[1:]]
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print("answer", json.dumps(answer), flush=True)


def compare(old: Version, new: Version, family: str, number: int, label: str) -> dict[str, Any]:
    """The row of one cell."""
    errors = [version.ask("prepare", family, number) for version in (old, new)]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].extend((old, new)[which].ask("time"))
    a, b = (statistics.median(found) for found in times)
    return {
        "family": family,
        "cell": label,
        "old_ms": a,
        "ms": b,
        "ratio": a / b,
        "old_error": errors[0],
        "error": errors[1],
    }


def main() -> int:
    """0 if each family's geometric mean is at least 0.995 and no cell is under 0.98."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--families", nargs="+", default=["attention", "gemm", "linear", "memory"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so long")
    parser.add_argument("--again", type=float, default=0.98, help="a cell under this ratio is measured once more")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    from benchmarks.record import record

    start, rows, failed = time.perf_counter(), [], 0
    old, new = Version(o.old), Version(o.new)
    for family in o.families:
        shared = set(old.ask("cells", family))
        for number, label in enumerate(new.ask("cells", family)):
            if label not in shared or time.perf_counter() - start > o.seconds:
                continue
            try:
                row = compare(old, new, family, number, label)
                if row["ratio"] < o.again:
                    row = {**compare(old, new, family, number, label), "first_ratio": row["ratio"]}
            except RuntimeError as error:
                print(f"{family}, {label}: {error}", flush=True)
                failed += 1
                continue
            rows.append(row)
        ratios = [row["ratio"] for row in rows if row["family"] == family]
        if ratios:
            mean, least = math.exp(statistics.fmean(map(math.log, ratios))), min(ratios)
            failed += not (mean >= 0.995 and least >= 0.98)
            print(f"{family}: old / new geometric mean {mean:.4f}, least {least:.4f}, {len(ratios)} cells", flush=True)
            for row in rows:
                if row["family"] == family and row["ratio"] < 0.99:
                    print(f"    {row['cell']}: {row['ratio']:.4f} ({row['ms']:.4g} ms)", flush=True)
    record("versions", rows, ("family", "cell"), o.out)
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main())
