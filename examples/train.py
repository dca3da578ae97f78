"""Trains a Llama-style model on the text of Python's standard library: by PyKittens, and by torch's functions.

    python -m examples.train                     # on a GPU; on a CPU, a tiny model for a few steps on the simulated GPU
    python -m examples.train --steps 200 --contenders PyKittens "torch, compiled"
    python -m examples.train --layer gated_delta_net       # in place of attention, beside flash-linear-attention's

Every contender starts from the same weights and sees the same batches: the weights are bfloat16, with float32 ones
behind them that AdamW changes. The losses, the speed and the memory are filed in `benchmarks/results`; `python -m
benchmarks.tables` then makes the table and the chart. Needs `pip install '.[transformers]' torch`, for its BPE.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import record

from . import text
from .llama import FlaDelta, Llama, PyKittens, PyKittensDelta, Shape, Torch

LARGE = Shape(32768, size=1024, layers=12, heads=8, key_heads=4, head_dim=128, hidden=2816, length=4096)
TINY = Shape(300, size=64, layers=1, heads=2, key_heads=1, head_dim=64, hidden=64, length=16)
CONTENDERS: dict[str, dict[str, tuple[Any, bool]]] = {  # by layer: the kit of parts, and whether it is compiled
    "attention": {
        "PyKittens": (PyKittens, False),
        "torch": (Torch, False),
        "torch, compiled": (Torch, True),
        "PyKittens, compiled": (PyKittens, True),
    },
    "gated_delta_net": {
        "PyKittens": (PyKittensDelta, False),
        "fla": (FlaDelta, False),
        "fla on PyKittens": (FlaDelta, False),
        "PyKittens, compiled": (PyKittensDelta, True),
    },
}
ON_CPU = {"attention": ["PyKittens", "torch"], "gated_delta_net": ["PyKittens"]}
WARM = 10  # steps that are not timed


class Optimizer:
    """AdamW on float32 copies of 16-bit parameters, with clipped gradients; the rate rises, then falls as a cosine."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], steps: int, rate: float) -> None:
        self.parameters = [*parameters]
        self.masters = [x.detach().float().clone() for x in self.parameters]
        for x in self.masters:
            x.grad = torch.empty_like(x)
        self.steps, self.warm, self.rate = steps, max(1, steps // 10), rate
        self.adam = torch.optim.AdamW(self.masters, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(self, i: int) -> None:
        part = (i - self.warm) / max(1, self.steps - self.warm)
        share = (i + 1) / self.warm if i < self.warm else 0.55 + 0.45 * math.cos(math.pi * part)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * share
        torch._foreach_copy_([x.grad for x in self.masters], [x.grad for x in self.parameters])
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.adam.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)
        for x in self.parameters:
            x.grad = None


def train(
    contender: str, shape: Shape, tokens: torch.Tensor, steps: int, size: int, device: str, layer: str = "attention"
) -> dict[str, Any]:
    """Losses of all steps; tokens a second, from the median of the steps; the most memory that was allocated."""
    kit, compiled = CONTENDERS[layer][contender]
    torch.manual_seed(0)
    model = Llama(shape, CONTENDERS[layer]["PyKittens"][0])
    if kit is not model.kit:  # the same weights
        weights, model = model.state_dict(), Llama(shape, kit)
        model.load_state_dict(weights)
    model = model.to(device)
    for x in model.parameters():
        x.data = x.data.to(torch.bfloat16)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    optimizer = Optimizer(model.parameters(), steps, 1e-3)
    losses, marks = [], [mark(device)]
    for i, windows in enumerate(text.batches(tokens.to(device), steps, size, shape.length)):
        if i == WARM and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loss = forward(windows[:, :-1], windows[:, 1:])
        loss.backward()
        optimizer.step(i)
        losses.append(loss.detach())
        marks.append(mark(device))
    took = durations(marks)
    step = statistics.median(took[WARM:] or took)
    return {
        "contender": contender,
        "parameters": sum(x.numel() for x in model.parameters()),
        **shape._asdict(),
        "batch": size,
        "steps": steps,
        "step_ms": step * 1e3,
        "tokens_per_second": size * shape.length / step,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "losses": [round(float(x), 4) for x in losses],
    }


@contextmanager
def kernels_of(contender: str) -> Iterator[None]:
    """Within it, "fla on PyKittens" has our kernels."""
    if contender != "fla on PyKittens":
        yield
        return
    from pykittens.integrations import fla

    fla.enable()
    try:
        yield
    finally:
        fla.disable()


def mark(device: str) -> Any:
    """A point in time, of the GPU's work where there is one."""
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def durations(marks: list[Any]) -> list[float]:
    """The seconds between one mark and the next."""
    if isinstance(marks[0], float):
        return [b - a for a, b in pairwise(marks)]
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the contenders, and files what was measured on a GPU, or where `--out` says."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=CONTENDERS, default="attention")
    parser.add_argument("--contenders", nargs="+", help="all of those of the layer unless given")
    parser.add_argument("--steps", type=int, default=300 if device == "cuda" else 4)
    parser.add_argument("--batch", type=int, default=8 if device == "cuda" else 2)
    parser.add_argument("--out", type=Path, help="the results file, instead of benchmarks/results/<device>.json")
    o = parser.parse_args(arguments)
    contenders = o.contenders or ([*CONTENDERS[o.layer]] if device == "cuda" else ON_CPU[o.layer])
    if unknown := [x for x in contenders if x not in CONTENDERS[o.layer]]:
        parser.error(f"no contender {unknown[0]!r}: {', '.join(CONTENDERS[o.layer])}")
    table = "training" if o.layer == "attention" else f"training_{o.layer}"
    shape = LARGE if device == "cuda" else TINY
    start = time.perf_counter()
    texts = list(text.files(None if device == "cuda" else 100_000))
    tokenizer = text.learn(texts, shape.vocabulary)
    tokens = text.encode(tokenizer, texts)
    print(f"{len(tokens):,} tokens of {tokenizer.get_vocab_size():,} kinds in {time.perf_counter() - start:.0f} s")
    rows = []
    for contender in contenders:
        start = time.perf_counter()
        with kernels_of(contender):
            row = train(contender, shape, tokens, o.steps, o.batch, device, o.layer) | {"text_tokens": len(tokens)}
        memory = f", {row['peak_gib']:.1f} GiB" if row["peak_gib"] else ""
        said = f"{row['tokens_per_second']:,.0f} tokens/s, {row['step_ms']:.1f} ms a step{memory}"
        print(f"{contender}: loss {row['losses'][0]:.3f} -> {row['losses'][-1]:.3f}, {said}", end=" ")
        print(f"({time.perf_counter() - start:.0f} s in all)", flush=True)
        rows.append(row)
        if device == "cuda" or o.out:  # one by one, so that what was measured is kept
            record(table, [row], ("contender", "parameters"), o.out)
        gc.collect()
        torch.cuda.empty_cache()
    return rows


if __name__ == "__main__":
    main()
