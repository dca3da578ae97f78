"""The tutorial's product in eight steps, each timed on a GPU beside torch's (cuBLAS): a row a step, under `ladder`.

python -m benchmarks.ladder
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pykittens.bench.timing import in_turn

from .record import record

STEPS = Path(__file__).parents[1] / "docs" / "tutorial" / "06_product_in_eight_steps.py"
N = 4096


def main() -> None:
    """Results are checked against float64 sums of small integers, then everybody takes turns."""
    a, b = (torch.randint(-2, 3, (N, N), device="cuda").bfloat16() for _ in range(2))
    exact = (a[:64].double() @ b.double()).bfloat16()
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    runs: dict[str, Callable[[], Any]] = {}
    for name, (kernel, counts) in runpy.run_path(str(STEPS))["STEPS"].items():
        c = torch.full((N, N), float("nan"), device="cuda", dtype=torch.bfloat16)
        arguments = (a, b, c, *([sms] if counts else []))
        kernel(*arguments)
        assert torch.equal(c[:64], exact) and not c.isnan().any(), name
        runs[name] = kernel.bind(*arguments)
    runs["torch (cuBLAS)"] = lambda: torch.mm(a, b)
    times = in_turn(runs, budget=120.0)
    rows = [
        {"step": name, "n": N, "milliseconds": found.median, "tflops": 2 * N**3 / found.median / 1e9}
        for name, found in times.items()
    ]
    for row in rows:
        print(f"{row['step']:24} {row['tflops']:7.1f} TFLOP/s")
    print("->", record("ladder", rows, ("step",)))


if __name__ == "__main__":
    main()
