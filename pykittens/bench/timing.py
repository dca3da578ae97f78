"""How long GPU work takes: everybody in turn, by device events, behind a write that empties the L2 cache, medians.

A GPU throttles under load, so only times that were taken in turn compare, each turn in an order of its own: whoever
always followed the same other one would always have the GPU as hot as that leaves it. Before the write the GPU sleeps
for longer than any host takes to launch, so that the work is there when the GPU comes to it: else the time of a short
kernel would be its host's.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError

FLUSH = 256 << 20  # bytes written between two runs: more than any L2 holds
LEAST, MOST, WARM = 5, 100, 2  # turns
SLEEP, LONGEST = 1_000_000, 20_000_000  # cycles, at 1.5 to 2 GHz: 0.5 to 0.7 ms at least


@dataclass(frozen=True)
class Times:
    """Milliseconds of one run: the median, and the quarter and three quarters points of all."""

    median: float
    low: float
    high: float


def in_turn(runs: Mapping[str, Callable[[], Any]], budget: float = 60.0, least_sleep: int = SLEEP) -> dict[str, Times]:
    """The times of each of `runs`, about `budget` milliseconds of work each (and at least 5 turns). least_sleep: cycles
    before each, more where launching takes a host longer.
    """
    import torch

    scratch = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    first, sleep = {}, {}
    for name, run in runs.items():
        first[name] = [_event_pair(run, scratch) for _ in range(WARM)]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        first[name].append(_event_pair(run, scratch))
        host = time.perf_counter() - begin  # a gradient by autograd takes a host more than a launch
        sleep[name] = int(min(LONGEST, max(least_sleep, 4e9 * host)))
    torch.cuda.synchronize()
    slowest = max(_milliseconds(pairs[-1]) for pairs in first.values())
    turns = min(MOST, max(LEAST, round(budget / max(slowest, 1e-3))))
    pairs: dict[str, list[Any]] = {name: [] for name in runs}
    for turn in range(turns):
        for name in random.Random(turn).sample([*runs], len(runs)):
            pairs[name].append(_event_pair(runs[name], scratch, sleep[name]))
    torch.cuda.synchronize()
    return {name: _times([_milliseconds(pair) for pair in found]) for name, found in pairs.items()}


def _event_pair(run: Callable[[], Any], scratch: Any, sleep: int = SLEEP) -> tuple[Any, Any]:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(sleep)
    scratch.zero_()
    start.record()
    run()
    end.record()
    return start, end


def _milliseconds(pair: tuple[Any, Any]) -> float:
    return float(pair[0].elapsed_time(pair[1]))


def _times(found: list[float]) -> Times:
    low, median, high = statistics.quantiles(found, n=4)
    return Times(median, low, high)


def do_bench(
    run: Callable[[], Any] | Mapping[str, Callable[[], Any]], *, budget: float = 60.0
) -> Times | dict[str, Times]:
    """How long `run()` takes on the GPU, in milliseconds: median, quarter and three quarters points.

    Each run begins with an empty L2 cache, and behind a GPU that sleeps until the host has launched. `run` may be
    several by name, which take turns: the result is then a dictionary. `budget`: milliseconds of work for each, at
    least 5 runs. Needs torch with CUDA; raises `ArgumentError` where there is none.
    """
    try:
        import torch

        missing = "" if torch.cuda.is_available() else "there is no NVIDIA GPU that torch can use"
    except ImportError:
        missing = "do_bench measures with torch's events, and torch is not installed"
    if missing:
        raise ArgumentError(f"do_bench: {missing}", fix="run it where torch.cuda.is_available()")
    return in_turn(run, budget) if isinstance(run, Mapping) else in_turn({"": run}, budget)[""]
