"""Public functions under NVIDIA's Compute Sanitizer: how many errors its tools find in all of them together.

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
        self.pulled(function(*[self.normal(*shape).requires_grad_() for shape in shapes], **settings))

    def pulled(self, *outs: Any) -> None:
        """Backward from all that a function gave."""
        made = [out for out in outs if out is not None]
        torch.autograd.backward(made, [torch.randn_like(out) for out in made])

    def decays(self, *shape: int) -> Any:
        """Logarithms of decays."""
        return (-torch.rand(*shape, device=self.device)).requires_grad_()

    def part(self, *shape: int) -> Any:
        """Numbers from 0 to 1."""
        return torch.rand(*shape, device=self.device).requires_grad_()

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

    def few_tiles(self) -> None:
        """Blocks divide the work on a tile of keys, in any order and in one."""
        for d in (64, 128, 256):
            for deterministic in (False, True):
                shapes = (1, 2, 900, d), (1, 1, 130, d), (1, 1, 130, d)
                self.graded(pk.attention, *shapes, causal=d == 64, deterministic=deterministic)

    def products(self) -> None:
        for rows in (7, 200):  # few rows are made as a transpose
            shapes = (rows, 264), (328, 264), (328,)
            self.graded(pk.linear, *shapes, activation="gelu")
            self.graded(pk.matmul, (rows, 264), (264, 328))

    def rows(self) -> None:
        seed = self.integers(5).long()
        self.graded(lambda x, y, w: pk.rmsnorm(x, w, residual=y, p=0.5, seed=seed)[0], (9, 1000), (9, 1000), (1000,))
        self.graded(lambda x, w, b: pk.layernorm(x, w, b), (9, 1024), (1024,), (1024,))
        self.graded(pk.softmax, (9, 1000))
        self.graded(pk.swiglu, (9, 1000), (9, 1000))

    def losses(self) -> None:
        targets = torch.arange(70, device=self.device) * 13
        targets[3] = -100
        self.pulled(pk.cross_entropy(self.normal(70, 1003).requires_grad_(), targets, label_smoothing=0.1))
        hidden, weight = self.normal(70, 256).requires_grad_(), self.normal(1003, 256).requires_grad_()
        self.pulled(pk.linear_cross_entropy(hidden, weight, targets))

    def recurrences(self) -> None:
        """Every function with a state, on rows that fill no chunk, whole and packed."""
        n = sum(LENGTHS)
        begins = torch.tensor([0, *LENGTHS], device=self.device).cumsum(0).int()
        for packed in ({}, {"cu_seqlens": begins}):
            q, k, v = (self.normal(1, 2, n, 64).requires_grad_() for _ in range(3))
            self.pulled(pk.gated_linear_attention(q, k, v, self.decays(1, 2, n), **packed))
            self.pulled(pk.gated_linear_attention(q, k, v, self.decays(1, 2, n, 64), **packed))
            self.pulled(pk.gated_delta_rule(q, k, v, self.part(1, 2, n), self.decays(1, 2, n), **packed))
            self.pulled(pk.kimi_delta_attention(q, k, v, self.part(1, 2, n), self.decays(1, 2, n, 64), **packed))
            x, b, c = (self.normal(1, n, heads, 64).requires_grad_() for heads in (2, 1, 1))
            self.pulled(pk.mamba2(x, self.part(1, n, 2), self.decays(2), b, c, **packed))
            rows, taps = self.normal(1, n, 72).requires_grad_(), self.normal(72, 4).requires_grad_()
            self.pulled(pk.causal_conv1d(rows, taps, activation="silu", **packed))
        self.graded(pk.linear_attention, *[(1, 2, 150, 64)] * 3)
        self.graded(pk.based, (1, 2, 150, 16), (1, 2, 150, 16), (1, 2, 150, 64))

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


FEATURES = (
    "dense",
    "window",
    "packed",
    "scores",
    "cached",
    "wide",
    "few_tiles",
    "products",
    "rows",
    "losses",
    "recurrences",
)


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
