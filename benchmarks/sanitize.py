"""Attention's features under NVIDIA's Compute Sanitizer: how many errors its tools find in all of them together.

    python -m benchmarks.sanitize --compile-only     # only fills the cache (PYKITTENS_CACHE); needs no GPU
    python -m benchmarks.sanitize --out FILE         # every tool; or --tools memcheck synccheck

Each tool watches one process that runs each feature, forward and backward, at sizes where no tile is full.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pykittens as pk

from .families import compiling
from .record import record

TOOLS = ("memcheck", "synccheck", "racecheck", "initcheck")
KEY = ("tool",)
LENGTHS = (100, 0, 150, 3)


class Run:
    """The features on a device."""

    def __init__(self, device: str):
        self.device = device

    def normal(self, *shape: int) -> Any:
        return torch.randn(*shape, device=self.device).bfloat16()

    def integers(self, *values: int) -> Any:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def graded(self, function: Callable[..., Any], *shapes: tuple[int, ...], **settings: Any) -> None:
        """Forward and backward."""
        given = [self.normal(*shape).requires_grad_() for shape in shapes]
        out = function(*given, **settings)
        out.backward(self.normal(*out.shape))

    def dense(self) -> None:
        for d, heads in ((64, 2), (128, 1)):
            self.graded(pk.attention, (1, 2, 200, d), (1, heads, 330, d), (1, heads, 330, d), causal=d != 128)

    def wide(self) -> None:
        """Heads of 256, whose backward pass is a kernel of clusters."""
        self.graded(pk.attention, (1, 2, 200, 256), (1, 2, 330, 256), (1, 2, 330, 256), causal=True)

    def window(self) -> None:
        sinks = torch.ones(2, device=self.device, requires_grad=True)
        shapes = (1, 2, 200, 64), (1, 1, 330, 64), (1, 1, 330, 64)
        self.graded(pk.attention, *shapes, window=(70, 20), softcap=3.0, sinks=sinks)

    def packed(self) -> None:
        begins = torch.tensor([0, *LENGTHS], device=self.device).cumsum(0).int()
        for how in ({"causal": True}, {"score": _relative, "mask": _near, "score_operands": [self.table()]}):
            rows = [(sum(LENGTHS), heads, 64) for heads in (2, 1, 1)]
            self.graded(lambda *x, how=how: pk.attention_varlen(*x, begins, **how), *rows)

    def scores(self) -> None:
        how: Any = {"score": _relative, "score_operands": [self.table()], "mask": _near}
        self.graded(pk.attention, (1, 2, 200, 64), (1, 1, 330, 64), (1, 1, 330, 64), **how)

    def table(self) -> Any:
        return torch.randn(2, 300, device=self.device).requires_grad_()

    @torch.no_grad()
    def cached(self) -> None:
        """Rows are appended to caches and pages of 16 and of 8 bits, and queries look at them."""
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            scale = torch.full((2,), 0.5, device=self.device) if dtype.itemsize == 1 else None
            for page, n, split in ((0, 1, None), (16, 1, 128), (64, 5, None)):
                shape = (12, 2, page, 64) if page else (3, 2, 192, 64)
                caches = [self.normal(*shape).to(dtype) for _ in range(2)]
                table = torch.arange(12, device=self.device).int().view(3, 4) if page else None
                lengths, new = self.integers(n, 33, 64), [self.normal(3, 2, n, 64) for _ in range(2)]
                told = {"k_scale": scale, "v_scale": scale}
                pk.cache_append(*new, *caches, lengths, table, **told)
                pk.attention_cached(self.normal(3, 8, n, 64), *caches, lengths, table, split=split, **told)


def _relative(s: Any, batch: Any, head: Any, row: Any, col: Any, table: Any) -> Any:
    return s + table[head, row - col + 150]


def _near(batch: Any, head: Any, row: Any, col: Any) -> Any:
    return (row - col < 90) & (col - row < 90)


FEATURES = ("dense", "window", "packed", "scores", "cached", "wide")


def run(device: str) -> None:
    for name in FEATURES:
        print(name, flush=True)
        getattr(Run(device), name)()
    if device == "cuda":
        torch.cuda.synchronize()


def watch(tool: str) -> dict[str, Any]:
    """A row: the errors that a tool counts."""
    start = time.perf_counter()
    command = ["compute-sanitizer", "--tool", tool, sys.executable, "-m", "benchmarks.sanitize", "--run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    found = re.findall(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", said)
    tried = [name for name in FEATURES if re.search(rf"^{name}$", said, re.MULTILINE)]
    row = {"tool": tool, "features": tried, "errors": int(found[-1]) if found else -1, "exit": done.returncode}
    print(row, f"{time.perf_counter() - start:.0f} s", flush=True)
    if row["errors"] or done.returncode:
        print("\n".join(said.splitlines()[:60]), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", nargs="*", default=TOOLS, choices=TOOLS)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--run", action="store_true", help="the features, in this process")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--out", type=Path, help="the results file, instead of benchmarks/results/<device>.json")
    o = parser.parse_args()
    if o.compile_only:
        with compiling(o.arch):
            run("cpu")
    elif o.run:
        run("cuda")
    else:
        print("->", record("sanitizer", [watch(tool) for tool in o.tools], KEY, o.out))


if __name__ == "__main__":
    main()
