"""Nsight Compute's counters of the launches that a benchmark makes of itself in a process of its own.

A module that uses it launches its kernels, and nothing else, as `python -m MODULE launch`.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 300  # at most


def launches(module: str, kernels: str, metrics: Sequence[str], *options: str) -> list[dict[str, float]]:
    """The metrics by name of each launch of a kernel whose name `kernels` matches, in order.

    Raises `SystemExit` with what ncu said where it counted nothing: it is missing, or may not read counters.
    """
    command = ["ncu", "--clock-control", "none", *options, "--metrics", ",".join(metrics), "--csv"]
    command += ["--kernel-name", f"regex:{kernels}", sys.executable, "-m", module, "launch"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS)
    lines = done.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise SystemExit(f"{done.stdout}\n{done.stderr}")
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if row["Metric Name"] in metrics:
            found.setdefault(row["ID"], {})[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    return list(found.values())
