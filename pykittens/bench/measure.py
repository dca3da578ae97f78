"""One cell: correctness before timing, then everybody in turn; the row of results it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .timing import in_turn

OURS = "PyKittens"
DEVICE = "cuda"
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One configuration of a family. `facts` say which; `work` counts operations, or bytes that must move."""

    facts: Mapping[str, Any]
    work: float
    unit: str = "TFLOP/s"  # or GB/s

    @property
    def label(self) -> str:
        """Its facts as words: "batch 4, heads 16, n 4096, dim 128, causal"."""
        words = (
            (name if value else "")
            if isinstance(value, bool)
            else value
            if isinstance(value, str)
            else f"{name} {value}"
            for name, value in self.facts.items()
        )
        return ", ".join(word for word in words if word)

    def rate(self, milliseconds: float) -> float:
        """TFLOP/s or GB/s."""
        return self.work / milliseconds / (1e9 if self.unit == "TFLOP/s" else 1e6)


@dataclass(frozen=True)
class Trial:
    """Who computes a cell, on inputs made for it, and how good their results are.

    `error` compares a result with float64; `limit` says from everybody's errors how large ours may be. A peer that is
    in `only_timed` computes something of the same cost, such as a copy of as many bytes. `memory`: whether the rows say
    how many bytes a run holds at most beside operands and results.
    """

    runs: dict[str, Callable[[], Any]]
    error: Callable[[Any], float]
    limit: Callable[[dict[str, float]], float]
    only_timed: frozenset[str] = field(default=frozenset())
    memory: bool = False


def measure(cell: Cell, trial: Trial, budget: float = 60.0) -> Row:
    """The row of a cell. Wrong results, and peers that fail, are said in `problem` and not timed."""
    row: Row = {**cell.facts, "unit": cell.unit}
    runs, errors, problems = dict(trial.runs), {}, {}
    held: dict[str, int | None] = {}
    for name in list(runs):
        try:
            with poisoned() if name == OURS else _nothing():
                result, held[name] = _and_memory(runs[name]) if trial.memory else (runs[name](), None)
            if name not in trial.only_timed:
                errors[name] = trial.error(result)
            del result
        except Exception as error:
            problems[name] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
            del runs[name]
    if OURS in errors:
        limit = trial.limit(errors)
        row |= {"error": errors[OURS], "limit": limit}
        if not errors[OURS] <= limit:  # NaN is not
            problems[OURS] = f"an error of {errors[OURS]:.3g}, where {limit:.3g} is allowed"
    if OURS in problems:
        return {**row, "problem": problems[OURS]}
    times = in_turn(runs, budget)
    ours = times.pop(OURS)
    row |= {"ms": ours.median, "low": ours.low, "high": ours.high, "rate": cell.rate(ours.median)}
    row["peers"] = {
        name: {"ms": t.median, "rate": cell.rate(t.median), "ratio": t.median / ours.median, "error": errors.get(name)}
        for name, t in times.items()
    } | {name: {"problem": problem} for name, problem in problems.items()}
    if trial.memory:
        row["memory"] = held[OURS]
        for name in times:
            row["peers"][name]["memory"] = held[name]
    return row


def _and_memory(run: Callable[[], Any]) -> tuple[Any, int]:
    """A result, and the bytes that were held at most beside it and what was there before."""
    import torch

    run()  # what it compiles or keeps for later calls is no part of it
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


def normal(*shape: int, dtype: Any = None) -> Any:
    """A tensor of random normal numbers, bf16 unless said."""
    import torch

    return torch.randn(*shape, device=DEVICE).to(dtype or torch.bfloat16)


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, what torch allocates without a value is NaN: an element that nobody wrote shows."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def row_error(result: Any, exact: Any) -> float:
    """The largest row-wise relative error, in the 2-norm over the last axis, of tensors. NaN is an infinite error."""
    import torch

    error = (result.double() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(error.nan_to_num(torch.inf).max())
